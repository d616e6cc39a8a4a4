"""Every function of the CPU API with one good call each, and what its array dimensions mean.

The rejection, guard-page, allocation and concurrency tests all walk this one table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from types import ModuleType
from typing import Any

import numpy as np
from support.cases import (
    FLOAT32,
    Array,
    Arrays,
    DTypes,
    Recurrent,
    generator,
    make_arrays,
    make_gradients,
    random_array,
)

Symbols = dict[str, tuple[str, ...]]


OPTIONAL = frozenset({"bias_ih", "bias_hh", "h0", "c0", "weight_hr", "peephole", "lengths", "bias"})
OPTIONAL |= {"dy", "dh_n", "dc_n", "dloss", "dsummed", "running_mean", "running_var", "positions"}
UNREAD = {  # saved, but only their presence or shape is used
    **{op: {"bias"} for op in ("linear", "conv1d", "conv2d", "layer_norm", "add_layer_norm", "batch_norm")},
    **{op: {"x"} for op in ("dropout", "rope")},
}
MADE = frozenset({"y", "lse", "log_probs", "mean", "rstd", "rrms", "summed", "indices"})  # by forward
LINKED = frozenset("GHS")  # G is a multiple of H, and S is H without a projection


@dataclass(frozen=True)
class Call:
    """A function, good arguments for it, and the symbols of its array arguments' dimensions.

    invoke(ops, arrays) makes the call. optional: arguments that may be None. any_rank: arguments
    of any rank.
    """

    op: str
    name: str
    arrays: Callable[[], Arrays]
    invoke: Callable[[ModuleType, dict[str, Any]], Any]
    symbols: Symbols
    optional: frozenset[str] = OPTIONAL
    any_rank: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return self.name

    def present_owners(self, symbol: str) -> set[str]:
        """The given arguments with a dimension `symbol`, or a linked one, or (T) that bounds it."""
        related = LINKED if symbol in LINKED else {symbol}
        owners = {name for name, dims in self.symbols.items() if related & set(dims)}
        if symbol == "T" and len(owners & set(self.arrays())) > 1:
            owners.add("lengths")
        return owners & set(self.arrays())


RECURRENT_SYMBOLS: Symbols = {
    "x": ("T", "N", "I"),
    "weight_ih": ("G", "I"),
    "weight_hh": ("G", "S"),
    "bias_ih": ("G",),
    "bias_hh": ("G",),
    "h0": ("N", "S"),
    "c0": ("N", "H"),
    "weight_hr": ("S", "H"),
    "peephole": ("3", "H"),
    "lengths": ("N",),
    "y": ("T", "N", "S"),
    "gates": ("T", "N", "G"),
    "cells": ("T", "N", "H"),
    "hidden_n": ("T", "N", "H"),
    "dy": ("T", "N", "S"),
    "dh_n": ("N", "S"),
    "dc_n": ("N", "H"),
}
CELL_SYMBOLS: Symbols = {
    **{k: v for k, v in RECURRENT_SYMBOLS.items() if k.startswith(("weight", "bias"))},
    "x": ("N", "I"),
    "h": ("N", "S"),
    "c": ("N", "H"),
    "peephole": ("3", "H"),
    "gates": ("N", "G"),
    "hidden_n": ("N", "H"),
    "h_new": ("N", "S"),
    "c_new": ("N", "H"),
    "dh": ("N", "S"),
    "dc": ("N", "H"),
}
RENAMED = {"h0": "h", "c0": "c"}


def recurrent_calls(case: Recurrent, dtypes: DTypes) -> list[Call]:
    """<op> and <op>_backward of one case."""

    def forward(ops: ModuleType, arrays: dict[str, Any]) -> Any:
        return getattr(ops, case.op)(**arrays, **case.options())

    def saved(ops: ModuleType, good: Arrays) -> Any:
        return getattr(ops, f"{case.op}_forward")(**good, **case.options())[-1]

    def gradients(ops: ModuleType, given: dict[str, Any]) -> Any:
        last = (given["dh_n"], given["dc_n"]) if case.op == "lstm" else given["dh_n"]
        return getattr(ops, f"{case.op}_backward")(given["dy"], last, given["saved"])

    arrays = lru_cache(partial(make_arrays, case, dtypes))
    grads = partial(make_gradients, case, dtypes)
    return [
        Call(case.op, case.op, arrays, forward, RECURRENT_SYMBOLS),
        backward_call(case.op, arrays, grads, saved, gradients, RECURRENT_SYMBOLS),
    ]


def cell_calls(case: Recurrent, dtypes: DTypes) -> list[Call]:
    """<op>_cell and <op>_cell_backward of one case."""
    op = f"{case.op}_cell"

    @lru_cache
    def arrays() -> Arrays:
        made = make_arrays(case, dtypes)
        return {RENAMED.get(k, k): v[0] if k == "x" else v for k, v in made.items()}

    def call(suffix: str, ops: ModuleType, given: dict[str, Any]) -> Any:
        rest = {k: v for k, v in given.items() if k not in ("x", "h", "c")}
        rest |= {k: v for k, v in case.options().items() if k != "reverse"}
        state = (given["h"], given["c"]) if case.op == "lstm" else given["h"]
        return getattr(ops, op + suffix)(given["x"], state, **rest)

    def grads() -> Arrays:
        made = make_gradients(case, dtypes)
        return {{"dh_n": "dh", "dc_n": "dc"}[k]: v for k, v in made.items() if k != "dy"}

    def gradients(ops: ModuleType, given: dict[str, Any]) -> Any:
        last = (given["dh"], given["dc"]) if case.op == "lstm" else given["dh"]
        return getattr(ops, f"{op}_backward")(last, given["saved"])

    def saved(ops: ModuleType, good: Arrays) -> Any:
        return call("_forward", ops, good)[-1]

    return [
        Call(op, op, arrays, partial(call, ""), CELL_SYMBOLS, OPTIONAL - {"h", "c"}),
        backward_call(op, arrays, grads, saved, gradients, CELL_SYMBOLS, OPTIONAL | {"dh", "dc"} - {"h", "c"}),
    ]


def plain_calls(name: str, dtypes: DTypes, **changed: int) -> list[Call]:
    """A function that is not recurrent, and its backward. name: the function, or one use of it."""
    op = name.split()[0]
    symbols, any_rank, options, grad_names = PLAIN[name]
    rng = generator("calls", name, dtypes.name)
    sizes = {"R": 4, "I": 5, "O": 7, "V": 9, "E": 5, "C": 6, "1": 1}
    sizes |= {"N": 2, "L": 11, "W": 9, "K": 3, "P": 5, "Q": 4, **changed}
    if "norm" in op and op != "batch_norm":
        options = {"normalized_shape": sizes["I"]}
    optional = OPTIONAL | {"weight"} if "norm" in op else OPTIONAL

    @lru_cache
    def arrays() -> Arrays:
        made: Arrays = {}
        for name, dims in symbols.items():
            shape = tuple(sizes[d] for d in dims)
            if name in ("ids", "target", "positions"):
                made[name] = rng.integers(0, min(6, sizes["C"]), shape)
            elif not name.startswith("d") and name not in MADE:
                made[name] = random_array(rng, shape, dtypes.of(name))
                if name == "running_var":
                    made[name] = np.abs(made[name])
        return made

    def grads() -> Arrays:
        kind = dtypes.cell if op == "cross_entropy" else dtypes.x
        shapes = {grad: tuple(sizes[d] for d in symbols[grad]) for grad in grad_names}
        return {grad: random_array(rng, shape, kind) for grad, shape in shapes.items()}

    def forward(ops: ModuleType, given: dict[str, Any]) -> Any:
        return getattr(ops, op)(**given, **options)

    def saved(ops: ModuleType, good: Arrays) -> Any:
        return getattr(ops, f"{op}_forward")(**good, **options)[-1]

    def gradients(ops: ModuleType, given: dict[str, Any]) -> Any:
        return getattr(ops, f"{op}_backward")(*(given[grad] for grad in grad_names), given["saved"])

    return [
        Call(op, op, arrays, forward, symbols, optional, any_rank),
        backward_call(op, arrays, grads, saved, gradients, symbols, optional, any_rank),
    ]


ELEMENTWISE: Symbols = {"x": ("R", "I"), "y": ("R", "I"), "dy": ("R", "I")}
NORM: Symbols = {"x": ("R", "I"), "weight": ("I",), "bias": ("I",), "mean": ("R", "1"), "rstd": ("R", "1")}
NORM |= {"dy": ("R", "I")}
ADD_NORM: Symbols = {"residual": ("R", "I"), "summed": ("R", "I"), **NORM, "dsummed": ("R", "I")}
BATCH_NORM: Symbols = {
    **{"x": ("R", "C", "L"), "weight": ("C",), "bias": ("C",), "running_mean": ("C",), "running_var": ("C",)},
    **{"mean": ("C",), "rstd": ("C",), "dy": ("R", "C", "L")},
}


def without(symbols: Symbols, *names: str) -> Symbols:
    return {name: dims for name, dims in symbols.items() if name not in names}


def rms(symbols: Symbols) -> Symbols:
    return {**without(symbols, "bias", "mean", "rstd"), "rrms": ("R", "1")}


PLAIN: dict[str, tuple[Symbols, frozenset[str], dict[str, Any], tuple[str, ...]]] = {
    "linear": (
        {"x": ("R", "I"), "weight": ("O", "I"), "bias": ("O",), "dy": ("R", "O")},
        frozenset({"x"}),
        {},
        ("dy",),
    ),
    "embedding": (
        {"ids": ("R",), "weight": ("V", "E"), "dy": ("R", "E")},
        frozenset({"ids"}),
        {},
        ("dy",),
    ),
    "softmax": (
        {"x": ("R", "C"), "y": ("R", "C"), "dy": ("R", "C")},
        frozenset({"x", "y", "dy"}),
        {},
        ("dy",),
    ),
    "log_softmax": (
        {"x": ("R", "C"), "y": ("R", "C"), "dy": ("R", "C")},
        frozenset({"x", "y", "dy"}),
        {},
        ("dy",),
    ),
    "cross_entropy": (
        {
            "logits": ("R", "C"),
            "target": ("R",),
            "lse": ("R",),
            "log_probs": ("R", "C"),
            "dloss": ("R",),
        },
        frozenset(),
        {"reduction": "none"},
        ("dloss",),
    ),
    "conv1d": (
        {"x": ("N", "C", "L"), "weight": ("O", "C", "K"), "bias": ("O",), "dy": ("N", "O", "L")},
        frozenset(),
        {"padding": 1},
        ("dy",),
    ),
    "conv2d": (
        {
            "x": ("N", "C", "L", "W"),
            "weight": ("O", "C", "K", "K"),
            "bias": ("O",),
            "dy": ("N", "O", "L", "W"),
        },
        frozenset(),
        {"padding": 1},
        ("dy",),
    ),
    "max_pool2d": (
        {"x": ("N", "C", "L", "W"), "indices": ("N", "C", "P", "Q"), "dy": ("N", "C", "P", "Q")},
        frozenset(),
        {"kernel_size": 2},
        ("dy",),
    ),
    "dropout": (
        {"x": ("R", "I"), "dy": ("R", "I")},
        frozenset({"x", "dy"}),
        {"p": 0.5, "seed": 7},
        ("dy",),
    ),
    **{
        op: (ELEMENTWISE, frozenset(ELEMENTWISE), {}, ("dy",))
        for op in ("relu", "sigmoid", "tanh", "silu", "gelu")
    },
    "layer_norm": (NORM, frozenset({"x", "dy"}), {}, ("dy",)),
    "rms_norm": (rms(NORM), frozenset({"x", "dy"}), {}, ("dy",)),
    "add_layer_norm": (ADD_NORM, frozenset(ADD_NORM) - frozenset(NORM) | {"x", "dy"}, {}, ("dy", "dsummed")),
    "add_rms_norm": (rms(ADD_NORM), frozenset(ADD_NORM) - frozenset(NORM) | {"x", "dy"}, {}, ("dy", "dsummed")),
    "batch_norm": (BATCH_NORM, frozenset({"x", "dy"}), {}, ("dy",)),
    "batch_norm in training": (
        without(BATCH_NORM, "running_mean", "running_var"),
        frozenset({"x", "dy"}),
        {"running_mean": None, "running_var": None, "training": True},
        ("dy",),
    ),
    "rope": (
        {"x": ("R", "C"), "positions": ("Q",), "dy": ("R", "C")},
        frozenset({"x", "positions", "dy"}),
        {},
        ("dy",),
    ),
}


def backward_call(
    op: str,
    arrays: Callable[[], Arrays],
    grads: Callable[[], Arrays],
    make_saved: Callable[[ModuleType, Arrays], Any],
    invoke: Callable[[ModuleType, dict[str, Any]], Any],
    symbols: Symbols,
    optional: frozenset[str] = OPTIONAL,
    any_rank: frozenset[str] = frozenset(),
) -> Call:
    """A backward call whose array arguments are the gradients and every array inside `saved`."""

    @lru_cache
    def saved() -> Any:
        import seqkern

        return make_saved(seqkern, arrays())

    @lru_cache
    def everything() -> Arrays:
        fields = saved()._asdict()
        unread = UNREAD.get(op, set())
        used = {k: v for k, v in fields.items() if isinstance(v, np.ndarray) and k not in unread}
        return {**used, **grads()}

    def call(ops: ModuleType, given: dict[str, Any]) -> Any:
        fields = {k: v for k, v in given.items() if k in saved()._fields}
        rest = {k: v for k, v in given.items() if k not in fields}
        return invoke(ops, {**rest, "saved": saved()._replace(**fields)})

    return Call(op, f"{op}_backward", everything, call, symbols, optional, any_rank)


SIZES: dict[str, Any] = {"T": 4, "N": 3, "I": 5, "H": 7, "lengths": "ragged"}
LAYERS = (
    Recurrent("rnn", **SIZES),
    Recurrent("lstm", **SIZES),
    Recurrent("lstm", P=6, peephole=True, **SIZES),
    Recurrent("gru", **SIZES),
    Recurrent("gru", reset_after=False, **SIZES),
)
CELLS = tuple(Recurrent(case.op, T=1, N=3, I=5, H=7, P=case.P, peephole=case.peephole) for case in LAYERS[:4])


def all_calls(dtypes: DTypes = FLOAT32) -> list[Call]:
    """Every function, forward and backward."""
    layers = [call for case in LAYERS for call in recurrent_calls(case, dtypes)]
    cells = [call for case in CELLS for call in cell_calls(case, dtypes)]
    return [*layers, *cells, *(call for op in PLAIN for call in plain_calls(op, dtypes))]


def arrays_of(result: Any) -> list[Array]:
    """All arrays in a nested result, in order."""
    if isinstance(result, tuple):
        return [array for item in result for array in arrays_of(item)]
    return [result] if isinstance(result, np.ndarray) else []
