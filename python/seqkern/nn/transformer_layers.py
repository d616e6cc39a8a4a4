"""One layer of the Transformer's encoder and decoder (torch.nn's), Vaswani et al. 2017.

    encoder:  x = LN(x + SelfAttention(x));  x = LN(x + MLP(x))
    decoder:  the same, with x = LN(x + Attention(x, memory)) between the two
    norm_first: x = x + branch(LN(x)) instead (pre-norm)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ._arrays import Array, OutputForm
from ._attend import KVCache
from ._residual import feed_forward_vjp, plus_dropout, residual_vjp
from .activation import GELU, Activation, ReLU
from .attention import MultiheadAttention
from .dropout import Dropout
from .linear import Linear
from .module import Module, Pullback
from .norm import LayerNorm

ACTIVATIONS: dict[str, type[Activation]] = {"relu": ReLU, "gelu": GELU}


@dataclass
class DecoderLayerCache:
    """What one decoder layer keeps between steps: of the target so far, and of the memory."""

    self_attn: KVCache = field(default_factory=KVCache)
    memory: KVCache = field(default_factory=KVCache)


class _Layer(Module):
    """What both layers have: self-attention, the MLP, and the way the branches are joined."""

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: str = "relu",
        layer_norm_eps: float = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
        bias: bool = True,
        *,
        precision: str | None = None,
        dtype: Any = np.float32,
        rng: np.random.Generator | None = None,
    ) -> None:
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {tuple(ACTIVATIONS)}, got {activation!r}")
        options: dict[str, Any] = {"precision": precision, "dtype": dtype, "rng": rng}
        self.batch_first, self.norm_first = bool(batch_first), bool(norm_first)
        self.self_attn = MultiheadAttention(d_model, nhead, dropout, bias, batch_first=batch_first, **options)
        self._between(d_model, nhead, dropout, bias, batch_first, options)
        self.linear1 = Linear(d_model, dim_feedforward, bias, **options)
        self.dropout = Dropout(dropout)
        self.linear2 = Linear(dim_feedforward, d_model, bias, **options)
        self.norm1 = LayerNorm(d_model, layer_norm_eps, bias=bias, dtype=dtype)
        self.norm2 = LayerNorm(d_model, layer_norm_eps, bias=bias, dtype=dtype)
        self.dropout1, self.dropout2 = Dropout(dropout), Dropout(dropout)
        self.activation = ACTIVATIONS[activation]()

    def _between(self, *arguments: Any) -> None:
        """Parameters that torch lists between self-attention and the MLP."""

    def _self_attention(self, x: Array, cache: KVCache | None = None, **masks: Any) -> tuple[Array, Any]:
        return residual_vjp(
            x,
            lambda z, r: plus_dropout(r, self.self_attn.self_vjp(z, cache=cache, **masks), self.dropout1),
            self.norm1,
            self.norm_first,
        )

    def _mlp(self, x: Array, norm: Module, last: Dropout) -> tuple[Array, Any]:
        parts = (self.linear1, self.activation, self.dropout, self.linear2, last)
        return residual_vjp(x, lambda z, r: feed_forward_vjp(z, r, *parts), norm, self.norm_first)


class TransformerEncoderLayer(_Layer):
    """src [L, N, d_model] ([N, L, d_model] with batch_first, or [L, d_model]) -> the same shape.

    Constructor, call and parameter names of torch.nn.TransformerEncoderLayer; activation "relu" or
    "gelu". Masks as in `MultiheadAttention`: True = ignore. The pullback returns (dsrc,).
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Array:
        return self.vjp(*args, **kwargs)[0]

    def vjp(
        self,
        src: Array,
        src_mask: Array | None = None,
        src_key_padding_mask: Array | None = None,
        is_causal: bool = False,
    ) -> tuple[Array, Pullback]:
        x, pull_attention = self._self_attention(
            src, attn_mask=src_mask, key_padding_mask=src_key_padding_mask, is_causal=is_causal
        )
        y, pull_mlp = self._mlp(x, self.norm2, self.dropout2)
        form = OutputForm.of(y)
        return y, Pullback(lambda dy: pull_attention(*pull_mlp(form.gradient(dy))))


class TransformerDecoderLayer(_Layer):
    """tgt [T, N, d_model], memory [S, N, d_model] -> [T, N, d_model] (batch_first: N first).

    Constructor, call and parameter names of torch.nn.TransformerDecoderLayer. The pullback returns
    (dtgt, dmemory). With `cache` (call only), tgt is the next step or steps of what came before.
    """

    def _between(self, *arguments: Any) -> None:
        d_model, nhead, dropout, bias, batch_first, options = arguments
        self.multihead_attn = MultiheadAttention(d_model, nhead, dropout, bias, batch_first=batch_first, **options)

    def __init__(self, d_model: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(d_model, *args, **kwargs)
        norm = self.norm1
        self.norm3 = LayerNorm(d_model, norm.eps, bias=norm.bias is not None, dtype=self.linear1.weight.dtype)
        self.dropout3 = Dropout(self.dropout.p)

    def __call__(self, *args: Any, cache: DecoderLayerCache | None = None, **kwargs: Any) -> Array:
        return self._run(cache, *args, **kwargs)[0]

    def vjp(self, *args: Any, **kwargs: Any) -> tuple[Array, Pullback]:
        y, pull = self._run(None, *args, **kwargs)
        form = OutputForm.of(y)
        return y, Pullback(lambda dy: pull(form.gradient(dy)))

    def _run(
        self,
        cache: DecoderLayerCache | None,
        tgt: Array,
        memory: Array,
        tgt_mask: Array | None = None,
        memory_mask: Array | None = None,
        tgt_key_padding_mask: Array | None = None,
        memory_key_padding_mask: Array | None = None,
        tgt_is_causal: bool = False,
        memory_is_causal: bool = False,
    ) -> tuple[Array, Any]:
        x, pull_self = self._self_attention(
            tgt,
            None if cache is None else cache.self_attn,
            attn_mask=tgt_mask,
            key_padding_mask=tgt_key_padding_mask,
            is_causal=tgt_is_causal,
        )
        masks = (memory_key_padding_mask, memory_mask, memory_is_causal)
        kept = None if cache is None else cache.memory
        x, pull_cross = residual_vjp(
            x, lambda z, r: self._attend_to_memory(z, r, memory, kept, *masks), self.norm2, self.norm_first
        )
        y, pull_mlp = self._mlp(x, self.norm3, self.dropout3)

        def pull(dy: Array) -> tuple[Array, Array]:
            dx, dmemory = pull_cross(*pull_mlp(dy))
            return pull_self(dx)[0], dmemory

        return y, pull

    def _attend_to_memory(
        self, x: Array, residual: Array, memory: Array, cache: KVCache | None, padding: Any, mask: Any, is_causal: bool
    ) -> tuple[Array, Any]:
        """residual + dropout of cross-attention; the pullback returns (dx, dmemory)."""
        source = None if cache is not None and cache.length else memory
        (y, _), pull_attention = self.multihead_attn._run(
            x, source, source, padding, False, mask, True, is_causal, cache=cache
        )

        def pull(dy: Array) -> tuple[Array, Array]:
            dquery, dkey, dvalue = pull_attention(dy)
            return dquery, dkey + dvalue

        return plus_dropout(residual, (y, pull), self.dropout2)
