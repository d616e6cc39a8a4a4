"""ReLU, Sigmoid, Tanh, SiLU, GELU and Identity (torch.nn's)."""

from __future__ import annotations

from typing import Any

from .. import ops
from ._arrays import Array, OutputForm, check_array
from ._init import check_choice
from .module import Module, Pullback


class Identity(Module):
    """y = x."""

    def __call__(self, x: Array) -> Array:
        check_array(x, "input")
        return x

    def vjp(self, x: Array) -> tuple[Array, Pullback]:
        check_array(x, "input")
        form = OutputForm.of(x)
        return x, Pullback(lambda dy: (form.gradient(dy),))


class Activation(Module):
    """An elementwise function: `_op` in `seqkern.ops`, called with `_options()`."""

    _op = ""

    @property
    def fused(self) -> str:
        """What `seqkern.linear` calls it, where it can be fused into a product."""
        return self._op

    def _options(self) -> dict[str, Any]:
        return {}

    def __call__(self, x: Array) -> Array:
        return getattr(ops, self._op)(x, **self._options())

    def vjp(self, x: Array) -> tuple[Array, Pullback]:
        y, saved = getattr(ops, f"{self._op}_forward")(x, **self._options())
        backward, form = getattr(ops, f"{self._op}_backward"), OutputForm.of(y)
        return y, Pullback(lambda dy: (backward(form.gradient(dy), saved).dx,))

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in self._options().items())
        return f"{type(self).__name__}({options})"


class ReLU(Activation):
    """y = max(x, 0), any shape."""

    _op = "relu"


class Sigmoid(Activation):
    """y = 1 / (1 + exp(-x)), any shape."""

    _op = "sigmoid"


class Tanh(Activation):
    """y = tanh(x), any shape."""

    _op = "tanh"


class SiLU(Activation):
    """y = x sigmoid(x), any shape."""

    _op = "silu"


class GELU(Activation):
    """y = x Phi(x), any shape; approximate: "none", or "tanh" for the form of GPT-2."""

    _op = "gelu"

    def __init__(self, approximate: str = "none") -> None:
        self.approximate = check_choice(approximate, "approximate", ("none", "tanh"))

    def _options(self) -> dict[str, Any]:
        return {"approximate": self.approximate}

    @property
    def fused(self) -> str:
        return "gelu" if self.approximate == "none" else "gelu_tanh"
