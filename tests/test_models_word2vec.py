"""Word2Vec: losses and gradients against plain loops, sampling against its distributions, files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from seqkern import models, optim
from seqkern.models import Word2Vec, Word2VecConfig, join_phrases

WORDS, COUNTS, B, E = ["a", "b", "c", "d", "e", "f"], [60, 30, 20, 10, 5, 2], 7, 4


def make(rng: Any, dtype: Any = np.float64, **changes: Any) -> Word2Vec:
    model = Word2Vec(Word2VecConfig(WORDS, COUNTS, **{"dim": E, **changes}), dtype=dtype, rng=rng)
    for p in model.parameters():
        p.data[...] = rng.standard_normal(p.shape)
    return model


def sigma(x: float) -> float:
    return float(1 / (1 + np.exp(-x)))


def expected_loss(model: Word2Vec, centres: Any, contexts: Any, negatives: Any) -> float:
    """The definition, pair by pair."""
    w0, w1, total = model.embedding.weight.data, model.output.weight.data, 0.0
    for b, (centre, context) in enumerate(zip(centres, contexts, strict=True)):
        v = w0[centre]
        if model.config.loss == "softmax":
            p = np.exp(w1 @ v) / np.exp(w1 @ v).sum()
            total -= np.log(p[context])
            continue
        total -= np.log(sigma(w1[context] @ v))
        if negatives is not None and negatives.ndim == 2:
            total -= sum(np.log(sigma(-w1[k] @ v)) for k in negatives[b])
        elif negatives is not None:
            weight = model.config.negatives / len(negatives)
            total -= weight * sum(np.log(sigma(-w1[k] @ v)) for k in negatives)
    return total / len(centres)


@pytest.mark.parametrize("form", ["softmax", "own", "shared", "none"])
def test_loss_and_gradients(form: str, rng: Any) -> None:
    model = make(rng, loss="softmax" if form == "softmax" else "negative", negatives=3)
    centres, contexts = rng.integers(0, 6, (2, B))
    shape = {"own": (B, 3), "shared": (5,)}.get(form)
    negatives = None if shape is None else rng.integers(0, 6, shape)
    loss, pull = model.vjp(centres, contexts, negatives)
    assert float(loss) == pytest.approx(expected_loss(model, centres, contexts, negatives), rel=1e-12)
    assert float(model(centres, contexts, negatives)) == float(loss)
    assert pull(2.0) == (None, None)
    for name, parameter in model.named_parameters():
        direction, eps = rng.standard_normal(parameter.shape), 1e-6
        values = []
        for step in (eps, -eps):
            parameter.data += step * direction
            values.append(2 * expected_loss(model, centres, contexts, negatives))
            parameter.data -= step * direction
        slope = (values[0] - values[1]) / (2 * eps)
        assert np.vdot(parameter.grad, direction) == pytest.approx(slope, rel=1e-6), name


def test_large_scores_stay_finite(rng: Any) -> None:
    model = make(rng, np.float32)
    model.embedding.weight.data *= 1e4
    with np.errstate(over="raise", invalid="raise"):
        loss = model.loss_and_grads(np.arange(6), np.arange(6), rng.integers(0, 6, (6, 3)))
    assert np.isfinite(loss) and all(np.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_noise_words_follow_counts_to_three_quarters(rng: Any) -> None:
    """200,000 draws: each frequency within 6 standard deviations of its probability."""
    model = make(rng)
    p = np.array(COUNTS) ** 0.75 / (np.array(COUNTS) ** 0.75).sum()
    found = np.bincount(model.draw_negatives((200, 1000), rng).ravel(), minlength=6) / 200_000
    assert (np.abs(found - p) <= 6 * np.sqrt(p * (1 - p) / 200_000)).all()


def test_frequent_words_are_thinned(rng: Any) -> None:
    """window 1 gives 2 (n - 1) pairs for n words that stay; a rare word always stays."""
    model = make(rng, window=1, subsample=0.05)
    ids = rng.permutation(np.repeat(np.arange(6), np.array(COUNTS) * 200))
    centres, _ = model.pairs(ids, rng)
    kept = np.bincount(centres, minlength=6) / 2
    f = np.array(COUNTS) / sum(COUNTS)
    p, n = np.minimum(1, np.sqrt(0.05 / f)), np.array(COUNTS) * 200
    assert (np.abs(kept - n * p) <= 6 * np.sqrt(n * p * (1 - p)) + 1).all()


def test_pairs_are_those_within_reach(rng: Any) -> None:
    """Without thinning: every pair lies in the window, near ones come in full, far ones less often."""
    words = [f"w{k}" for k in range(400)]
    model = Word2Vec(Word2VecConfig(words, [1] * 400, dim=2, window=4, subsample=0.0), rng=rng)
    centres, contexts = model.pairs(np.arange(400), rng)
    distance = np.bincount(np.abs(centres - contexts), minlength=6)
    assert distance[0] == distance[5] == 0 and distance[1] == 2 * 399
    assert distance[1] > distance[2] > distance[3] > distance[4] > 0
    assert len(set(zip(centres.tolist(), contexts.tolist(), strict=True))) == len(centres)
    reach = {c: max(abs(c - x) for x in contexts[centres == c]) for c in range(10, 390)}
    for c, r in reach.items():
        assert sorted(contexts[centres == c]) == [k for k in range(c - r, c + r + 1) if k != c]
    assert not (np.diff(centres) >= 0).all()


def test_counting_and_unknown_words() -> None:
    config = Word2VecConfig.of(["to", "be", "or", "not", "to", "be", "to"], min_count=2, dim=3)
    assert (config.words, config.counts, config.dim) == (["to", "be"], [3, 2], 3)
    model = Word2Vec(config)
    np.testing.assert_array_equal(model.ids(["be", "or", "to"]), [1, 0])
    assert models.count_parameters(config) == sum(p.data.size for p in model.parameters()) == 12
    assert (model.output.weight.data == 0).all()


def test_phrases() -> None:
    text = [word for k in range(12) for word in (f"w{k}", "new", "york")] + ["new", "car", "york"]
    joined = join_phrases(text, threshold=1.0, min_count=6, discount=0)
    assert joined.count("new_york") == 12 and joined[-3:] == ["new", "car", "york"]
    n = len(text)  # new, york: 13 each; the pair 12: a score of 12 n / 169
    assert "new_york" in join_phrases(text, threshold=12 * n / 169 - 1e-6, discount=0)
    assert "new_york" not in join_phrases(text, threshold=12 * n / 169 + 1e-6, discount=0)
    assert "new_york" not in join_phrases(text, threshold=1.0, min_count=13, discount=0)
    assert join_phrases(["a", "a", "a"], min_count=1, threshold=0, discount=0) == ["a_a", "a"]
    assert join_phrases([], min_count=1) == []


def test_neighbours_and_analogies(rng: Any) -> None:
    words = ["man", "woman", "king", "queen", "apple"]
    model = Word2Vec(Word2VecConfig(words, [5, 4, 3, 2, 1], dim=3), dtype=np.float64, rng=rng)
    model.embedding.weight.data[...] = [[1, 0, 0], [1, 1, 0], [1, 0, 1], [1, 1, 1], [-5, 0, 0]]
    assert model.analogy("man", "woman", "king")[0][0] == "queen"
    assert [w for w, _ in model.most_similar("queen", 2)] == ["woman", "king"]
    assert model.most_similar("queen")[-1] == ("apple", pytest.approx(-1 / 3**0.5))
    assert len(model.most_similar("queen")) == 4 and model.most_similar("queen", 0) == []
    assert model.similarity("man", "woman") == pytest.approx(1 / 2**0.5)
    with pytest.raises(KeyError, match="pear"):
        model.vector("pear")


@pytest.mark.parametrize("loss", ["negative", "softmax"])
def test_words_of_the_same_company_end_up_together(loss: str, rng: Any) -> None:
    """Ten pairs of twins: x and x' come in the same places of the text, never beside each other."""
    topics = rng.integers(0, 10, 4000)
    tokens = [f"{'xy'[int(rng.integers(2))]}{t}" if k % 2 else f"z{t}" for t in topics for k in range(2)]
    config = Word2VecConfig.of(tokens, dim=16, window=1, loss=loss, subsample=0.0)
    model = Word2Vec(config, rng=rng)
    optimizer = optim.AdamW(model.named_parameters(), lr=0.02, weight_decay=0.0)
    ids = model.ids(tokens)
    for _ in range(6):
        centres, contexts = model.pairs(ids, rng)
        for k in range(0, len(centres), 512):
            model.zero_grad()
            noise = model.draw_negatives(64, rng) if loss == "negative" else None
            model.loss_and_grads(centres[k : k + 512], contexts[k : k + 512], noise)
            optimizer.step()
    for k in range(10):
        assert model.most_similar(f"x{k}", 1)[0][0] == f"y{k}"


def test_files_and_errors(tmp_path: Path, rng: Any) -> None:
    model = make(rng, np.float32)
    model.save_pretrained(tmp_path)
    loaded = Word2Vec.from_pretrained(tmp_path)
    assert loaded.config == model.config and not loaded.training
    assert loaded.most_similar("a") == model.most_similar("a")
    calls: list[tuple[Any, str]] = [
        (lambda: make(rng, loss="hinge"), "loss must be one of"),
        (lambda: Word2Vec(Word2VecConfig(["a"], [])), "counts must give a positive count for each of 1"),
        (lambda: Word2Vec(Word2VecConfig(["a", "a"], [2, 1])), "words must differ"),
        (lambda: model(np.arange(3), np.arange(2)), r"contexts must be \[B\] = \[3\]"),
        (lambda: model(np.arange(3), np.arange(3), np.zeros((2, 4), int)), r"negatives must be \[B, K\] = \[3, 4\]"),
        (lambda: model(np.array([6]), np.array([0])), "embedding"),
    ]
    for call, message in calls:
        with pytest.raises(ValueError, match=message):
            call()
