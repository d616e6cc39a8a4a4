"""Int8Linear: a Linear for inference whose weight is int8, a quarter of the bytes."""

from __future__ import annotations

from typing import Any

from .. import _cpu, ops
from ._arrays import Array
from .linear import Linear
from .module import Buffer, Module, Pullback


class Int8Linear(Module):
    """x [..., in_features] -> y [..., out_features] with q int8 [out_features, in_features].

    weight = q scale, one scale per output; made from a trained `Linear` and not trainable itself:
    there are no parameters, and no gradient. q, scale and bias are buffers.
    """

    def __init__(self, q: Array, scale: Array, bias: Array | None = None) -> None:
        self.q, self.scale = Buffer(q), Buffer(scale)
        self.bias = None if bias is None else Buffer(bias)
        self.out_features, self.in_features = q.shape

    @classmethod
    def from_linear(cls, linear: Linear) -> Int8Linear:
        """Quantises the weight (`quantize_int8`); the bias is shared with `linear`."""
        q, scale = ops.quantize_int8(linear.weight.data)
        return cls(q, scale, None if linear.bias is None else linear.bias.data)

    def __call__(self, x: Array, **fused: Any) -> Array:
        """fused: `activation` and `residual`, as `seqkern.linear_int8` takes them."""
        bias = None if self.bias is None else self.bias.data
        return ops.linear_int8(x, self.q.data, self.scale.data, bias, **fused)

    def vjp(self, x: Array, **fused: Any) -> tuple[Array, Pullback]:
        """For models that always call `vjp`: y, and a pullback that refuses."""

        def pull(dy: Any) -> tuple[Any]:
            raise TypeError("Int8Linear: int8 weights have no gradient; train the Linear it was made from")

        return self(x, **fused), Pullback(pull)

    def __repr__(self) -> str:
        return f"Int8Linear({self.in_features}, {self.out_features}, bias={self.bias is not None})"


def quantize_int8_(module: Module) -> Module:
    """Puts an `Int8Linear` in the place of every `Linear` below `module`, which is for inference from then on.

    The fused input projection of a `MultiheadAttention` is no `Linear` and stays as it is.
    """
    _replace_linear(module)
    _cpu.give_back_memory()
    return module


def _replace_linear(module: Module) -> None:
    for name, child in list(module.named_children()):
        if isinstance(child, Linear):
            module.replace_child(name, Int8Linear.from_linear(child))
        else:
            _replace_linear(child)
