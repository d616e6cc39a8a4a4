"""Arrays that a call writes into: `out`, and the parameters and states an optimiser updates in place.

One that is of the wrong shape, dtype or byte order, read-only, strided, misaligned or overlaps another array is
refused by name, and no array has changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import seqkern
from seqkern import _cpu, nn
from support.cases import Array, generator

SHAPE = (4, 6)
Arrays = dict[str, Array]


def update_calls() -> dict[str, tuple[Callable[[Arrays], Any], list[str], list[str]]]:
    """name -> the call, what it reads, what it writes."""
    return {
        "sgd_update": (
            lambda a: _cpu.sgd_update(a["param"], a["grad"], a["momentum_buffer"], 0.1, 0.9, 0.0, 0.0, False),
            ["grad"],
            ["param", "momentum_buffer"],
        ),
        "adagrad_update": (
            lambda a: _cpu.adagrad_update(a["param"], a["grad"], a["sum"], 0.1, 1e-8, 0.0),
            ["grad"],
            ["param", "sum"],
        ),
        "adamw_update": (
            lambda a: _cpu.adamw_update(
                a["param"], a["grad"], a["exp_avg"], a["exp_avg_sq"], 1, 0.1, 0.9, 0.99, 1e-8, 0.0
            ),
            ["grad"],
            ["param", "exp_avg", "exp_avg_sq"],
        ),
        **{
            op: (lambda a, op=op: getattr(seqkern, op)(a["x"], out=a["out"]), ["x"], ["out"])  # type: ignore[misc]
            for op in ("relu", "sigmoid", "tanh", "silu", "gelu")
        },
        **{
            op: (lambda a, op=op: getattr(seqkern, op)(a["x"], 6, out=a["out"]), ["x"], ["out"])  # type: ignore[misc]
            for op in ("layer_norm", "rms_norm")
        },
    }


CALLS = update_calls()
OPS = pytest.mark.parametrize("op", CALLS)


def good_arrays(op: str) -> Arrays:
    rng = generator("outputs", op)
    _, inputs, outputs = CALLS[op]
    return {name: rng.random(SHAPE, np.float32) for name in (*inputs, *outputs)}


def wrong_outputs(good: Array) -> Iterator[tuple[str, Any]]:
    """Wrong values of an array that is written."""
    for axis, size in enumerate(SHAPE):
        for wrong in (0, 1, size - 1, size + 1, 2 * size):
            yield f"axis {axis} of {wrong}", np.zeros((*SHAPE[:axis], wrong, *SHAPE[axis + 1 :]), np.float32)
    yield "rank - 1", good[0].copy()
    yield "rank + 1", good[None].copy()
    yield "float64", good.astype(np.float64)
    yield "integers", good.astype(np.int32)
    yield "byte order", good.astype(good.dtype.newbyteorder())
    read_only = good.copy()
    read_only.flags.writeable = False
    yield "read-only", read_only
    yield "strided", np.stack([good, good], -1)[..., 0]
    yield "transposed", np.asfortranarray(good)
    yield "misaligned", np.zeros(good.nbytes + 1, np.uint8)[1:].view(np.float32).reshape(SHAPE)
    yield "list", good.tolist()


def refuse(op: str, arrays: Arrays, name: str) -> str | None:
    """What is wrong with the refusal, or None."""
    call, _, _ = CALLS[op]
    before = {k: np.array(v) for k, v in arrays.items()}
    try:
        call(arrays)
    except (ValueError, TypeError) as error:
        if op not in str(error) or name not in str(error):
            return f"names not {op} and {name}: {error}"
    else:
        return "accepted"
    changed = [k for k, v in arrays.items() if not np.array_equal(v, before[k])]
    return f"changed {changed}" if changed else None


@OPS
def test_wrong_outputs(op: str) -> None:
    faults = []
    for name in CALLS[op][2]:
        for label, wrong in wrong_outputs(good_arrays(op)[name]):
            # A wrong param makes it the gradient that does not fit.
            blamed = "grad" if name == "param" and ("axis" in label or "rank" in label or "float64" in label) else name
            if fault := refuse(op, {**good_arrays(op), name: wrong}, blamed):
                faults.append(f"{name}: {label}: {fault}")
    assert not faults, "\n".join(faults)


@OPS
def test_overlap(op: str) -> None:
    """An output that shares one element with any other array."""
    _, inputs, outputs = CALLS[op]
    memory = np.zeros(2 * 24 - 1, np.float32)
    first, second = memory[:24].reshape(SHAPE), memory[23:].reshape(SHAPE)
    for name in outputs:
        for other in {*inputs, *outputs} - {name}:
            fault = refuse(op, {**good_arrays(op), name: first, other: second}, "overlap")
            assert fault is None, f"{name} and {other}: {fault}"


@OPS
def test_the_good_call_writes(op: str) -> None:
    call, inputs, outputs = CALLS[op]
    arrays = good_arrays(op)
    before = {k: v.copy() for k, v in arrays.items()}
    call(arrays)
    assert all(np.array_equal(arrays[name], before[name]) for name in inputs)
    assert not any(np.array_equal(arrays[name], before[name]) for name in outputs)


@OPS
def test_bytes_beyond_the_output_stay(op: str) -> None:
    """Outputs inside larger arrays, at a start that is not a vector's."""
    call, _, outputs = CALLS[op]
    arrays, framed = good_arrays(op), {}
    for name in outputs:
        framed[name] = np.full(24 + 20, 7, np.float32)
        framed[name][9:33] = arrays[name].ravel()
        arrays[name] = framed[name][9:33].reshape(SHAPE)
    call(arrays)
    for name, memory in framed.items():
        assert (memory[:9] == 7).all() and (memory[33:] == 7).all(), name


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
@pytest.mark.parametrize("rows", [0, 1, 3, 5, 8], ids=lambda rows: f"{rows}_rows")
def test_wrong_number_of_layers_in_hx(kind: str, rows: int) -> None:
    """hx has one row per layer and direction, here four."""
    module = getattr(nn, kind)(5, 6, num_layers=2, bidirectional=True)
    x, h = np.zeros((3, 2, 5), np.float32), np.zeros((rows, 2, 6), np.float32)
    good = np.zeros((4, 2, 6), np.float32)
    for hx in [(h, good), (good, h)] if kind == "LSTM" else [h]:
        for call in (module, module.vjp):
            with pytest.raises(ValueError, match=r"num_layers \* num_directions"):
                call(x, hx)
