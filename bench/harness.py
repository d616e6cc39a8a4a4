"""Interleaved timing of several callables.

One round gives every contender one turn: pause (threads that spin after a call, as onnxruntime's
and libgomp's do, have gone to sleep), warm up, then a burst of calls whose median is the turn's
time. The order rotates from round to round and alternates in direction. A contender's time is the
median of its turns, its spread their interquartile range over that median. The first contender is
entered a second time under the name `A/A`: what that ratio is away from 1 is the harness's own
error.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

A_A = "A/A"
SAMPLE_SECONDS = 20e-6  # shorter calls are timed several at a time: reading the clock costs 50 ns


@dataclass(frozen=True)
class Contender:
    """A callable under a name; `enter` runs untimed before each turn (thread count, precision)."""

    name: str
    call: Callable[[], object]
    enter: Callable[[], object] | None = None


@dataclass(frozen=True)
class Plan:
    """How long to measure; seconds throughout."""

    rounds: int = 7
    pause: float = 0.06
    warm_up: float = 0.02
    burst: float = 0.05
    min_calls: int = 3


@dataclass(frozen=True)
class Timing:
    """One contender's turns, in seconds per call."""

    name: str
    turns: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.turns)

    @property
    def spread(self) -> float:
        """Interquartile range over the median; 0 for a single turn."""
        if len(self.turns) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.turns, n=4, method="inclusive")
        return (high - low) / self.median


@dataclass(frozen=True)
class Measurement:
    """All that one row's run gave: timings by contender, median rates by probe."""

    timings: dict[str, Timing]
    rates: dict[str, float] = field(default_factory=dict)

    @property
    def base(self) -> Timing:
        """The first contender: every ratio is another one's time over this one's."""
        return next(iter(self.timings.values()))

    def ratio(self, name: str) -> float:
        """How many times longer `name` takes than the first contender."""
        return self.timings[name].median / self.base.median


class Harness:
    """Measures rows by one plan; clock and sleep can be replaced for tests."""

    def __init__(
        self,
        plan: Plan | None = None,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.plan = plan or Plan()
        self._clock = clock
        self._sleep = sleep

    def measure(
        self,
        contenders: Sequence[Contender],
        probes: Mapping[str, Callable[[], float]] | None = None,
        on_turn: Callable[[], object] = lambda: None,
    ) -> Measurement:
        """Run all rounds. Probes return a rate of the machine and are asked once per round.

        `on_turn` is called after every turn, for a progress bar; see `turns`.
        """
        names = [contender.name for contender in contenders]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"contenders need distinct names, got {names}")
        entries = [*contenders, Contender(A_A, contenders[0].call, contenders[0].enter)]
        times: dict[str, list[float]] = {entry.name: [] for entry in entries}
        rates: dict[str, list[float]] = {name: [] for name in probes or {}}
        with _garbage_collector_off():
            for number in range(self.plan.rounds):
                for name, probe in (probes or {}).items():
                    self._sleep(self.plan.pause)
                    rates[name].append(probe())
                for entry in turn_order(entries, number):
                    times[entry.name].append(self._turn(entry))
                    on_turn()
                gc.collect()
        return Measurement(
            {name: Timing(name, tuple(turns)) for name, turns in times.items()},
            {name: statistics.median(values) for name, values in rates.items()},
        )

    def turns(self, contenders: int) -> int:
        """How often `measure` calls `on_turn` for so many contenders."""
        return self.plan.rounds * (contenders + 1)

    def _turn(self, contender: Contender) -> float:
        """Seconds per call in one turn: pause, warm up, burst."""
        self._sleep(self.plan.pause)
        if contender.enter is not None:
            contender.enter()
        estimate = self._warm_up(contender.call)
        calls, samples = burst_shape(estimate, self.plan)
        return statistics.median(
            self._elapsed(contender.call, calls) / calls for _ in range(samples)
        )

    def _warm_up(self, call: Callable[[], object]) -> float:
        """Call until the warm-up time is over; the last call's time is the estimate."""
        spent = 0.0
        while True:
            estimate = self._elapsed(call, 1)
            spent += estimate
            if spent >= self.plan.warm_up:
                return estimate

    def _elapsed(self, call: Callable[[], object], calls: int) -> float:
        start = self._clock()
        for _ in range(calls):
            call()
        return self._clock() - start


def turn_order(entries: Sequence[Contender], number: int) -> Iterator[Contender]:
    """The entries from another starting point each round, every other round backwards.

    Backwards too, because in a mere rotation everybody would always follow the same neighbour.
    """
    shift = number % len(entries)
    rotated = [*entries[shift:], *entries[:shift]]
    return reversed(rotated) if number % 2 else iter(rotated)


def burst_shape(estimate: float, plan: Plan) -> tuple[int, int]:
    """(calls per clock reading, readings) for a call of about `estimate` seconds.

    At least `min_calls` readings, but only one when a single call outlasts the burst.
    """
    if estimate >= plan.burst:
        return 1, 1
    estimate = max(estimate, 1e-9)
    calls = max(1, math.ceil(SAMPLE_SECONDS / estimate))
    return calls, max(plan.min_calls, math.ceil(plan.burst / (estimate * calls)))


@contextmanager
def _garbage_collector_off() -> Iterator[None]:
    """No collection inside a timed call; the rounds collect between turns."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
