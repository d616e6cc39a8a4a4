"""`_cuda` where `_cpu` stands below ops: NumPy arrays go to the GPU and the results come back.

So the bodies of the kernel tests, which know NumPy alone, run on a GPU as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np


class Kernels:
    def __getattr__(self, name: str) -> Callable[..., Any]:
        import cupy
        from seqkern import _gpu

        kernel = getattr(_gpu.extension(), name)

        def there(value: Any) -> Any:
            return cupy.asarray(value) if isinstance(value, np.ndarray) else value

        def back(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(map(back, value))
            return value.get() if isinstance(value, cupy.ndarray) else value

        return lambda *args: back(kernel(*map(there, args)))
