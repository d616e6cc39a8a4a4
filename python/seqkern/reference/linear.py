"""Linear layer: y = act(z) + residual, z = x Wᵀ + b; dz = dy act'(z), dx = dz W, dW = dzᵀ x,
db = Σ dz over all rows, dresidual = dy.

x `[..., I]`, weight `[O, I]`, bias `[O]`, y `[..., O]`, as in `torch.nn.functional.linear`.
With int8 weights: z = (x qᵀ) scale + b, q int8 `[O, I]`, one scale per row of q.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import numpy as np

from . import activations
from ._arrays import Array, affine, bias_gradient, compute_dtype, narrow, or_zeros, widen

ACTIVATIONS: dict[str, tuple[Any, Any]] = {
    "relu": (activations.relu_forward, activations.relu_backward),
    "silu": (activations.silu_forward, activations.silu_backward),
    "gelu": (activations.gelu_forward, activations.gelu_backward),
    "gelu_tanh": (
        partial(activations.gelu_forward, approximate="tanh"),
        activations.gelu_backward,
    ),
}


class LinearSaved(NamedTuple):
    """The inputs as given; z before the activation, None without one; was there a residual."""

    x: Array
    weight: Array
    bias: Array | None
    precision: str | None
    activation: str | None
    z: Array | None
    with_residual: bool


class LinearGradients(NamedTuple):
    """Gradients of `linear`'s arguments; dbias and dresidual are None for what was not given."""

    dx: Array
    dweight: Array
    dbias: Array | None
    dresidual: Array | None


def linear_forward(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    activation: str | None = None,
    residual: Array | None = None,
    precision: str | None = None,
) -> tuple[Array, LinearSaved]:
    """As `linear`, and what `linear_backward` needs: y, saved."""
    dtype = compute_dtype(x)
    z = affine(widen(x, dtype), widen(weight, dtype), widen(bias, dtype))
    y = z if activation is None else ACTIVATIONS[activation][0](z)[0]
    if residual is not None:
        y = y + widen(residual, dtype)
    kept = None if activation is None else narrow(z, x)
    saved = LinearSaved(x, weight, bias, precision, activation, kept, residual is not None)
    return narrow(y, x), saved


def linear(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    activation: str | None = None,
    residual: Array | None = None,
    precision: str | None = None,
) -> Array:
    """act(x Wᵀ + b) + residual; activation None, "gelu", "gelu_tanh", "relu" or "silu".

    `precision` is ignored.
    """
    options = {"activation": activation, "residual": residual, "precision": precision}
    y: Array = linear_forward(x, weight, bias, **options)[0]  # type: ignore[arg-type]
    return y


def linear_backward(dy: Array | None, saved: LinearSaved) -> LinearGradients:
    """Gradients from dy `[..., O]`; None stands for zero."""
    dtype = compute_dtype(saved.x)
    out_features, in_features = saved.weight.shape
    dy = or_zeros(dy, (*saved.x.shape[:-1], out_features), dtype)
    dz = dy
    if saved.activation is not None:
        forward, backward = ACTIVATIONS[saved.activation]
        dz = backward(dy, forward(widen(saved.z, dtype))[1]).dx
    dz_rows = dz.reshape(-1, out_features)
    x_rows = widen(saved.x, dtype).reshape(-1, in_features)
    return LinearGradients(
        dx=narrow(dz @ widen(saved.weight, dtype), saved.x),
        dweight=dz_rows.T @ x_rows,
        dbias=bias_gradient(dz_rows, saved.bias),
        dresidual=narrow(dy, saved.x) if saved.with_residual else None,
    )


def quantize_int8(weight: Array) -> tuple[Array, Array]:
    """weight `[O, I]` ≈ q scale: scale = max |row| / 127, q = round(row / scale)."""
    scale = np.abs(weight).max(axis=1, initial=0.0) / 127
    q = np.rint(weight / np.where(scale > 0, scale, 1)[:, None])
    return q.astype(np.int8), scale.astype(np.float32)


def linear_int8(
    x: Array,
    q: Array,
    scale: Array,
    bias: Array | None = None,
    *,
    activation: str | None = None,
    residual: Array | None = None,
) -> Array:
    """`linear` with the weight q scale."""
    weight = q.astype(np.float64) * scale[:, None]
    return linear(x, weight, bias, activation=activation, residual=residual)
