"""Losses: cross-entropy from logits (torch.nn.CrossEntropyLoss, classes in the last axis)."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import ops
from ._arrays import Array, array_module
from ._init import check_choice, check_probability
from .module import Module, Pullback


class CrossEntropyLoss(Module):
    """Cross-entropy between logits [..., C] and integer targets [...].

    ignore_index: targets of this value count neither in the sum nor in the mean.
    label_smoothing: the share, in [0, 1], of the target spread evenly over all classes.
    reduction: "mean" over the targets not ignored, "sum", or "none" (a loss per target).

    Returns the loss as an array, 0-d unless reduction is "none". The pullback takes its gradient
    (1.0 if called without; None stands for zero) and returns `(dlogits,)`; targets have none.
    """

    def __init__(
        self,
        *,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        reduction: str = "mean",
    ) -> None:
        self.ignore_index = ignore_index
        self.label_smoothing = check_probability(label_smoothing, "label_smoothing")
        self.reduction = check_choice(reduction, "reduction", ("mean", "sum", "none"))

    def _options(self) -> dict[str, Any]:
        return {
            "ignore_index": self.ignore_index,
            "label_smoothing": self.label_smoothing,
            "reduction": self.reduction,
        }

    def __call__(self, logits: Array, target: Array) -> Array:
        return ops.cross_entropy(logits, target, **self._options())

    def vjp(self, logits: Array, target: Array) -> tuple[Array, Pullback]:
        loss, saved = ops.cross_entropy_forward(logits, target, **self._options())

        def pull(dloss: Any = 1.0) -> tuple[Array]:
            if dloss is None:
                dloss = array_module(loss).zeros(loss.shape, dtype=loss.dtype)
            elif isinstance(dloss, float | int | np.generic):
                dloss = array_module(loss).asarray(dloss, dtype=loss.dtype)
            return (ops.cross_entropy_backward(dloss, saved).dlogits,)

        return loss, Pullback(pull)
