"""Word2Vec: word vectors by skip-gram (Mikolov et al. 2013, "Distributed Representations of Words and
Phrases and their Compositionality").

    v = W0[centre], u = W1[context]:  a word's vector predicts the words around it
    softmax:   -log softmax(W1 v)[context]
    negative:  -log σ(u·v) - Σ_k log σ(-u_k·v),  K noise words u_k drawn with p ~ count^0.75

Frequent words are thinned out: an occurrence of a word of frequency f stays with p = min(1, sqrt(t/f)).
W0, `embedding.weight`, is the dictionary.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from .. import ops
from ..nn import Embedding
from ..nn._arrays import Array, array_module, check_array, check_shape, to_numpy
from ..nn._init import check_choice, check_size
from ..nn.module import Module, Pullback
from ._files import load_model, restore_model, save_model


@dataclass
class Word2VecConfig:
    """The vocabulary and sizes of a Word2Vec; `Word2VecConfig.of(tokens)` counts the words.

    words, counts: the vocabulary and how often each word came, most frequent first.
    window: the farthest neighbour; each occurrence draws its own reach from 1 to this.
    loss: "negative" or "softmax"; negatives: noise words per pair.
    subsample: t of the thinning; 0 keeps every occurrence.
    """

    words: list[str]
    counts: list[int]
    dim: int = 100
    window: int = 5
    loss: str = "negative"
    negatives: int = 5
    subsample: float = 1e-3

    @classmethod
    def of(cls, tokens: Iterable[str], min_count: int = 5, **sizes: Any) -> Word2VecConfig:
        """The words that come at least min_count times."""
        kept = [(word, n) for word, n in Counter(tokens).most_common() if n >= min_count]
        return cls([word for word, _ in kept], [n for _, n in kept], **sizes)

    def count_parameters(self) -> int:
        return 2 * len(self.words) * self.dim


class Word2Vec(Module):
    """`model(centres [B], contexts [B], negatives=None)` -> the mean loss per pair, 0-d.

    negatives: ids of noise words, `[B, K]`, K for each pair, or `[M]`, shared by the batch and weighted
    K / M: the same loss on average, from one matrix product. Not given, and not with softmax, no noise.
    The pullback takes the gradient of the loss (1.0 if called without) and returns (None, None).
    """

    Config = Word2VecConfig

    def __init__(self, config: Word2VecConfig, *, dtype: Any = np.float32, rng: Any = None) -> None:
        c = self.config = config
        check_choice(c.loss, "loss", ("negative", "softmax"))
        check_size(c.window, "window")
        check_size(c.negatives, "negatives", 0)
        if not c.words or len(c.counts) != len(c.words) or min(c.counts) < 1:
            raise ValueError(f"counts must give a positive count for each of {len(c.words)} > 0 words")
        self._ids = {word: k for k, word in enumerate(c.words)}
        if len(self._ids) != len(c.words):
            raise ValueError("words must differ from each other")
        self.embedding = Embedding(len(c.words), c.dim, dtype=dtype, rng=rng)
        self.output = Embedding(len(c.words), c.dim, dtype=dtype, rng=rng)
        # As word2vec starts: small random vectors, and an output layer of zeros.
        self.embedding.weight.data *= self.embedding.weight.data.dtype.type(0.3 / c.dim)
        self.output.weight.data[...] = 0
        counts = np.asarray(c.counts, np.float64)
        self._noise = (counts**0.75).cumsum() / (counts**0.75).sum()
        frequency = counts / counts.sum()
        self._keep = np.sqrt(c.subsample / frequency) if c.subsample else np.ones(len(counts))

    # --- the loss -----------------------------------------------------------------------------

    def __call__(self, centres: Array, contexts: Array, negatives: Array | None = None) -> Array:
        return self.vjp(centres, contexts, negatives)[0]

    def vjp(self, centres: Array, contexts: Array, negatives: Array | None = None) -> tuple[Array, Pullback]:
        check_array(centres, "centres")
        check_shape(contexts, (centres.size,), "contexts", "[B]")
        vectors, pull_vectors = self.embedding.vjp(centres)
        if self.config.loss == "softmax":
            loss, pull_loss = self._softmax(vectors, contexts)
        else:
            loss, pull_loss = self._negative(vectors, contexts, negatives)

        def pull(dloss: Any = 1.0) -> tuple[None, None]:
            pull_vectors(pull_loss(dloss))
            return None, None

        return loss, Pullback(pull)

    def _softmax(self, vectors: Array, contexts: Array) -> Any:
        logits, saved = ops.linear_forward(vectors, self.output.weight.data)
        loss, saved_loss = ops.cross_entropy_forward(logits, contexts)

        def pull(dloss: Any) -> Array:
            dlogits = ops.cross_entropy_backward(array_module(loss).asarray(dloss, dtype=loss.dtype), saved_loss)
            grads = ops.linear_backward(dlogits.dlogits, saved)
            self.output.weight.add_grad(grads.dweight)
            return grads.dx

        return loss, pull

    def _negative(self, vectors: Array, contexts: Array, negatives: Array | None) -> Any:
        batch = max(1, len(vectors))
        near, pull_near = self.output.vjp(contexts)
        total, slopes = _softplus(-(near * vectors).sum(-1))
        noise_slopes: Any = None
        pull_noise: Any = None
        weight = 1.0
        if negatives is not None:
            scores, pull_noise = self._noise_scores(vectors, negatives)
            if negatives.ndim == 1:
                weight = self.config.negatives / max(1, negatives.size)
            noise_total, noise_slopes = _softplus(scores)
            total = total + weight * noise_total

        def pull(dloss: Any) -> Array:
            scale = vectors.dtype.type(dloss / batch)
            dscores = (-scale * slopes)[:, None]
            pull_near(dscores * vectors)
            dvectors = dscores * near
            if pull_noise is not None:
                dvectors += pull_noise(scale * vectors.dtype.type(weight) * noise_slopes)
            return dvectors

        return total / batch, pull

    def _noise_scores(self, vectors: Array, negatives: Array) -> Any:
        """u_k·v, `[B, K]` or, shared, `[B, M]`, and the gradient function to dvectors."""
        check_array(negatives, "negatives")
        far, pull_far = self.output.vjp(negatives)
        if negatives.ndim == 1:
            scores, saved = ops.linear_forward(vectors, far)

            def pull_shared(dscores: Array) -> Array:
                grads = ops.linear_backward(dscores, saved)
                pull_far(grads.dweight.astype(far.dtype, copy=False))
                return grads.dx

            return scores, pull_shared
        check_shape(negatives, (len(vectors), negatives.shape[-1]), "negatives", "[B, K]")
        einsum = array_module(vectors).einsum

        def pull(dscores: Array) -> Array:
            pull_far(dscores[..., None] * vectors[:, None])
            return einsum("bk,bke->be", dscores, far)

        return einsum("bke,be->bk", far, vectors), pull

    def loss_and_grads(self, centres: Array, contexts: Array, negatives: Array | None = None) -> float:
        """The mean loss per pair; parameter gradients are added to p.grad."""
        loss, pull = self.vjp(centres, contexts, negatives)
        pull()
        return float(loss)

    # --- from a text to pairs -----------------------------------------------------------------

    def ids(self, tokens: Iterable[str]) -> np.ndarray:
        """Ids of the tokens that are in the vocabulary; the others are left out."""
        known = self._ids
        return np.fromiter((known[t] for t in tokens if t in known), np.int64)

    def pairs(self, ids: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """centres and contexts of one pass over a text, thinned and shuffled."""
        ids = ids[rng.random(len(ids)) < self._keep[ids]]
        reach = rng.integers(1, self.config.window + 1, len(ids))
        centres, contexts = [], []
        for distance in range(1, self.config.window + 1):
            at = np.nonzero(reach >= distance)[0]
            for shift in (-distance, distance):
                inside = at[(at + shift >= 0) & (at + shift < len(ids))]
                centres.append(ids[inside])
                contexts.append(ids[inside + shift])
        order = rng.permutation(sum(map(len, centres)))
        return np.concatenate(centres)[order], np.concatenate(contexts)[order]

    def draw_negatives(self, shape: int | tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
        """Noise words, p ~ count^0.75."""
        return np.searchsorted(self._noise[:-1], rng.random(shape), side="right")

    # --- using the dictionary -----------------------------------------------------------------

    def vector(self, word: str) -> np.ndarray:
        """W0's row of a word, scaled to length 1; KeyError for an unknown word."""
        row = to_numpy(self.embedding.weight.data[self._ids[word]], "embedding.weight").astype(np.float32)
        return np.asarray(row / max(float(np.linalg.norm(row)), 1e-12))

    def similarity(self, a: str, b: str) -> float:
        """Cosine of the angle between two words."""
        return float(self.vector(a) @ self.vector(b))

    def most_similar(self, word: str, count: int = 10) -> list[tuple[str, float]]:
        """The words nearest to `word` by cosine, itself left out."""
        return self._nearest(self.vector(word), count, (word,))

    def analogy(self, a: str, b: str, c: str, count: int = 10) -> list[tuple[str, float]]:
        """What is to c as b is to a: the words nearest to b - a + c, the three left out."""
        return self._nearest(self.vector(b) - self.vector(a) + self.vector(c), count, (a, b, c))

    def _nearest(self, target: np.ndarray, count: int, without: Sequence[str]) -> list[tuple[str, float]]:
        rows = to_numpy(self.embedding.weight.data, "embedding.weight").astype(np.float32)
        lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(target)
        cosines = rows @ target / np.maximum(lengths, 1e-12)
        cosines[[self._ids[word] for word in without]] = -np.inf
        order = np.argsort(-cosines, kind="stable")[: max(0, min(count, len(rows) - len(set(without))))]
        return [(self.config.words[k], float(cosines[k])) for k in order]

    # --- files --------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write config.json, which holds the vocabulary, and model.safetensors, each atomically."""
        save_model(self, folder)

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike[str], config: Word2VecConfig | None = None) -> Word2Vec:
        """A model in eval mode from a folder, or from one .safetensors file plus `config`."""
        known, weights = load_model(path, Word2VecConfig, config)
        return restore_model(cls, known, weights, like="embedding.weight")


def join_phrases(
    tokens: Sequence[str], *, min_count: int = 5, threshold: float = 100.0, discount: float = 5.0, joint: str = "_"
) -> list[str]:
    """Tokens with words that belong together joined: "new_york". Call again for longer phrases.

    a b is joined, from the left, where (count(ab) - discount) N / (count(a) count(b)) > threshold and
    ab comes at least min_count times (section 4 of the paper, scaled by the text's length N).
    """
    words = Counter(tokens)
    found = Counter(pairwise(tokens))
    phrases = {
        pair
        for pair, n in found.items()
        if n >= min_count and (n - discount) * len(tokens) > threshold * words[pair[0]] * words[pair[1]]
    }
    joined, k = [], 0
    while k < len(tokens):
        together = tuple(tokens[k : k + 2]) in phrases
        joined.append(joint.join(tokens[k : k + 2]) if together else tokens[k])
        k += 2 if together else 1
    return joined


def _softplus(x: Array) -> tuple[Array, Array]:
    """Σ log(1 + exp(x)) and its slopes σ(x); the sum as max(x, 0) - log σ(|x|), which cannot overflow."""
    xp, slopes = array_module(x), ops.sigmoid(x)
    return xp.maximum(x, 0).sum() - xp.log(xp.maximum(slopes, 1 - slopes)).sum(), slopes
