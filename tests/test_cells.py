"""Single recurrent steps, rnn_cell, lstm_cell and gru_cell: the layers' equations for T = 1."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from support.bounds import Estimates, recurrent_estimates
from support.cases import (
    BATCHES,
    BFLOAT16,
    TAILS,
    Array,
    Arrays,
    DTypes,
    Recurrent,
    make_arrays,
    make_gradients,
)
from support.compare import assert_bitwise_equal, assert_matches
from support.layouts import LAYOUTS
from support.oracle import as_float64, call, running_bound

VARIANTS = [
    Recurrent("rnn", T=1),
    Recurrent("rnn", T=1, nonlinearity="relu"),
    Recurrent("lstm", T=1),
    Recurrent("lstm", T=1, P=4),
    Recurrent("lstm", T=1, peephole=True),
    Recurrent("gru", T=1),
    Recurrent("gru", T=1, reset_after=False),
]
PLAIN = [case for case in VARIANTS if str(case) == "T1N3I5H6"]
SIZES = [
    *(replace(case, H=n) for case in PLAIN for n in TAILS),
    *(replace(case, N=n, H=9) for case in PLAIN for n in BATCHES),
    *(replace(case, I=n) for case in PLAIN for n in (1, 16, 17, 33)),
]
CASES = [
    *SIZES,
    *VARIANTS,
    *(replace(case, biases=biases) for case in VARIANTS for biases in ((), ("ih",), ("hh",))),
    *(replace(case, outliers=True) for case in VARIANTS),
]
RENAMED = {"dh0": "dh", "dc0": "dc", "h_n": "h", "c_n": "c"}


def call_cell(ops: ModuleType, suffix: str, case: Recurrent, arrays: Arrays) -> Any:
    """`<op>_cell<suffix>` on the arrays of a case."""
    given = {k: v for k, v in arrays.items() if k not in ("x", "h0", "c0")}
    given |= {k: v for k, v in case.options().items() if k != "reverse"}
    state = (arrays["h0"], arrays["c0"]) if case.op == "lstm" else arrays["h0"]
    return getattr(ops, f"{case.op}_cell{suffix}")(arrays["x"][0], state, **given)


def run(ops: ModuleType, case: Recurrent, arrays: Arrays, grads: Arrays) -> tuple[tuple[Array, ...], dict[str, Any]]:
    """The new state, as a tuple, and the gradients by name."""
    *state, saved = call_cell(ops, "_forward", case, arrays)  # API.md: outputs…, saved
    last = (grads["dh_n"], grads["dc_n"]) if case.op == "lstm" else grads["dh_n"]
    gradients = getattr(ops, f"{case.op}_cell_backward")(last, saved)._asdict()
    return tuple(state), gradients


@lru_cache(maxsize=8)
def estimates(case: Recurrent, dtypes: DTypes) -> tuple[Arrays, Arrays, Estimates, Estimates]:
    """Inputs, output gradients, and (value, error bound) of the states and of the gradients."""
    arrays, grads = make_arrays(case, dtypes), make_gradients(case, dtypes)
    grads["dy"][...] = 0
    outputs, gradients = recurrent_estimates(case, dtypes, as_float64(arrays), as_float64(grads))
    gradients["dx"] = (gradients["dx"][0][0], gradients["dx"][1][0])
    named = {RENAMED.get(name, name): pair for name, pair in gradients.items()}
    return arrays, grads, {RENAMED[k]: v for k, v in outputs.items() if k != "y"}, named


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.op}-{case}")
def test_forward_and_backward(ops: ModuleType, case: Recurrent, dtype: DTypes) -> None:
    arrays, grads, states, wanted = estimates(case, dtype)
    got, gradients = run(ops, case, arrays, grads)
    assert len(got) == len(states)
    for array, (name, estimate) in zip(got, states.items(), strict=True):
        assert array.dtype == (dtype.cell if name == "c" else dtype.x)
        assert_matches(array, estimate[0], running_bound(estimate, dtype, name), name)
    plain = call_cell(ops, "", case, arrays)
    assert_bitwise_equal(plain if case.op == "lstm" else (plain,), got, "cell")
    for name, gradient in gradients.items():
        if gradient is None:
            assert name not in wanted, name
            continue
        bound = running_bound(wanted[name], dtype, name)
        assert gradient.dtype == dtype.of_gradient(name), name
        assert_matches(gradient, wanted[name][0], bound, name)


@pytest.mark.parametrize("case", VARIANTS, ids=lambda case: f"{case.op}-{case}")
def test_reference_agrees(case: Recurrent, dtype: DTypes) -> None:
    """The reference's cells and the bounds describe the same equations."""
    from seqkern import reference

    arrays, grads, states, wanted = estimates(case, dtype)
    got, gradients = run(reference, case, as_float64(arrays), as_float64(grads))
    for array, (name, (value, _)) in zip(got, states.items(), strict=True):
        assert_matches(array, value, 1e-13 * (1 + np.abs(value)), name)
    for name, (value, _) in wanted.items():
        assert_matches(gradients[name], value, 1e-12 * (1 + np.abs(value)), name)


@pytest.mark.parametrize("case", VARIANTS, ids=lambda case: f"{case.op}-{case}")
def test_layouts(ops: ModuleType, case: Recurrent, dtype: DTypes) -> None:
    arrays, grads, *_ = estimates(replace(case, H=17), dtype)
    want = run(ops, replace(case, H=17), arrays, grads)
    for layout in LAYOUTS:
        laid_out = [{k: layout(v) for k, v in group.items()} for group in (arrays, grads)]
        state, gradients = run(ops, replace(case, H=17), *laid_out)
        assert_bitwise_equal(state, want[0], layout.__name__)
        assert_bitwise_equal(tuple(gradients.values()), tuple(want[1].values()), layout.__name__)


@pytest.mark.parametrize("case", VARIANTS, ids=lambda case: f"{case.op}-{case}")
def test_gradient_of_none_is_zero(ops: ModuleType, case: Recurrent, dtype: DTypes) -> None:
    arrays, *_ = estimates(case, dtype)
    *_, saved = call_cell(ops, "_forward", case, arrays)
    backward = getattr(ops, f"{case.op}_cell_backward")
    last = (None, None) if case.op == "lstm" else None
    assert all(g is None or not np.asarray(g).any() for g in backward(last, saved))


@pytest.mark.parametrize("case", VARIANTS, ids=lambda case: f"{case.op}-{case}")
def test_rows_stay_apart(ops: ModuleType, case: Recurrent) -> None:
    """NaN in one batch row reaches no other row."""
    case = replace(case, N=6, H=17)
    arrays, grads, *_ = estimates(case, BFLOAT16)
    poisoned = {**arrays, "x": arrays["x"].copy()}
    poisoned["x"][0, 1] = np.nan
    others: Array = np.array([0, 2, 3, 4, 5])
    (clean, _), (dirty, _) = (run(ops, case, a, grads) for a in (arrays, poisoned))
    for a, b in zip(dirty, clean, strict=True):
        assert_bitwise_equal(a[others], b[others], case.op)
        assert np.isnan(a[1].astype(np.float64)).all()


@pytest.mark.parametrize("case", VARIANTS, ids=lambda case: f"{case.op}-{case}")
def test_a_loop_of_cells_is_the_layer(ops: ModuleType, case: Recurrent, dtype: DTypes) -> None:
    """Bit for bit."""
    layer = replace(case, T=5, N=4, H=35, I=17, P=case.P and 20)
    arrays = make_arrays(layer, dtype)
    y = call(ops, layer, arrays)["y"]
    for t in range(layer.T):
        step = call_cell(ops, "", case, {**arrays, "x": arrays["x"][t : t + 1]})
        states = step if case.op == "lstm" else (step,)
        arrays |= dict(zip(("h0", "c0"), states, strict=False))
        assert_bitwise_equal(arrays["h0"], y[t], f"step {t}")
