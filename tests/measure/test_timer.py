"""The timer counts calls and keeps turns; how long anything takes is not asserted."""

from __future__ import annotations

import itertools

import pytest

from seesaw.measure import timer
from seesaw.measure.timer import Call, Timing, alternate, calls_per_batch


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Time that passes only where a call says so."""
    now = [0.0]
    monkeypatch.setattr(timer.time, "perf_counter", lambda: now[0])
    return now


def test_a_batch_has_as_many_calls_as_fill_it(clock: list[float]) -> None:
    def call(seconds: float) -> None:
        clock[0] += seconds

    assert calls_per_batch(lambda: call(0.001), 0.02) == 20
    assert calls_per_batch(lambda: call(1e-6), 0.01) == 10_000
    assert calls_per_batch(lambda: call(5.0), 0.02) == 1


def test_seconds_are_of_one_call(clock: list[float]) -> None:
    def call() -> None:
        clock[0] += 0.25

    timing = alternate({"a": call}, batches=3, batch_s=1.0)["a"]
    assert timing.calls == 4
    assert timing.seconds == pytest.approx((0.25, 0.25, 0.25))


def test_best_and_median() -> None:
    timing = Timing((3.0, 1.0, 2.0), calls=5)
    assert (timing.best_s, timing.median_s) == (1.0, 2.0)
    assert (timing.quantile_s(0.0), timing.quantile_s(0.5), timing.quantile_s(1.0)) == (1, 2, 3)
    assert timing.quantile_s(0.2) == pytest.approx(1.4)
    assert Timing((4.0,), calls=1).quantile_s(0.8) == 4.0


def test_candidates_take_turns(clock: list[float]) -> None:
    order: list[str] = []

    def candidate(name: str, seconds: float) -> None:
        order.append(name)
        clock[0] += seconds

    found = alternate(
        {"a": lambda: candidate("a", 1.0), "b": lambda: candidate("b", 2.0)},
        batches=3,
        batch_s=2.0,
    )
    assert {name: timing.calls for name, timing in found.items()} == {"a": 2, "b": 1}
    assert [name for name, _ in itertools.groupby(order)] == ["a", "b"] * 4  # first to calibrate
    assert (found["a"].best_s, found["b"].best_s) == (1.0, 2.0)


def test_another_clock_takes_the_place_of_the_hosts() -> None:
    asked: list[int] = []

    def twice(call: Call, calls: int) -> float:
        asked.append(calls)
        return 2.0 * calls

    found = alternate({"a": lambda: None}, batches=3, batch_s=8.0, clock=twice)["a"]
    assert found == Timing((2.0, 2.0, 2.0), calls=4)
    assert asked[-3:] == [4, 4, 4]


def test_a_failing_call_is_not_timed() -> None:
    with pytest.raises(ZeroDivisionError):
        alternate({"a": lambda: 1 // 0})
