"""Linear layers: float and bfloat16 weights, forward and backward, and int8 weights for inference."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from seqkern import _cpu
from seqkern._check import saved_by
from seqkern._dispatch import public
from seqkern._precision import check_precision

__all__ = [
    "LinearGradients", "LinearSaved",
    "linear", "linear_backward", "linear_forward", "linear_int8", "quantize_int8",
]  # fmt: skip

Array = Any


class LinearSaved(NamedTuple):
    """x ``[..., I]``, weight ``[O, I]`` and bias ``[O]`` or None, as given.

    z ``[..., O]`` is the argument of the activation, None without one; with_residual: was there a residual.
    """

    x: Array
    weight: Array
    bias: Array | None
    precision: str | None
    activation: str | None = None
    z: Array | None = None
    with_residual: bool = False


class LinearGradients(NamedTuple):
    """Gradients of `linear`: dx in x's dtype, dweight and dbias float32 (float64 for float64).

    dresidual is dy itself, not a copy. dbias and dresidual are None when there was no bias or residual.
    """

    dx: Array
    dweight: Array
    dbias: Array | None
    dresidual: Array | None


@public
def linear(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    activation: str | None = None,
    residual: Array | None = None,
    precision: str | None = None,
    out: Array | None = None,
) -> Array:
    """act(x Wᵀ + b) + residual: x ``[..., I]``, weight ``[O, I]``, bias ``[O]`` to ``[..., O]``.

    As torch's F.linear; float32, float64 or bfloat16, and float32 x may meet a bfloat16 weight. activation: None,
    "gelu", "gelu_tanh", "relu" or "silu", as the functions of those names. residual and out have the shape of the
    result and x's dtype. Bias, activation and residual are applied to a block of the product while it is in L1, so
    they cost no pass over memory. An `out` must be contiguous and writable and may overlap no argument.
    """
    mode = check_precision("linear", precision)
    return _cpu.linear_forward(x, weight, bias, activation, residual, out, False, mode)[0]


@public
def linear_forward(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    activation: str | None = None,
    residual: Array | None = None,
    precision: str | None = None,
    out: Array | None = None,
) -> tuple[Array, LinearSaved]:
    """`linear`, and what `linear_backward` needs."""
    mode = check_precision("linear", precision)
    y, z = _cpu.linear_forward(x, weight, bias, activation, residual, out, True, mode)
    return y, LinearSaved(x, weight, bias, precision, activation, z, residual is not None)


@public
def linear_backward(dy: Array | None, saved: LinearSaved) -> LinearGradients:
    """Gradients of `linear` from dy ``[..., O]`` (None = zero).

    dz = dy act'(z) (rounded to x's dtype), dx = dz W, dW = dzᵀ x, db = Σ dz, dresidual = dy.
    """
    saved_by("linear", saved, LinearSaved)
    if dy is None:
        dy = np.zeros((*saved.x.shape[:-1], saved.weight.shape[0]), saved.x.dtype)
    mode = check_precision("linear", saved.precision)
    gradients = _cpu.linear_backward(
        dy, saved.x, saved.weight, saved.bias is not None, saved.activation, saved.z, mode
    )
    return LinearGradients(*gradients, dy if saved.with_residual else None)


@public
def quantize_int8(weight: Array) -> tuple[Array, Array]:
    """weight ``[O, I]`` as q int8 ``[O, I]`` and scale float32 ``[O]``: weight ≈ q scale, row by row.

    Symmetric: scale = max |row| / 127 and q = round(row / scale), so |weight - q scale| <= scale / 2 up to the
    rounding of float32. A row of zeros has scale 0. Every weight must be finite.
    """
    if not isinstance(weight, np.ndarray) or weight.dtype.name not in ("float32", "float64", "bfloat16"):
        got = getattr(weight, "dtype", type(weight).__name__)
        raise TypeError(f"quantize_int8: weight must be float32, float64 or bfloat16, got {got}")
    if weight.ndim != 2:
        raise ValueError(f"quantize_int8: weight must be [out_features, in_features], got shape {weight.shape}")
    wide = weight.astype(np.float64 if weight.dtype == np.float64 else np.float32, copy=False)
    largest = np.abs(wide).max(axis=1) if wide.shape[1] else np.zeros(len(wide), wide.dtype)
    if not np.isfinite(largest).all():
        raise ValueError("quantize_int8: weight must be finite, got a row with NaN or infinity")
    scale = (largest / 127).astype(np.float32)
    divisor = np.where(scale > 0, scale, 1)[:, None]
    return np.rint(wide / divisor).clip(-127, 127).astype(np.int8), scale


@public
def linear_int8(
    x: Array,
    q: Array,
    scale: Array,
    bias: Array | None = None,
    *,
    activation: str | None = None,
    residual: Array | None = None,
) -> Array:
    """act((x qᵀ) scale + b) + residual: `linear` with a weight from `quantize_int8`, for inference.

    x ``[..., I]`` float32 or bfloat16, q int8 ``[O, I]``, scale float32 ``[O]``. The arithmetic is float32, so the
    result differs from that of the unquantised weight by at most Σ|x| scale / 2 beside rounding. Few rows are bound
    by reading q, a quarter of the bytes of float32; many rows convert q panel by panel as they pack it.
    """
    return _cpu.linear_int8(x, q, scale, bias, activation, residual)
