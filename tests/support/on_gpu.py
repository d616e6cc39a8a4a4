"""`_cuda` where `_cpu` stands below ops: NumPy arrays go to the GPU and the results come back.

So the bodies of the kernel tests, which know NumPy alone, run on a GPU as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np


class Kernels:
    __name__ = "_cuda"

    def __getattr__(self, name: str) -> Callable[..., Any]:
        import cupy
        from seqkern import _gpu

        kernel = getattr(_gpu.extension(), name)

        def call(*args: Any) -> Any:
            there = [cupy.asarray(value) if isinstance(value, np.ndarray) else value for value in args]

            def back(value: Any) -> Any:
                if isinstance(value, tuple):
                    return tuple(map(back, value))
                if not isinstance(value, cupy.ndarray):
                    return value
                for given, copy in zip(args, there, strict=True):
                    if copy is value:  # it was given to be written to
                        given[...] = value.get()
                        return given
                return value.get()

            return back(kernel(*there))

        return call
