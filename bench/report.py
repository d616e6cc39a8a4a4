"""Tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from .harness import A_A
from .session import RowResult
from .targets import Verdict, best_peer, geometric_mean, mean_target

T = TypeVar("T")

LEGEND = "ms (theirs / ours)"


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Aligned columns: the first `left` to the left, the others to the right."""
    lines = [list(headers), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headers))]

    def text(line: Sequence[str]) -> str:
        cells = [
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        return "  ".join(cells).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([text(lines[0]), rule, *map(text, lines[1:])])


def milliseconds(seconds: float) -> str:
    """Three significant digits: 0.0371, 3.52, 182."""
    value = seconds * 1e3
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}"


def microseconds(seconds: float) -> str:
    """Two decimals."""
    return f"{seconds * 1e6:.2f}"


def percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


def times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}x"


def rows_table(
    results: Sequence[RowResult], others: Sequence[str], verdicts: Sequence[Verdict]
) -> str:
    """One line per row: our time, the others' time and ratio, our share of the limits, target."""
    shown = [name for name in others if any(name in r.measurement.timings for r in results)]
    headers = ["row", "class", "ours", "spread", *shown]
    headers += [A_A, "GFLOP/s", "FMA peak", "read bw", "target", "met"]
    lines = [
        _line(result, shown, verdict) for result, verdict in zip(results, verdicts, strict=True)
    ]
    return table(*drop_empty(headers, lines), left=2)


def _line(result: RowResult, shown: Sequence[str], verdict: Verdict) -> list[str]:
    measurement = result.measurement
    cells = [result.spec.label, result.spec.group, milliseconds(result.seconds)]
    cells.append(percent(measurement.base.spread))
    for name in shown:
        timing = measurement.timings.get(name)
        if timing is None:
            cells.append("-")
        else:
            cells.append(f"{milliseconds(timing.median)} ({times(measurement.ratio(name))})")
    rate = result.flop_rate
    cells += [
        f"{measurement.ratio(A_A):.2f}",
        "" if rate is None else f"{rate / 1e9:.1f}",
        percent(result.fma_share),
        percent(result.read_share),
    ]
    return [*cells, verdict.target, verdict.word if verdict.target else ""]


def drop_empty(
    headers: Sequence[str], lines: Sequence[Sequence[str]]
) -> tuple[list[str], list[list[str]]]:
    """Without the columns in which no line has anything."""
    kept = [column for column in range(len(headers)) if any(line[column] for line in lines)]
    return pick(headers, kept), [pick(line, kept) for line in lines]


def pick(items: Sequence[T], indices: Sequence[int]) -> list[T]:
    return [items[index] for index in indices]


def means_table(results: Sequence[RowResult], others: Sequence[str], mode: str) -> str:
    """Geometric means of the ratios, per class and over all rows, with the mode's target.

    Each mean is over the rows that peer took part in; `best peer` picks the fastest in each row.
    """
    groups: list[str | None] = [*dict.fromkeys(result.spec.group for result in results), None]
    lines = []
    for group in groups:
        members = [r for r in results if group is None or r.spec.group == group]
        ratios = [r.ratios(others) for r in members]
        if not any(ratios):
            continue
        bests = [best_peer(row) for row in ratios]
        best = geometric_mean(value for value in bests if value is not None)
        means = [geometric_mean(row[name] for row in ratios if name in row) for name in others]
        bound = mean_target(mode, group)
        lines.append(
            [group or "all", str(len(members)), *map(times, means), times(best)]
            + (["", ""] if bound is None else _mean_verdict(best, bound))
        )
    if not lines:
        return ""
    headers = ["geometric mean", "rows", *others, "best peer", "target", "met"]
    return table(*drop_empty(headers, lines))


def _mean_verdict(best: float | None, bound: float) -> list[str]:
    return [f">= {bound:g}x", "?" if best is None else "yes" if best >= bound else "NO"]
