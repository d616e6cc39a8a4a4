"""torch.compile: torch's own modules through its compiler, which needs a C++ compiler and a minute per model."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from .. import zoo
from ..tasks import Entry, UnsupportedError
from ..zoo import ModelTask
from .torch import _model, _numpy, prepare, train_call

__all__ = ["NAME", "model", "model_train", "prepare"]
NAME = "torch.compile"


def model(task: ModelTask) -> Entry:
    """Compiled in inference mode; results: logits, or the last hidden state."""
    module, x = _compiled(task)

    def call() -> Any:
        with torch.inference_mode():
            return zoo.first_array(module(x))

    _compile(call)
    return Entry(call, lambda: [_numpy(call())])


def model_train(task: ModelTask) -> Entry:
    """Compiled forward and backward from a given gradient of the output; results: the output."""
    call = train_call(*_compiled(task), torch.from_numpy(task.dy))
    _compile(call)
    return Entry(call, lambda: [_numpy(call())])


def _compiled(task: ModelTask) -> tuple[Any, torch.Tensor]:
    module, x = _model(task)
    with warnings.catch_warnings():  # what it imports is deprecated by itself
        warnings.simplefilter("ignore")
        return torch.compile(module), x


def _compile(call: Any) -> None:
    """The first call compiles; what stops it is said as the reason."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            call()
    except RuntimeError as error:  # its compiler's errors are of this kind
        raise UnsupportedError(f"it cannot compile the model here: {str(error).strip().splitlines()[0]}") from error
