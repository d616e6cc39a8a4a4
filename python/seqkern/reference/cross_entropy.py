"""Cross-entropy from logits, the classes in the last dimension.

    l_m = -(1 - ε) log p[target_m] - (ε / C) Σ_c log p[c],   p = softmax(logits_m)
    dlogits_m = dl_m · (p - t),   t = (1 - ε) · onehot(target_m) + ε / C

with label smoothing ε. Rows whose target is `ignore_index` have loss and gradient 0, and
"mean" divides by the number of the others (none at all: NaN, as in torch).
Meaning as in `torch.nn.functional.cross_entropy`, except that the classes always come last.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ._arrays import Array, compute_dtype, narrow, or_zeros, widen
from .softmax import log_softmax


class CrossEntropySaved(NamedTuple):
    """Inputs as given, and `log_probs` `[..., C]`, the log-softmax of the logits."""

    logits: Array
    target: Array
    log_probs: Array
    ignore_index: int
    label_smoothing: float
    reduction: str


class CrossEntropyGradients(NamedTuple):
    """dlogits `[..., C]`, in the dtype of the logits."""

    dlogits: Array


def _kept_targets(target: Array, ignore_index: int) -> tuple[Array, Array]:
    """Which rows count, and targets `[..., 1]` that are safe to index with."""
    kept = target != ignore_index
    return kept, np.where(kept, target, 0)[..., None]


def cross_entropy_forward(
    logits: Array,
    target: Array,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> tuple[Array, CrossEntropySaved]:
    """As `cross_entropy`, and what `cross_entropy_backward` needs: loss, saved."""
    log_probs = log_softmax(widen(logits, compute_dtype(logits)))
    saved = CrossEntropySaved(logits, target, log_probs, ignore_index, label_smoothing, reduction)
    kept, index = _kept_targets(target, ignore_index)
    loss = -np.take_along_axis(log_probs, index, axis=-1)[..., 0]
    if label_smoothing:  # without it a class with logit -inf must not turn 0 · inf into NaN
        uniform = -log_probs.mean(axis=-1)
        loss = (1 - label_smoothing) * loss + label_smoothing * uniform
    loss = np.where(kept, loss, np.zeros_like(loss))
    if reduction == "none":
        return loss, saved
    total: Any = loss.sum()
    if reduction == "mean":
        with np.errstate(invalid="ignore"):
            total = total / total.dtype.type(kept.sum())
    return np.asarray(total), saved


def cross_entropy(
    logits: Array,
    target: Array,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> Array:
    """Loss of logits `[..., C]` against class indices target `[...]`.

    reduction "mean" and "sum" give a 0-d array, "none" one loss per target; float32, or float64
    for float64 logits.
    """
    return cross_entropy_forward(
        logits,
        target,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        reduction=reduction,
    )[0]


def cross_entropy_backward(
    dloss: Array | float | None, saved: CrossEntropySaved
) -> CrossEntropyGradients:
    """dlogits from dloss, of the loss's shape; None stands for zero."""
    kept, index = _kept_targets(saved.target, saved.ignore_index)
    log_probs, smoothing = saved.log_probs, saved.label_smoothing
    expected = np.full_like(log_probs, smoothing / max(log_probs.shape[-1], 1))
    own_class = np.take_along_axis(expected, index, axis=-1) + (1 - smoothing)
    np.put_along_axis(expected, index, own_class, axis=-1)

    shape = saved.target.shape if saved.reduction == "none" else ()
    weight = or_zeros(dloss, shape, log_probs.dtype)
    if saved.reduction == "mean":
        weight = weight / log_probs.dtype.type(max(kept.sum(), 1))
    dlogits = (np.exp(log_probs) - expected) * weight[..., None]
    dlogits = np.where(kept[..., None], dlogits, np.zeros_like(dlogits))
    return CrossEntropyGradients(narrow(dlogits, saved.logits))
