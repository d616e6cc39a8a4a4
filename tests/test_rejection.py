"""Bad input gets a ValueError or TypeError that names the function and the argument; no more.

Each argument of each function takes every value of `support.mutations`. Arrays of 2^31 elements are
broadcast from one: reading or copying them would exhaust time or memory.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import seqkern
from support.calls import (
    CELLS,
    LAYERS,
    Call,
    all_calls,
    arrays_of,
    cell_calls,
    plain_calls,
    recurrent_calls,
)
from support.cases import BFLOAT16, FLOAT32, FLOAT64, DTypes
from support.compare import assert_bitwise_equal
from support.mutations import mutations

CALLS = all_calls()


def refusal(call: Call, arguments: dict[str, Any]) -> Exception | None:
    """The error of a call, of whatever type; None if it went through."""
    try:
        call.invoke(seqkern, arguments)
    except Exception as error:
        return error
    return None


def complaint(error: Exception | None, op: str, names: set[str], type_error: bool) -> str | None:
    """What is wrong with a refusal, or None."""
    if error is None:
        return "accepted"
    if not isinstance(error, ValueError | TypeError):
        return f"raised {type(error).__name__}: {error}"
    if type_error and not isinstance(error, TypeError):
        return f"{type(error).__name__} instead of TypeError: {error}"
    if op not in str(error) or not any(re.search(rf"\b{name}\b", str(error)) for name in names):
        return f"names not {op} and one of {sorted(names)}: {error}"
    return None


@pytest.mark.parametrize("call", CALLS, ids=str)
def test_wrong_arrays(call: Call) -> None:
    good = call.arrays()
    before = {k: v.copy() for k, v in good.items()}
    faults = []
    for name, array in good.items():
        for mutation in mutations(call, name, array):
            error = refusal(call, {**good, name: mutation.value})
            fault = complaint(error, call.op, mutation.names, mutation.type_error)
            if fault:
                faults.append(f"{name}: {mutation.label}: {fault}")
    assert not faults, "\n".join(faults)
    for name, array in good.items():
        assert_bitwise_equal(array, before[name], name)


@pytest.mark.parametrize("call", CALLS, ids=str)
def test_the_good_call_is_good(call: Call) -> None:
    """Otherwise the refusals above would prove nothing."""
    assert arrays_of(call.invoke(seqkern, dict(call.arrays())))


@pytest.mark.parametrize(
    "call",
    [c for case in LAYERS for c in recurrent_calls(case, FLOAT32) if "backward" in c.name]
    + [c for case in CELLS for c in cell_calls(case, FLOAT32) if "backward" in c.name],
    ids=str,
)
@pytest.mark.parametrize("saved", [None, (), {}, np.zeros(3)], ids=repr)
def test_saved_of_the_wrong_type(call: Call, saved: Any) -> None:
    grads = [np.zeros((3, 7), np.float32)] * (1 if "cell" in call.op else 2)
    if call.op.startswith("lstm"):
        grads[-1] = (grads[-1], None)  # type: ignore[call-overload]
    with pytest.raises((TypeError, ValueError), match=rf"{call.op}.*saved"):
        getattr(seqkern, call.name)(*grads, saved)


@pytest.mark.parametrize("dtypes", [FLOAT64, BFLOAT16], ids=lambda dtypes: dtypes.name)
@pytest.mark.parametrize("case", LAYERS, ids=lambda case: f"{case.op}-{case}")
def test_mixed_dtypes(case: Any, dtypes: DTypes) -> None:
    """No argument may be float32 beside float64, nor x and states beside bfloat16 weights of x."""
    forward, _ = recurrent_calls(case, dtypes)
    good = forward.arrays()
    floats = {k for k, v in good.items() if v.dtype.kind not in "iu"}
    for name in ("x", "weight_ih", "weight_hh", "weight_hr", "h0"):
        if name in good and not (dtypes is BFLOAT16 and name == "x"):
            error = refusal(forward, {**good, name: good[name].astype(np.float32)})
            fault = complaint(error, case.op, floats, False)
            assert fault is None, f"{name}: {fault}"


BAD_OPTIONS = [
    ("rnn", {"nonlinearity": "gelu"}),
    ("rnn", {"nonlinearity": None}),
    ("rnn", {"nonlinearity": 1}),
    *((op, {"precision": p}) for op in ("rnn", "lstm", "gru") for p in ("fast", 3, b"high")),
    *(("linear", {"precision": p}) for p in ("fast", 3, b"high")),
    *((f"{op}_cell", {"precision": "fast"}) for op in ("rnn", "lstm", "gru")),
    *((op, {"dim": d}) for op in ("softmax", "log_softmax") for d in (2, -3, 1.5, "0", None)),
    *(("cross_entropy", {"reduction": r}) for r in ("avg", None, 1)),
    *(("cross_entropy", {"label_smoothing": s}) for s in (-0.1, 1.1, np.nan, "0")),
    *(("cross_entropy", {"ignore_index": i}) for i in (1.5, "1", None)),
    *(("dropout", {"p": p}) for p in (-0.1, 1.1, np.nan, "half", None)),
    *(("dropout", {"seed": s}) for s in (-1, 2**64, 1.5, "7", None)),
    *(("dropout", {"offset": o}) for o in (-1, 2**64, 1.5, "7", None)),
    *(("embedding", {"padding_idx": i}) for i in (9, 2**40, 1.5, "1")),
]


@pytest.mark.parametrize("op, option", BAD_OPTIONS, ids=str)
def test_wrong_options(op: str, option: dict[str, Any]) -> None:
    (call,) = [c for c in CALLS if c.name == op][:1]
    ((name, _),) = option.items()
    given: dict[str, Any] = dict(call.arrays())
    if op == "dropout":
        given |= {"p": 0.5, "seed": 7}
    if op.endswith("cell"):
        state = (given.pop("h"), given.pop("c")) if op == "lstm_cell" else given.pop("h")
        arguments: tuple[Any, ...] = (given.pop("x"), state)
    else:
        arguments = ()
    with pytest.raises((ValueError, TypeError)) as caught:
        getattr(seqkern, op)(*arguments, **{**given, **option})
    assert complaint(caught.value, op, {name}, False) is None


BAD_INTEGERS = [
    *((case.op, "lengths", v) for case in LAYERS[:4:2] for v in (-1, 5, 2**40, -(2**63))),
    *(("embedding", "ids", v) for v in (-1, 9, 2**40, -(2**63), 2**63 - 1)),
    *(("cross_entropy", "target", v) for v in (-1, 6, 2**40, -(2**63), -99)),
]


@pytest.mark.parametrize("op, name, value", BAD_INTEGERS, ids=str)
def test_integers_out_of_range(op: str, name: str, value: int) -> None:
    """In forward, and in backward when `saved` has been tampered with."""
    for call in CALLS:
        if call.op == op and name in call.arrays():
            wrong = call.arrays()[name].copy()
            wrong.flat[-1] = value
            error = refusal(call, {**call.arrays(), name: wrong})
            assert complaint(error, op, {name}, False) is None, call.name


@pytest.mark.parametrize("value", [0, -1, 1.5, "2", None, 2**40])
def test_wrong_number_of_threads(value: Any) -> None:
    before = seqkern.get_num_threads()
    with pytest.raises((ValueError, TypeError)):
        seqkern.set_num_threads(value)
    assert seqkern.get_num_threads() == before


@pytest.mark.parametrize("value", ["fast", "", None, 3])
def test_wrong_precision_setting(value: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="precision"):
        seqkern.set_matmul_precision(value)
    assert seqkern.get_matmul_precision() == "highest"


@pytest.mark.torch
@pytest.mark.parametrize("op", ["rnn", "lstm", "gru", "linear", "softmax"])
def test_tensor_that_requires_grad(op: str) -> None:
    """Its gradient would silently be lost; the error names the argument."""
    import torch

    (call,) = [c for c in CALLS if c.name == op][:1]
    tensors = {k: torch.from_numpy(v.copy()) for k, v in call.arrays().items()}
    assert isinstance(arrays := call.invoke(seqkern, dict(tensors)), tuple | torch.Tensor), arrays
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            marked = {**tensors, name: tensor.clone().requires_grad_()}
            with pytest.raises(TypeError, match=rf"{op}: {name}\b.*grad"):
                call.invoke(seqkern, marked)


@pytest.mark.torch
def test_tensor_beside_an_array() -> None:
    import torch

    (call, _) = plain_calls("linear", FLOAT32)
    mixed = {**call.arrays(), "weight": torch.from_numpy(call.arrays()["weight"].copy())}
    with pytest.raises(TypeError, match="linear"):
        call.invoke(seqkern, mixed)
