"""The recurrent language model: every parameter gradient, and windows that carry the state."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from seqkern import reference

VOCABULARY, EMBEDDED, HIDDEN, LAYERS, SEQ_LEN, BATCH = 5, 3, 4, 2, 4, 2
GATES = {"rnn": 1, "lstm": 4, "gru": 3}


def make_params(rng: Any, cell: str, *, bias: bool = True, projected: int = 0) -> dict[str, Any]:
    rows, state = GATES[cell] * HIDDEN, projected or HIDDEN
    shapes: dict[str, tuple[int, ...]] = {
        "embedding.weight": (VOCABULARY, EMBEDDED),
        "head.weight": (VOCABULARY, state),
    }
    if bias:
        shapes["head.bias"] = (VOCABULARY,)
    for k in range(LAYERS):
        shapes[f"rnn.weight_ih_l{k}"] = (rows, EMBEDDED if k == 0 else state)
        shapes[f"rnn.weight_hh_l{k}"] = (rows, state)
        if bias:
            shapes |= {f"rnn.bias_ih_l{k}": (rows,), f"rnn.bias_hh_l{k}": (rows,)}
        if projected:
            shapes[f"rnn.weight_hr_l{k}"] = (projected, HIDDEN)
    return {name: rng.standard_normal(shape) for name, shape in shapes.items()}


def make_states(rng: Any, cell: str, state: int = HIDDEN) -> Any:
    h = rng.standard_normal((LAYERS, BATCH, state))
    return (h, rng.standard_normal((LAYERS, BATCH, HIDDEN))) if cell == "lstm" else h


@pytest.mark.parametrize(
    ("cell", "options", "given"),
    [
        ("rnn", {}, True),
        ("gru", {}, True),
        ("lstm", {}, True),
        ("lstm", {"projected": 2}, False),
        ("gru", {"bias": False}, False),
    ],
)
def test_loss_gradients_match_central_differences(
    cell: str, options: Any, given: bool, rng: Any, assert_gradients: Any
) -> None:
    params = make_params(rng, cell, **options)
    ids, targets = rng.integers(0, VOCABULARY, (2, SEQ_LEN, BATCH))
    targets[0, 1] = -100
    keywords = {"cell": cell, "num_layers": LAYERS}
    keywords["states"] = make_states(rng, cell) if given else None
    loss, gradients, states = reference.rnn_language_model_loss(ids, targets, params, **keywords)
    assert gradients.keys() == params.keys()

    def evaluate() -> Any:
        logits, _ = reference.rnn_language_model(ids, params, **keywords)
        return reference.cross_entropy(logits, targets)

    assert evaluate() == loss
    assert_gradients(evaluate, {name: (params[name], gradients[name]) for name in params})
    expected = reference.rnn_language_model(ids, params, **keywords)[1]
    for a, b in zip(states, expected, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_windows_that_carry_the_state_equal_the_whole(cell: str, rng: Any) -> None:
    params = make_params(rng, cell)
    ids = rng.integers(0, VOCABULARY, (SEQ_LEN, BATCH))
    whole, final = reference.rnn_language_model(ids, params, cell=cell, num_layers=LAYERS)
    parts, states = [], None
    for window in (ids[:1], ids[1:]):
        logits, states = reference.rnn_language_model(
            window, params, cell=cell, num_layers=LAYERS, states=states
        )
        parts.append(logits)
    np.testing.assert_allclose(whole, np.concatenate(parts), rtol=1e-13)
    np.testing.assert_array_equal(np.concatenate(final), np.concatenate(states))
