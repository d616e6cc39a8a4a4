"""Batch norm, forward and backward."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from seqkern import _cpu
from seqkern._check import number, saved_by
from seqkern._dispatch import public

__all__ = [
    "BatchNormGradients", "BatchNormSaved", "batch_norm", "batch_norm_backward", "batch_norm_forward",
]  # fmt: skip

Array = Any


class BatchNormSaved(NamedTuple):
    """Inputs as given; `mean` and `rstd` ``[C]``, 1 / √(var + ε), are those that were used."""

    x: Array
    weight: Array | None
    bias: Array | None
    mean: Array
    rstd: Array
    training: bool


class BatchNormGradients(NamedTuple):
    """dx in x's dtype, dweight and dbias float32 (float64 for float64), None where there was none."""

    dx: Array
    dweight: Array | None
    dbias: Array | None


@public
def batch_norm(
    x: Array, running_mean: Array | None, running_var: Array | None, weight: Array | None = None,
    bias: Array | None = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5, *,
    out: Array | None = None,
) -> Array:  # fmt: skip
    """(x - mean) / √(var + eps) · weight + bias per channel of x ``[N, C, ...]``, as torch's F.batch_norm.

    In training, mean and (biased) variance are the batch's, and running_mean and running_var, if given, are
    updated in place: running = (1 - momentum) running + momentum · new, the new variance being the unbiased one.
    Otherwise they are used. Both are ``[C]`` and float32 (float64 for float64 x), weight and bias also bfloat16.
    Ioffe & Szegedy 2015. out: where y is written, contiguous and apart from the inputs.
    """
    return batch_norm_forward(x, running_mean, running_var, weight, bias, training, momentum, eps, out=out)[0]


@public
def batch_norm_forward(
    x: Array, running_mean: Array | None, running_var: Array | None, weight: Array | None = None,
    bias: Array | None = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5, *,
    out: Array | None = None,
) -> tuple[Array, BatchNormSaved]:  # fmt: skip
    """`batch_norm`, and what `batch_norm_backward` needs."""
    momentum = number("batch_norm", "momentum", momentum, 0.0, 1.0)
    eps = number("batch_norm", "eps", eps, 0.0, float("inf"))
    training = bool(training)
    y, mean, rstd = _cpu.batch_norm_forward(
        x, running_mean, running_var, weight, bias, training, momentum, eps, out
    )
    return y, BatchNormSaved(x, weight, bias, mean, rstd, training)


@public
def batch_norm_backward(
    dy: Array | None, saved: BatchNormSaved, *, out: Array | None = None
) -> BatchNormGradients:
    """Gradients from dy, of x's shape (None = zero). out: where dx is written."""
    s = saved
    saved_by("batch_norm", s, BatchNormSaved)
    dy = np.zeros_like(s.x) if dy is None else dy
    return BatchNormGradients(
        *_cpu.batch_norm_backward(dy, s.x, s.weight, s.mean, s.rstd, s.bias is not None, s.training, out)
    )
