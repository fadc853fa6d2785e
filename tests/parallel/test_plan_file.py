"""Ranks train with exactly the plan of a file, learn the same by it, and leave together where it does not fit."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import distributed as dist

from sidrec import cli
from sidrec.config import Recipe, load_file, save
from sidrec.errors import SidrecError
from sidrec.plans.plan_file import read_plan
from sidrec.train.run import train
from sidrec.train.run_directory import RunDirectory
from tests.ranks import joined, run_on_ranks
from tests.small_log import small_recipe, write_small_log
from tests.train.refusals import recipe_of, refusal, start

ADAGRAD = {"tables": {"kind": "adagrad", "lr": 0.1}}
EDITS: dict[str, dict[str, object]] = {
    "hid": {"sharding_type": "table_wise", "compute_kernel": "fused", "ranks": [1]},
    "s1": {"sharding_type": "data_parallel", "compute_kernel": "dense", "ranks": [0, 1]},
    "s2": {"sharding_type": "column_wise", "compute_kernel": "fused", "ranks": [1, 0]},
    "s3": {"sharding_type": "column_wise", "compute_kernel": "fused", "ranks": [1, 1]},
    "s12": {"sharding_type": "grid_shard", "compute_kernel": "fused", "ranks": [0, 1, 0, 1]},
    "s23": {"sharding_type": "row_wise", "compute_kernel": "fused", "ranks": [0, 1]},
    "user_id": {"sharding_type": "table_row_wise", "compute_kernel": "fused", "ranks": [0, 1]},
}

PLAN = """{"version": 1, "world": 2, "local_world": 2, "device": "cpu", "tables": {
 "context": {
  "cat_a": {"rows": 5, "width": 8, "sharding_type": "row_wise", "compute_kernel": "fused", "ranks": [0, 1]},
  "user_id": {"rows": 41, "width": 8, "sharding_type": "row_wise", "compute_kernel": "fused", "ranks": [0, 1]}},
 "items": {
  "hid": {"rows": 61, "width": 8, "sharding_type": "table_wise", "compute_kernel": "fused", "ranks": [9]},
  "s1": {"rows": 5, "width": 8, "sharding_type": "row_wise", "compute_kernel": "fused", "ranks": [0, 1]},
  "s2": {"rows": 5, "width": 8, "sharding_type": "row_wise", "compute_kernel": "fused", "ranks": [0, 1]},
  "s3": {"rows": 5, "width": 8, "sharding_type": "row_wise", "compute_kernel": "fused", "ranks": [0, 1]},
  "s12": {"rows": 17, "width": 8, "sharding_type": "row_wise", "compute_kernel": "fused", "ranks": [0, 1]},
  "s23": {"rows": 16, "width": 8, "sharding_type": "row_wise", "compute_kernel": "fused", "ranks": [0, 1]}}}}"""


def named(recipe: Recipe, name: str, plan: Path | None) -> Recipe:
    return replace(recipe, name=name, parallel=replace(recipe.parallel, plan=plan))


def edit(path: Path, copy: Path, changes: dict[str, dict[str, Any]]) -> None:
    """Copies a plan, edited by hand."""
    plan = json.loads(path.read_text())
    for tables in plan["tables"].values():
        for name, layout in tables.items():
            layout.update(changes.get(name, {}))
    copy.write_text(json.dumps(plan))


def train_kept_edited_and_resumed(rank: int, world: int, recipe: Recipe) -> None:
    ranks, runs = joined(rank, world), recipe.train.runs
    planned, resumed = named(recipe, "planned", None), named(recipe, "resumed", runs / "other.json")
    train(planned, ranks)
    kept = RunDirectory(planned.run).plan
    train(named(recipe, "kept", kept), ranks)
    if rank == 0:
        edit(kept, runs / "edited.json", EDITS)
        edit(kept, runs / "other.json", {"hid": EDITS["s3"], "s1": EDITS["hid"]})
        half_done(planned, resumed)
    dist.barrier()
    train(named(recipe, "edited", runs / "edited.json"), ranks)
    train(resumed, ranks)


def half_done(finished: Recipe, copy: Recipe) -> None:
    """A copy of a finished run without its last checkpoint, begun with the planner's plan."""
    shutil.copytree(finished.run, copy.run)
    run = RunDirectory(copy.run)
    save(replace(finished, name=copy.name), run.config)
    first, last = sorted(run.checkpoints.iterdir(), key=lambda path: int(path.name.removeprefix("step-")))
    assert first != last
    shutil.rmtree(last)


def losses(recipe: Recipe, name: str) -> list[float]:
    lines = (named(recipe, name, None).run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def test_a_plan_is_kept_edited_and_changed_between_starts(tmp_path: Path) -> None:
    write_small_log(tmp_path, rows=500)
    recipe = small_recipe(tmp_path, optimizer=ADAGRAD, train={"log_every": 1})
    run_on_ranks(2, train_kept_edited_and_resumed, recipe)
    planned = losses(recipe, "planned")
    assert planned[0] - planned[-1] > 0.05, "an untrained model would make this test pass for nothing"
    assert losses(recipe, "kept") == planned
    for name, plan in (("edited", "runs/edited.json"), ("resumed", "runs/other.json")):
        assert losses(recipe, name) == pytest.approx(planned, abs=2e-5)
        run = RunDirectory(named(recipe, name, None).run)
        assert read_plan(run.plan) == read_plan(tmp_path / plan)
        assert load_file(run.config).parallel.plan == tmp_path / plan


def outcomes(rank: int, world: int, recipes: list[Recipe], folder: Path) -> list[tuple[str, str]]:
    """Per recipe the error's type and sentence on this rank, which works in a folder of its own."""
    ranks, found = joined(rank, world), []
    os.chdir(folder / f"machine-{rank}")
    for recipe in recipes:
        try:
            train(recipe, ranks)
        except SidrecError as error:
            found.append((type(error).__name__, str(error)))
    return found


def test_two_ranks_leave_together_where_plans_disagree_or_do_not_fit(tmp_path: Path) -> None:
    write_small_log(tmp_path, rows=200)
    recipe = small_recipe(tmp_path)
    for rank, hid in enumerate((0, 1)):
        machine = tmp_path / f"machine-{rank}"
        machine.mkdir()
        (machine / "plan.json").write_text(PLAN.replace('"ranks": [9]', f'"ranks": [{hid}]'))
        (machine / "alone.json").write_text(
            PLAN.replace('"world": 2, "local_world": 2', '"world": 1, "local_world": 1')
        )
        (machine / "nine.json").write_text(PLAN)
    (tmp_path / "machine-1" / "first.json").write_text(PLAN)
    (tmp_path / "machine-0" / "zeroth.json").write_text(PLAN)
    names = ("plan.json", "alone.json", "nine.json", "first.json", "zeroth.json")
    first, second = run_on_ranks(2, outcomes, [named(recipe, "refused", Path(name)) for name in names], tmp_path)
    sentences = [
        "plan.json: expected the same plan on all ranks, got another on rank(s) 1 than on rank 0",
        "alone.json: expected a plan for 2 rank(s), 2 of them on a machine, on cpu, "
        "got one for 1 rank(s), 1 of them on a machine, on cpu",
        "nine.json, table hid of items: expected ranks from 0 to 1, got [9]",
        "first.json: expected a readable sharding plan, got no such file",
        "zeroth.json: expected a readable sharding plan, got no such file",
    ]
    said = [("ContractError", sentence) for sentence in sentences]
    heard = [("RankError", f"rank 0 stopped: {sentence}") for sentence in sentences]
    assert first == [*said[:4], ("RankError", f"rank 1 stopped: {sentences[4]}")]
    assert second == [*heard[:4], said[4]]
    assert not recipe.train.runs.exists()


def test_the_flag_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = recipe_of(write_small_log(tmp_path, rows=200))
    assert start(recipe) == 0
    plan, other = RunDirectory(recipe.run).plan, tmp_path / "other.json"
    edit(plan, other, {"hid": {"sharding_type": "data_parallel", "compute_kernel": "dense"}})
    assert start(recipe, "--name", "again", "--plan", str(other)) == 0
    again = RunDirectory(named(recipe, "again", None).run)
    assert read_plan(again.plan).tables["items"]["hid"].sharding_type == "data_parallel"
    capsys.readouterr()

    other.write_text(other.read_text().replace('"hid"', '"hidd"'))
    sentence = refusal(capsys, start(recipe, "--name", "third", "--parallel.plan", str(other)))
    assert sentence == f"{other}, items: expected tables of the model, got hidd; did you mean hid?"
    assert not named(recipe, "third", None).run.exists()
    assert cli.main(["evaluate", str(again.path)]) == 0, "evaluation needs no plan of a training"


def test_a_plan_and_a_sharding_type_together_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "recipe.yaml"
    save(small_recipe(tmp_path, parallel={"plan": "p.json"}), recipe)
    recipe.write_text(recipe.read_text().replace("sharding: auto", "sharding: row_wise"))
    mistake = "parallel: expected sharding auto beside the plan p.json, got row_wise"
    assert refusal(capsys, cli.main(["train", str(recipe)])).splitlines()[1].strip() == mistake
