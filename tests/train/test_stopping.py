"""SIGTERM and Ctrl-C: the step is finished and saved, and the same command goes on from there."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sidrec.config import Recipe, save
from sidrec.train.run import train
from sidrec.train.step import StepResult
from sidrec.train.stopping import SAME_ORDER, Stopping
from sidrec.train.trainer import Trainer
from tests.ranks import joined, run_on_ranks
from tests.small_log import small_recipe, write_small_log

ROOT = Path(__file__).parents[2]


def test_a_signal_to_all_processes_of_a_run_ends_it_with_a_checkpoint(tmp_path: Path) -> None:
    """As a terminal's Ctrl-C and Slurm's scancel send it: loader processes get it too, and must not die of it first."""
    write_small_log(tmp_path, rows=1600)
    recipe = small_recipe(tmp_path, data={"workers": 1}, train={"epochs": 500, "log_every": 1})
    save(recipe, tmp_path / "recipe.yaml")
    process = subprocess.Popen(
        [sys.executable, "-m", "sidrec.train", str(tmp_path / "recipe.yaml")],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert any(line.startswith("step 3/") for line in iter(process.stdout.readline, ""))
    os.killpg(process.pid, signal.SIGTERM)
    os.killpg(process.pid, signal.SIGTERM)  # torchrun sends it once more to its ranks
    rest, _ = process.communicate(timeout=600)  # also waits for the workers, which hold the pipe
    assert process.returncode == 143, rest
    assert "Traceback" not in rest
    # One, unless the signal was sent an epoch late, as on a busy machine: an epoch takes a fraction of a second.
    step = max(int(saved.name.removeprefix("step-")) for saved in recipe.run.glob("checkpoints/step-*"))
    sentence = f"sidrec: SIGTERM: stopped after step {step}/12500, which is saved; the same command goes on from there"
    assert rest.splitlines()[-1] == sentence
    assert not (recipe.run / "metrics.json").exists(), "it left without evaluating"


class SignalledTrainer(Trainer):
    """The last rank gets SIGTERM at step 5."""

    def _log(self, result: StepResult) -> None:
        if result.step == 5 and self.ranks.rank == self.ranks.world - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        super()._log(result)


def stopped_and_continued(rank: int, world: int, recipe: Recipe) -> tuple[int, list[str], int]:
    """The exit status of a run that SIGTERM stops on one rank, its checkpoints, and the status of its continuation."""
    ranks = joined(rank, world)
    status = train(recipe, ranks, SignalledTrainer)
    saved = sorted(path.name for path in recipe.run.glob("checkpoints/step-*"))
    return status, saved, train(recipe, ranks)


def uninterrupted(rank: int, world: int, recipe: Recipe) -> int:
    return train(recipe, joined(rank, world))


@pytest.mark.parametrize(("world", "pipeline"), [(1, "plain"), (2, "sparse_dist")])
def test_a_signal_to_one_rank_stops_all_and_loses_nothing(tmp_path: Path, world: int, pipeline: str) -> None:
    write_small_log(tmp_path, rows=800)
    sections = {"parallel": {"pipeline": pipeline}, "train": {"epochs": 1}}
    stopped, whole = (
        small_recipe(tmp_path, name="stopped", **sections),
        small_recipe(tmp_path, name="whole", **sections),
    )
    assert run_on_ranks(world, stopped_and_continued, stopped) == [(143, ["step-6"], 0)] * world
    assert run_on_ranks(world, uninterrupted, whole) == [0] * world
    metrics = [json.loads((recipe.run / "metrics.json").read_text()) for recipe in (stopped, whole)]
    assert metrics[0] == metrics[1]


def test_a_later_second_signal_ends_the_process_at_once() -> None:
    left: list[int] = []
    seconds = iter([100.0, 100.0 + SAME_ORDER, 100.1 + SAME_ORDER])
    with Stopping(lambda: next(seconds), left.append) as stop:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        assert (stop.received, left) == (signal.SIGINT, []), "the same order, sent twice"
        signal.raise_signal(signal.SIGTERM)
        assert left == [130]
        stop.agreed = stop.received


def test_a_signal_after_the_loop_has_its_default_effect() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # torchx, once imported, has one of its own
    try:
        with pytest.raises(KeyboardInterrupt), Stopping():
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
