"""Threads of the CPU kernels, and how threadpoolctl finds them."""

from __future__ import annotations

import sys
from operator import index
from typing import Any

from seqkern import _cpu


def get_num_threads() -> int:
    """The most threads one kernel uses.

    At first SEQKERN_NUM_THREADS, else OMP_NUM_THREADS, else the cores this process may use.
    """
    return int(_cpu.get_num_threads())


def set_num_threads(n: int) -> None:
    """Use at most n threads, 1 to 1024. Results do not depend on it."""
    try:
        value = index(n)
    except TypeError:
        raise TypeError(f"set_num_threads: n must be an integer, got {type(n).__name__}") from None
    if not 1 <= value <= 1024:
        raise ValueError(f"set_num_threads: n must lie in [1, 1024], got {value}")
    _cpu.set_num_threads(value)


def register_with_threadpoolctl() -> None:
    """Make threadpoolctl.threadpool_info and threadpool_limits know the pool."""
    from threadpoolctl import LibController, register

    class SeqkernController(LibController):  # type: ignore[misc]
        user_api = "seqkern"
        internal_api = "seqkern"
        filename_prefixes = ("_cpu",)
        check_symbols = ("seqkern_get_num_threads",)

        def get_num_threads(self) -> Any:
            return self.dynlib.seqkern_get_num_threads()

        def set_num_threads(self, num_threads: int) -> Any:
            return self.dynlib.seqkern_set_num_threads(num_threads)

        def get_version(self) -> str | None:
            return None

        def set_additional_attributes(self) -> None:
            self.threading_layer = "native"

    register(SeqkernController)


class _Watch:
    """Registers once threadpoolctl is imported: importing it here would cost every user its import time."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != "threadpoolctl":
            return None
        sys.meta_path.remove(self)  # type: ignore[arg-type]
        import importlib.util

        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: Any) -> None:
                execute(module)
                register_with_threadpoolctl()

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def watch_threadpoolctl() -> None:
    """Register now when threadpoolctl is loaded, else when it is."""
    if "threadpoolctl" in sys.modules:
        register_with_threadpoolctl()
    else:
        sys.meta_path.insert(0, _Watch())  # type: ignore[arg-type]
