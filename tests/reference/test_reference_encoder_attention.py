"""Additive and Luong attention's reference: central differences, lengths, and one score by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from seqkern import reference

N, L, S, Q, K, H = 3, 2, 4, 3, 5, 6
SHAPES: dict[str, tuple[tuple[int, ...], ...]] = {
    "additive": ((H, Q), (H, K), (H,)),
    "dot": (),
    "general": ((Q, K),),
    "concat": ((H, Q + K), (H,)),
}


def inputs(score: str, rng: Any) -> tuple[Any, Any, tuple[Any, ...]]:
    keys = rng.standard_normal((N, S, Q if score == "dot" else K))
    parameters = tuple(rng.standard_normal(shape) for shape in SHAPES[score])
    return rng.standard_normal((N, L, Q)), keys, parameters


@pytest.mark.parametrize("lengths", [None, np.array([4, 0, 2])], ids=["full", "ragged"])
@pytest.mark.parametrize("score", SHAPES)
def test_gradients(score: str, lengths: Any, rng: Any, assert_gradients: Any) -> None:
    query, keys, parameters = inputs(score, rng)

    def forward() -> Any:
        return reference.encoder_attention_forward(query, keys, score, parameters, lengths=lengths)

    context, weights, saved = forward()
    dcontext, dweights = rng.standard_normal(context.shape), rng.standard_normal(weights.shape)
    pairs = {"context": (dcontext, None), "weights": (None, dweights), "both": (dcontext, dweights)}
    for grads in pairs.values():
        found = reference.encoder_attention_backward(*grads, saved)

        def loss(grads: Any = grads) -> Any:
            results = forward()[:2]
            return sum((g * y).sum() for g, y in zip(grads, results, strict=True) if g is not None)

        checked = {"query": (query, found.dquery), "keys": (keys, found.dkeys)}
        assert len(found.dparameters) == len(parameters)
        for i, pair in enumerate(zip(parameters, found.dparameters, strict=True)):
            checked[f"parameter {i}"] = pair
        assert_gradients(loss, checked)


@pytest.mark.parametrize("score", SHAPES)
def test_scores_by_their_formulas(score: str, rng: Any) -> None:
    query, keys, parameters = inputs(score, rng)
    lengths = np.array([4, 0, 2])
    context, weights, _ = reference.encoder_attention_forward(query, keys, score, parameters, lengths=lengths)
    for n, i in np.ndindex(N, L):
        q, k = query[n, i], keys[n, : lengths[n]]
        scores = {
            "additive": lambda q, x: parameters[2] @ np.tanh(parameters[0] @ q + parameters[1] @ x),
            "dot": lambda q, x: q @ x,
            "general": lambda q, x: q @ parameters[0] @ x,
            "concat": lambda q, x: parameters[1] @ np.tanh(parameters[0] @ np.concatenate([q, x])),
        }
        e = np.exp([scores[score](q, x) for x in k])
        np.testing.assert_allclose(weights[n, i, : lengths[n]], e / max(e.sum(), 1e-300), rtol=1e-12)
        assert not weights[n, i, lengths[n] :].any()
        np.testing.assert_allclose(context[n, i], weights[n, i, : lengths[n]] @ k, rtol=1e-12)


def test_nan_past_a_length_never_leaks(rng: Any) -> None:
    query, keys, parameters = inputs("general", rng)
    lengths = np.array([4, 0, 2])
    keys[1], keys[2, 2:] = np.nan, np.inf
    context, weights, saved = reference.encoder_attention_forward(query, keys, "general", parameters, lengths=lengths)
    found = reference.encoder_attention_backward(np.ones_like(context), np.ones_like(weights), saved)
    for array in (context, weights, found.dquery, found.dkeys, *found.dparameters):
        assert np.isfinite(array).all()
    assert not context[1].any()
    assert not found.dkeys[1].any()
    assert not found.dkeys[2, 2:].any()
