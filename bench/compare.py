"""What changed between two JSON files of the benchmark.

The machine is rarely the same twice. So a row's change is our new time over our old one, divided
by the drift: the geometric mean of the same quotient over the peers of that row, whose code did
not change. Without peers the drift is unknown and taken as 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .ours import NAME
from .peers import KNOWN
from .records import Record, read
from .report import milliseconds, percent, table
from .targets import geometric_mean

THRESHOLD = 0.05
Key = tuple[str, str, str, str, int]


@dataclass(frozen=True)
class Change:
    """One row in both files; quotients are new time over old time."""

    key: Key
    old: Record
    new: Record
    drift: float | None

    @property
    def factor(self) -> float:
        """Our time's quotient with the drift taken out: below 1 is faster."""
        return self.new.median_s / self.old.median_s / (self.drift or 1.0)

    @property
    def noise(self) -> float:
        """Half of either interquartile range is what a median may well move by."""
        return max(self.old.spread, self.new.spread) / 2

    def word(self, threshold: float) -> str:
        """`faster`, `SLOWER`, or nothing within the threshold and the noise."""
        margin = max(threshold, self.noise)
        if self.factor > 1 + margin:
            return "SLOWER"
        return "faster" if self.factor < 1 / (1 + margin) else ""


def changes(old: Sequence[Record], new: Sequence[Record]) -> list[Change]:
    """Rows of ours that both files have, in the new file's order."""
    before, after = _by_row(old), _by_row(new)
    found = []
    for key, contenders in after.items():
        earlier = before.get(key, {})
        if NAME in contenders and NAME in earlier:
            common = [name for name in contenders if name in earlier and name in KNOWN]
            drift = geometric_mean(
                contenders[name].median_s / earlier[name].median_s for name in common
            )
            found.append(Change(key, earlier[NAME], contenders[NAME], drift))
    return found


def _by_row(records: Sequence[Record]) -> dict[Key, dict[str, Record]]:
    rows: dict[Key, dict[str, Record]] = {}
    for record in records:
        key = (record.family, record.row, record.mode, record.dtype, record.threads)
        rows.setdefault(key, {})[record.contender] = record
    return rows


def report(old: Path, new: Path, threshold: float = THRESHOLD) -> int:
    """Print the changes of `new` against `old`; 1 when a row became slower, else 0."""
    before, after = read(old), read(new)
    found = changes(before, after)
    if not found:
        print(f"{old} and {new} have no row of ours in common")
        return 2
    headers = ["row", "mode", "threads", "old ms", "new ms", "drift", "change", ""]
    lines = [
        [
            f"{change.key[0]}: {change.new.row}",
            change.new.mode,
            str(change.new.threads),
            milliseconds(change.old.median_s),
            milliseconds(change.new.median_s),
            "?" if change.drift is None else f"{change.drift:.2f}",
            f"{change.factor - 1:+.0%}",
            change.word(threshold),
        ]
        for change in found
    ]
    print(f"{before[0].commit} ({before[0].cpu}) -> {after[0].commit} ({after[0].cpu})\n")
    print(table(headers, lines, left=2))
    words = [change.word(threshold) for change in found]
    print(
        f"\n{words.count('faster')} faster, {words.count('SLOWER')} slower, of {len(found)} rows; "
        f"below {percent(threshold)} or the spread nothing is said"
    )
    return 1 if "SLOWER" in words else 0
