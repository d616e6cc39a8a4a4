"""What the modules need to know about array types, without importing any of them but NumPy."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from .. import _cpu

# A NumPy, CuPy or torch array. The three share no type; `seqkern.ops` checks what it is given.
Array: TypeAlias = Any


def library_of(array: Array) -> str:
    """Top-level package of the array's type: "numpy", "cupy", "torch", ..."""
    return type(array).__module__.partition(".")[0]


def array_module(array: Array) -> Any:
    """The module (numpy, cupy or torch) whose functions make arrays like this one."""
    return np if isinstance(array, np.ndarray) else sys.modules[library_of(array)]


def to_numpy(value: Any, name: str) -> np.ndarray:
    """A NumPy array with the value of a NumPy, CuPy or torch array; TypeError for the rest."""
    library = library_of(value)
    if isinstance(value, np.ndarray | np.generic):
        return np.asarray(value)
    if library == "cupy":
        return np.asarray(value.get())
    if library == "torch":
        return _torch_to_numpy(value.detach().cpu())
    raise TypeError(f"{name} must be a NumPy, CuPy or torch array, got {type(value).__name__}")


def _torch_to_numpy(tensor: Any) -> np.ndarray:
    torch = sys.modules["torch"]
    if tensor.dtype != torch.bfloat16:
        return np.asarray(tensor.numpy())
    from ml_dtypes import bfloat16  # torch cannot hand bfloat16 to NumPy: pass its bits

    bits: np.ndarray = tensor.contiguous().view(torch.int16).numpy()
    return bits.view(bfloat16)


def like(value: Array, template: Array) -> Array:
    """`value` as an array of `template`'s type; no copy when it already is one."""
    if type(value) is type(template):
        return value
    host = to_numpy(value, "gradient")
    return host if isinstance(template, np.ndarray) else array_module(template).asarray(host)


LINE = 64  # bytes of a cache line


def aligned_copy(array: np.ndarray) -> np.ndarray:
    """A copy that starts at a cache line: a step of one row reads weights a third faster so."""
    result = aligned_zeros(array.shape, array.dtype)
    result[...] = array
    return result


def aligned_zeros(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Zeros that start at a cache line; they take no memory until they are written to."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.zeros(size + LINE, np.uint8)
    start = -memory.ctypes.data % LINE
    return memory[start : start + size].view(dtype).reshape(shape)


def freeze(array: Array) -> Array:
    """A read-only copy that nothing can write to, the array itself if it is one; on a device the array as it is."""
    return _cpu.freeze(array) if isinstance(array, np.ndarray) else array


def unfreeze(array: Array) -> Array:
    """A copy where the array is frozen."""
    return aligned_copy(array) if is_frozen(array) else array


def is_frozen(array: Array) -> bool:
    return isinstance(array, np.ndarray) and not array.flags.writeable


def refuse_frozen(what: str, arrays: Iterable[tuple[str, Array]]) -> None:
    """ValueError if one of these named arrays cannot be written to."""
    for name, array in arrays:
        if is_frozen(array):
            raise ValueError(f"{what}: '{name}' is frozen: call unfreeze() first")


def shape_text(shape: Sequence[int]) -> str:
    """Shapes as they appear in messages: [2, 3]."""
    return "[" + ", ".join(str(size) for size in shape) + "]"


def check_array(value: Any, name: str) -> None:
    """TypeError unless the value looks like an array (lists are not arrays)."""
    if not hasattr(value, "shape") or not hasattr(value, "ndim"):
        raise TypeError(f"{name} must be an array, got {type(value).__name__}")


class OutputForm(NamedTuple):
    """Shape and kind of an output, so that a pullback need not keep the output itself."""

    shape: tuple[int, ...]
    dtype: Any
    module: Any

    @classmethod
    def of(cls, y: Array) -> OutputForm:
        return cls(tuple(y.shape), y.dtype, array_module(y))

    def gradient(self, dy: Array | None) -> Array:
        """dy checked against the shape; zeros for None."""
        if dy is None:
            return self.module.zeros(self.shape, dtype=self.dtype)
        check_shape(dy, self.shape, "gradient of output")
        return dy


def check_shape(value: Any, shape: Sequence[int], name: str, meaning: str = "") -> None:
    """TypeError or ValueError unless `value` is an array of this shape.

    `meaning` names the dimensions for the message, e.g. "[num_layers, batch, hidden_size]".
    """
    check_array(value, name)
    if tuple(value.shape) != tuple(shape):
        expected = f"{meaning} = {shape_text(shape)}" if meaning else shape_text(shape)
        raise ValueError(f"{name} must be {expected}, got {shape_text(value.shape)}")
