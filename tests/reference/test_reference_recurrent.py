"""Gradients of rnn, lstm and gru against central differences, and what `lengths` promises."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from seqkern import reference

SEQ_LEN, BATCH, INPUT, HIDDEN, PROJECTED = 4, 4, 3, 3, 2
RAGGED = np.array([2, 0, SEQ_LEN, 1])
GATES = {"rnn": 1, "lstm": 4, "gru": 3}

LAYERS = [
    pytest.param("rnn", {}, id="rnn-tanh"),
    pytest.param("rnn", {"nonlinearity": "relu"}, id="rnn-relu"),
    pytest.param("gru", {}, id="gru-reset-after"),
    pytest.param("gru", {"reset_after": False}, id="gru-reset-before"),
    pytest.param("lstm", {}, id="lstm"),
    pytest.param("lstm", {"weight_hr"}, id="lstm-projection"),
    pytest.param("lstm", {"peephole"}, id="lstm-peephole"),
    pytest.param("lstm", {"weight_hr", "peephole"}, id="lstm-projection-peephole"),
]


def make_arguments(rng: Any, op: str, options: Any, *, bias: bool, initial: bool) -> dict[str, Any]:
    """Random float64 arguments of `op`; `options` holds keywords, or names of LSTM weights."""
    state = PROJECTED if "weight_hr" in options else HIDDEN
    rows = GATES[op] * HIDDEN
    shapes: dict[str, tuple[int, ...]] = {
        "x": (SEQ_LEN, BATCH, INPUT),
        "weight_ih": (rows, INPUT),
        "weight_hh": (rows, state),
    }
    if bias:
        shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)}
    if initial:
        shapes["h0"] = (BATCH, state)
    if initial and op == "lstm":
        shapes["c0"] = (BATCH, HIDDEN)
    if "weight_hr" in options:
        shapes["weight_hr"] = (PROJECTED, HIDDEN)
    if "peephole" in options:
        shapes["peephole"] = (3, HIDDEN)
    arrays = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    return arrays | (options if isinstance(options, dict) else {})


def run(op: str, arguments: dict[str, Any]) -> tuple[list[Any], Any]:
    """Outputs [y, h_n] or [y, h_n, c_n], and saved."""
    y, state, saved = getattr(reference, f"{op}_forward")(**arguments)
    return [y, *(state if op == "lstm" else (state,))], saved


def run_backward(op: str, upstream: list[Any], saved: Any) -> Any:
    dstate = tuple(upstream[1:]) if op == "lstm" else upstream[1]
    return getattr(reference, f"{op}_backward")(upstream[0], dstate, saved)


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("lengths", [None, RAGGED], ids=["full", "ragged"])
@pytest.mark.parametrize("given", [True, False], ids=["bias-initial", "bare"])
@pytest.mark.parametrize(("op", "options"), LAYERS)
def test_gradients_match_central_differences(
    op: str, options: Any, given: bool, lengths: Any, reverse: bool, rng: Any, assert_gradients: Any
) -> None:
    arguments = make_arguments(rng, op, options, bias=given, initial=given)
    arguments |= {"lengths": lengths, "reverse": reverse}
    outputs, saved = run(op, arguments)
    upstream = [rng.standard_normal(output.shape) for output in outputs]

    def loss() -> Any:
        return sum((d * out).sum() for d, out in zip(upstream, run(op, arguments)[0], strict=True))

    gradients = run_backward(op, upstream, saved)._asdict()
    pairs = {
        name: (array, gradients[f"d{name}"])
        for name, array in arguments.items()
        if isinstance(array, np.ndarray) and name != "lengths"
    }
    assert_gradients(loss, pairs)
    for name, gradient in gradients.items():
        if name in ("dh0", "dc0"):
            assert gradient is not None
        else:
            assert (gradient is None) == (name[1:] not in pairs), name


@pytest.mark.parametrize(("op", "options"), LAYERS)
def test_gradient_of_the_zero_state_is_returned(op: str, options: Any, rng: Any) -> None:
    arguments = make_arguments(rng, op, options, bias=True, initial=True)
    states = [name for name in ("h0", "c0") if name in arguments]
    zeros = arguments | {name: np.zeros_like(arguments[name]) for name in states}
    absent = {name: value for name, value in arguments.items() if name not in states}
    outputs, saved_zeros = run(op, zeros)
    upstream = [rng.standard_normal(output.shape) for output in outputs]
    with_zeros = run_backward(op, upstream, saved_zeros)
    without = run_backward(op, upstream, run(op, absent)[1])
    for a, b in zip(with_zeros, without, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("op", "options"), LAYERS)
def test_none_stands_for_a_zero_gradient(op: str, options: Any, rng: Any) -> None:
    arguments = make_arguments(rng, op, options, bias=True, initial=True)
    outputs, saved = run(op, arguments)
    zeros = [np.zeros_like(output) for output in outputs]
    for kept in range(len(outputs)):
        upstream: list[Any] = [None] * len(outputs)
        upstream[kept] = rng.standard_normal(outputs[kept].shape)
        explicit = [zero if d is None else d for d, zero in zip(upstream, zeros, strict=True)]
        expected = run_backward(op, explicit, saved)
        for a, b in zip(run_backward(op, upstream, saved), expected, strict=True):
            np.testing.assert_array_equal(a, b)
    nothing = getattr(reference, f"{op}_backward")(None, None, saved)
    assert all(not gradient.any() for gradient in nothing if gradient is not None)


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize(("op", "options"), LAYERS)
def test_ragged_rows_equal_rows_run_alone(op: str, options: Any, reverse: bool, rng: Any) -> None:
    arguments = make_arguments(rng, op, options, bias=True, initial=True)
    outputs, _ = run(op, arguments | {"lengths": RAGGED, "reverse": reverse})
    for n, length in enumerate(RAGGED):
        alone = arguments | {"x": arguments["x"][:length, n : n + 1], "reverse": reverse}
        alone |= {s: arguments[s][n : n + 1] for s in ("h0", "c0") if s in arguments}
        (y, *states), _ = run(op, alone)
        np.testing.assert_allclose(outputs[0][:length, n], y[:, 0], rtol=1e-13)
        assert not outputs[0][length:, n].any()
        for state, expected in zip(outputs[1:], states, strict=True):
            np.testing.assert_allclose(state[n], expected[0], rtol=1e-13)


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize(("op", "options"), LAYERS)
def test_padding_never_leaks(op: str, options: Any, reverse: bool, rng: Any) -> None:
    arguments = make_arguments(rng, op, options, bias=True, initial=True)
    arguments |= {"lengths": RAGGED, "reverse": reverse}
    padding = np.arange(SEQ_LEN)[:, None] >= RAGGED
    outputs, saved = run(op, arguments)
    upstream = [rng.standard_normal(output.shape) for output in outputs]
    gradients = run_backward(op, upstream, saved)

    poisoned = arguments | {"x": arguments["x"].copy()}
    poisoned["x"][padding] = np.nan
    upstream[0][padding] = np.nan
    poisoned_outputs, poisoned_saved = run(op, poisoned)
    poisoned_gradients = run_backward(op, upstream, poisoned_saved)
    for a, b in zip(outputs, poisoned_outputs, strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(gradients, poisoned_gradients, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not gradients.dx[padding].any()


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize(("op", "options"), LAYERS)
def test_state_of_an_empty_row_reaches_nothing(
    op: str, options: Any, reverse: bool, rng: Any
) -> None:
    arguments = make_arguments(rng, op, options, bias=True, initial=True)
    arguments |= {"lengths": RAGGED, "reverse": reverse}
    outputs, saved = run(op, arguments)
    upstream = [rng.standard_normal(output.shape) for output in outputs]
    gradients = run_backward(op, upstream, saved)
    empty = RAGGED == 0
    for name in ("h0", "c0"):
        if name in arguments:
            arguments[name][empty] = np.nan
    nan_outputs, nan_saved = run(op, arguments)
    np.testing.assert_array_equal(outputs[0], nan_outputs[0])
    for state in nan_outputs[1:]:
        assert np.isnan(state[empty]).all()
        assert not np.isnan(state[~empty]).any()
    for a, b in zip(gradients, run_backward(op, upstream, nan_saved), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("op", "options"), LAYERS)
def test_reverse_is_the_flipped_sequence(op: str, options: Any, rng: Any) -> None:
    arguments = make_arguments(rng, op, options, bias=True, initial=True)
    (y, *states), _ = run(op, arguments | {"reverse": True})
    (flipped, *expected), _ = run(op, arguments | {"x": arguments["x"][::-1]})
    np.testing.assert_array_equal(y, flipped[::-1])
    for a, b in zip(states, expected, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("op", "options"), LAYERS)
def test_chunks_equal_the_whole(op: str, options: Any, rng: Any) -> None:
    arguments = make_arguments(rng, op, options, bias=True, initial=True)
    (y, *states), _ = run(op, arguments)
    first, _ = run(op, arguments | {"x": arguments["x"][:2]})
    carried = dict(zip(("h0", "c0"), first[1:], strict=False))
    second, _ = run(op, arguments | {"x": arguments["x"][2:]} | carried)
    np.testing.assert_array_equal(y, np.concatenate([first[0], second[0]]))
    for a, b in zip(states, second[1:], strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("seq_len", "batch"), [(0, 3), (2, 0), (0, 0)])
@pytest.mark.parametrize(("op", "options"), LAYERS)
def test_empty_sequences_and_batches(
    op: str, options: Any, seq_len: int, batch: int, rng: Any
) -> None:
    arguments = make_arguments(rng, op, options, bias=True, initial=True)
    arguments["x"] = rng.standard_normal((seq_len, batch, INPUT))
    for name in ("h0", "c0"):
        if name in arguments:
            arguments[name] = arguments[name][:batch]
    outputs, saved = run(op, arguments)
    assert outputs[0].shape[:2] == (seq_len, batch)
    if seq_len == 0:
        np.testing.assert_array_equal(outputs[1], arguments["h0"])
        assert not np.shares_memory(outputs[1], arguments["h0"])
    upstream = [np.ones_like(output) for output in outputs]
    gradients = run_backward(op, upstream, saved)
    np.testing.assert_array_equal(gradients.dh0, upstream[1])
    assert not gradients.dweight_hh.any()


@pytest.mark.parametrize(("op", "options"), LAYERS)
def test_float32_and_bfloat16(op: str, options: Any, rng: Any) -> None:
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    arguments = make_arguments(rng, op, options, bias=True, initial=True)
    for dtype in (np.dtype(np.float32), np.dtype(bfloat16)):
        arrays = {
            name: value.astype(dtype) if isinstance(value, np.ndarray) else value
            for name, value in arguments.items()
        }
        outputs, saved = run(op, arrays)
        assert [output.dtype for output in outputs] == [dtype, dtype, np.float32][: len(outputs)]
        gradients = run_backward(op, outputs, saved)
        assert gradients.dx.dtype == gradients.dh0.dtype == dtype
        assert all(g.dtype == np.float32 for g in gradients[2:] if g is not None)
        exact = {
            name: value.astype(np.float64) if isinstance(value, np.ndarray) else value
            for name, value in arrays.items()
        }
        rounding = 2.0**-8 if dtype == bfloat16 else 1e-6
        for output, expected in zip(outputs, run(op, exact)[0], strict=True):
            np.testing.assert_allclose(
                output.astype(np.float64), expected, rtol=rounding, atol=1e-5
            )
