"""SequenceModel: a recurrent core and a linear head, for the three classic shapes of task.

    many_to_one    x [N, S, I] -> logits [N, O]      from the last layer's final state(s)
    many_to_many   x [N, S, I] -> logits [N, S, O]   one output per step
    one_to_many    x [N, I]    -> logits [N, S, O]   x enters at every one of `steps` = S steps

The core may be stacked and bidirectional in all three. A front, such as convolutions over the frames of
a video, may turn every step of x [N, S, ...] into the core's input by itself.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ..nn import Embedding, Linear
from ..nn._arrays import Array, array_module, check_array, shape_text
from ..nn._init import check_choice, check_size
from ..nn.module import Module, Pullback
from ._files import load_model, restore_model, save_model
from ._recurrent import RecurrentOutput, core_parameters, hidden, make_core, split_gradient

TASKS = ("many_to_one", "many_to_many", "one_to_many")


@dataclass
class SequenceModelConfig:
    """Sizes of a SequenceModel.

    input_size, output_size: features per step of x and classes or values per output.
    cell: "rnn", "lstm" or "gru".
    vocab_size: if not 0, x holds ids [N, S] (one_to_many: [N]) that an embedding turns into
        input_size features.
    dropout: probability, between layers, in training only.
    """

    input_size: int
    output_size: int
    hidden_size: int = 128
    num_layers: int = 1
    cell: str = "lstm"
    bidirectional: bool = False
    task: str = "many_to_one"
    vocab_size: int = 0
    dropout: float = 0.0

    def count_parameters(self) -> int:
        """Without those of a front."""
        directions = 2 if self.bidirectional else 1
        core = core_parameters(self.cell, self.input_size, self.hidden_size, self.num_layers, directions)
        return self.vocab_size * self.input_size + core + (directions * self.hidden_size + 1) * self.output_size


class SequenceModel(Module):
    """`model(x, hx=None, *, lengths=None, steps=None)` -> RecurrentOutput(logits, hx).

    front: a module from [M, ...] to [M, ...], applied to all N S steps at once; what it gives per step is
        flattened to the core's input_size features. Not for ids, nor for one_to_many.
    lengths: integers [N], valid steps of each row. steps: output length of one_to_many.
    hx: initial state of the core. The pullback takes dlogits, or (dlogits, dhx), and returns
    `(dx, dhx)`; dx is None for ids.
    """

    Config = SequenceModelConfig

    def __init__(
        self, config: SequenceModelConfig, front: Module | None = None, *, dtype: Any = np.float32, rng: Any = None
    ) -> None:
        check_choice(config.task, "task", TASKS)
        if front is not None and (config.vocab_size or config.task == "one_to_many"):
            raise ValueError("front needs a task from sequences of values, not ids or one_to_many")
        self.config = config
        options: dict[str, Any] = {"dtype": dtype, "rng": rng}
        vocab, inputs = config.vocab_size, config.input_size
        self.embedding = Embedding(vocab, inputs, **options) if vocab else None
        self.front = front
        self.rnn = make_core(
            config.cell, inputs, config, bidirectional=config.bidirectional, **options
        )
        self._directions = 2 if config.bidirectional else 1
        self.head = Linear(self._directions * config.hidden_size, config.output_size, **options)

    def __call__(
        self, x: Array, hx: Any = None, *, lengths: Any = None, steps: int | None = None
    ) -> RecurrentOutput:
        self._check(x, steps)
        if self.embedding is not None:
            x = self.embedding(x)
        elif self.front is not None:
            x = self._per_step(self.front(_joined(x)), x)
        y, hx = self.rnn(self._time_first(x, steps), hx, lengths=lengths)
        return RecurrentOutput(self._outward(self.head(self._features(y, hx))), hx)

    def vjp(
        self, x: Array, hx: Any = None, *, lengths: Any = None, steps: int | None = None
    ) -> tuple[RecurrentOutput, Pullback]:
        self._check(x, steps)
        pull_embedding = pull_front = None
        shape = x.shape
        if self.embedding is not None:
            x, pull_embedding = self.embedding.vjp(x)
        elif self.front is not None:
            features, pull_front = self.front.vjp(_joined(x))
            x = self._per_step(features, x)
        (y, hx), pull_rnn = self.rnn.vjp(self._time_first(x, steps), hx, lengths=lengths)
        logits, pull_head = self.head.vjp(self._features(y, hx))

        def pull(grad: Any) -> tuple[Array | None, Any]:
            dlogits, dhx = split_gradient(grad)
            (dfeatures,) = pull_head(None if dlogits is None else self._outward(dlogits))
            dx, dhx = pull_rnn(self._core_gradient(dfeatures, dhx, hx))
            # one_to_many: the same x entered at every step.
            dx = dx.sum(0) if self.config.task == "one_to_many" else dx.swapaxes(0, 1)
            if pull_front is not None:
                dx = pull_front(dx.reshape(features.shape))[0].reshape(shape)
            return (dx if pull_embedding is None else pull_embedding(dx)[0]), dhx

        return RecurrentOutput(self._outward(logits), hx), Pullback(pull)

    def generate(self, x: Array, steps: int, hx: Any = None) -> Array:
        """one_to_many: the sequence [N, steps, O] that belongs to x."""
        return self(x, hx, steps=steps).logits

    # --- the shapes of the tasks ------------------------------------------------------------

    def _check(self, x: Array, steps: int | None) -> None:
        check_array(x, "x")
        shape: tuple[str, ...] = (
            ("N", "I") if self.config.task == "one_to_many" else ("N", "S", "I")
        )
        if self.embedding is not None:
            shape = shape[:-1]
        if self.front is not None and x.ndim < 3:
            raise ValueError(f"x must be [N, S, ...], got {shape_text(x.shape)}")
        if self.front is None and x.ndim != len(shape):
            raise ValueError(f"x must be [{', '.join(shape)}], got {shape_text(x.shape)}")
        if self.config.task == "one_to_many":
            check_size(steps, "steps", 0)
        elif steps is not None:
            raise ValueError(f"steps is for one_to_many, this model's task is {self.config.task}")

    def _per_step(self, features: Array, x: Array) -> Array:
        """What the front gave for the steps of x, [N, S, I]."""
        size, found = self.config.input_size, math.prod(features.shape[1:])
        if found != size:
            raise ValueError(f"front must give input_size = {size} features per step, got {shape_text(features.shape)}")
        return features.reshape(*x.shape[:2], size)

    def _time_first(self, x: Array, steps: int | None) -> Array:
        """The core's input [S, N, I]."""
        if self.config.task == "one_to_many":
            return array_module(x).broadcast_to(x, (steps, *x.shape))
        return x.swapaxes(0, 1)

    def _features(self, y: Array, hx: Any) -> Array:
        """The head's input: outputs [S, N, D*H], or the last layer's final states [N, D*H]."""
        if self.config.task != "many_to_one":
            return y
        h = hidden(hx)[-self._directions :]
        return h.swapaxes(0, 1).reshape(h.shape[1], -1)

    def _outward(self, logits: Array) -> Array:
        """Between time first and batch first, either way."""
        return logits if self.config.task == "many_to_one" else logits.swapaxes(0, 1)

    def _core_gradient(self, dfeatures: Array, dhx: Any, hx: Any) -> tuple[Array | None, Any]:
        """Gradient of (y, hx) from that of the head's input and that of hx."""
        if self.config.task != "many_to_one":
            return dfeatures, dhx
        h = hidden(hx)
        dh = array_module(h).zeros(h.shape, dtype=dfeatures.dtype)
        parts = dfeatures.reshape(h.shape[1], self._directions, -1)
        dh[-self._directions :] = parts.swapaxes(0, 1)
        if dhx is not None and hidden(dhx) is not None:
            dh = dh + hidden(dhx)
        if isinstance(hx, tuple):
            return None, (dh, None if dhx is None else dhx[1])
        return None, dh

    # --- files ------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write config.json and model.safetensors into `folder`, each atomically."""
        save_model(self, folder)

    @classmethod
    def from_pretrained(
        cls, path: str | os.PathLike[str], config: SequenceModelConfig | None = None, *, front: Module | None = None
    ) -> SequenceModel:
        """A model in eval mode from a folder, or from one .safetensors file plus `config`.

        front: a module like the one the model was made with, if any; it receives its weights.
        """
        known, weights = load_model(path, SequenceModelConfig, config)
        return restore_model(partial(cls, front=front), known, weights, like="head.weight")


def _joined(x: Array) -> Array:
    """[N, S, ...] to [N S, ...]: all steps as one batch."""
    return x.reshape(-1, *x.shape[2:])
