"""Dropout (torch.nn.Dropout)."""

from __future__ import annotations

from .. import _random, ops
from ._arrays import Array, OutputForm, check_array
from ._init import check_probability
from .module import Module, Pullback


class Dropout(Module):
    """In training, each element is 0 with probability p and the others are scaled by 1/(1-p).

    In eval mode, or with p = 0, the input itself is returned. The mask is the Philox stream of
    `seqkern.dropout`, its seed the next draw of the library's generator (`seqkern.manual_seed`).
    """

    def __init__(self, p: float = 0.5) -> None:
        self.p = check_probability(p, "p")

    @property
    def active(self) -> bool:
        """Whether anything may be dropped."""
        return self.training and self.p > 0

    def __call__(self, x: Array) -> Array:
        check_array(x, "input")
        if not self.active:
            return x
        return ops.dropout(x, self.p, seed=_random.draw_seed())

    def vjp(self, x: Array) -> tuple[Array, Pullback]:
        check_array(x, "input")
        form = OutputForm.of(x)
        if not self.active:
            return x, Pullback(lambda dy: (form.gradient(dy),))
        y, saved = ops.dropout_forward(x, self.p, seed=_random.draw_seed())
        return y, Pullback(lambda dy: (ops.dropout_backward(form.gradient(dy), saved).dx,))

    def __repr__(self) -> str:
        return f"Dropout({self.p})"
