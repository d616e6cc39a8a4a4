"""The benchmark's clockwork, on fake contenders and a fake clock: nothing here depends on time."""

from __future__ import annotations

import gc

import pytest
from seqkern.__main__ import bench_module
from support.bench import FakeTime

harness = bench_module("harness")


@pytest.fixture
def fake() -> FakeTime:
    return FakeTime()


class TestHarness:
    def test_medians_and_ratios_are_exact(self, fake: FakeTime) -> None:
        ours = harness.Contender("ours", fake.work(0.001))
        theirs = harness.Contender("theirs", fake.work(0.0025))
        measured = fake.harness(rounds=3).measure([ours, theirs])
        assert measured.base.name == "ours"
        assert measured.base.median == pytest.approx(0.001)
        assert measured.ratio("theirs") == pytest.approx(2.5)
        assert measured.ratio(harness.A_A) == pytest.approx(1)
        assert measured.base.spread == pytest.approx(0, abs=1e-9)

    @pytest.mark.parametrize("seconds", [1e-7, 3e-5, 0.02, 0.2, 4.0])
    def test_any_speed_is_measured(self, fake: FakeTime, seconds: float) -> None:
        measured = fake.harness(rounds=2).measure([harness.Contender("a", fake.work(seconds))])
        assert measured.base.median == pytest.approx(seconds)

    def test_every_turn_starts_with_a_pause(self, fake: FakeTime) -> None:
        contenders = [harness.Contender(name, fake.work(0.01)) for name in "abc"]
        run = fake.harness(rounds=5, pause=0.06)
        turns = 0

        def on_turn() -> None:
            nonlocal turns
            turns += 1

        run.measure(contenders, on_turn=on_turn)
        assert turns == run.turns(len(contenders)) == len(fake.sleeps) == 20
        assert min(fake.sleeps) >= 0.06

    def test_entering_is_not_timed_but_happens_before_each_turn(self, fake: FakeTime) -> None:
        entered = []

        def enter() -> None:
            entered.append(fake.now)
            fake.now += 5

        contender = harness.Contender("a", fake.work(0.001), enter)
        measured = fake.harness(rounds=3).measure([contender])
        assert len(entered) == 6  # three rounds, A/A included
        assert measured.base.median == pytest.approx(0.001)

    def test_one_bad_turn_does_not_move_the_median(self, fake: FakeTime) -> None:
        turn = 0

        def enter() -> None:
            nonlocal turn
            turn += 1

        def call() -> None:
            fake.now += 1.0 if turn == 3 else 0.1

        measured = fake.harness(rounds=5).measure([harness.Contender("a", call, enter)])
        assert measured.base.median == pytest.approx(0.1)

    def test_spread_is_the_interquartile_range_over_the_median(self) -> None:
        assert harness.Timing("a", (1.0, 2.0, 3.0, 4.0, 5.0)).spread == pytest.approx(2 / 3)
        assert harness.Timing("a", (1.0,)).spread == 0

    def test_order_rotates_and_turns_around(self) -> None:
        entries = [harness.Contender(name, print) for name in "abcd"]
        orders = [
            "".join(entry.name for entry in harness.turn_order(entries, number))
            for number in range(5)
        ]
        assert orders == ["abcd", "adcb", "cdab", "cbad", "abcd"]

    def test_probes_are_asked_once_per_round(self, fake: FakeTime) -> None:
        rates = iter([3.0, 1.0, 2.0])
        contender = harness.Contender("a", fake.work(0.01))
        measured = fake.harness(rounds=3).measure([contender], {"fma": lambda: next(rates)})
        assert measured.rates == {"fma": 2.0}
        assert next(rates, None) is None

    @pytest.mark.parametrize("names", ["", "aa"])
    def test_names_must_be_distinct(self, fake: FakeTime, names: str) -> None:
        contenders = [harness.Contender(name, fake.work(1)) for name in names]
        with pytest.raises(ValueError, match="distinct names"):
            fake.harness().measure(contenders)

    def test_a_failing_contender_leaves_the_garbage_collector_on(self, fake: FakeTime) -> None:
        def fail() -> None:
            assert not gc.isenabled()
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fake.harness().measure([harness.Contender("a", fail)])
        assert gc.isenabled()

    @pytest.mark.parametrize(
        ("estimate", "expected"), [(0.01, (1, 5)), (0.04, (1, 3)), (0.05, (1, 1)), (9.0, (1, 1))]
    )
    def test_burst_of_long_calls(self, estimate: float, expected: tuple[int, int]) -> None:
        assert harness.burst_shape(estimate, harness.Plan()) == expected

    @pytest.mark.parametrize("estimate", [0.0, 1e-9, 1e-6, 7e-6])
    def test_burst_of_short_calls(self, estimate: float) -> None:
        calls, samples = harness.burst_shape(estimate, harness.Plan())
        seconds = max(estimate, 1e-9) * calls
        assert harness.SAMPLE_SECONDS <= seconds < 1.5 * harness.SAMPLE_SECONDS
        assert seconds * samples == pytest.approx(0.05, rel=0.01)
