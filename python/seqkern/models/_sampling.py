"""Drawing the next token from logits."""

from __future__ import annotations

import numpy as np


def sample(
    logits: np.ndarray, *, temperature: float, top_k: int | None, rng: np.random.Generator
) -> np.ndarray:
    """Token ids [N] from logits [N, V].

    temperature: logits are divided by it; 0 takes the most likely token.
    top_k: only the k most likely tokens can be drawn; None allows all.
    """
    if temperature == 0:
        return np.asarray(logits.argmax(-1))
    scores = logits.astype(np.float64) / temperature
    if top_k is not None and top_k < scores.shape[-1]:
        kth = np.partition(scores, -top_k, axis=-1)[..., -top_k, None]
        scores = np.where(scores < kth, -np.inf, scores)
    # Gumbel's trick: the largest of score + Gumbel noise is a draw from softmax(scores).
    return np.asarray((scores + rng.gumbel(size=scores.shape)).argmax(-1))


def check_sampling(max_new_tokens: int, temperature: float, top_k: int | None) -> None:
    """ValueError names a setting out of range."""
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens must be >= 0, got {max_new_tokens}")
    if not temperature >= 0:
        raise ValueError(f"temperature must be >= 0, got {temperature}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}")
