"""One run of the benchmark: options, the loop over rows, notes on what was left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from . import limits, peers
from .harness import Contender, Harness, Measurement, Plan
from .machine import this_machine
from .progress import Progress
from .records import Record, Writer
from .shapes import Read
from .targets import TARGET_THREADS
from .tasks import Entry, UnsupportedError, disagreement


@dataclass(frozen=True)
class Options:
    """What the command line asked for."""

    families: tuple[str, ...]
    against: tuple[str, ...]
    threads: int
    quick: bool = False
    rows: str = ""
    modes: tuple[str, ...] = ()
    rounds: int = 7
    json: Path | None = None
    plot: Path | None = None

    def plan(self) -> Plan:
        """Short turns for a first look, the full protocol otherwise."""
        if self.quick:
            return Plan(rounds=self.rounds, warm_up=0.01, burst=0.02)
        return Plan(rounds=self.rounds)

    @property
    def judged(self) -> bool:
        """Whether the targets apply: they were set for the full rows on two threads."""
        return not self.quick and self.threads == TARGET_THREADS


@dataclass(frozen=True)
class Candidate:
    """A contender before it exists: `make` builds it and may raise UnsupportedError.

    enter: see `Contender`. checked: whether its results have to agree with the first one's.
    """

    name: str
    make: Callable[[], Entry]
    enter: Callable[[], object] | None = None
    checked: bool = True


def peer_candidate(
    peer: peers.Peer, threads: int, job: str, *arguments: Any, name: str | None = None
) -> Candidate:
    """A peer doing `job`, set to so many threads before each turn."""
    return Candidate(
        name or peer.name,
        partial(peer.entry, job, *arguments),
        partial(peer.module.prepare, threads),
    )


@dataclass(frozen=True)
class RowSpec:
    """One row to measure. `candidates()` makes the inputs afresh; the first one is ours.

    width: how many candidates there are, known before they are made.
    check: "float32" or "bfloat16", how closely results have to agree.
    """

    family: str
    group: str
    label: str
    mode: str
    shape: tuple[int, ...]
    dtype: str
    threads: int
    width: int
    candidates: Callable[[], Sequence[Candidate]]
    check: str = "float32"
    flops: int | None = None
    reads: tuple[Read, ...] = ()


@dataclass(frozen=True)
class RowResult:
    """A measured row."""

    spec: RowSpec
    measurement: Measurement

    @property
    def seconds(self) -> float:
        return self.measurement.base.median

    @property
    def flop_rate(self) -> float | None:
        return None if self.spec.flops is None else self.spec.flops / self.seconds

    @property
    def fma_peak(self) -> float | None:
        return self.measurement.rates.get(limits.FMA)

    @property
    def fma_share(self) -> float | None:
        """Our FLOP/s over the machine's."""
        if self.flop_rate is None or self.fma_peak is None:
            return None
        return self.flop_rate / self.fma_peak

    @property
    def read_seconds(self) -> float | None:
        return limits.read_seconds(self.spec.reads, self.measurement.rates)

    @property
    def read_share(self) -> float | None:
        """The time of merely reading the weights over ours."""
        return None if self.read_seconds is None else self.read_seconds / self.seconds

    def ratios(self, names: Sequence[str]) -> dict[str, float]:
        """Times of those of `names` that took part, over ours."""
        took_part = self.measurement.timings
        return {name: self.measurement.ratio(name) for name in names if name in took_part}


@dataclass
class Session:
    """Measures rows, writes records, collects notes for the reader."""

    options: Options
    writer: Writer
    peers: list[peers.Peer]
    notes: list[str] = field(default_factory=list)
    harness: Harness = field(init=False)

    def __post_init__(self) -> None:
        self.harness = Harness(self.options.plan())

    def wanted(self, specs: Sequence[RowSpec]) -> list[RowSpec]:
        """The rows that `--rows` and `--modes` leave."""
        text = self.options.rows.lower().replace(" ", "")
        return [
            spec
            for spec in specs
            if (not self.options.modes or spec.mode in self.options.modes)
            and text in f"{spec.label}|{spec.group}".lower().replace(" ", "")
        ]

    def run(self, specs: Sequence[RowSpec], title: str) -> list[RowResult]:
        """Measure the rows one after the other, under a progress bar."""
        results = []
        with Progress(sum(self.harness.turns(spec.width) for spec in specs), title) as bar:
            for spec in specs:
                bar.set_note(spec.label)
                result = self._row(spec, bar)
                if result is not None:
                    results.append(result)
        return results

    def _row(self, spec: RowSpec, bar: Progress) -> RowResult | None:
        contenders = self._contenders(spec)
        left_out = spec.width - len(contenders)
        if not contenders:
            bar.update(self.harness.turns(spec.width))
            return None
        measurement = self.harness.measure(
            contenders, limits.probes(spec.threads, spec.reads), bar.update
        )
        bar.update(left_out * self.options.rounds)
        result = RowResult(spec, measurement)
        self.writer.write(self._records(result))
        return result

    def _contenders(self, spec: RowSpec) -> list[Contender]:
        """Those that can do the row and agree with ours; the others become notes."""
        contenders: list[Contender] = []
        expected = None
        for candidate in spec.candidates():
            if candidate.enter is not None:
                candidate.enter()
            try:
                entry = candidate.make()
                results = entry.results()
            except UnsupportedError as reason:
                self.note(f"{candidate.name} skipped in {spec.family} {spec.mode}: {reason}")
                if not contenders:
                    return []
                continue
            if expected is None:
                expected = results
            elif candidate.checked:
                problem = disagreement(expected, results, spec.check)
                if problem is not None:
                    self.note(
                        f"{candidate.name} left out of {spec.mode} {spec.label}, "
                        f"it computes something else: {problem}"
                    )
                    continue
            contenders.append(Contender(candidate.name, entry.call, candidate.enter))
        return contenders

    def note(self, text: str) -> None:
        """Remember something the reader of the table should know, once."""
        if text not in self.notes:
            self.notes.append(text)

    def _records(self, result: RowResult) -> list[Record]:
        spec, machine = result.spec, this_machine()
        return [
            Record(
                commit=machine.commit,
                version=machine.version,
                cpu=machine.cpu,
                isa=machine.isa,
                threads=spec.threads,
                family=spec.family,
                group=spec.group,
                row=spec.label,
                shape=list(spec.shape),
                dtype=spec.dtype,
                mode=spec.mode,
                contender=name,
                contender_version=peers.version(name) if name in peers.KNOWN else machine.version,
                rounds=self.options.rounds,
                median_s=timing.median,
                spread=timing.spread,
                ratio=result.measurement.ratio(name),
                flops=spec.flops,
                fma_peak=result.fma_peak,
                read_s=result.read_seconds,
            )
            for name, timing in result.measurement.timings.items()
        ]

    def names(self) -> tuple[str, ...]:
        """The peers' names, in the order they were asked for."""
        return tuple(peer.name for peer in self.peers)
