"""Trainings that are killed end as an uninterrupted one, and the comparison finds where they do not."""

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from sidrec.config import Recipe
from sidrec.train.ledger_check import ledger_files
from sidrec.train.run import train
from tests.ranks import joined, run_on_ranks
from tests.small_log import small_recipe, write_small_log
from tests.soak.faults.faults import Fault, Kind, Moment
from tests.soak.faults.killed_run import (
    ACROSS_WORLDS,
    EXACT,
    KilledRun,
    Outcome,
    Reference,
    compare,
    difference,
    make_reference,
)

NEVER = time.monotonic() + 24 * 3600


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    folder = write_small_log(tmp_path_factory.mktemp("faults"), rows=2400)
    train = {"epochs": 3, "log_every": 1, "row_ledger": True}
    return small_recipe(folder, train=train, checkpoint={"every": 4, "keep": 3}, data={"workers": 1})


@pytest.fixture(scope="module")
def alone(recipe: Recipe) -> Reference:
    return make_reference(recipe, 1)


def struck(
    recipe: Recipe, reference: Reference, world: int, faults: list[Fault], damaged: float, restarts: int
) -> Outcome:
    killed_run = KilledRun(replace(recipe, name="struck"), (world,), faults, reference, 0, NEVER, damaged, [restarts])
    outcome = killed_run.run()
    assert not outcome.complaints, f"{outcome.complaints}\n{killed_run.log.read_text()}"
    assert outcome.differs == EXACT, "on as many ranks, every bit is the same"
    assert [strike.kind for strike in outcome.strikes] == [fault.kind for fault in faults]
    return outcome


def steps_without_faults(rank: int, world: int, recipe: Recipe) -> int:
    assert train(recipe, joined(rank, world)) == 0
    return int(json.loads((recipe.run / "metrics.jsonl").read_text().splitlines()[-1])["step"])


def test_two_ranks_are_started_again_by_torchrun(recipe: Recipe) -> None:
    faults = [Fault(Kind.KILL_RANK, Moment.TRAINING, 9)]
    whole = replace(recipe, name="reference-2", data=replace(recipe.data, workers=0))
    steps, _ = run_on_ranks(2, steps_without_faults, whole)
    outcome = struck(recipe, Reference(whole.run, steps, seconds=0.0), 2, faults, damaged=0, restarts=1)
    assert outcome.jobs == 1
    assert all(strike.restarted for strike in outcome.strikes)
    assert all(strike.resumed for strike in outcome.strikes), "a checkpoint had been written before"


def test_a_rank_is_started_again_by_torchrun_and_by_hand_with_damaged_files(recipe: Recipe, alone: Reference) -> None:
    shutil.rmtree(recipe.run.parent.parent / "struck", ignore_errors=True)
    faults = [
        Fault(Kind.KILL_ALL, Moment.SAVING, 9),
        Fault(Kind.TERM_LAUNCHER, Moment.TRAINING, 9),
        Fault(Kind.KILL_WORKER, Moment.TRAINING, 9),
        Fault(Kind.KILL_LAUNCHER, Moment.TRAINING, 9),
    ]
    outcome = struck(recipe, alone, 1, faults, damaged=1, restarts=1)
    assert outcome.jobs == 4
    assert [strike.restarted for strike in outcome.strikes] == [False, False, True, False]
    assert all(strike.restarted or strike.damage for strike in outcome.strikes)


def test_difference_is_the_largest_of_any_number_and_infinite_for_anything_else() -> None:
    one = {"test": {"auc": 0.5, "rows": 10, "cold": None}, "steps": [1.0, 2.0]}
    assert difference(one, one) == 0
    assert difference(one, {"test": {"auc": 0.75, "rows": 10, "cold": None}, "steps": [1.0, 2.125]}) == 0.25
    for other in (
        {"test": {"auc": 0.5, "rows": 10, "cold": None}},
        {"test": {"auc": 0.5, "rows": 11, "cold": None}, "steps": [1.0, 2.0]},
        {"test": {"auc": 0.5, "rows": 10, "cold": 0.1}, "steps": [1.0, 2.0]},
        {"test": {"auc": float("nan"), "rows": 10, "cold": None}, "steps": [1.0, 2.0]},
        {"test": {"auc": 0.5, "rows": 10, "cold": None}, "steps": [1.0]},
    ):
        assert difference(one, other) == float("inf")


def test_the_judge_sees_another_loss_another_row_and_what_was_left(alone: Reference, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(alone.run, run)
    assert compare(alone.run, run, EXACT).complaints == ()
    lines = (run / "metrics.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    (run / "metrics.jsonl").write_text("\n".join([*lines[:-1], json.dumps(last | {"loss": last["loss"] + 1e-7})]))
    path = ledger_files(run / "ledger")[0]
    table = pq.read_table(path)
    pq.write_table(table.slice(1), path)
    (run / "checkpoints" / "step-99.partial").mkdir()
    differs, missing, rows, left = compare(alone.run, run, EXACT).complaints
    assert differs == "metrics.jsonl differs from the uninterrupted run's by 1e-07"
    assert missing.startswith("ledger: epoch 1: 2,399 rows trained on once, 0 left out, 1 missing (")
    assert rows == "ledger: other rows in some step than the uninterrupted run's"
    assert left == "left behind: checkpoints/step-99.partial"
    (run / "ledger" / path.name).unlink()
    assert compare(alone.run, run, ACROSS_WORLDS).complaints[0].startswith("ledger: epoch 1: ")
