"""What the tests of the benchmark share: a clock that fakes move, and a made-up record."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from seqkern.__main__ import bench_module

harness, records = map(bench_module, ("harness", "records"))


class FakeTime:
    """A clock that only moves when a fake contender works or somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0
        self.sleeps: list[float] = []

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now += seconds

    def work(self, seconds: float) -> Callable[[], None]:
        def call() -> None:
            self.now += seconds

        return call

    def harness(self, **plan: Any) -> Any:
        return harness.Harness(harness.Plan(**plan), self.clock, self.sleep)


def record(contender: str = "ours", **changed: Any) -> Any:
    values: dict[str, Any] = {
        "commit": "abc",
        "version": "0",
        "cpu": "a cpu",
        "isa": "avx2",
        "threads": 2,
        "family": "rnn",
        "group": "small",
        "row": "lstm (1,1,1,1,1)",
        "shape": [1, 1, 1, 1, 1],
        "dtype": "float32",
        "mode": "fp32",
        "contender": contender,
        "contender_version": None,
        "rounds": 3,
        "median_s": 1.0,
        "spread": 0.0,
        "ratio": 1.0,
        "flops": 16,
        "fma_peak": None,
        "read_s": None,
    }
    return records.Record(**{**values, **changed})
