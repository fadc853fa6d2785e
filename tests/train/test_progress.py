"""Progress of training and evaluation: time left by a made-up clock, lines without a terminal, bars with one."""

import gc
import io
import json
import sys
from multiprocessing import active_children
from pathlib import Path

import pytest

from sidrec.parallel.process_group import joined_ranks
from sidrec.train import run
from sidrec.train.evaluation import EvaluationProgress
from sidrec.train.progress import WARM_UP, Progress, TimeLeft
from sidrec.train.run_directory import RunDirectory
from sidrec.train.tracking import Tracking
from tests.small_log import small_recipe, write_small_log

ROWS = 10.0  # of a step


class Clock:
    """Seconds that pass only when a test advances them."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def steps(left: TimeLeft, clock: Clock, numbers: range, seconds: float) -> None:
    for step in numbers:
        clock.now += seconds
        left.count(step)


def test_no_time_left_is_known_during_the_warm_up() -> None:
    clock = Clock()
    left = TimeLeft(100, ROWS, clock=clock)
    for step in range(1, WARM_UP + 1):
        assert left.text(step) == "?"
        steps(left, clock, range(step, step + 1), 60.0)
    assert left.text(WARM_UP) == "?"
    steps(left, clock, range(WARM_UP + 1, WARM_UP + 2), 2.0)
    assert left.seconds(WARM_UP + 1) == pytest.approx(2.0 * (100 - WARM_UP - 1))


@pytest.mark.parametrize("done", [0, 7, 50])
@pytest.mark.parametrize("slow", [1.0, 30.0, 600.0])
def test_slow_first_steps_do_not_count(done: int, slow: float) -> None:
    clock = Clock()
    left = TimeLeft(200, ROWS, clock=clock)
    steps(left, clock, range(done + 1, done + WARM_UP + 1), slow)
    steps(left, clock, range(done + WARM_UP + 1, done + WARM_UP + 21), 0.5)
    assert left.seconds(done + WARM_UP + 20) == pytest.approx(0.5 * (200 - done - WARM_UP - 20))


def test_evaluations_to_come_count_as_long_as_those_before() -> None:
    clock = Clock()

    def to_come(step: int) -> int:
        return 100 * (40 // 10 - step // 10) + 300  # every 10 steps 100 rows, at the end 300

    left = TimeLeft(40, ROWS, to_come, clock)
    steps(left, clock, range(1, 10), 1.0)
    assert left.seconds(9) == pytest.approx(31 * 1.0 + 700 * 1.0 / ROWS)  # rows as slow as those of training
    steps(left, clock, range(10, 11), 1.0)
    with left.evaluating(100):
        clock.now += 2.0
    assert left.seconds(10) == pytest.approx(30 * 1.0 + 600 * 2.0 / 100)  # a row of the first evaluation took 20 ms
    steps(left, clock, range(11, 16), 1.0)
    assert left.seconds(15) == pytest.approx(25 * 1.0 + 600 * 2.0 / 100)
    assert left.text(15) == "0:00:37"


def test_an_evaluation_in_the_warm_up_does_not_slow_steps() -> None:
    clock = Clock()
    left = TimeLeft(20, ROWS, clock=clock)
    steps(left, clock, range(1, 3), 1.0)
    with left.evaluating(50):
        clock.now += 500.0
    steps(left, clock, range(3, 11), 1.0)
    assert left.seconds(10) == pytest.approx(10.0)


def trained(folder: Path, clock: Clock) -> list[dict[str, float]]:
    """A run of 8 steps of 2 s and one evaluation of 100 s, as a Progress writes it."""
    directory = RunDirectory(folder)
    left = TimeLeft(8, ROWS, clock=clock)
    progress = Progress(directory, 0, left, 8, Tracking(), clock)
    for step in range(1, 9):
        clock.now += 2.0
        progress.count(step, ROWS, None)
        if step == 6:
            with left.evaluating(10):
                clock.now += 100.0
        if step in (4, 8):
            progress.report(step, 0, {"loss": 0.5}, 1.0)
    progress.close()
    return [json.loads(line) for line in directory.log.read_text().splitlines()]


def test_lines_without_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logged = trained(tmp_path, Clock())
    assert [line["samples_per_second"] for line in logged] == [5.0, 5.0]  # not slower by the evaluation
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "step 4/8  epoch 1  loss 0.50000  5 samples/s  ETA ?",
        "step 8/8  epoch 1  loss 0.50000  5 samples/s  ETA 0:00:00",
    ]
    assert err == ""


def test_a_bar_on_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(sys, "stdout", screen)
    logged = trained(tmp_path, Clock())
    shown = screen.getvalue()
    assert len(logged) == 2
    assert "train: 100%|" in shown
    assert "8/8" in shown
    assert "step 8/8" not in shown


def test_lines_go_to_a_file_while_a_terminal_shows_a_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    screen, file = Terminal(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(sys, "stdout", file)
    trained(tmp_path, Clock())
    assert len(file.getvalue().splitlines()) == 2
    assert "train:" in screen.getvalue()


def test_an_evaluation_prints_every_five_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with EvaluationProgress("test", 20, clock) as watch:
        for step in range(1, 21):
            clock.now += 10.0 if step <= WARM_UP else 2.0
            watch.count(step)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "evaluating test: step 1/20  ETA ?"
    assert "evaluating test: step 8/20  ETA 24 s" in lines
    assert len(lines) == WARM_UP + 5


def test_a_training_that_ends_stops_its_workers(tmp_path: Path) -> None:
    """Without the garbage collector: a process that multiprocessing started waits for its workers when it ends."""
    write_small_log(tmp_path, rows=128)
    recipe = small_recipe(tmp_path, name="freed", train={"epochs": 2}, data={"workers": 1})
    before = set(active_children())
    gc.collect()
    gc.disable()
    try:
        with joined_ranks() as ranks:
            assert run.train(recipe, ranks) == 0
        assert set(active_children()) <= before
    finally:
        gc.enable()
