"""Optimiser updates, in place on one parameter, and gradient clipping, in place on a list.

The formulas are those of `torch.optim` and `torch.nn.utils.clip_grad_*`. AdamW: Loshchilov &
Hutter 2019; Adagrad: Duchi, Hazan & Singer 2011.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ._arrays import Array, compute_dtype, widen


def sgd_update(
    param: Array,
    grad: Array,
    momentum_buffer: Array | None,
    *,
    lr: float,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
) -> Array | None:
    """One step of SGD; returns the momentum buffer to pass next time.

    g = grad + weight_decay · param;  v = momentum · v + (1 - dampening) · g;
    param -= lr · v, or lr · (g + momentum · v) with nesterov. The first step, with no buffer
    yet (None), starts it as v = g; a given buffer is updated in place.
    """
    dtype = compute_dtype(param)
    p, g = widen(param, dtype), widen(grad, dtype)
    g = g + weight_decay * p
    if momentum:
        if momentum_buffer is None:
            momentum_buffer = g.copy()
        else:
            momentum_buffer[...] = momentum * momentum_buffer + (1 - dampening) * g
        g = g + momentum * momentum_buffer if nesterov else momentum_buffer
    param[...] = p - lr * g
    return momentum_buffer


def adagrad_update(
    param: Array,
    grad: Array,
    sum: Array,
    *,
    lr: float,
    eps: float = 1e-10,
    weight_decay: float = 0.0,
) -> None:
    """One step of Adagrad: sum += g²;  param -= lr · g / (√sum + eps).

    g = grad + weight_decay · param, as in SGD.
    """
    dtype = compute_dtype(param)
    p, g = widen(param, dtype), widen(grad, dtype)
    g = g + weight_decay * p
    sum[...] = sum + g**2
    param[...] = p - lr * g / (np.sqrt(sum) + eps)


def adamw_update(
    param: Array,
    grad: Array,
    exp_avg: Array,
    exp_avg_sq: Array,
    *,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> None:
    """Step number `step` (from 1) of AdamW, with decoupled weight decay.

    m = β₁ m + (1 - β₁) g;  v = β₂ v + (1 - β₂) g²;  param *= 1 - lr · weight_decay;
    param -= lr · (m / (1 - β₁ˢ)) / (√(v / (1 - β₂ˢ)) + eps).
    """
    dtype = compute_dtype(param)
    p, g = widen(param, dtype), widen(grad, dtype)
    exp_avg[...] = beta1 * exp_avg + (1 - beta1) * g
    exp_avg_sq[...] = beta2 * exp_avg_sq + (1 - beta2) * g**2
    mean, mean_square = exp_avg / (1 - beta1**step), exp_avg_sq / (1 - beta2**step)
    param[...] = p * (1 - lr * weight_decay) - lr * mean / (np.sqrt(mean_square) + eps)


def clip_grad_value_(gradients: Iterable[Array | None], clip_value: float) -> None:
    """Clamp every element of every gradient to [-clip_value, clip_value]; None is skipped."""
    for gradient in gradients:
        if gradient is not None:
            np.clip(gradient, -clip_value, clip_value, out=gradient)


def clip_grad_norm_(
    gradients: Iterable[Array | None], max_norm: float, norm_type: float = 2.0
) -> float:
    """Scale all gradients by max_norm / (norm + 1e-6) where that is below 1; returns the norm.

    The norm is that of all elements of all gradients as one vector, in float64; norm_type may
    be inf. None is skipped.
    """
    present = [gradient for gradient in gradients if gradient is not None]
    norms = [np.linalg.norm(g.astype(np.float64).ravel(), norm_type) for g in present]
    total = float(np.linalg.norm(np.asarray(norms), norm_type)) if norms else 0.0
    scale = np.minimum(max_norm / (total + 1e-6), 1.0)  # unlike min(), keeps a NaN
    for gradient in present:
        gradient[...] = gradient * gradient.dtype.type(scale)
    return total
