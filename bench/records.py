"""JSON lines: one per row, mode and contender, flushed as they come."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO


@dataclass(frozen=True)
class Record:
    """One contender's result in one row.

    median_s, spread: seconds per call, and interquartile range over the median.
    ratio: median_s over that of the row's own contender `ours`; above 1, ours is faster.
    flops: of one call. fma_peak: FLOP/s of the machine measured in the same rounds. read_s: how
    long merely reading the weights would take at the bandwidth measured there. null: unknown.
    """

    commit: str
    version: str
    cpu: str
    isa: str
    threads: int
    family: str
    group: str
    row: str
    shape: list[int]
    dtype: str
    mode: str
    contender: str
    contender_version: str | None
    rounds: int
    median_s: float
    spread: float
    ratio: float
    flops: int | None
    fma_peak: float | None
    read_s: float | None


class Writer:
    """Appends records to a file, or nowhere when there is no path; keeps them all."""

    def __init__(self, path: Path | None) -> None:
        self.records: list[Record] = []
        self._file: TextIO | None = None if path is None else path.open("w", encoding="utf-8")

    def write(self, records: Iterable[Record]) -> None:
        for record in records:
            self.records.append(record)
            if self._file is not None:
                self._file.write(json.dumps(dataclasses.asdict(record)) + "\n")
        if self._file is not None:
            self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def read(path: Path) -> list[Record]:
    """The records of a file; ValueError names the line that is none."""
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
            records.append(_record(fields))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}, line {number}: not a benchmark record: {error}") from error
    return records


def _record(fields: Any) -> Record:
    """Unknown fields are ignored, so that newer files can be read; missing ones are an error."""
    if not isinstance(fields, dict):
        raise ValueError(f"expected an object, got {type(fields).__name__}")
    names = [field.name for field in dataclasses.fields(Record)]
    lacking = [name for name in names if name not in fields]
    if lacking:
        raise ValueError(f"lacks {', '.join(lacking)}")
    return Record(**{name: fields[name] for name in names})
