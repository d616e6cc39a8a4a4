"""Writing a sequence token by token: greedy, by drawing, or by beam search.

    score(y) = log p(y) / ((5 + |y|) / 6)^length_penalty        (Wu et al. 2016, section 7)

|y| counts the end token; 0 compares plain log probabilities.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..nn._arrays import Array, check_array, shape_text, to_numpy
from ..nn._init import check_size
from ._sampling import check_sampling, sample


@dataclass
class Generated:
    """What `generate` of an encoder-decoder returns.

    ids: integers `[N, T]`, without the start token; after a row's end token there are only end tokens.
    lengths: `[N]`, tokens per row, the end token counted.
    scores: `[N]`, log probability of the row under the model, over its length penalty.
    attentions: on request, what each token looked at: `[N, T, S]`.
    """

    ids: np.ndarray
    lengths: np.ndarray
    scores: np.ndarray
    attentions: Array | None = None


class Steps(Protocol):
    """A decoder under way, with R rows in progress."""

    def __call__(self, tokens: np.ndarray) -> Array:
        """Logits `[R, V]` after one more token `[R]` per row."""

    def reorder(self, rows: np.ndarray) -> None:
        """Row r goes on from where row rows[r] was."""


def decode(
    steps: Steps, batch: int, max_new_tokens: int, bos: int, eos: int, *, beams: int = 1,
    length_penalty: float = 0.0, temperature: float = 0.0, top_k: int | None = None,
    top_p: float | None = None, seed: int | None = None,
) -> Generated:  # fmt: skip
    """The sequences of `batch` rows; with beams, row n owns the rows n * beams ... of `steps`."""
    check_decoding(max_new_tokens, beams, length_penalty, temperature, top_k, top_p)
    if beams > 1:
        return _beam_search(steps, batch, max_new_tokens, bos, eos, beams, length_penalty)
    options = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "rng": np.random.default_rng(seed)}
    return _draw(steps, batch, max_new_tokens, bos, eos, length_penalty, options)


def check_decoding(
    max_new_tokens: int, beams: int, length_penalty: float, temperature: float, top_k: int | None, top_p: float | None
) -> None:
    """ValueError names a setting out of range."""
    check_size(max_new_tokens, "max_new_tokens")
    check_size(beams, "beams")
    check_sampling(max_new_tokens, temperature, top_k, top_p)
    if not length_penalty >= 0:
        raise ValueError(f"length_penalty must be >= 0, got {length_penalty}")
    if beams > 1 and (temperature != 0 or top_k is not None or top_p is not None):
        raise ValueError("beams > 1 searches and draws nothing: leave temperature at 0, top_k and top_p at None")


def shift_right(targets: Array, bos: int, eos: int) -> Array:
    """What the decoder reads, `[N, T]`, when it shall write targets `[N, T]`; -100 becomes `eos`."""
    check_array(targets, "targets")
    if targets.ndim != 2 or targets.shape[1] == 0:
        raise ValueError(f"targets must be [N, T] with T >= 1, got {shape_text(targets.shape)}")
    shifted = targets.copy()
    shifted[:, 0] = bos
    shifted[:, 1:] = targets[:, :-1]
    shifted[shifted == -100] = eos
    return shifted


def _penalty(length: Any, alpha: float) -> Any:
    return ((5 + length) / 6) ** alpha


def _log_softmax(logits: Array) -> np.ndarray:
    x = to_numpy(logits, "logits").astype(np.float64)
    x -= x.max(-1, keepdims=True)
    return np.asarray(x - np.log(np.exp(x).sum(-1, keepdims=True)))


def _draw(
    steps: Steps, batch: int, max_new_tokens: int, bos: int, eos: int, alpha: float, options: dict[str, Any]
) -> Generated:
    token, done = np.full(batch, bos), np.zeros(batch, bool)
    scores, lengths, ids = np.zeros(batch), np.zeros(batch, np.int64), []
    for _ in range(max_new_tokens):
        logits = to_numpy(steps(token), "logits")
        token = np.where(done, eos, sample(logits, **options))
        scores += np.where(done, 0, _log_softmax(logits)[np.arange(batch), token])
        lengths += ~done
        done |= token == eos
        ids.append(token)
        if done.all():
            break
    return Generated(np.stack(ids, axis=1), lengths, scores / _penalty(lengths, alpha))


@dataclass
class _Hypotheses:
    """K sequences per row: ids `[N, K, max]` filled up with the end token, values, lengths `[N, K]`."""

    ids: np.ndarray
    values: np.ndarray
    lengths: np.ndarray

    def taken(self, index: np.ndarray) -> _Hypotheses:
        ids = np.take_along_axis(self.ids, index[..., None], 1)
        return _Hypotheses(ids, *(np.take_along_axis(x, index, 1) for x in (self.values, self.lengths)))

    def best_with(self, other: _Hypotheses) -> _Hypotheses:
        """The K best of both."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        both = _Hypotheses(*(np.concatenate(pair, axis=1) for pair in pairs))
        return both.taken(_best(both.values, self.values.shape[1]))


def _best(values: np.ndarray, count: int) -> np.ndarray:
    """Indices `[N, count]` of the largest values, the largest first, ties in their order."""
    part = np.sort(np.argpartition(-values, count - 1, axis=1)[:, :count], axis=1)
    order = np.argsort(-np.take_along_axis(values, part, 1), axis=1, kind="stable")
    return np.take_along_axis(part, order, 1)


def _beam_search(
    steps: Steps, batch: int, max_new_tokens: int, bos: int, eos: int, beams: int, alpha: float
) -> Generated:
    """The best sequence of each row that stays among the `beams` best at every length."""
    shape = (batch, beams)
    ids, lengths = np.full((*shape, max_new_tokens), eos), np.zeros(shape, np.int64)
    live = _Hypotheses(ids, np.where(np.arange(beams) == 0, 0.0, -np.inf) + np.zeros(shape), lengths)
    ended = _Hypotheses(ids, np.full(shape, -np.inf), lengths)
    token, offsets = np.full(batch * beams, bos), np.arange(batch)[:, None] * beams
    for t in range(max_new_tokens):
        log_p = _log_softmax(steps(token)).reshape(*shape, -1)
        total = live.values[..., None] + log_p
        values, lengths = total[..., eos] / _penalty(t + 1, alpha), np.full(shape, t + 1)
        ended = ended.best_with(_Hypotheses(live.ids, values, lengths))
        total[..., eos] = -np.inf
        best = _best(total.reshape(batch, -1), beams)
        rows, new = np.divmod(best, log_p.shape[-1])
        live = live.taken(rows)
        live.values = np.take_along_axis(total.reshape(batch, -1), best, 1)
        live.ids[..., t], live.lengths[...] = new, t + 1
        # log p only falls and the penalty only grows: no live sequence can end above this.
        if (ended.values[:, 0] >= live.values[:, 0] / _penalty(max_new_tokens, alpha)).all():
            break
        steps.reorder((offsets + rows).ravel())
        token = new.ravel()
    live.values = live.values / _penalty(live.lengths, alpha)
    best_of_all = ended.best_with(live) if live.lengths[0, 0] == max_new_tokens else ended
    lengths = best_of_all.lengths[:, 0]
    return Generated(best_of_all.ids[:, 0, : lengths.max(initial=0)], lengths, best_of_all.values[:, 0])
