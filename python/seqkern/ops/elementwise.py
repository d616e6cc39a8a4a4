"""Dropout and the optimisers' updates: one pass over the arrays."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from seqkern import _cpu
from seqkern._check import integer, number, saved_by
from seqkern._dispatch import public

__all__ = [
    "DropoutGradients", "DropoutSaved", "adagrad_update", "adamw_update", "dropout",
    "dropout_backward", "dropout_forward", "sgd_update",
]  # fmt: skip

Array = Any


class DropoutSaved(NamedTuple):
    """x as given, p, seed and offset: the mask is drawn again, not kept."""

    x: Array
    p: float
    seed: int
    offset: int


class DropoutGradients(NamedTuple):
    """dx, in dy's dtype."""

    dx: Array


@public
def dropout(x: Array, p: float, *, seed: int, offset: int = 0) -> Array:
    """x / (1 - p) where kept, else 0; each element is kept with probability 1 - p.

    Element e, in C order, is kept when word e % 4 of Philox4x32-10 (Salmon et al. 2011) with key `seed` and
    counter (e // 4, offset), both 64 bits, is at least floor(p · 2³²). p = 1 gives zeros.
    """
    p = number("dropout", "p", p, 0.0, 1.0)
    seed, offset = integer("dropout", "seed", seed), integer("dropout", "offset", offset)
    for name, value in (("seed", seed), ("offset", offset)):
        if not 0 <= value < 2**64:
            raise ValueError(f"dropout: {name} must lie in [0, 2**64), got {value}")
    return _cpu.dropout(x, p, seed, offset)


@public
def dropout_forward(x: Array, p: float, *, seed: int, offset: int = 0) -> tuple[Array, DropoutSaved]:
    """`dropout`, and what `dropout_backward` needs."""
    return dropout(x, p, seed=seed, offset=offset), DropoutSaved(x, p, seed, offset)


@public
def dropout_backward(dy: Array | None, saved: DropoutSaved) -> DropoutGradients:
    """dx: the same mask and scale applied to dy (None = zero)."""
    saved_by("dropout", saved, DropoutSaved)
    if dy is None:
        dy = np.zeros_like(saved.x)
    return DropoutGradients(_cpu.dropout_backward(dy, saved.x, saved.p, saved.seed, saved.offset))


def _finite(op: str, **values: float) -> None:
    for name, value in values.items():
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{op}: {name} must be a finite number >= 0, got {value}")


@public
def sgd_update(
    param: Array, grad: Array, momentum_buffer: Array | None = None, *, lr: float, momentum: float = 0.0,
    dampening: float = 0.0, weight_decay: float = 0.0, nesterov: bool = False,
) -> None:  # fmt: skip
    """One step of torch.optim.SGD in place: g += λw; b = μb + (1 - d)g; w -= lr·(b, or g + μb for Nesterov).

    Momentum needs a buffer of param's shape (float32; float64 for float64 parameters), zero at first.
    """
    _finite("sgd_update", lr=lr, momentum=momentum, weight_decay=weight_decay)
    if momentum and momentum_buffer is None:
        raise ValueError("sgd_update: momentum_buffer must be an array when momentum is not 0, got None")
    _cpu.sgd_update(param, grad, momentum_buffer if momentum else None, lr, momentum, dampening, weight_decay, nesterov)


@public
def adagrad_update(
    param: Array, grad: Array, sum: Array, *, lr: float, eps: float = 1e-10, weight_decay: float = 0.0
) -> None:
    """One step of torch.optim.Adagrad in place (Duchi et al. 2011): s += g²; w -= lr·g / (√s + eps)."""
    _finite("adagrad_update", lr=lr, eps=eps, weight_decay=weight_decay)
    _cpu.adagrad_update(param, grad, sum, lr, eps, weight_decay)


@public
def adamw_update(
    param: Array, grad: Array, exp_avg: Array, exp_avg_sq: Array, *, step: int, lr: float,
    beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8, weight_decay: float = 0.01,
) -> None:  # fmt: skip
    """One step of torch.optim.AdamW in place (Loshchilov and Hutter 2019); `step` counts from 1."""
    _finite("adamw_update", lr=lr, eps=eps, weight_decay=weight_decay)
    if step < 1:
        raise ValueError(f"adamw_update: step must be at least 1, got {step}")
    for name, beta in (("beta1", beta1), ("beta2", beta2)):
        if not 0.0 <= beta < 1.0:
            raise ValueError(f"adamw_update: {name} must lie in [0, 1), got {beta}")
    _cpu.adamw_update(param, grad, exp_avg, exp_avg_sq, step, lr, beta1, beta2, eps, weight_decay)
