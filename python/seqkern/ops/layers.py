"""Embedding, softmax and cross-entropy, forward and backward."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from seqkern import _cpu
from seqkern._check import integer, number, saved_by
from seqkern._dispatch import public

__all__ = [
    "CrossEntropyGradients", "CrossEntropySaved", "EmbeddingGradients", "EmbeddingSaved",
    "SoftmaxGradients", "SoftmaxSaved",
    "cross_entropy", "cross_entropy_backward", "cross_entropy_forward",
    "embedding", "embedding_backward", "embedding_forward",
    "log_softmax", "log_softmax_backward", "log_softmax_forward",
    "softmax", "softmax_backward", "softmax_forward",
]  # fmt: skip

Array = Any


class EmbeddingSaved(NamedTuple):
    """ids as given, the shape of the weight, and padding_idx."""

    ids: Array
    weight: Array
    padding_idx: int | None


class EmbeddingGradients(NamedTuple):
    """dweight ``[V, E]``, float32 (float64 for float64)."""

    dweight: Array


def _padding(weight: Array, padding_idx: int | None) -> int | None:
    if padding_idx is None:
        return None
    rows = weight.shape[0]
    padding_idx = integer("embedding", "padding_idx", padding_idx)
    if not -rows <= padding_idx < rows:
        raise ValueError(f"embedding: padding_idx must lie in [{-rows}, {rows - 1}], got {padding_idx}")
    return padding_idx % rows


@public
def embedding(ids: Array, weight: Array, *, padding_idx: int | None = None) -> Array:
    """Rows of weight ``[V, E]`` at integer ids ``[...]``, giving ``[..., E]``. ids must lie in 0..V-1.

    The row `padding_idx` receives no gradient, as in torch's F.embedding.
    """
    y = _cpu.embedding_forward(ids, weight)
    _padding(weight, padding_idx)
    return y


@public
def embedding_forward(ids: Array, weight: Array, *, padding_idx: int | None = None) -> tuple[Array, EmbeddingSaved]:
    """`embedding`, and what `embedding_backward` needs."""
    return embedding(ids, weight, padding_idx=padding_idx), EmbeddingSaved(ids, weight, padding_idx)


@public
def embedding_backward(dy: Array | None, saved: EmbeddingSaved) -> EmbeddingGradients:
    """The gradient of the weight: dy ``[..., E]`` (None = zero) added up row by row, in the order of the ids."""
    saved_by("embedding", saved, EmbeddingSaved)
    if dy is None:
        dy = np.zeros((*saved.ids.shape, saved.weight.shape[1]), saved.weight.dtype)
    padding = None if saved.padding_idx is None else _padding(saved.weight, saved.padding_idx)
    return EmbeddingGradients(_cpu.embedding_backward(dy, saved.ids, saved.weight, -1 if padding is None else padding))


class SoftmaxSaved(NamedTuple):
    """The output y and the axis."""

    y: Array
    dim: int


class SoftmaxGradients(NamedTuple):
    """dx, in x's dtype."""

    dx: Array


def _last(x: Array, dim: int, op: str) -> Array:
    """x with axis `dim` moved to the end; other types pass through for the kernel to refuse."""
    dim = integer(op, "dim", dim)
    if not isinstance(x, np.ndarray) or x.ndim == 0:
        return x
    if not -x.ndim <= dim < x.ndim:
        raise ValueError(f"{op}: dim must lie in [{-x.ndim}, {x.ndim - 1}], got {dim}")
    return x if dim in (-1, x.ndim - 1) else np.moveaxis(x, dim, -1)


def _softmax(x: Array, dim: int, log: bool, out: Array | None = None) -> Array:
    op = "log_softmax" if log else "softmax"
    rows = _last(x, dim, op)
    if out is not None and rows is not x:
        raise ValueError(f"{op}: out must be None unless dim is the last axis, got dim {dim}")
    y = _cpu.softmax_forward(rows, log, out)
    return y if dim in (-1, y.ndim - 1) else np.ascontiguousarray(np.moveaxis(y, -1, dim))


def _softmax_gradient(dy: Array | None, saved: SoftmaxSaved, log: bool) -> SoftmaxGradients:
    op = "log_softmax" if log else "softmax"
    saved_by(op, saved, SoftmaxSaved)
    if dy is None:
        dy = np.zeros_like(saved.y)
    dx = _cpu.softmax_backward(_last(dy, saved.dim, op), _last(saved.y, saved.dim, op), log)
    if saved.dim not in (-1, dx.ndim - 1):
        dx = np.ascontiguousarray(np.moveaxis(dx, -1, saved.dim))
    return SoftmaxGradients(dx)


@public
def softmax(x: Array, dim: int = -1, *, out: Array | None = None) -> Array:
    """exp(x - max) / Σ exp(x - max) along `dim`, as torch's F.softmax. Another axis than the last is copied.

    out: where y is written, contiguous and apart from x, for the last axis alone.
    """
    return _softmax(x, dim, False, out)


@public
def softmax_forward(x: Array, dim: int = -1) -> tuple[Array, SoftmaxSaved]:
    """`softmax`, and what `softmax_backward` needs."""
    y = _softmax(x, dim, False)
    return y, SoftmaxSaved(y, dim)


@public
def softmax_backward(dy: Array | None, saved: SoftmaxSaved) -> SoftmaxGradients:
    """dx = y (dy - Σ dy y)."""
    return _softmax_gradient(dy, saved, False)


@public
def log_softmax(x: Array, dim: int = -1, *, out: Array | None = None) -> Array:
    """x - log Σ exp x along `dim`, as torch's F.log_softmax. out: as in `softmax`."""
    return _softmax(x, dim, True, out)


@public
def log_softmax_forward(x: Array, dim: int = -1) -> tuple[Array, SoftmaxSaved]:
    """`log_softmax`, and what `log_softmax_backward` needs."""
    y = _softmax(x, dim, True)
    return y, SoftmaxSaved(y, dim)


@public
def log_softmax_backward(dy: Array | None, saved: SoftmaxSaved) -> SoftmaxGradients:
    """dx = dy - exp(y) Σ dy."""
    return _softmax_gradient(dy, saved, True)


class CrossEntropySaved(NamedTuple):
    """logits and target as given, the log-sum-exp of every row, and the options."""

    logits: Array
    target: Array
    lse: Array
    ignore_index: int
    label_smoothing: float
    reduction: str


class CrossEntropyGradients(NamedTuple):
    """dlogits ``[..., C]``, in the dtype of the logits."""

    dlogits: Array


def _check_cross_entropy(ignore_index: int, label_smoothing: float, reduction: str) -> tuple[int, float]:
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"cross_entropy: reduction must be 'mean', 'sum' or 'none', got {reduction!r}")
    return (
        integer("cross_entropy", "ignore_index", ignore_index),
        number("cross_entropy", "label_smoothing", label_smoothing, 0.0, 1.0),
    )


@public
def cross_entropy(
    logits: Array, target: Array, *, ignore_index: int = -100, label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> Array:  # fmt: skip
    """-log softmax(logits)[target]: logits ``[..., C]`` (classes last at every rank), integer target ``[...]``.

    Label smoothing e takes the target as (1 - e) one-hot + e / C. "mean" divides by the number of targets that
    are not `ignore_index` (NaN when there are none), as torch. Returns a 0-d array, or ``[...]`` for "none";
    float32 for bfloat16 logits.
    """
    return cross_entropy_forward(
        logits, target, ignore_index=ignore_index, label_smoothing=label_smoothing, reduction=reduction
    )[0]


@public
def cross_entropy_forward(
    logits: Array, target: Array, *, ignore_index: int = -100, label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> tuple[Array, CrossEntropySaved]:  # fmt: skip
    """`cross_entropy`, and what `cross_entropy_backward` needs."""
    ignore_index, label_smoothing = _check_cross_entropy(ignore_index, label_smoothing, reduction)
    loss, lse = _cpu.cross_entropy_forward(logits, target, ignore_index, label_smoothing)
    if reduction != "none":
        total, count = loss.sum(), _count(target, ignore_index, reduction)
        if not isinstance(count, int):  # on the GPU: nothing waits for the number
            loss = (total / np.where(count > 0, count, np.nan)).astype(loss.dtype)
        else:
            loss = np.asarray(total / count if count else total * np.nan, loss.dtype)
    return loss, CrossEntropySaved(logits, target, lse, ignore_index, label_smoothing, reduction)


def _count(target: Array, ignore_index: int, reduction: str) -> Any:
    """What the sum of the losses is divided by; a 0-d array on the GPU."""
    return 1 if reduction == "sum" else np.count_nonzero(target != ignore_index)


def _scalar(dloss: Array | float | None) -> float:
    """The gradient of a reduced loss."""
    kind = np.asarray(dloss).dtype.kind
    if dloss is None or (np.ndim(dloss) == 0 and kind in "fiu"):
        return float(dloss or 0.0)
    if kind not in "fiu" and np.asarray(dloss).dtype.name != "bfloat16":
        raise TypeError(f"cross_entropy: dloss must be a number, got {type(dloss).__name__}")
    raise ValueError(f"cross_entropy: dloss must be a scalar, got shape {list(np.shape(dloss))}")


@public
def cross_entropy_backward(dloss: Array | float | None, saved: CrossEntropySaved) -> CrossEntropyGradients:
    """dlogits = (softmax - target) · dloss, over the count for "mean". dloss: a scalar, or ``[...]`` for "none"."""
    s = saved
    saved_by("cross_entropy", s, CrossEntropySaved)
    dtype = np.float64 if getattr(s.logits, "dtype", None) == np.float64 else np.float32
    if s.reduction == "none":
        scale = np.zeros(np.shape(s.target), dtype) if dloss is None else dloss
    else:
        count = _count(s.target, s.ignore_index, s.reduction)
        if isinstance(count, int):
            scale = np.full(np.shape(s.target), _scalar(dloss) / max(count, 1), dtype)
        else:
            each = (0.0 if dloss is None else dloss) / np.maximum(count, 1)
            scale = np.broadcast_to(each, s.target.shape).astype(dtype)
    return CrossEntropyGradients(
        _cpu.cross_entropy_backward(scale, s.logits, s.target, s.lse, s.ignore_index, s.label_smoothing)
    )
