"""Multi-head attention (torch.nn.MultiheadAttention): split, attend, concatenate, project."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .. import _random, ops
from ._arrays import Array, array_module, check_array, check_shape, shape_text
from ._attend import KVCache, attend_vjp
from ._init import PRECISIONS, Initializer, check_choice, check_probability, check_size
from ._masks import causal_keep, merged_mask, padded_columns
from .linear import Linear
from .module import Module, Parameter, Pullback

_PARTS = ("query", "key", "value")


class MultiheadAttention(Module):
    """query [L, N, E], key [S, N, kdim], value [S, N, vdim] -> output [L, N, E], weights or None.

    With batch_first, N comes first; without N, [L, E] and so on. Arguments, parameter names,
    initialisation and masks as in torch.nn.MultiheadAttention: in `attn_mask` [L, S] or
    [N * num_heads, L, S] and `key_padding_mask` [N, S], True means *ignore*; float masks are added.
    weights [N, L, S] are averaged over heads, or [N, num_heads, L, S]. A row that may attend
    nowhere gives 0 (before the output bias) where torch gives NaN. `is_causal` needs no attn_mask.

    Step-by-step decoding: pass `cache=KVCache()`, the same one at every step; then `is_causal`
    counts positions from the cache's start, and masks span all keys.

    The pullback takes the gradient of output, or the pair of both results' gradients, and returns
    (dquery, dkey, dvalue), separate even where query is key is value. Masks receive none.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        *,
        precision: str | None = None,
        dtype: Any = np.float32,
        rng: np.random.Generator | None = None,
    ) -> None:
        self.embed_dim = check_size(embed_dim, "embed_dim")
        self.num_heads = check_size(num_heads, "num_heads")
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim must be a multiple of num_heads = {num_heads}, got {embed_dim}")
        self.head_dim = embed_dim // num_heads
        self.dropout = check_probability(dropout, "dropout")
        self.kdim = embed_dim if kdim is None else check_size(kdim, "kdim")
        self.vdim = embed_dim if vdim is None else check_size(vdim, "vdim")
        self.batch_first = bool(batch_first)
        self.add_zero_attn = bool(add_zero_attn)
        self.precision = check_choice(precision, "precision", PRECISIONS)
        init = Initializer(rng, dtype)
        sizes = (embed_dim, self.kdim, self.vdim)
        self._packed = set(sizes) == {embed_dim}
        if self._packed:
            self.in_proj_weight = init.uniform(math.sqrt(6 / (4 * embed_dim)), 3 * embed_dim, embed_dim)
        else:
            for letter, size in zip("qkv", sizes, strict=True):
                bound = math.sqrt(6 / (embed_dim + size))
                setattr(self, f"{letter}_proj_weight", init.uniform(bound, embed_dim, size))
        self.in_proj_bias = init.constant(0, 3 * embed_dim) if bias else None
        self.bias_k = _xavier_normal(init, embed_dim) if add_bias_kv else None
        self.bias_v = _xavier_normal(init, embed_dim) if add_bias_kv else None
        self.out_proj = Linear(embed_dim, embed_dim, bias, precision=precision, dtype=dtype, rng=rng)
        if self.out_proj.bias is not None:
            self.out_proj.bias.data[...] = 0

    def __call__(
        self,
        query: Array,
        key: Array | None,
        value: Array | None,
        key_padding_mask: Array | None = None,
        need_weights: bool = True,
        attn_mask: Array | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
        *,
        cache: KVCache | None = None,
    ) -> tuple[Array, Array | None]:
        arguments = (key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal)
        return self._run(query, key, value, *arguments, cache=cache)[0]

    def vjp(
        self,
        query: Array,
        key: Array,
        value: Array,
        key_padding_mask: Array | None = None,
        need_weights: bool = True,
        attn_mask: Array | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[tuple[Array, Array | None], Pullback]:
        arguments = (key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal)
        y, pull = self._run(query, key, value, *arguments)
        return y, Pullback(pull)

    def self_vjp(self, x: Array, *, cache: KVCache | None = None, **masks: Any) -> tuple[Array, Any]:
        """Self-attention of x without weights; the pullback returns (dx,), from one product."""
        (y, _), pull = self._run(
            x, x, x, masks.get("key_padding_mask"), False, masks.get("attn_mask"), True,
            masks.get("is_causal", False), cache=cache, summed=True,
        )  # fmt: skip
        return y, pull

    def _run(
        self, query: Array, key: Any, value: Any, key_padding_mask: Array | None, need_weights: bool,
        attn_mask: Array | None, average: bool, is_causal: bool, *, cache: KVCache | None = None,
        summed: bool = False,
    ) -> tuple[tuple[Array, Array | None], Callable[..., Any]]:  # fmt: skip
        batched = self._check(query, key, value, cache)
        if not batched and key_padding_mask is not None:
            key_padding_mask = key_padding_mask[None]
        (q, k, v), project_back = self._project(query, key, value, summed)
        if cache is not None:
            k, v = cache.append(k, v) if k is not None else (cache.key, cache.value)
        k, v, extend_back = self._extend(k, v)
        extra = (self.bias_k is not None) + self.add_zero_attn
        shape = (*q.shape[:3], k.shape[2] - extra)
        mask = merged_mask(attn_mask, key_padding_mask, shape, q.dtype)
        options: dict[str, Any] = {"precision": self.precision}
        if is_causal and extra:  # the added keys are for everyone
            mask = _and(mask, causal_keep(array_module(q), *shape[2:], bottom_right=cache is not None))
        elif is_causal:
            options["causal"] = "bottom_right" if cache is not None else "top_left"
        if self.training and self.dropout:
            options |= {"dropout_p": self.dropout, "dropout_seed": _random.draw_seed()}
        mask = padded_columns(mask, extra)
        out, weights, pull_attention = attend_vjp(q, k, v, mask, need_weights=need_weights, **options)
        y, pull_out = self.out_proj.vjp(self._joined(out, batched))
        if weights is not None:
            weights = weights.mean(axis=1, dtype=weights.dtype) if average else weights
            weights = weights if batched else weights[0]

        def pull(grads: Any = None) -> Any:
            dy, dweights = grads if isinstance(grads, tuple) else (grads, None)
            if dweights is not None:
                if weights is None:
                    raise ValueError("gradient of weights must be None without need_weights")
                check_shape(dweights, weights.shape, "gradient of weights")
                dweights = self._spread(dweights, average, batched)
            dout = self._split(pull_out(dy)[0], batched)
            dq, dk, dv, _ = pull_attention(dout, dweights)
            return project_back(dq, *extend_back(dk, dv))

        return (y, weights), pull

    def _check(self, query: Array, key: Any, value: Any, cache: KVCache | None) -> bool:
        """Whether the input has a batch dimension; ValueError or TypeError for what does not fit."""
        for array, name, size in zip((query, key, value), _PARTS, (self.embed_dim, self.kdim, self.vdim), strict=True):
            if array is None and name != "query" and cache is not None and cache.length:
                continue
            check_array(array, name)
            if array.ndim not in (2, 3) or array.shape[-1] != size:
                raise ValueError(f"{name} must be [L, {size}] or [L, N, {size}], got {shape_text(array.shape)}")
            if array.ndim != query.ndim:
                raise ValueError(f"{name} must have {query.ndim} dimensions like query, got {shape_text(array.shape)}")
            axis = 0 if self.batch_first else 1
            if array.ndim == 3 and array.shape[axis] != query.shape[axis]:
                raise ValueError(f"{name} must have the batch size {query.shape[axis]}, got {shape_text(array.shape)}")
        if key is not None and value is not None and key.shape[:-1] != value.shape[:-1]:
            raise ValueError(f"value must have key's length, {shape_text(key.shape)}, got {shape_text(value.shape)}")
        return bool(query.ndim == 3)

    # --- between [L, N, E] and [N, heads, L, head_dim] ----------------------------------------

    def _split(self, x: Array, batched: bool) -> Array:
        """A view `[N, heads, L, head_dim]`."""
        x = x.reshape(*x.shape[:-1], self.num_heads, -1)
        if not batched:
            return x[None].transpose(0, 2, 1, 3)
        return x.transpose(0, 2, 1, 3) if self.batch_first else x.transpose(1, 2, 0, 3)

    def _joined(self, x: Array, batched: bool) -> Array:
        """The inverse of `_split`, copied."""
        if not batched:
            x = x[0].transpose(1, 0, 2)
        else:
            x = x.transpose(0, 2, 1, 3) if self.batch_first else x.transpose(2, 0, 1, 3)
        return x.reshape(*x.shape[:-2], -1)

    def _spread(self, dweights: Array, average: bool, batched: bool) -> Array:
        """The gradient of the weights per head, `[N, heads, L, S]`."""
        dweights = dweights if batched else dweights[None]
        if not average:
            return dweights
        return np.repeat(dweights[:, None] / dweights.dtype.type(self.num_heads), self.num_heads, axis=1)

    # --- projections --------------------------------------------------------------------------

    def _projections(self) -> list[tuple[Array, Array | None]]:
        """Weight and bias of query, key and value; views where they are packed."""
        e = self.embed_dim
        if self._packed:
            weights = [self.in_proj_weight.data[i * e : (i + 1) * e] for i in range(3)]
        else:
            weights = [getattr(self, f"{letter}_proj_weight").data for letter in "qkv"]
        bias = self.in_proj_bias
        return [(w, None if bias is None else bias.data[i * e : (i + 1) * e]) for i, w in enumerate(weights)]

    def _project(self, query: Array, key: Any, value: Any, summed: bool) -> tuple[tuple[Any, Any, Any], Any]:
        """query, key, value in heads; the pullback returns their gradients, or one sum if `summed`."""
        batched = query.ndim == 3
        if self._packed and query is key and key is value:
            return self._project_packed(query, batched, summed)
        results, saved = [], []
        for x, (weight, bias) in zip((query, key, value), self._projections(), strict=True):
            y, kept = (None, None) if x is None else ops.linear_forward(x, weight, bias, precision=self.precision)
            results.append(None if y is None else self._split(y, batched))
            saved.append(kept)

        def pull(*grads: Array) -> tuple[Array, Array, Array]:
            return self._pull_separate([self._joined(g, batched) for g in grads], saved)

        return (results[0], results[1], results[2]), pull

    def _pull_separate(self, grads: list[Array], saved: list[Any]) -> tuple[Array, Array, Array]:
        found = [ops.linear_backward(grad, kept) for grad, kept in zip(grads, saved, strict=True)]
        if self._packed:
            self.in_proj_weight.add_grad(np.concatenate([g.dweight for g in found]))
        else:
            for letter, g in zip("qkv", found, strict=True):
                getattr(self, f"{letter}_proj_weight").add_grad(g.dweight)
        if self.in_proj_bias is not None:
            self.in_proj_bias.add_grad(np.concatenate([g.dbias for g in found]))
        return found[0].dx, found[1].dx, found[2].dx

    def _project_packed(self, x: Array, batched: bool, summed: bool) -> tuple[tuple[Any, Any, Any], Any]:
        """One product for query, key and value of the same array."""
        weight, bias = self.in_proj_weight, self.in_proj_bias
        y, saved = ops.linear_forward(x, weight.data, None if bias is None else bias.data, precision=self.precision)
        e = self.embed_dim
        q, k, v = (self._split(y[..., i * e : (i + 1) * e], batched) for i in range(3))

        kept = [saved._replace(weight=w, bias=b) for w, b in self._projections()]

        def pull_summed(*grads: Array) -> tuple[Array]:
            dy = array_module(x).empty(y.shape, dtype=y.dtype)
            for i, grad in enumerate(grads):
                self._split(dy[..., i * e : (i + 1) * e], batched)[...] = grad
            found = ops.linear_backward(dy, saved)
            weight.add_grad(found.dweight)
            if bias is not None:
                bias.add_grad(found.dbias)
            return (found.dx,)

        def pull(*grads: Array) -> tuple[Array, Array, Array]:
            return self._pull_separate([self._joined(g, batched) for g in grads], kept)

        return (q, k, v), pull_summed if summed else pull

    # --- keys that every query may attend to --------------------------------------------------

    def _extend(self, k: Array, v: Array) -> tuple[Array, Array, Callable[[Array, Array], tuple[Array, Array]]]:
        """Keys and values with bias_k, bias_v and a zero appended, and the gradient of that."""
        keys = k.shape[2]
        if self.bias_k is None and not self.add_zero_attn:
            return k, v, lambda dk, dv: (dk, dv)
        xp, pairs = array_module(k), []
        for x, bias in ((k, self.bias_k), (v, self.bias_v)):
            rows = [x]
            if bias is not None:
                row = bias.data.reshape(1, self.num_heads, 1, self.head_dim)
                rows.append(xp.broadcast_to(row, (x.shape[0], *row.shape[1:])))
            if self.add_zero_attn:
                rows.append(xp.zeros((*x.shape[:2], 1, x.shape[3]), dtype=x.dtype))
            pairs.append(xp.concatenate(rows, axis=2))

        def pull(dk: Array, dv: Array) -> tuple[Array, Array]:
            for bias, grad in ((self.bias_k, dk), (self.bias_v, dv)):
                if bias is not None:
                    bias.add_grad(grad[:, :, keys].sum(axis=0).reshape(bias.shape))
            return dk[:, :, :keys], dv[:, :, :keys]

        return pairs[0], pairs[1], pull

    def __repr__(self) -> str:
        return f"MultiheadAttention({self.embed_dim}, {self.num_heads}, batch_first={self.batch_first})"


def _and(mask: Array | None, keep: Array) -> Array:
    """`mask` (bool or added) restricted to `keep`."""
    if mask is None:
        return keep
    return mask & keep if mask.dtype == bool else np.where(keep, mask, -np.inf).astype(mask.dtype)


def _xavier_normal(init: Initializer, size: int) -> Parameter:
    """bias_k or bias_v [1, 1, E] as torch draws it: N(0, 2 / (fan_in + fan_out)), both fans E."""
    parameter = init.normal(1, 1, size)
    parameter.data *= parameter.data.dtype.type(1 / math.sqrt(size))
    return parameter
