"""What each row should reach on two threads, by class, and whether it did.

`best peer` is the fastest of the peers that took part. A ratio is a peer's time over ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .peers import FRAMEWORKS

TARGET_THREADS = 2
READ_SHARE = 1 / 1.25  # a streaming row takes at most 1.25 times as long as reading its weights
FMA_SHARE = 0.8
BATCHED_FORWARD = 1.25
HIGH = 1.8
BF16_WEIGHTS = 1.6
BF16_MEAN = 1.3
SMALL_EACH, SMALL_MEAN = 1.3, 1.8
THREADS = 1.7
PACKED = 3.0
CHARRNN = 2.0
CELL_SECONDS = 6e-6
TRAIN = {
    "small": {"lstm": 4.0, "gru": 8.0, "rnn": 5.0},
    "streaming": {"lstm": 2.0, "gru": 4.0, "rnn": 4.0},
    "batched": {"lstm": 1.4, "gru": 1.6, "rnn": 1.4},
}
TRAIN_BIDIRECTIONAL = 2.0


@dataclass(frozen=True)
class Score:
    """The figures of one row that its target is about; None: not measured."""

    kind: str
    group: str
    mode: str
    bidirectional: bool = False
    best_peer: float | None = None
    torch: float | None = None
    own_fp32: float | None = None
    fma_share: float | None = None
    read_share: float | None = None


@dataclass(frozen=True)
class Verdict:
    """The target in words, and whether it was met; None: it cannot be told from this run."""

    target: str
    met: bool | None

    @property
    def word(self) -> str:
        return {True: "yes", False: "NO", None: "?"}[self.met]


NO_TARGET = Verdict("", None)


def at_least(value: float | None, bound: float) -> bool | None:
    """Whether value ≥ bound; None when there is no value."""
    return None if value is None else value >= bound


def both(first: bool | None, second: bool | None) -> bool | None:
    """Three-valued and: False wins, then unknown."""
    if first is False or second is False:
        return False
    return None if first is None or second is None else True


def either(first: bool | None, second: bool | None) -> bool | None:
    """Three-valued or: True wins, then unknown."""
    if first or second:
        return True
    return None if first is None or second is None else False


def judge(score: Score) -> Verdict:
    """The target of one row in one mode."""
    if score.mode == "fp32":
        return _forward(score)
    if score.mode == "train":
        bound = TRAIN_BIDIRECTIONAL if score.bidirectional else TRAIN[score.group][score.kind]
        return Verdict(f">= {bound:g}x torch", at_least(score.torch, bound))
    if score.mode == "high" and score.group == "batched":
        return Verdict(f">= {HIGH:g}x best fp32 peer", at_least(score.best_peer, HIGH))
    if score.mode == "bf16w":
        return Verdict(f">= {BF16_WEIGHTS:g}x own fp32", at_least(score.own_fp32, BF16_WEIGHTS))
    if score.mode == "bf16":
        return Verdict(">= 1x best bf16 peer", at_least(score.best_peer, 1.0))
    return NO_TARGET


def _forward(score: Score) -> Verdict:
    """fp32 forward at full precision."""
    if score.group == "small":
        return Verdict(f">= {SMALL_EACH:g}x best peer", at_least(score.best_peer, SMALL_EACH))
    if score.group == "streaming":
        met = both(at_least(score.read_share, READ_SHARE), at_least(score.best_peer, 1.0))
        return Verdict(f">= {READ_SHARE:.0%} read, 1x best peer", met)
    met = either(at_least(score.fma_share, FMA_SHARE), at_least(score.best_peer, BATCHED_FORWARD))
    return Verdict(f">= {FMA_SHARE:.0%} FMA or {BATCHED_FORWARD:g}x best peer", met)


def mean_target(mode: str, group: str | None) -> float | None:
    """The geometric mean a class has to reach against the best peer; group None: all rows."""
    if mode == "fp32" and group == "small":
        return SMALL_MEAN
    if mode == "bf16" and group is None:
        return BF16_MEAN
    return None


def geometric_mean(values: Iterable[float]) -> float | None:
    """None for no values."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs)) if logs else None


def best_peer(ratios: Mapping[str, float]) -> float | None:
    """The fastest framework's ratio, the smallest; NumPy and our own variants do not count."""
    return min((ratios[name] for name in FRAMEWORKS if name in ratios), default=None)
