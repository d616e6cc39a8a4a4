"""Every way an array argument can be wrong: rank, dimensions, dtype, byte order, and no array."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from support.calls import Call
from support.cases import Array

HUGE = 2**31
WRONG_FLOATS = ("i4", "i8", "u1", "?", "f2", "c8", "O", "U4", "S4", "M8[s]")
WRONG_INTEGERS = ("f4", "f8", "?", "c8", "O", "U4", "m8[s]")


class Mutation(NamedTuple):
    """A wrong value, the arguments the error may name, and whether it must be a TypeError."""

    label: str
    value: Any
    names: set[str]
    type_error: bool = False


def mutations(call: Call, name: str, good: Array) -> Iterator[Mutation]:
    """Wrong values of one argument of a call."""
    alone = {name}
    yield from _ranks(call, name, good)
    yield from _dimensions(call, name, good)
    integer = good.dtype.kind in "iu"
    for code in WRONG_INTEGERS if integer else WRONG_FLOATS:
        yield Mutation(f"dtype {code}", np.zeros(good.shape, code), alone)
    if not integer:
        other = np.float32 if good.dtype == np.float64 else np.float64
        floats = {k for k, v in call.arrays().items() if v.dtype.kind not in "iu"}
        if len(floats) > 1:
            yield Mutation(f"dtype {other.__name__}", good.astype(other), floats)
    yield Mutation("byte order", good.astype(good.dtype.newbyteorder()), alone)
    record = np.zeros(good.shape, [("a", "f4")])
    yield Mutation("structured dtype", record, alone)
    for wrong in (good.tolist(), 1.0, "text", {}, memoryview(good.tobytes()), object()):
        yield Mutation(type(wrong).__name__, wrong, alone, type_error=True)
    yield Mutation("list of rows", list(good), alone, type_error=True)
    if name not in call.optional:
        yield Mutation("None", None, alone, type_error=True)


def _ranks(call: Call, name: str, good: Array) -> Iterator[Mutation]:
    """Wrong ranks. An argument of any rank can only disagree with those it shares sizes with."""
    wrong = {"rank 0": np.zeros((), good.dtype)}
    if name not in call.any_rank or len(call.present_owners(call.symbols[name][-1])) > 1:
        wrong["rank + 1 at the end"] = good[..., None]
    if good.ndim > 1:
        wrong["flat"] = good.reshape(-1)
    names, shares_rank = {name}, True
    if name in call.any_rank:
        names = {other for symbol in call.symbols[name] for other in call.present_owners(symbol)}
        shares_rank = len(call.present_owners(call.symbols[name][0])) > 1
    if shares_rank:
        wrong |= {"rank + 1": good[None]} | ({"rank - 1": good[0]} if good.ndim > 1 else {})
    if name not in call.any_rank or len(names) > 1:
        yield from (Mutation(label, value, names) for label, value in wrong.items())


def _dimensions(call: Call, name: str, good: Array) -> Iterator[Mutation]:
    """Each dimension 0, 1, n ± 1, 2n and 2^31, where another argument fixes it."""
    for axis, (symbol, size) in enumerate(zip(call.symbols[name], good.shape, strict=True)):
        owners = call.present_owners(symbol)
        if len(owners) == 1 and symbol != "3":
            continue
        for wrong in sorted({0, 1, size - 1, size + 1, 2 * size, HUGE} - {size}):
            shape = (*good.shape[:axis], wrong, *good.shape[axis + 1 :])
            value = np.broadcast_to(np.zeros((), good.dtype), shape)
            if wrong < HUGE:
                value = value.copy()
            yield Mutation(f"axis {axis} of {wrong}", value, owners)
