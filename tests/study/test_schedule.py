"""Runs in their order, some at a time: failures, progress, the time left, and the time limit."""

import logging
import threading
from collections.abc import Iterable

import pytest

from sidrec.study.jobs import Run
from sidrec.study.schedule import Durations, Schedule, duration_text


class Clock:
    """Seconds that a test lets pass."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def _run(name: str, number: int = 0) -> Run:
    """name: DATASET/VARIANT."""
    dataset, variant = name.split("/")
    return Run("small", dataset, variant, number, {})


def _schedule(
    runs: Iterable[Run], seconds: dict[str, float], clock: Clock, jobs: int = 1, deadline: float | None = None
) -> Schedule:
    recorded = {tuple(name.split("/")): [value] for name, value in seconds.items()}
    return Schedule(list(runs), jobs, Durations(recorded), lambda: None, deadline, clock)  # type: ignore[arg-type]


def test_a_failed_run_does_not_stop_the_rest(caplog: pytest.LogCaptureFixture) -> None:
    did = []

    def do(run: Run) -> bool:
        did.append(run.variant)
        if run.variant == "broken":
            raise OSError("disk on fire")
        return True

    schedule = _schedule(map(_run, ("a/first", "a/broken", "b/last")), {}, Clock())
    with caplog.at_level(logging.INFO):
        schedule.work(do, (OSError,))
    assert did == ["first", "broken", "last"]
    assert [(str(run), message) for run, message in schedule.failed] == [("a/broken/run0", "disk on fire")]
    assert "a/first/run0 finished after 0 s; 1/3 runs (a 1/2, b 0/1)" in caplog.text


def test_an_unexpected_error_stops_the_others_and_ends_the_work() -> None:
    stopped, begun = threading.Event(), threading.Event()

    def do(run: Run) -> bool:
        if run.variant == "long":
            begun.set()
            assert stopped.wait(60)
            return True
        assert begun.wait(60)
        raise KeyError(run.variant)

    schedule = Schedule([_run("a/long"), _run("a/odd"), _run("a/next")], 2, Durations(), stopped.set)
    with pytest.raises(KeyError, match="odd"):
        schedule.work(do, (OSError,))
    assert stopped.is_set()
    assert [run.variant for run in schedule.waiting] == ["next"]


def test_as_many_runs_at_a_time_as_jobs() -> None:
    together = threading.Barrier(3, timeout=60)  # breaks, and fails the runs, unless three meet

    def do(run: Run) -> bool:
        together.wait()
        return True

    schedule = _schedule((_run("a/b", number) for number in range(6)), {}, Clock(), jobs=3)
    schedule.work(do, (threading.BrokenBarrierError,))
    assert schedule.failed == []


def test_the_time_left_is_that_of_the_runs_kinds() -> None:
    runs = [_run("a/fast"), _run("a/slow"), _run("b/new")]
    assert _schedule(runs, {"a/fast": 10, "a/slow": 50}, Clock()).seconds_left() == 10 + 50 + 30  # b/new: mean of all
    assert _schedule(runs, {"a/fast": 10, "a/slow": 50}, Clock(), jobs=2).seconds_left() == 50  # the longest alone
    assert _schedule(runs, {}, Clock()).seconds_left() is None


def test_measured_durations_replace_recorded_ones() -> None:
    clock = Clock()

    def do(run: Run) -> bool:
        clock.now += 7
        return True

    schedule = _schedule([_run("a/b")], {"a/b": 100}, clock)
    schedule.work(do, ())
    assert schedule.durations.expected(_run("a/b", 1)) == 7


def test_no_run_starts_that_would_end_after_the_deadline() -> None:
    clock, did = Clock(), []

    def do(run: Run) -> bool:
        did.append(str(run))
        clock.now += {"fast": 10, "slow": 50}[run.variant]
        return True

    runs = [_run(f"a/{name}", number) for number in range(3) for name in ("slow", "fast")]
    schedule = _schedule(runs, {"a/fast": 10, "a/slow": 50}, clock, deadline=80.0)
    schedule.work(do, ())
    # at 60 s slow run 1 would end at 110; fast run 1 fits; runs 2 do not start, so that variants have equally many
    assert did == ["a/slow/run0", "a/fast/run0", "a/fast/run1"]
    assert list(map(str, schedule.late)) == ["a/slow/run1", "a/slow/run2", "a/fast/run2"]


@pytest.mark.parametrize(("seconds", "text"), [(5, "5 s"), (99, "99 s"), (150, "2.5 min"), (9000, "2.5 h")])
def test_durations_are_rounded(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text
