"""Layer norm and RMS norm, alone and after a residual, forward and backward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from seqkern import _cpu
from seqkern._check import integer, number, saved_by
from seqkern._dispatch import public

__all__ = [
    "AddLayerNormGradients", "AddLayerNormSaved", "AddRMSNormGradients", "AddRMSNormSaved",
    "LayerNormGradients", "LayerNormSaved", "RMSNormGradients", "RMSNormSaved",
    "add_layer_norm", "add_layer_norm_backward", "add_layer_norm_forward",
    "add_rms_norm", "add_rms_norm_backward", "add_rms_norm_forward",
    "layer_norm", "layer_norm_backward", "layer_norm_forward",
    "rms_norm", "rms_norm_backward", "rms_norm_forward",
]  # fmt: skip

Array = Any
Shape = int | Sequence[int]


class LayerNormSaved(NamedTuple):
    """Inputs as given; `mean` and `rstd`, 1 / √(var + ε), keep the normalised dimensions as 1."""

    x: Array
    normalized_shape: tuple[int, ...]
    weight: Array | None
    bias: Array | None
    mean: Array
    rstd: Array


class LayerNormGradients(NamedTuple):
    """dx in x's dtype, dweight and dbias float32 (float64 for float64), None where there was none."""

    dx: Array
    dweight: Array | None
    dbias: Array | None


class RMSNormSaved(NamedTuple):
    """Inputs as given; `rrms`, 1 / √(mean x² + ε), keeps the normalised dimensions as 1."""

    x: Array
    normalized_shape: tuple[int, ...]
    weight: Array | None
    rrms: Array


class RMSNormGradients(NamedTuple):
    """dx in x's dtype, dweight float32 (float64 for float64), None without a weight."""

    dx: Array
    dweight: Array | None


class AddLayerNormSaved(NamedTuple):
    """As `LayerNormSaved`, of summed = x + residual."""

    summed: Array
    normalized_shape: tuple[int, ...]
    weight: Array | None
    bias: Array | None
    mean: Array
    rstd: Array


class AddLayerNormGradients(NamedTuple):
    """As `LayerNormGradients`; dx and dresidual are one and the same array."""

    dx: Array
    dresidual: Array
    dweight: Array | None
    dbias: Array | None


class AddRMSNormSaved(NamedTuple):
    """As `RMSNormSaved`, of summed = x + residual."""

    summed: Array
    normalized_shape: tuple[int, ...]
    weight: Array | None
    rrms: Array


class AddRMSNormGradients(NamedTuple):
    """As `RMSNormGradients`; dx and dresidual are one and the same array."""

    dx: Array
    dresidual: Array
    dweight: Array | None


def _options(op: str, normalized_shape: Shape, x: Array, eps: float | None) -> tuple[tuple[int, ...], float]:
    """The shape as a tuple, and eps; None is the machine epsilon of the arithmetic."""
    sizes = normalized_shape if isinstance(normalized_shape, (tuple, list)) else (normalized_shape,)
    shape = tuple(integer(op, "normalized_shape", size) for size in sizes)
    if eps is None:
        eps = float(np.finfo(np.float64 if getattr(x, "dtype", None) == np.float64 else np.float32).eps)
    return shape, number(op, "eps", eps, 0.0, float("inf"))


def _outputs(op: str, out: tuple[Array, Array] | None) -> tuple[Array | None, Array | None]:
    if out is None:
        return None, None
    if not isinstance(out, tuple) or len(out) != 2:
        raise TypeError(f"{op}: out must be a tuple of two arrays, for y and summed, got {type(out).__name__}")
    return out


@public
def layer_norm(
    x: Array, normalized_shape: Shape, weight: Array | None = None, bias: Array | None = None,
    eps: float = 1e-5, *, out: Array | None = None,
) -> Array:  # fmt: skip
    """(x - mean) / √(var + eps) · weight + bias over the last dimensions, as torch's F.layer_norm.

    x ends in `normalized_shape`, the shape of weight and bias; those are of x's dtype, or float32 beside bfloat16
    x, or bfloat16 beside float32. The variance is the biased one, accurate also where the mean is far larger
    than the deviation. Ba, Kiros & Hinton 2016. out: where y is written, contiguous and apart from the inputs.
    """
    return layer_norm_forward(x, normalized_shape, weight, bias, eps, out=out)[0]


@public
def layer_norm_forward(
    x: Array, normalized_shape: Shape, weight: Array | None = None, bias: Array | None = None,
    eps: float = 1e-5, *, out: Array | None = None,
) -> tuple[Array, LayerNormSaved]:  # fmt: skip
    """`layer_norm`, and what `layer_norm_backward` needs."""
    op = "layer_norm"
    shape, eps = _options(op, normalized_shape, x, number(op, "eps", eps, 0.0, float("inf")))
    y, _, mean, rstd = _cpu.norm_forward(op, True, x, None, shape, weight, bias, eps, out, None)
    return y, LayerNormSaved(x, shape, weight, bias, mean, rstd)


@public
def layer_norm_backward(
    dy: Array | None, saved: LayerNormSaved, *, out: Array | None = None
) -> LayerNormGradients:
    """Gradients from dy, of x's shape (None = zero). out: where dx is written."""
    op, s = "layer_norm", saved
    saved_by(op, s, LayerNormSaved)
    dy = np.zeros_like(s.x) if dy is None else dy
    return LayerNormGradients(*_cpu.norm_backward(
        op, True, dy, None, "x", s.x, s.normalized_shape, s.weight, s.mean, s.rstd, s.bias is not None, out
    ))  # fmt: skip


@public
def rms_norm(
    x: Array, normalized_shape: Shape, weight: Array | None = None, eps: float | None = None, *,
    out: Array | None = None,
) -> Array:  # fmt: skip
    """x / √(mean x² + eps) · weight over the last dimensions, as torch's F.rms_norm; dtypes as `layer_norm`.

    eps None: the machine epsilon of float32 (float64 for float64 x). Zhang & Sennrich 2019.
    """
    return rms_norm_forward(x, normalized_shape, weight, eps, out=out)[0]


@public
def rms_norm_forward(
    x: Array, normalized_shape: Shape, weight: Array | None = None, eps: float | None = None, *,
    out: Array | None = None,
) -> tuple[Array, RMSNormSaved]:  # fmt: skip
    """`rms_norm`, and what `rms_norm_backward` needs."""
    op = "rms_norm"
    shape, eps = _options(op, normalized_shape, x, eps)
    y, _, _, rrms = _cpu.norm_forward(op, False, x, None, shape, weight, None, eps, out, None)
    return y, RMSNormSaved(x, shape, weight, rrms)


@public
def rms_norm_backward(
    dy: Array | None, saved: RMSNormSaved, *, out: Array | None = None
) -> RMSNormGradients:
    """Gradients from dy, of x's shape (None = zero). out: where dx is written."""
    op, s = "rms_norm", saved
    saved_by(op, s, RMSNormSaved)
    dy = np.zeros_like(s.x) if dy is None else dy
    return RMSNormGradients(*_cpu.norm_backward(
        op, False, dy, None, "x", s.x, s.normalized_shape, s.weight, None, s.rrms, False, out
    )[:2])  # fmt: skip


@public
def add_layer_norm(
    x: Array, residual: Array, normalized_shape: Shape, weight: Array | None = None,
    bias: Array | None = None, eps: float = 1e-5, *, out: tuple[Array, Array] | None = None,
) -> tuple[Array, Array]:  # fmt: skip
    """summed = x + residual and y = layer_norm(summed), in one pass over memory; returns y, summed.

    x and residual are of one shape and dtype, summed as well (rounded before it is normalised).
    """
    return add_layer_norm_forward(x, residual, normalized_shape, weight, bias, eps, out=out)[:2]


@public
def add_layer_norm_forward(
    x: Array, residual: Array, normalized_shape: Shape, weight: Array | None = None,
    bias: Array | None = None, eps: float = 1e-5, *, out: tuple[Array, Array] | None = None,
) -> tuple[Array, Array, AddLayerNormSaved]:  # fmt: skip
    """`add_layer_norm`, and what `add_layer_norm_backward` needs."""
    op = "add_layer_norm"
    shape, eps = _options(op, normalized_shape, x, number(op, "eps", eps, 0.0, float("inf")))
    _not_none(op, residual)
    y, summed, mean, rstd = _cpu.norm_forward(
        op, True, x, residual, shape, weight, bias, eps, *_outputs(op, out)
    )
    return y, summed, AddLayerNormSaved(summed, shape, weight, bias, mean, rstd)


@public
def add_layer_norm_backward(
    dy: Array | None, dsummed: Array | None, saved: AddLayerNormSaved, *, out: Array | None = None
) -> AddLayerNormGradients:
    """Gradients from those of y and of summed (None = zero). out: where dx, which is dresidual, is written."""
    op, s = "add_layer_norm", saved
    saved_by(op, s, AddLayerNormSaved)
    dy = np.zeros_like(s.summed) if dy is None else dy
    dx, dweight, dbias = _cpu.norm_backward(
        op, True, dy, dsummed, "summed", s.summed, s.normalized_shape, s.weight, s.mean, s.rstd,
        s.bias is not None, out,
    )  # fmt: skip
    return AddLayerNormGradients(dx, dx, dweight, dbias)


@public
def add_rms_norm(
    x: Array, residual: Array, normalized_shape: Shape, weight: Array | None = None,
    eps: float | None = None, *, out: tuple[Array, Array] | None = None,
) -> tuple[Array, Array]:  # fmt: skip
    """summed = x + residual and y = rms_norm(summed), in one pass over memory; returns y, summed."""
    return add_rms_norm_forward(x, residual, normalized_shape, weight, eps, out=out)[:2]


@public
def add_rms_norm_forward(
    x: Array, residual: Array, normalized_shape: Shape, weight: Array | None = None,
    eps: float | None = None, *, out: tuple[Array, Array] | None = None,
) -> tuple[Array, Array, AddRMSNormSaved]:  # fmt: skip
    """`add_rms_norm`, and what `add_rms_norm_backward` needs."""
    op = "add_rms_norm"
    shape, eps = _options(op, normalized_shape, x, eps)
    _not_none(op, residual)
    y, summed, _, rrms = _cpu.norm_forward(
        op, False, x, residual, shape, weight, None, eps, *_outputs(op, out)
    )
    return y, summed, AddRMSNormSaved(summed, shape, weight, rrms)


@public
def add_rms_norm_backward(
    dy: Array | None, dsummed: Array | None, saved: AddRMSNormSaved, *, out: Array | None = None
) -> AddRMSNormGradients:
    """Gradients from those of y and of summed (None = zero). out: where dx, which is dresidual, is written."""
    op, s = "add_rms_norm", saved
    saved_by(op, s, AddRMSNormSaved)
    dy = np.zeros_like(s.summed) if dy is None else dy
    dx, dweight, _ = _cpu.norm_backward(
        op, False, dy, dsummed, "summed", s.summed, s.normalized_shape, s.weight, None, s.rrms, False, out
    )
    return AddRMSNormGradients(dx, dx, dweight)


def _not_none(op: str, residual: Array | None) -> None:
    if residual is None:
        raise TypeError(f"{op}: residual must be an array, got None")
