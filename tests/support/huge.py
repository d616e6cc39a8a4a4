"""Arrays of more elements than 32 bits count, in hardly any memory.

What is only read is mapped without memory behind it: pages that nobody wrote are all one page of zeros, whatever
their number. What is written has one small piece of memory mapped over and over, so that everything written to it
lands there, except its last bytes, which are its own: they show whether the end was reached.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from typing import Any

import numpy as np

Array = np.ndarray
PAST = 2**31  # elements; one more does not fit a signed 32-bit index
_PIECE = 2**26
_ONLY_READ, _WRITTEN = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000, mmap.MAP_SHARED  # 0x4000: MAP_NORESERVE
_FIXED = 0x10

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


class _Mapping:
    """Owns addresses; what NumPy sees through `__array_interface__` keeps it alive."""

    def __init__(self, size: int) -> None:
        self.size = -(-size // _PIECE) * _PIECE
        self.address = _map(None, self.size, _ONLY_READ, -1)
        self.__array_interface__ = {"version": 3, "shape": (size,), "typestr": "|u1", "data": (self.address, False)}

    def __del__(self) -> None:
        _libc.munmap(self.address, self.size)


def _map(address: int | None, size: int, flags: int, file: int) -> int:
    found = _libc.mmap(address, size, mmap.PROT_READ | mmap.PROT_WRITE, flags, file, 0)
    if found in (None, ctypes.c_void_p(-1).value):
        raise MemoryError(f"mmap of {size} bytes: {os.strerror(ctypes.get_errno())}")
    return int(found)


def untouched(shape: tuple[int, ...], dtype: Any) -> Array:
    """Zeros that may be written to here and there, and only what was written takes memory."""
    size = int(np.prod(shape, dtype=object)) * np.dtype(dtype).itemsize
    return np.asarray(_Mapping(size)).view(dtype).reshape(shape)


def written_over(shape: tuple[int, ...], dtype: Any) -> Array:
    """To be filled by a kernel: all but the last 64 to 128 MiB lie in the same 64 MiB, written over and over."""
    size = int(np.prod(shape, dtype=object)) * np.dtype(dtype).itemsize
    mapping = _Mapping(size)
    file = os.memfd_create("written over")
    try:
        os.ftruncate(file, _PIECE)
        for offset in range(0, mapping.size - 2 * _PIECE, _PIECE):
            _map(mapping.address + offset, _PIECE, _WRITTEN | _FIXED, file)
    finally:
        os.close(file)
    return np.asarray(mapping).view(dtype).reshape(shape)
