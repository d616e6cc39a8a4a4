"""Guard pages: a NumPy allocator that puts every array next to an unmapped page.

NumPy's memory handler (NEP 49) is replaced for the whole process, so inputs, outputs and saved
arrays are all guarded, wherever they are allocated. One byte read or written past the end (or, with
`end=False`, before the start) of any of them kills the process with SIGSEGV.
"""

from __future__ import annotations

import ctypes
import mmap

import numpy as np

PAGE = mmap.PAGESIZE
SET_HANDLER = 304  # PyDataMem_SetHandler in NumPy's C API table
C_ARRAY_API = getattr(np, "_core", None) or np.core
MALLOC = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
CALLOC = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t)
REALLOC = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
FREE = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


_installed: list[GuardedAllocator] = []  # NumPy keeps the handler's address for ever


class Handler(ctypes.Structure):
    """PyDataMem_Handler of NumPy's C API, version 1."""

    _fields_ = (
        ("name", ctypes.c_char * 127),
        ("version", ctypes.c_uint8),
        ("context", ctypes.c_void_p),
        ("malloc", MALLOC),
        ("calloc", CALLOC),
        ("realloc", REALLOC),
        ("free", FREE),
    )


class GuardedAllocator:
    """Owns the handler; every block lies between two pages that may not be touched."""

    def __init__(self, *, end: bool) -> None:
        self.end = end
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.libc.mmap.restype = ctypes.c_void_p
        self.libc.mmap.argtypes = [
            ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int,
            ctypes.c_long,
        ]  # fmt: skip
        self.libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        self.libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        self.blocks: dict[int, tuple[int, int, int]] = {}
        self.handler = Handler(
            b"guard pages", 1, None, MALLOC(self._malloc), CALLOC(self._calloc),
            REALLOC(self._realloc), FREE(self._free),
        )  # fmt: skip

    def install(self) -> None:
        """Route all later array allocations of this process through the guard pages."""
        api = C_ARRAY_API._multiarray_umath._ARRAY_API
        pointer = ctypes.pythonapi.PyCapsule_GetPointer
        pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        table = ctypes.cast(pointer(api, None), ctypes.POINTER(ctypes.c_void_p))
        make = ctypes.pythonapi.PyCapsule_New
        make.restype = ctypes.py_object
        make.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        capsule = make(ctypes.addressof(self.handler), b"mem_handler", None)
        set_handler = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.py_object)(table[SET_HANDLER])
        set_handler(capsule)
        _installed.append(self)

    def _malloc(self, _: int | None, size: int) -> int:
        size = max(size, 1)
        span = -(-size // PAGE) * PAGE + 2 * PAGE
        readable = mmap.PROT_READ | mmap.PROT_WRITE
        base = self.libc.mmap(None, span, readable, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
        for page in (base, base + span - PAGE):
            assert self.libc.mprotect(page, PAGE, 0) == 0
        address = base + span - PAGE - size if self.end else base + PAGE
        self.blocks[address] = (base, span, size)
        return int(address)

    def _calloc(self, context: int | None, count: int, size: int) -> int:
        return self._malloc(context, count * size)  # anonymous pages are zero

    def _realloc(self, context: int | None, old: int | None, size: int) -> int:
        new = self._malloc(context, size)
        if old:
            ctypes.memmove(new, old, min(size, self.blocks[old][2]))
            self._free(context, old, 0)
        return new

    def _free(self, _: int | None, address: int | None, size: int) -> None:
        if address:
            base, span, _ = self.blocks.pop(address)
            self.libc.munmap(base, span)
