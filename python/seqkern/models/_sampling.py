"""What models that generate share: drawing the next token from logits, and doing so without dropout."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from ..nn.module import Module


def sample(
    logits: np.ndarray,
    *,
    temperature: float,
    top_k: int | None,
    rng: np.random.Generator,
    top_p: float | None = None,
) -> np.ndarray:
    """Token ids [N] from logits [N, V].

    temperature: logits are divided by it; 0 takes the most likely token.
    top_k: only the k most likely tokens can be drawn; None allows all.
    top_p: only the most likely tokens whose probabilities first reach p, after temperature and top_k.
    """
    if temperature == 0:
        return np.asarray(logits.argmax(-1))
    scores = logits.astype(np.float64) / temperature
    if top_k is not None and top_k < scores.shape[-1]:
        kth = np.partition(scores, -top_k, axis=-1)[..., -top_k, None]
        scores = np.where(scores < kth, -np.inf, scores)
    if top_p is not None and top_p < 1:
        scores = _nucleus(scores, top_p)
    # Gumbel's trick: the largest of score + Gumbel noise is a draw from softmax(scores).
    return np.asarray((scores + rng.gumbel(size=scores.shape)).argmax(-1))


def _nucleus(scores: np.ndarray, top_p: float) -> np.ndarray:
    """-inf for all but the fewest likeliest tokens that reach probability top_p (Holtzman et al. 2020)."""
    order = np.argsort(-scores, axis=-1, kind="stable")
    ranked = np.take_along_axis(scores, order, -1)
    probs = np.exp(ranked - ranked[..., :1])
    probs /= probs.sum(-1, keepdims=True)
    before = probs.cumsum(-1) - probs
    kept = np.where(before < top_p, ranked, -np.inf)
    kept[..., 0] = ranked[..., 0]
    result = np.empty_like(scores)
    np.put_along_axis(result, order, kept, -1)
    return result


def repetition_penalised(logits: np.ndarray, seen: np.ndarray, penalty: float) -> np.ndarray:
    """Logits [N, V] with those of `seen` tokens made less likely (Keskar et al. 2019)."""
    scores = logits.astype(np.float64)
    return np.where(seen, np.where(scores > 0, scores / penalty, scores * penalty), scores)


def check_sampling(
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None = None,
    repetition_penalty: float = 1.0,
) -> None:
    """ValueError names a setting out of range."""
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens must be >= 0, got {max_new_tokens}")
    if not temperature >= 0:
        raise ValueError(f"temperature must be >= 0, got {temperature}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p must lie in (0, 1], got {top_p}")
    if not repetition_penalty > 0:
        raise ValueError(f"repetition_penalty must be > 0, got {repetition_penalty}")


@contextmanager
def evaluating(model: Module) -> Iterator[None]:
    """Eval mode inside the block, the previous mode after it."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
