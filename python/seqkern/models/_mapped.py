"""Reading safetensors files without a copy: the arrays are views of the mapped file.

    8 bytes: N, little-endian | N bytes: JSON, name -> dtype, shape, data_offsets | the data, without holes

The map is private, copy-on-write: a page comes from the file when it is first read, and the system copies one that
is written to, so that a model can be trained and the file stays as it is. The file may be replaced by renaming
another over it, as `save_pretrained` does: the arrays keep the old one. It must not be cut short in place.
"""

from __future__ import annotations

import json
import math
import mmap
import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("<i8"), "I32": np.dtype("<i4"), "I16": np.dtype("<i2"), "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"), "U32": np.dtype("<u4"), "U16": np.dtype("<u2"), "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}  # fmt: skip
LONGEST_HEADER = 100_000_000  # of the format


def map_file(path: Path) -> dict[str, np.ndarray]:
    """Name -> array of a .safetensors file; ValueError says what is wrong with it, and with which key."""
    try:
        with path.open("rb") as file:
            entries, start = _read_header(file, os.fstat(file.fileno()).st_size)
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except ValueError as error:
        raise ValueError(f"from_pretrained: '{path}' is damaged: {error}") from error
    return {name: np.ndarray(shape, dtype, data, start + at) for name, (dtype, shape, at) in entries.items()}


def forget(array: np.ndarray) -> None:
    """Let go of the memory behind a mapped array that nobody has written to; read again, it comes from the file."""
    owner: Any = array
    while isinstance(owner, np.ndarray):
        owner = owner.base
    if isinstance(owner, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        begin = array.ctypes.data - np.frombuffer(owner, np.uint8).ctypes.data
        first = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE  # whole pages only: the others are shared
        length = (begin + array.nbytes - first) // mmap.PAGESIZE * mmap.PAGESIZE
        if length > 0:
            owner.madvise(mmap.MADV_DONTNEED, first, length)


def _read_header(file: Any, size: int) -> tuple[dict[str, Any], int]:
    """name -> (dtype, shape, first byte), and where the data starts."""
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(size - 8, LONGEST_HEADER):
        raise ValueError(f"it has {size} bytes, and a header of {length} cannot be in them")
    try:
        header = json.loads(file.read(length).decode("utf-8"), object_pairs_hook=_without_twins)
    except RecursionError:
        raise ValueError("its header is nested too deeply") from None
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    header.pop("__metadata__", None)
    start = 8 + length
    found = {name: _entry(name, entry) for name, entry in header.items()}
    end, before = 0, "the start"
    for name, (dtype, shape, begin) in sorted(found.items(), key=lambda item: (item[1][2], math.prod(item[1][1]))):
        if begin != end:
            raise ValueError(f"'{name}' starts at byte {begin} of the data, expected {end}, after {before}")
        end, before = begin + dtype.itemsize * math.prod(shape), f"'{name}'"
    if end != size - start:
        raise ValueError(f"its data ends at byte {size - start}, expected {end}, after {before}")
    return found, start


def _entry(name: str, entry: Any) -> tuple[np.dtype[Any], tuple[int, ...], int]:
    """dtype, shape and first byte of one array."""
    values: dict[str, Any] = entry if isinstance(entry, dict) else {}
    dtype: Any
    shape: Any
    offsets: Any
    dtype, shape, offsets = (values.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"'{name}' has dtype {dtype!r}, expected one of {tuple(DTYPES)}")
    if not _sizes(shape) or not _sizes(offsets) or len(offsets) != 2 or len(shape) > 32:
        raise ValueError(f"'{name}' has shape {shape!r} and data_offsets {offsets!r}, expected sizes")
    expected = DTYPES[dtype].itemsize * math.prod(shape)
    if offsets[1] - offsets[0] != expected:
        raise ValueError(f"'{name}' has {offsets[1] - offsets[0]} bytes, expected {expected} for {shape} of {dtype}")
    return DTYPES[dtype], tuple(shape), offsets[0]


def _sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 1 << 63 for value in values)


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _ in pairs]
        twin = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"'{twin}' comes twice in its header")
    return result
