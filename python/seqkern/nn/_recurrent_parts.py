"""Small pieces of the recurrent modules: one layer's parameters, array layouts, state tuples."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

from ._arrays import Array, array_module
from .module import Parameter

# (h,) or (h, c): one array each, or None where nothing was given.
States: TypeAlias = tuple[Any, ...]


class LayerParameters(NamedTuple):
    """The parameters of one layer and direction; None where the module has none."""

    weight_ih: Parameter
    weight_hh: Parameter
    bias_ih: Parameter | None = None
    bias_hh: Parameter | None = None
    weight_hr: Parameter | None = None
    weight_peephole: Parameter | None = None

    def add_gradients(self, grads: Any) -> None:
        """Add the fields dweight_ih, ... of an op's gradients to the parameters."""
        self.weight_ih.add_grad(grads.dweight_ih)
        self.weight_hh.add_grad(grads.dweight_hh)
        if self.bias_ih is not None and self.bias_hh is not None:
            self.bias_ih.add_grad(grads.dbias_ih)
            # An op may return one array for both biases; each parameter must own its gradient.
            self.bias_hh.add_grad(+grads.dbias_hh)
        if self.weight_hr is not None:
            self.weight_hr.add_grad(grads.dweight_hr)
        if self.weight_peephole is not None:
            self.weight_peephole.add_grad(grads.dpeephole)


class Layout(NamedTuple):
    """How one call's arrays lie, so that outputs and gradients can be put back the same way."""

    batched: bool
    batch_first: bool

    def to_time_first(self, x: Array) -> Array:
        if not self.batched:
            return x[:, None]
        return x.swapaxes(0, 1) if self.batch_first else x

    def from_time_first(self, y: Array) -> Array:
        if not self.batched:
            return y[:, 0]
        return y.swapaxes(0, 1) if self.batch_first else y

    def state_in(self, h: Array) -> Array:
        return h if self.batched else h[:, None]

    def state_out(self, h: Array) -> Array:
        return h if self.batched else h[:, 0]


def join_directions(outputs: list[Array]) -> Array:
    """Outputs of the directions side by side: [T, N, D*P]."""
    if len(outputs) == 1:
        return outputs[0]
    return array_module(outputs[0]).concatenate(outputs, -1)


def direction_part(dy: Array | None, direction: int, directions: int) -> Array | None:
    """One direction's share of a gradient [T, N, D*P]."""
    if dy is None or directions == 1:
        return dy
    size = dy.shape[-1] // directions
    return dy[..., direction * size : (direction + 1) * size]


def stack_states(rows: list[States], layout: Layout) -> States:
    """One tuple of [N, size] per layer and direction, as a tuple of [L*D, N, size]."""
    xp = array_module(rows[0][0])
    stacked = (h[0][None] if len(h) == 1 else xp.stack(h) for h in zip(*rows, strict=True))
    return tuple(layout.state_out(h) for h in stacked)
