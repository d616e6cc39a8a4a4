"""Handwritten kernels for RNN, LSTM, GRU and attention, forward and backward, from NumPy.

The functions live in `seqkern.ops` and are also here; modules in `seqkern.nn`, models in `seqkern.models`,
optimisers in `seqkern.optim`, the NumPy truth in `seqkern.reference`.
"""

from __future__ import annotations

import importlib
from typing import Any

from . import ops
from ._config import show_config
from ._precision import get_matmul_precision, set_matmul_precision
from ._random import manual_seed
from ._threads import get_num_threads, set_num_threads, watch_threadpoolctl
from ._version import __version__
from .ops import *  # noqa: F403

__all__ = [
    "__version__", "audio", "get_matmul_precision", "get_num_threads", "manual_seed", "models", "nn", "ops",
    "optim", "plot", "reference", "set_matmul_precision", "set_num_threads", "show_config", *ops.__all__,
]  # fmt: skip

_LAZY = ("bench", "models", "nn", "optim", "plot", "reference")

watch_threadpoolctl()


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
