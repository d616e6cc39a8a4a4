"""Linear layer: y = x Wᵀ + b; dx = dy W, dW = dyᵀ x, db = Σ dy over all rows.

x `[..., I]`, weight `[O, I]`, bias `[O]`, y `[..., O]`, as in `torch.nn.functional.linear`.
"""

from __future__ import annotations

from typing import NamedTuple

from ._arrays import Array, affine, bias_gradient, compute_dtype, narrow, or_zeros, widen


class LinearSaved(NamedTuple):
    """The inputs as given."""

    x: Array
    weight: Array
    bias: Array | None
    precision: str | None


class LinearGradients(NamedTuple):
    """Gradients of `linear`'s arguments; dbias is None when there was no bias."""

    dx: Array
    dweight: Array
    dbias: Array | None


def linear_forward(
    x: Array, weight: Array, bias: Array | None = None, *, precision: str | None = None
) -> tuple[Array, LinearSaved]:
    """As `linear`, and what `linear_backward` needs: y, saved."""
    dtype = compute_dtype(x)
    y = affine(widen(x, dtype), widen(weight, dtype), widen(bias, dtype))
    return narrow(y, x), LinearSaved(x, weight, bias, precision)


def linear(
    x: Array, weight: Array, bias: Array | None = None, *, precision: str | None = None
) -> Array:
    """x `[..., I]` times weight `[O, I]`, transposed, plus bias `[O]`; `precision` is ignored."""
    return linear_forward(x, weight, bias, precision=precision)[0]


def linear_backward(dy: Array | None, saved: LinearSaved) -> LinearGradients:
    """Gradients from dy `[..., O]`; None stands for zero."""
    dtype = compute_dtype(saved.x)
    out_features, in_features = saved.weight.shape
    dy = or_zeros(dy, (*saved.x.shape[:-1], out_features), dtype)
    dy_rows = dy.reshape(-1, out_features)
    x_rows = widen(saved.x, dtype).reshape(-1, in_features)
    return LinearGradients(
        dx=narrow(dy @ widen(saved.weight, dtype), saved.x),
        dweight=dy_rows.T @ x_rows,
        dbias=bias_gradient(dy_rows, saved.bias),
    )
