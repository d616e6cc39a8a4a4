"""Multi-head attention and the Transformer's blocks, assembled from the reference functions.

    MHA(q, k, v) = concat_h(attention(q W_qᵀ, k W_kᵀ, v W_vᵀ)_h) W_outᵀ
    encoder:  x = LN(x + MHA(x, x, x));  x = LN(x + W_2 act(W_1 x))
    decoder:  x = LN(x + MHA(x, x, x));  x = LN(x + MHA(x, memory, memory));  x = LN(x + MLP(x))
    norm_first: x = x + branch(LN(x)) instead

Everything is batch-first, `[N, L, E]`. `params` maps torch's state-dict names to arrays, `prefix`
says where in it a part lives. Every function returns its result and a gradient function, which
takes the result's gradient, adds the parameters' to `grads` under their names, and returns the
inputs'. Masks are those of `scaled_dot_product_attention` (True = attend). No dropout.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np

from ._arrays import Array
from .activations import gelu_backward, gelu_forward, relu_backward, relu_forward
from .attention import scaled_dot_product_attention_backward, scaled_dot_product_attention_forward
from .layer_norm import layer_norm_backward, layer_norm_forward
from .linear import linear_backward, linear_forward

Params: TypeAlias = Mapping[str, Array]
Grads: TypeAlias = dict[str, Array]
Pull: TypeAlias = Callable[..., Any]

_ACTIVATIONS: dict[str, Any] = {
    "relu": (relu_forward, relu_backward),
    "gelu": (gelu_forward, gelu_backward),
}


def _add(grads: Grads, name: str, grad: Array | None) -> None:
    if grad is not None:
        grads[name] = grads[name] + grad if name in grads else grad


def _linear(x: Array, params: Params, grads: Grads, name: str) -> tuple[Array, Pull]:
    y, saved = linear_forward(x, params[f"{name}.weight"], params.get(f"{name}.bias"))

    def pull(dy: Array) -> Array:
        found = linear_backward(dy, saved)
        _add(grads, f"{name}.weight", found.dweight)
        _add(grads, f"{name}.bias", found.dbias)
        return found.dx

    return y, pull


def _norm(x: Array, params: Params, grads: Grads, name: str, eps: float = 1e-5) -> tuple[Array, Pull]:
    shape = x.shape[-1:]
    y, saved = layer_norm_forward(x, shape, params[f"{name}.weight"], params.get(f"{name}.bias"), eps)

    def pull(dy: Array) -> Array:
        found = layer_norm_backward(dy, saved)
        _add(grads, f"{name}.weight", found.dweight)
        _add(grads, f"{name}.bias", found.dbias)
        return found.dx

    return y, pull


def multihead_attention(
    query: Array,
    key: Array,
    value: Array,
    params: Params,
    grads: Grads,
    prefix: str = "",
    *,
    num_heads: int,
    **options: Any,
) -> tuple[Array, Pull]:
    """query `[N, L, E]`, key and value `[N, S, E]`; the pullback gives (dquery, dkey, dvalue)."""
    weight, bias = params[f"{prefix}in_proj_weight"], params.get(f"{prefix}in_proj_bias")
    weights = np.split(weight, 3)
    biases = [None] * 3 if bias is None else np.split(bias, 3)
    parts = [linear_forward(*part) for part in zip((query, key, value), weights, biases, strict=True)]

    def split(x: Array) -> Array:
        return np.swapaxes(x.reshape(*x.shape[:2], num_heads, -1), 1, 2)

    def join(x: Array) -> Array:
        return np.swapaxes(x, 1, 2).reshape(x.shape[0], x.shape[2], -1)

    q, k, v = (split(y) for y, _ in parts)
    out, saved = scaled_dot_product_attention_forward(q, k, v, **options)
    y, pull_out = _linear(join(out), params, grads, f"{prefix}out_proj")

    def pull(dy: Array) -> tuple[Array, Array, Array]:
        dheads = scaled_dot_product_attention_backward(split(pull_out(dy)), saved)[:3]
        found = [
            linear_backward(join(dhead), kept) for dhead, (_, kept) in zip(dheads, parts, strict=True)
        ]
        _add(grads, f"{prefix}in_proj_weight", np.concatenate([g.dweight for g in found]))
        if bias is not None:
            dbias = [g.dbias for g in found if g.dbias is not None]
            _add(grads, f"{prefix}in_proj_bias", np.concatenate(dbias))
        return found[0].dx, found[1].dx, found[2].dx

    return y, pull


def _mlp(x: Array, params: Params, grads: Grads, prefix: str, activation: str) -> Any:
    forward, backward = _ACTIVATIONS[activation]
    inner, pull_first = _linear(x, params, grads, f"{prefix}linear1")
    active, saved = forward(inner)
    y, pull_second = _linear(active, params, grads, f"{prefix}linear2")
    return y, lambda dy: (pull_first(backward(pull_second(dy), saved).dx),)


def _residual(x: Array, branch: Any, norm: Any, norm_first: bool) -> tuple[Array, Pull]:
    """The pullback returns a tuple, dx first, then what else the branch's returns."""
    if norm_first:
        normed, pull_norm = norm(x)
        y, pull_branch = branch(normed)

        def pull_pre(dy: Array) -> tuple[Array, ...]:
            dnormed, *others = pull_branch(dy)
            return (dy + pull_norm(dnormed), *others)

        return x + y, pull_pre
    y, pull_branch = branch(x)
    z, pull_norm = norm(x + y)

    def pull_post(dz: Array) -> tuple[Array, ...]:
        dsum = pull_norm(dz)
        dx, *others = pull_branch(dsum)
        return (dsum + dx, *others)

    return z, pull_post


def _sum_first(pull: Pull, count: int) -> Pull:
    """The gradient function with its first `count` results added up: those of one array."""

    def summed(dy: Array) -> tuple[Array, ...]:
        found = pull(dy)
        return (sum(found[:count]), *found[count:])

    return summed


def transformer_layer(
    x: Array,
    params: Params,
    grads: Grads,
    prefix: str = "",
    *,
    num_heads: int,
    memory: Array | None = None,
    activation: str = "relu",
    norm_first: bool = False,
    eps: float = 1e-5,
    options: Mapping[str, Any] | None = None,
    memory_options: Mapping[str, Any] | None = None,
) -> tuple[Array, Pull]:
    """An encoder layer, or a decoder layer where a memory is given.

    options, memory_options: those of the attention to x and to the memory. The pullback returns
    (dx,), or (dx, dmemory).
    """

    def norm(k: int) -> Any:
        return lambda z: _norm(z, params, grads, f"{prefix}norm{k}", eps)

    def attend_to_itself(z: Array) -> tuple[Array, Pull]:
        y, pull = multihead_attention(
            z, z, z, params, grads, f"{prefix}self_attn.", num_heads=num_heads, **(options or {})
        )
        return y, _sum_first(pull, 3)

    def attend_to_memory(z: Array) -> tuple[Array, Pull]:
        assert memory is not None
        name = f"{prefix}multihead_attn."
        y, pull = multihead_attention(
            z, memory, memory, params, grads, name, num_heads=num_heads, **(memory_options or {})
        )

        def pull_two(dy: Array) -> tuple[Array, Array]:
            dquery, dkey, dvalue = pull(dy)
            return dquery, dkey + dvalue

        return y, pull_two

    y, pull_self = _residual(x, attend_to_itself, norm(1), norm_first)
    pull_cross: Pull | None = None
    if memory is not None:
        y, pull_cross = _residual(y, attend_to_memory, norm(2), norm_first)
    last = norm(2 if memory is None else 3)
    y, pull_mlp = _residual(
        y, lambda z: _mlp(z, params, grads, prefix, activation), last, norm_first
    )

    def pull(dy: Array) -> tuple[Array, ...]:
        (dx,) = pull_mlp(dy)
        if pull_cross is None:
            return pull_self(dx)  # type: ignore[no-any-return]
        dx, dmemory = pull_cross(dx)
        return (*pull_self(dx), dmemory)

    return y, pull
