"""Single steps: gradients, agreement with the layers, and the equations element by element."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from seqkern import reference

BATCH, INPUT, HIDDEN, PROJECTED = 2, 3, 4, 2
GATES = {"rnn": 1, "lstm": 4, "gru": 3}

CELLS = [
    pytest.param("rnn", {}, id="rnn-tanh"),
    pytest.param("rnn", {"nonlinearity": "relu"}, id="rnn-relu"),
    pytest.param("gru", {}, id="gru-reset-after"),
    pytest.param("gru", {"reset_after": False}, id="gru-reset-before"),
    pytest.param("lstm", {}, id="lstm"),
    pytest.param("lstm", {"weight_hr", "peephole"}, id="lstm-projection-peephole"),
]


def make_arguments(rng: Any, op: str, options: Any, bias: bool = True) -> dict[str, Any]:
    state = PROJECTED if "weight_hr" in options else HIDDEN
    rows = GATES[op] * HIDDEN
    shapes: dict[str, tuple[int, ...]] = {
        "x": (BATCH, INPUT),
        "h": (BATCH, state),
        "weight_ih": (rows, INPUT),
        "weight_hh": (rows, state),
    }
    if op == "lstm":
        shapes["c"] = (BATCH, HIDDEN)
    if bias:
        shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)}
    if "weight_hr" in options:
        shapes |= {"weight_hr": (PROJECTED, HIDDEN), "peephole": (3, HIDDEN)}
    arrays = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    return arrays | (options if isinstance(options, dict) else {})


def run(op: str, arguments: dict[str, Any]) -> tuple[tuple[Any, ...], Any]:
    keywords = dict(arguments)
    x, state = keywords.pop("x"), keywords.pop("h")
    if op == "lstm":
        state = (state, keywords.pop("c"))
    *new, saved = getattr(reference, f"{op}_cell_forward")(x, state, **keywords)
    bare = getattr(reference, f"{op}_cell")(x, state, **keywords)
    for a, b in zip(new, bare if op == "lstm" else (bare,), strict=True):
        np.testing.assert_array_equal(a, b)
    return tuple(new), saved


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "bare"])
@pytest.mark.parametrize(("op", "options"), CELLS)
def test_gradients_match_central_differences(
    op: str, options: Any, bias: bool, rng: Any, assert_gradients: Any
) -> None:
    arguments = make_arguments(rng, op, options, bias)
    states, saved = run(op, arguments)
    upstream = tuple(rng.standard_normal(state.shape) for state in states)

    def loss() -> Any:
        new = run(op, arguments)[0]
        return sum((d * state).sum() for d, state in zip(upstream, new, strict=True))

    backward = getattr(reference, f"{op}_cell_backward")
    gradients = backward(upstream if op == "lstm" else upstream[0], saved)._asdict()
    arrays = {name: a for name, a in arguments.items() if isinstance(a, np.ndarray)}
    assert_gradients(loss, {name: (a, gradients[f"d{name}"]) for name, a in arrays.items()})
    assert {n for n, g in gradients.items() if g is not None} == {f"d{n}" for n in arrays}
    nothing = backward(None, saved)
    assert all(not gradient.any() for gradient in nothing if gradient is not None)


@pytest.mark.parametrize(("op", "options"), CELLS)
def test_layer_repeats_the_cell(op: str, options: Any, rng: Any) -> None:
    arguments = make_arguments(rng, op, options)
    states, _ = run(op, arguments)
    layer = {name: a for name, a in arguments.items() if name not in ("x", "h", "c")}
    layer |= {f"{name}0": arguments[name] for name in ("h", "c") if name in arguments}
    y, final = getattr(reference, op)(arguments["x"][None], **layer)
    np.testing.assert_array_equal(y[0], states[0])
    for a, b in zip(final if op == "lstm" else (final,), states, strict=True):
        np.testing.assert_array_equal(a, b)


def logistic(a: float) -> float:
    return 1 / (1 + math.exp(-a))


def products(arguments: dict[str, Any], n: int) -> tuple[list[float], list[float]]:
    """W_ih x + b_ih and W_hh h + b_hh for batch row n, in columns as the decks write them."""
    x, h = arguments["x"][n], arguments["h"][n]
    a = [
        sum(w * v for w, v in zip(row, x, strict=True)) + b
        for row, b in zip(arguments["weight_ih"], arguments["bias_ih"], strict=True)
    ]
    b = [
        sum(w * v for w, v in zip(row, h, strict=True)) + b
        for row, b in zip(arguments["weight_hh"], arguments["bias_hh"], strict=True)
    ]
    return a, b


def test_rnn_by_hand(rng: Any) -> None:
    arguments = make_arguments(rng, "rnn", {})
    (h_new,), _ = run("rnn", arguments)
    for n in range(BATCH):
        a, b = products(arguments, n)
        for j in range(HIDDEN):
            assert h_new[n, j] == pytest.approx(math.tanh(a[j] + b[j]), rel=1e-12)


def test_lstm_with_peepholes_by_hand(rng: Any) -> None:
    arguments = make_arguments(rng, "lstm", {})
    arguments["peephole"] = rng.standard_normal((3, HIDDEN))
    (h_new, c_new), _ = run("lstm", arguments)
    p_i, p_f, p_o = arguments["peephole"]
    for n in range(BATCH):
        a, b = products(arguments, n)
        for j in range(HIDDEN):
            i, f, g, o = (a[k * HIDDEN + j] + b[k * HIDDEN + j] for k in range(4))
            c = arguments["c"][n, j]
            expected_c = logistic(f + p_f[j] * c) * c + logistic(i + p_i[j] * c) * math.tanh(g)
            expected_h = logistic(o + p_o[j] * expected_c) * math.tanh(expected_c)
            assert c_new[n, j] == pytest.approx(expected_c, rel=1e-12)
            assert h_new[n, j] == pytest.approx(expected_h, rel=1e-12)


@pytest.mark.parametrize("reset_after", [True, False])
def test_gru_by_hand_with_the_decks_update_gate(reset_after: bool, rng: Any) -> None:
    """h' = (1 - u) h + u n with u = 1 - z, the gate the decks call update."""
    arguments = make_arguments(rng, "gru", {"reset_after": reset_after})
    (h_new,), _ = run("gru", arguments)
    w_hn = arguments["weight_hh"][2 * HIDDEN :]
    b_hn = arguments["bias_hh"][2 * HIDDEN :]
    for n in range(BATCH):
        a, b = products(arguments, n)
        h = arguments["h"][n]
        r = [logistic(a[j] + b[j]) for j in range(HIDDEN)]
        for j in range(HIDDEN):
            u = logistic(-(a[HIDDEN + j] + b[HIDDEN + j]))
            if reset_after:
                hidden = r[j] * b[2 * HIDDEN + j]
            else:
                hidden = sum(w_hn[j, k] * r[k] * h[k] for k in range(HIDDEN)) + b_hn[j]
            candidate = math.tanh(a[2 * HIDDEN + j] + hidden)
            assert h_new[n, j] == pytest.approx((1 - u) * h[j] + u * candidate, rel=1e-12)


OPEN, SHUT = 50.0, -50.0  # gate biases: sigmoid is 1 exactly, and 2e-22


def gru_with_gates(rng: Any, reset: float, z: float, reset_after: bool) -> dict[str, Any]:
    """A random GRU whose r and z gates are pinned by their biases."""
    arguments = make_arguments(rng, "gru", {"reset_after": reset_after})
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        arguments[name][: 2 * HIDDEN] = 0
    arguments["bias_ih"][:HIDDEN] = reset
    arguments["bias_ih"][HIDDEN : 2 * HIDDEN] = z
    return arguments


@pytest.mark.parametrize("reset_after", [True, False])
@pytest.mark.parametrize("reset", [OPEN, SHUT])
def test_gru_closed_update_gate_copies_the_state(reset: float, reset_after: bool, rng: Any) -> None:
    arguments = gru_with_gates(rng, reset, OPEN, reset_after)  # u = 0 is z = 1
    (h_new,), _ = run("gru", arguments)
    np.testing.assert_allclose(h_new, arguments["h"], rtol=1e-15)


@pytest.mark.parametrize("reset_after", [True, False])
def test_gru_open_update_gate_takes_the_candidate(reset_after: bool, rng: Any) -> None:
    arguments = gru_with_gates(rng, 0.3, SHUT, reset_after)  # u = 1 is z = 0
    (h_new,), saved = run("gru", arguments)
    np.testing.assert_allclose(h_new, saved.gates[:, 2 * HIDDEN :], rtol=1e-14)


@pytest.mark.parametrize("reset_after", [True, False])
def test_gru_with_both_gates_open_is_the_plain_rnn(reset_after: bool, rng: Any) -> None:
    arguments = gru_with_gates(rng, OPEN, SHUT, reset_after)
    (h_new,), _ = run("gru", arguments)
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    candidate = {name: arguments[name][2 * HIDDEN :] for name in names}
    expected = reference.rnn_cell(arguments["x"], arguments["h"], **candidate)
    np.testing.assert_allclose(h_new, expected, rtol=1e-14)


@pytest.mark.parametrize("reset_after", [True, False])
def test_gru_open_update_and_closed_reset_forgets_the_past(reset_after: bool, rng: Any) -> None:
    arguments = gru_with_gates(rng, SHUT, SHUT, reset_after)
    (h_new,), _ = run("gru", arguments)
    (other,), _ = run("gru", arguments | {"h": rng.standard_normal((BATCH, HIDDEN))})
    np.testing.assert_allclose(h_new, other, rtol=1e-14)
    a = arguments["x"] @ arguments["weight_ih"][2 * HIDDEN :].T + arguments["bias_ih"][2 * HIDDEN :]
    if not reset_after:  # then the reset gate does not reach the recurrent bias
        a = a + arguments["bias_hh"][2 * HIDDEN :]
    np.testing.assert_allclose(h_new, np.tanh(a), rtol=1e-14)
