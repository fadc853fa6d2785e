"""A step that is not finite: left out whole, or the end of training; and never in a checkpoint."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from sidrec.checkpoint.state import state_shards
from sidrec.config import Recipe
from sidrec.errors import SidrecError
from sidrec.study.search import DIVERGED
from sidrec.train.non_finite_cause import Cause, nearest_cause
from sidrec.train.run import train
from sidrec.train.step import StepResult
from sidrec.train.trainer import Trainer
from tests.ranks import joined as joined_ranks
from tests.ranks import run_on_ranks
from tests.small_log import write_small_log
from tests.train.refusals import TRAIN, edit, recipe_of, refusal, start

HUGE = 3e38  # float32 holds it, but not the sum of a few of it
PAIR = [420, 421]


def log_with_huge_rows(folder: Path, rows: list[int]) -> Path:
    """Rows alternate between labels: which of two the model is wrong about does not matter."""
    write_small_log(folder, rows=800)

    def change(table: pa.Table) -> pa.Table:
        columns = {name: table[name].to_numpy().copy() for name in ("int_a", "label")}
        columns["int_a"][rows], columns["label"][rows] = HUGE, np.array(rows) % 2
        for name, values in columns.items():
            index = table.schema.get_field_index(name)
            table = table.set_column(index, table.schema.field(index), pa.array(values))
        return table

    edit(folder / TRAIN, change)
    return folder


class RecordingTrainer(Trainer):
    """Keeps all weights and optimizer states after every step."""

    states: list[dict[str, Tensor]]
    skipped: list[bool]

    def _log(self, result: StepResult) -> None:
        shards = state_shards(self.model, self.optimizer, self.ranks)
        self.states.append({shard.name: shard.values.detach().clone() for shard in shards})
        self.skipped.append(result.skipped is not None)
        super()._log(result)


def changes(rank: int, world: int, recipes: list[Recipe]) -> list[list[tuple[bool, set[str]]]]:
    """Per recipe and step: whether it was left out, and the tensors that it changed on this rank."""
    ranks = joined_ranks(rank, world)
    found = []
    for recipe in recipes:
        RecordingTrainer.states, RecordingTrainer.skipped = [], []
        train(recipe, ranks, RecordingTrainer)
        steps = []
        states = RecordingTrainer.states
        for number, skipped in list(enumerate(RecordingTrainer.skipped))[1:]:
            before, after = states[number - 1], states[number]
            changed = {name for name in after if not torch.equal(before.get(name, torch.zeros(0)), after[name])}
            steps.append((skipped, changed))
        found.append(steps)
    return found


PLANS: dict[str, dict[str, Any]] = {
    "table_wise": {"parallel": {"sharding": "table_wise"}},
    "row_wise": {"parallel": {"sharding": "row_wise"}, "optimizer": {"tables": {"kind": "rowwise_adagrad"}}},
    "replicated": {"parallel": {"sharding": "data_parallel", "pipeline": "plain"}},
    "plain": {"parallel": {"sharding": "table_wise", "pipeline": "plain"}, "optimizer": {"tables": {"kind": "sgd"}}},
}


@pytest.mark.parametrize(("world", "plans"), [(1, ("plain",)), (2, ("table_wise", "row_wise", "replicated"))])
def test_a_skipped_step_changes_nothing_on_any_rank(tmp_path: Path, world: int, plans: tuple[str, ...]) -> None:
    """In time order bad rows are met at once: replicas, too, must bear it that their first step is left out."""
    bad = [*range(50), *range(200, 250)]  # the first rows of a lane: two of sixteen row groups, dealt to four lanes
    log_with_huge_rows(tmp_path, bad)
    recipes = [
        recipe_of(tmp_path, name=name, data={"order": "time"}, train={"epochs": 1, "non_finite": "skip"}, **PLANS[name])
        for name in plans
    ]
    of_ranks = run_on_ranks(world, changes, recipes)
    for recipe, *steps_of_ranks in zip(recipes, *of_ranks, strict=True):
        for steps in steps_of_ranks:
            assert [skipped for skipped, _ in steps] == [skipped for skipped, _ in steps_of_ranks[0]]
            assert all(not changed for skipped, changed in steps if skipped)
        last = [changed for steps in steps_of_ranks for changed in (steps[-1][1],)]
        assert any("hid" in name for changed in last for name in changed), f"{recipe.name} trains no table at all"
        assert all(any(name.startswith("model/backbone") for name in changed) for changed in last)

        lines = [json.loads(line) for line in (recipe.run / "skipped.jsonl").read_text().splitlines()]
        assert lines[0]["step"] == 1
        rows = [row for line in lines for row in line["rows"][str(tmp_path / TRAIN)]]
        assert rows
        assert set(rows) <= set(bad)
        log = [json.loads(line) for line in (recipe.run / "metrics.jsonl").read_text().splitlines()]
        assert log[-1]["skipped"] == len(lines)
        assert all(entry["loss"] < 2 for entry in log if "loss" in entry)


def test_training_stops_with_step_input_file_and_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log_with_huge_rows(tmp_path, PAIR)
    recipe = recipe_of(tmp_path, train={"epochs": 1})
    sentence = refusal(capsys, start(recipe))
    assert re.match(r"step \d+: expected a finite loss and finite gradients, got a (logit|gradient) of ", sentence)
    assert DIVERGED.search(f"sidrec: error: {sentence}"), "a search counts such a trial as the worst"
    assert "; largest input: int_a = 3e+38; " in sentence
    assert re.search(rf"; {tmp_path / TRAIN}, rows? (420|421|420, 421); train.non_finite=skip leaves", sentence)
    assert not list(recipe.run.glob("checkpoints/step-*"))

    assert start(recipe, "--train.non-finite", "skip") == 0, "a run that stopped can go on without such steps"
    assert " left out: a " in capsys.readouterr().out


def test_no_more_steps_in_a_row_are_left_out_than_allowed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log_with_huge_rows(tmp_path, list(range(50)))
    recipe = recipe_of(tmp_path, data={"order": "time"}, train={"epochs": 1, "non_finite": "skip", "skip_at_most": 1})
    sentence = refusal(capsys, start(recipe))
    assert sentence.endswith("; 1 steps before it were left out, and train.skip_at_most allows no more in a row")


def test_a_learning_rate_that_blows_up_is_named_before_it_is_saved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_small_log(tmp_path, rows=800)
    sections = {"train": {"epochs": 1, "non_finite": "skip"}, "checkpoint": {"every": 1, "background": False}}
    large = recipe_of(tmp_path, name="large", optimizer={"dense": {"lr": 1e30}}, **sections)
    sentence = refusal(capsys, start(large))
    assert "; largest weight: 1e+30, in " in sentence
    saved = list(large.run.glob("checkpoints/step-*/*.safetensors"))
    assert saved, "the first step, large as its weights are, is finite"
    assert all(torch.isfinite(tensor).all() for path in saved for tensor in load_file(path).values())

    tables = {"kind": "rowwise_adagrad", "lr": 3.4e38}  # times g / rms(g), which is above 1 for some columns of a row
    too_large = recipe_of(tmp_path, name="too-large", optimizer={"tables": tables}, **sections)
    sentence = refusal(capsys, start(too_large))
    assert sentence.startswith("step 1: expected finite weights and optimizer states to save, got others in tensor ")
    assert DIVERGED.search(f"sidrec: error: {sentence}"), "a search counts such a trial as the worst"
    assert re.search(r"tensor model/(items|context)\.embedding_bags\.\w+\.weight, rows \d+", sentence)
    assert not list(too_large.run.glob("checkpoints/step-*"))


def broken_weights(rank: int, world: int, recipe: Recipe) -> list[str]:
    """What is said of a NaN in the row of a table, and in a layer."""
    ranks = joined_ranks(rank, world)
    said = []
    for name, row in (("items.embedding_bags.hid.weight", 7), ("backbone.", 0)):
        try:
            train(recipe, ranks, trainer_with_nan(name, row))
        except SidrecError as error:
            said.append(f"{type(error).__name__}: {error}")
    return said


def trainer_with_nan(name: str, row: int) -> type[Trainer]:
    class BrokenTrainer(Trainer):
        def train(self) -> int:
            for shard in state_shards(self.model, None, self.ranks):
                if shard.key.startswith(f"model/{name}") and 0 <= row - shard.offset[0] < len(shard.values):
                    shard.values.data[row - shard.offset[0]] = torch.nan
                    break
            return super().train()

    return BrokenTrainer


def test_nan_in_a_weight_is_named_by_table_and_row_or_by_layer(tmp_path: Path) -> None:
    write_small_log(tmp_path, rows=800)
    recipe = recipe_of(tmp_path, train={"non_finite": "skip"}, parallel={"sharding": "row_wise"})
    first, second = run_on_ranks(2, broken_weights, recipe)
    table, layer = first
    assert table.startswith("NonFiniteError: step ")
    assert "got weights of rows 7 of the table hid that are not finite; " in table
    assert "weights of the layer backbone." in layer
    assert all(sentence.endswith("from the newest checkpoint on or from the start") for sentence in first)
    assert [sentence.split(":")[0] for sentence in second] == ["RankError", "RankError"]


def test_the_finding_nearest_to_the_cause_is_reported_with_its_rows() -> None:
    gradient, logit, other = (
        Cause(4, "a gradient", (1,), loss=9.0),
        Cause(2, "a logit", (9, 5)),
        Cause(2, "more", (7,)),
    )
    assert nearest_cause([gradient, None, logit, other]) == Cause(2, "a logit", (5, 7, 9))
    assert nearest_cause([gradient, None, Cause(4, "another", (2,), loss=1.0)]) == gradient
    assert nearest_cause([None, None]) is None
