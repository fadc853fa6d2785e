"""The bench from end to end: what it measures, what fails alone, and what ends it on all ranks together."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sidrec.bench.candidate_plans import FreeMemory
from sidrec.bench.measure import RESULT, bench_plans
from sidrec.bench.ranking import bench_table
from sidrec.bench.result import PHASES, BenchResult, load_bench
from sidrec.bench.rounds import loss_mismatches
from sidrec.bench.subject import Subject, tables_subject
from sidrec.bench.trial import StepCounts
from sidrec.errors import SidrecError
from sidrec.parallel.process_group import Ranks
from sidrec.plans.calibration import VERSION, Calibration, UnitCosts, save_calibration
from sidrec.plans.cost import KINDS
from sidrec.plans.hardware import GB, Hardware
from sidrec.plans.tables_file import TablesFile, TableSpec
from tests.bench.subjects import small_subject
from tests.ranks import joined, run_on_ranks
from tests.small_log import write_small_log

FOUR_RANKS_ON_TWO_MACHINES = FreeMemory(Hardware("test", "cpu", 4, 2, 0, 16 * GB, *[1e9] * 5), free=10 * GB)


def test_ranks_of_a_machine_share_its_memory() -> None:
    assert FOUR_RANKS_ON_TWO_MACHINES.lacks([4 * GB, 5 * GB, 5 * GB, 4 * GB]) is None
    assert FOUR_RANKS_ON_TWO_MACHINES.lacks([0, 0, 5 * GB, 6 * GB]) == (
        "expected tables and optimizer state of at most 9.0 GB on one machine (90% of what is free), got 11.0 GB"
    )


def test_models_are_kept_where_all_of_them_fit_half_the_memory() -> None:
    plan = [GB, GB, 2 * GB, 0]
    assert FOUR_RANKS_ON_TWO_MACHINES.keeps([plan, plan])
    assert not FOUR_RANKS_ON_TWO_MACHINES.keeps([plan, plan, plan])


def test_most_plans_are_right_whatever_their_order() -> None:
    losses = {"wrong": [0.7, 0.61], "one": [0.7, 0.6], "two": [0.7, 0.60001], "three": [0.7, 0.6]}
    assert loss_mismatches(losses) == {"wrong": "step 2: expected the loss of one, 0.600000, got 0.610000"}


def test_a_loss_that_is_no_number_agrees_with_nothing() -> None:
    nan = float("nan")
    assert loss_mismatches({"a": [nan], "b": [0.5]}) == {"a": "step 1: expected the loss of b, 0.500000, got nan"}


def test_of_two_that_differ_the_first_is_believed() -> None:
    assert list(loss_mismatches({"a": [0.5], "b": [0.6]})) == ["b"]


def test_one_plan_or_none() -> None:
    assert loss_mismatches({"a": [0.5]}) == {}
    assert loss_mismatches({}) == {}


ONCE = StepCounts(warm_up=1, timed=1)
EVERY_PLAN = (
    *("auto", "data_parallel", "table_wise", "row_wise", "column_wise", "table_row_wise", "table_column_wise"),
    "grid_shard",
)
TABLES = TablesFile(
    name="three",
    rows_per_step=32,
    tables=(
        TableSpec(name="big", rows=300, width=16, ids_per_bag=2.5),
        TableSpec(name="pair", rows=50, width=8, features=2, zipf=0),
        TableSpec(name="tiny", rows=3, width=4),
    ),
)


def outcome(
    subject: Subject, names: Sequence[str], out: Path, ranks: Ranks, rounds: int = 1, free: int | None = None
) -> BenchResult | str:
    try:
        # One timed step on a busy machine may look hopeless, and a plan that is dropped then has one round only.
        return bench_plans(subject, names, ONCE, rounds, out, ranks, free=free, keep_all=True)
    except SidrecError as error:
        return f"{type(error).__name__}: {error}"


def bench_of_a_recipe(rank: int, world: int, folder: Path, names: Sequence[str]) -> BenchResult | str:
    ranks = joined(rank, world)
    return outcome(small_subject(folder, ranks), names, folder, ranks)


def measured(result: BenchResult) -> list[str]:
    for plan in result.plans:
        assert plan.failed is not None or set(plan.timings) == set(PHASES)
    return [name for plan in result.plans if plan.failed is None for name in (plan.name, *plan.aliases)]


def test_every_plan_of_a_recipe_on_two_ranks(tmp_path: Path) -> None:
    write_small_log(tmp_path, rows=500)
    first, second = run_on_ranks(2, bench_of_a_recipe, tmp_path, EVERY_PLAN)
    assert isinstance(first, BenchResult)
    assert measured(first) == measured(second)
    assert sorted(measured(first)) == sorted(EVERY_PLAN)
    layouts = [json.dumps(plan.plan) for plan in first.plans]
    assert len(set(layouts)) == len(layouts), "auto, which is one of the types, is measured with it"
    assert load_bench(tmp_path / RESULT) == first
    assert first.complete
    assert first.conditions["models"] == "kept between rounds"
    for plan in first.plans:
        assert (len(plan.rounds), len(plan.memory), len(plan.lookups), len(plan.cpu)) == (1, 2, 2, 2)
        assert set(plan.work) == set(KINDS)
        assert plan.default is not None
        assert set(plan.default.tables) == set(first.workload["tables"])
        kinds = {layout["sharding_type"] for tables in plan.plan["tables"].values() for layout in tables.values()}
        assert plan.name == "auto" or kinds == {plan.name}
    assert "".join(bench_table(first).splitlines()[0].split()).startswith("planstepp10p90")
    first_words = [line.split("  ")[0] for line in bench_table(first).splitlines()]
    assert all(plan.title in first_words for plan in first.plans)
    by_rounds = [re.search(r"[\d.]+ \[[\d.]+, [\d.]+\]", line) for line in bench_table(first).splitlines()]
    assert sum(found is not None for found in by_rounds) == len(first.plans) - 1, "against the first one"


def bench_by_calibration(rank: int, world: int, folder: Path) -> BenchResult | str:
    ranks = joined(rank, world)
    subject, file = small_subject(folder, ranks), folder / "calibration.json"
    if ranks.first:
        rows_are_cheap = UnitCosts({"exchanges": 9.0, "reductions": 1.0}, 1, ["m"], 0.0)
        save_calibration(file, Calibration(VERSION, "cpu", {2: rows_are_cheap}))
    ranks.control.barrier().wait()
    return bench_plans(subject, ("auto", "torchrec", "table_wise"), ONCE, 1, folder, ranks, file)


def test_a_calibration_chooses_the_plan_of_auto_and_predicts_all(tmp_path: Path) -> None:
    write_small_log(tmp_path, rows=500)
    result, _ = run_on_ranks(2, bench_by_calibration, tmp_path)
    assert isinstance(result, BenchResult)
    auto, torchrecs, table_wise = result.plans
    layouts = [layout for tables in auto.plan["tables"].values() for layout in tables.values()]
    assert {layout["sharding_type"] for layout in layouts} == {"row_wise"}  # one round per collection, and those cheap
    expected = [plan.calibrated.step for plan in (auto, torchrecs, table_wise) if plan.calibrated]
    assert expected[0] == 2.0  # items and context
    assert expected[2] == 18.0
    assert expected[0] <= expected[1]


class Shifted(nn.Module):
    """A model that computes something else: its loss is a hundredth larger."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Any) -> Any:
        loss, (terms, logits_B) = self.model(batch)
        return loss, ({"loss": terms["loss"] + 0.01}, logits_B)


def wrong_in_its_third_model(subject: Subject) -> Subject:
    """The same subject; the second model that is really built cannot be, and the third is Shifted."""
    built = 0

    def model() -> nn.Module:
        nonlocal built
        made = subject.model()
        if torch.get_default_device().type == "meta":
            return made
        built += 1
        if built == 2:
            raise RuntimeError("no kernel for it")
        return Shifted(made) if built == 3 else made

    return replace(subject, model=model)


def benches_of_tables(rank: int, world: int, folder: Path) -> dict[str, BenchResult | str]:
    ranks = joined(rank, world)
    subject = tables_subject(TABLES, 6, ranks)
    found = {"good": outcome(subject, ("table_wise", "column_wise"), folder / "good", ranks)}
    assert isinstance(found["good"], BenchResult)
    plan = dict(found["good"].plans[1].plan)
    file = folder / f"edited_{rank}.json"  # the first rank's is read
    file.write_text(json.dumps(plan))
    found["file"] = outcome(subject, (str(folder / "edited_0.json"), "table_wise"), folder / "good", ranks)
    plan["world"] = 8
    plan["local_world"] = 8
    file.write_text(json.dumps(plan))
    found["misfit"] = outcome(subject, (str(folder / "edited_0.json"), "table_wise"), folder / "misfit", ranks)
    names = ("table_wise", "row_wise", "column_wise", "table_row_wise")
    found["wrong"] = outcome(wrong_in_its_third_model(subject), names, folder / "wrong", ranks, rounds=2)
    found["short"] = outcome(
        subject, ("data_parallel", "table_wise", "row_wise"), folder / "short", ranks, free=120_000
    )
    found["none"] = outcome(subject, ("table_wise",), folder / "none", ranks, free=100)
    return found


def test_tables_files_memory_and_plan_files(tmp_path: Path) -> None:
    first, second = run_on_ranks(2, benches_of_tables, tmp_path)
    good, file, short = first["good"], first["file"], first["short"]
    assert isinstance(good, BenchResult)
    assert isinstance(file, BenchResult)
    assert isinstance(short, BenchResult)
    assert measured(good) == ["table_wise", "column_wise"]
    assert file.plans[0].plan == good.plans[1].plan
    assert len(measured(file)) == 2
    assert measured(short) == ["table_wise", "row_wise"]
    assert str(short.plans[0].failed).startswith("expected tables and optimizer state of at most 0.0 GB on one machine")
    assert short.conditions["models"].startswith("rebuilt for every visit")
    wrong = first["wrong"]
    assert isinstance(wrong, BenchResult)
    assert measured(wrong) == ["table_wise", "table_row_wise"]
    assert wrong.plans[1].failed == "RuntimeError: no kernel for it"
    assert str(wrong.plans[2].failed).startswith("step 1: expected the loss of table_wise, 0.")
    assert [len(plan.rounds) for plan in wrong.plans] == [2, 0, 1, 2]
    refused = [outcomes["misfit"] for outcomes in (first, second)]
    assert all(isinstance(said, str) and "edited_0.json" in said for said in refused)
    assert not (tmp_path / "misfit").exists()
    assert str(first["none"]).startswith(
        "ConfigError: three: no plan could be measured; table_wise: expected tables and"
    )
    assert load_bench(tmp_path / "none" / RESULT).plans[0].failed is not None
