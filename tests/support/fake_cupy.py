"""A CuPy that lies in the host's memory: its arrays are no NumPy arrays and mix with none, and offer
`__cuda_array_interface__`, which the CUDA kernels on the host (tests/hostcuda) take.

`install` puts it where `import cupy` finds it. Functions are NumPy's, over its own arrays; what CuPy refuses, an
array of NumPy's among the arguments, is refused.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.lib.mixins import NDArrayOperatorsMixin


class ndarray(NDArrayOperatorsMixin):
    """A NumPy array nobody can see from outside."""

    __module__ = "cupy"
    __hash__ = None  # type: ignore[assignment]
    device = SimpleNamespace(id=0)

    def __init__(self, held: np.ndarray) -> None:
        self._held = held

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        a = self._held
        return {"shape": a.shape, "typestr": a.dtype.str, "data": (a.ctypes.data, not a.flags.writeable),
                "strides": a.strides, "version": 3, "stream": 1}  # fmt: skip

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        raise TypeError("Implicit conversion to a NumPy array is not allowed")

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        return _over_arrays(getattr(ufunc, method))(*inputs, **options)

    def __array_function__(self, function: Any, types: Any, args: Any, options: Any) -> Any:
        return _over_arrays(function)(*args, **options)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = getattr(self._held, name)
        return _over_arrays(value) if callable(value) else _out(value)

    def get(self) -> np.ndarray:
        return self._held.copy()

    def __getitem__(self, key: Any) -> Any:
        return _out(self._held[_in(key)])

    def __setitem__(self, key: Any, value: Any) -> None:
        self._held[_in(key)] = _in(value)

    def __len__(self) -> int:
        return len(self._held)

    def __iter__(self) -> Any:
        return map(_out, self._held)

    def __float__(self) -> float:
        return float(self._held)

    def __int__(self) -> int:
        return int(self._held)

    def __index__(self) -> int:
        return self._held.__index__()

    def __bool__(self) -> bool:
        return bool(self._held)


def _in(value: Any) -> Any:
    if isinstance(value, ndarray):
        return value._held
    if isinstance(value, np.ndarray):
        raise TypeError("Unsupported type <class 'numpy.ndarray'>")
    if isinstance(value, (tuple, list)):
        return type(value)(map(_in, value))
    return value


def _out(value: Any) -> Any:
    """Every result is an array, 0-d ones too."""
    if isinstance(value, np.ndarray | np.generic):
        return ndarray(np.asarray(value))
    if isinstance(value, (tuple, list)) and any(isinstance(v, np.ndarray) for v in value):
        return type(value)(map(_out, value))
    return value


def _over_arrays(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        return _out(function(*map(_in, args), **{key: _in(value) for key, value in kwargs.items()}))

    return call


def _count_nonzero(a: ndarray) -> ndarray:
    return ndarray(np.asarray(np.count_nonzero(a._held)))


def _as_strided(x: ndarray, shape: tuple[int, ...], strides: tuple[int, ...]) -> ndarray:
    return ndarray(np.lib.stride_tricks.as_strided(x._held, shape, strides))


def _asarray(value: Any, dtype: Any = None) -> ndarray:
    return ndarray(np.array(value._held if isinstance(value, ndarray) else value, dtype))


def install(monkeypatch: pytest.MonkeyPatch, kernels: ModuleType) -> ModuleType:
    """`import cupy` gives this for the rest of the test, and `kernels` its CUDA kernels. Returns the module."""
    import seqkern._gpu

    module = ModuleType("cupy")
    own = {"ndarray": ndarray, "asarray": _asarray, "array": _asarray, "count_nonzero": _count_nonzero,
           "asnumpy": ndarray.get, "lib": SimpleNamespace(stride_tricks=SimpleNamespace(as_strided=_as_strided)),
           "cuda": SimpleNamespace(runtime=SimpleNamespace(getDevice=lambda: 0))}  # fmt: skip
    vars(module).update(own)
    vars(module)["__getattr__"] = _of_numpy
    monkeypatch.setitem(sys.modules, "cupy", module)
    monkeypatch.setattr(seqkern._gpu, "extension", lambda: kernels)
    for cached in (seqkern._gpu._globals, seqkern._gpu._twin):
        cached.cache_clear()
    kernels.use_arrays("cupy")
    return module


def _of_numpy(name: str) -> Any:
    value = getattr(np, name)
    return value if isinstance(value, type) or not callable(value) else _over_arrays(value)
