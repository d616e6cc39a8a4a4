"""The Transformer and its stacks (torch.nn's), and the sinusoidal positions."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np

from .. import ops
from ._arrays import Array, OutputForm, check_array, like
from ._init import Initializer, check_size
from .container import ModuleList
from .module import Module, Pullback
from .norm import LayerNorm
from .transformer_layers import DecoderLayerCache, TransformerDecoderLayer, TransformerEncoderLayer


def _stack(layer: Module, num_layers: int) -> ModuleList:
    """Copies of one layer, as torch makes them: all start from the same parameters."""
    return ModuleList(deepcopy(layer) for _ in range(check_size(num_layers, "num_layers")))


class TransformerEncoder(Module):
    """num_layers copies of an encoder layer, then `norm` if given; the pullback returns (dsrc,).

    `enable_nested_tensor` and `mask_check` are torch's and have no effect.
    """

    def __init__(
        self,
        encoder_layer: TransformerEncoderLayer,
        num_layers: int,
        norm: LayerNorm | None = None,
        enable_nested_tensor: bool = True,
        mask_check: bool = True,
    ) -> None:
        self.layers = _stack(encoder_layer, num_layers)
        self.norm = norm

    def __call__(
        self,
        src: Array,
        mask: Array | None = None,
        src_key_padding_mask: Array | None = None,
        is_causal: bool | None = None,
    ) -> Array:
        for layer in self.layers:
            src = layer(src, mask, src_key_padding_mask, bool(is_causal))
        return src if self.norm is None else self.norm(src)

    def vjp(
        self,
        src: Array,
        mask: Array | None = None,
        src_key_padding_mask: Array | None = None,
        is_causal: bool | None = None,
    ) -> tuple[Array, Pullback]:
        pulls = []
        for layer in self.layers:
            src, pull = layer.vjp(src, mask, src_key_padding_mask, bool(is_causal))
            pulls.append(pull)
        if self.norm is not None:
            src, pull = self.norm.vjp(src)
            pulls.append(pull)

        def back(dy: Array | None) -> tuple[Array]:
            for pull in reversed(pulls):
                (dy,) = pull(dy)
            assert dy is not None
            return (dy,)

        return src, Pullback(back)


class TransformerDecoder(Module):
    """num_layers copies of a decoder layer, then `norm` if given; the pullback: (dtgt, dmemory).

    Decoding step by step: `cache = decoder.new_cache()`, then `decoder(step, memory, cache=cache)`
    with one or more new target positions at a time, and `tgt_is_causal=True` for more than one.
    The memory is projected in the first call only.
    """

    def __init__(self, decoder_layer: TransformerDecoderLayer, num_layers: int, norm: LayerNorm | None = None) -> None:
        self.layers = _stack(decoder_layer, num_layers)
        self.norm = norm

    def new_cache(self) -> list[DecoderLayerCache]:
        """An empty cache, one entry per layer."""
        return [DecoderLayerCache() for _ in self.layers]

    def __call__(
        self,
        tgt: Array,
        memory: Array,
        *args: Any,
        cache: list[DecoderLayerCache] | None = None,
        **kwargs: Any,
    ) -> Array:
        caches = [None] * len(self.layers) if cache is None else cache
        for layer, kept in zip(self.layers, caches, strict=True):
            tgt = layer(tgt, memory, *args, cache=kept, **kwargs)
        return tgt if self.norm is None else self.norm(tgt)

    def vjp(self, tgt: Array, memory: Array, *args: Any, **kwargs: Any) -> tuple[Array, Pullback]:
        pulls = []
        for layer in self.layers:
            tgt, pull = layer.vjp(tgt, memory, *args, **kwargs)
            pulls.append(pull)
        pull_norm = None
        if self.norm is not None:
            tgt, pull_norm = self.norm.vjp(tgt)

        def back(dy: Any) -> tuple[Any, Any]:
            if pull_norm is not None:
                (dy,) = pull_norm(dy)
            dmemory: Any = None
            for pull in reversed(pulls):
                dy, part = pull(dy)
                dmemory = part if dmemory is None else dmemory + part
            return dy, dmemory

        return tgt, Pullback(back)


class Transformer(Module):
    """src [S, N, d_model], tgt [T, N, d_model] -> [T, N, d_model]; the pullback: (dsrc, dtgt).

    Constructor, call, masks (True = ignore) and parameter names of torch.nn.Transformer; every
    matrix starts from Xavier's uniform distribution.
    """

    def __init__(
        self,
        d_model: int = 512,
        nhead: int = 8,
        num_encoder_layers: int = 6,
        num_decoder_layers: int = 6,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: str = "relu",
        custom_encoder: Any = None,
        custom_decoder: Any = None,
        layer_norm_eps: float = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
        bias: bool = True,
        *,
        precision: str | None = None,
        dtype: Any = np.float32,
        rng: np.random.Generator | None = None,
    ) -> None:
        shape = (d_model, nhead, dim_feedforward, dropout, activation, layer_norm_eps, batch_first, norm_first, bias)
        options: dict[str, Any] = {"precision": precision, "dtype": dtype, "rng": rng}

        def norm() -> LayerNorm:
            return LayerNorm(d_model, layer_norm_eps, bias=bias, dtype=dtype)

        self.d_model, self.nhead, self.batch_first = d_model, nhead, bool(batch_first)
        self.encoder = custom_encoder or TransformerEncoder(
            TransformerEncoderLayer(*shape, **options), num_encoder_layers, norm()
        )
        self.decoder = custom_decoder or TransformerDecoder(
            TransformerDecoderLayer(*shape, **options), num_decoder_layers, norm()
        )
        init = Initializer(rng, dtype)
        for parameter in self.parameters():
            if len(parameter.shape) > 1:
                rows, columns = parameter.shape
                parameter.data = init.uniform((6 / (rows + columns)) ** 0.5, rows, columns).data

    def __call__(self, src: Array, tgt: Array, *args: Any, **kwargs: Any) -> Array:
        encoder_masks, decoder_masks = self._masks(*args, **kwargs)
        return self.decoder(tgt, self.encoder(src, **encoder_masks), **decoder_masks)

    def vjp(self, src: Array, tgt: Array, *args: Any, **kwargs: Any) -> tuple[Array, Pullback]:
        encoder_masks, decoder_masks = self._masks(*args, **kwargs)
        memory, pull_encoder = self.encoder.vjp(src, **encoder_masks)
        y, pull_decoder = self.decoder.vjp(tgt, memory, **decoder_masks)

        def pull(dy: Array | None) -> tuple[Array, Array]:
            dtgt, dmemory = pull_decoder(dy)
            return pull_encoder(dmemory)[0], dtgt

        return y, Pullback(pull)

    @staticmethod
    def _masks(
        src_mask: Array | None = None,
        tgt_mask: Array | None = None,
        memory_mask: Array | None = None,
        src_key_padding_mask: Array | None = None,
        tgt_key_padding_mask: Array | None = None,
        memory_key_padding_mask: Array | None = None,
        src_is_causal: bool | None = None,
        tgt_is_causal: bool | None = None,
        memory_is_causal: bool = False,
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """torch's arguments, sorted into the encoder's and the decoder's."""
        encoder = {"mask": src_mask, "src_key_padding_mask": src_key_padding_mask, "is_causal": src_is_causal}
        decoder = {
            "tgt_mask": tgt_mask,
            "memory_mask": memory_mask,
            "tgt_key_padding_mask": tgt_key_padding_mask,
            "memory_key_padding_mask": memory_key_padding_mask,
            "tgt_is_causal": bool(tgt_is_causal),
            "memory_is_causal": memory_is_causal,
        }
        return encoder, decoder

    @staticmethod
    def generate_square_subsequent_mask(sz: int, dtype: Any = np.float32) -> Array:
        """[sz, sz], to be added: 0 on and below the diagonal, -inf above."""
        return np.triu(np.full((sz, sz), -np.inf, dtype), 1)


class SinusoidalPositions(Module):
    """x [..., L, dim] + PE[offset : offset + L], without parameters (Vaswani et al. 2017).

    PE(p, 2i) = sin(p / 10000^(2i/dim)), PE(p, 2i+1) = cos(same). With batch_first=False, x is
    [L, N, dim]. offset: the position of x's first row, for decoding step by step.
    """

    def __init__(self, dim: int, max_len: int = 5000, *, batch_first: bool = True) -> None:
        self.dim, self.max_len = check_size(dim, "dim"), check_size(max_len, "max_len")
        self.batch_first = bool(batch_first)
        self.table = ops.sinusoidal_positions(max_len, dim, dtype=np.float64)

    def __call__(self, x: Array, offset: int = 0) -> Array:
        check_array(x, "input")
        axis = -2 if self.batch_first or x.ndim == 2 else 0
        if x.ndim < 2 or x.shape[-1] != self.dim or offset < 0 or offset + x.shape[axis] > self.max_len:
            raise ValueError(
                f"input must be [..., L, {self.dim}] with offset + L at most {self.max_len}, "
                f"got {list(x.shape)} at offset {offset}"
            )
        table = self.table = like(self.table, x)  # it moves to where the input is
        rows = table[offset : offset + x.shape[axis]].astype(x.dtype)
        return x + (rows if axis == -2 else rows[:, None])

    def vjp(self, x: Array, offset: int = 0) -> tuple[Array, Pullback]:
        y = self(x, offset)
        form = OutputForm.of(y)
        return y, Pullback(lambda dy: (form.gradient(dy),))
