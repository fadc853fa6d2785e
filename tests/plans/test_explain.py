"""A plan explained: other layouts, remarks from data, and the text and JSON of the command."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sidrec.cli.plans import plan as main
from sidrec.errors import NoPlanError, SidrecError
from sidrec.plans.calibration import VERSION, CalibratedCost, Calibration, UnitCosts
from sidrec.plans.cost import KINDS, TorchRecCost
from sidrec.plans.explain import explain, remarks, row_shares
from sidrec.plans.explanation_text import explanation_text, rank_ranges
from sidrec.plans.options import enumerate_options, on_ranks
from sidrec.plans.plan_file import read_plan, sharding_plan_of
from sidrec.plans.search import Candidate, search, search_progress
from sidrec.plans.workload import RowFrequencies, TableLoad, Workload, ZipfLaw
from tests.plans.tables_workload import Tables, hardware, sharders, workload

COST = TorchRecCost()
TABLES = """
name: three
rows_per_step: 512
tables:
- {name: item, rows: 50000, width: 16, ids_per_bag: 5}
- {name: user, rows: 900, width: 16}
- {name: code, rows: 8, width: 16}
"""


@pytest.fixture
def three(tmp_path: Path) -> Path:
    path = tmp_path / "three.yaml"
    path.write_text(TABLES)
    return path


def test_a_rejected_layouts_step_is_that_of_the_plan_with_that_table_moved() -> None:
    load, there = workload({"a": (5000, 16), "b": (300, 32), "c": (40, 8)}), hardware(2)
    found = search(load, there, sharders(), COST)
    explained, plan = explain(found, load, there, sharders(), COST), found[0]
    for table in explained.tables:
        way = next((way for way in table.rejected if way.sharding_type == "table_wise"), None)
        if way is None:
            continue
        option = enumerate_options(load, there, sharders(), {table.table: ("table_wise",)})[table.table][0]
        others = [each for each in plan.options if each.name != table.table]
        steps = [COST.rate([*others, on_ranks(option, [rank])], load, there).step for rank in range(2)]
        assert way.step == pytest.approx(min(steps))


def test_a_layout_that_exceeds_memory_names_the_missing_bytes() -> None:
    load, there = workload({"large": (100_000, 64)}), hardware(2)
    row_wise = enumerate_options(load, there, sharders(), {"large": ("row_wise",)})["large"][0]
    whole = enumerate_options(load, there, sharders(), {"large": ("table_wise",)})["large"][0].shards[0].storage.ddr
    tight = replace(there, ddr=row_wise.shards[0].storage.ddr + 5_000_000)
    explained = explain(search(load, tight, sharders(), COST), load, tight, sharders(), COST)
    way = next(way for way in explained.tables[0].rejected if way.sharding_type == "table_wise")
    assert way.step is None
    assert way.lacking == whole - explained.ranks[0].room


def test_shares_of_row_shards_follow_popularity() -> None:
    load = workload({"item": (8, 4)})
    option = enumerate_options(load, hardware(2), sharders(), {"item": ("row_wise",)})["item"][0]
    assert row_shares(option, TableLoad(1, (1.0,))) == []
    by_frequency = TableLoad(1, (1.0,), RowFrequencies(np.array([0.5, 0.2, 0.1, 0.1, 0.05, 0.05, 0, 0])))
    assert row_shares(option, by_frequency) == pytest.approx([0.9, 0.1])
    assert row_shares(option, TableLoad(1, (1.0,), popularity=ZipfLaw(8, 0.0))) == pytest.approx([0.5, 0.5])


def test_remarks_name_crowded_shards_and_tables_smaller_than_their_exchange() -> None:
    shapes = {"item": (100_000, 16), "code": (8, 16)}
    loads = {"item": TableLoad(512, (1.0,), popularity=ZipfLaw(100_000, 1.05)), "code": TableLoad(512, (1.0,))}
    load, there = Workload("x", Tables(shapes), loads, 512), hardware(2)
    options = enumerate_options(load, there, sharders(), dict.fromkeys(shapes, ("row_wise",)))
    plan = [on_ranks(found[0], [0, 1]) for found in options.values()]
    crowded, small = remarks(plan, load, there, knows_replicas=False)
    share = ZipfLaw(100_000, 1.05).share(0, 50_000)
    assert f"item (row_wise: {share:.0%}, {2 * share:.1f} times an even share)" in crowded
    assert "code (512 B; a rank sends 32.8 kB" in small  # 8 rows, 512 bags, of 16 floats
    assert "item (" not in small
    assert small.endswith("without a calibration the cost of replicas on CPU is unknown")
    assert remarks(plan, load, there, knows_replicas=True)[1].endswith("are in column DP")
    assert remarks(plan[:1], load, hardware(1), False) == remarks(plan[:1], load, there, False)


def test_the_command_prints_narrow_text_and_json_and_exports_a_plan_that_fits(
    three: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exported = tmp_path / "plan.json"
    main([str(three), "--hardware", "2xcpu", "--export", str(exported)])
    text = capsys.readouterr().out
    assert all(len(line) <= 100 for line in text.splitlines())
    for word in ("three on 2xcpu: 2 rank(s)", "item", "user", "code", "default", "replicas would send less"):
        assert word in text, word
    main([str(three), "--hardware", "2xcpu", "--json"])
    explained = json.loads(capsys.readouterr().out)
    assert {table["table"] for table in explained["tables"]} == {"item", "user", "code"}
    assert explained["step"] == min(explained["candidates"].values())
    model = Tables({"item": (50000, 16), "user": (900, 16), "code": (8, 16)})
    plan = sharding_plan_of(read_plan(exported), model, 2, 2, "cpu", sharders())
    kinds = {name: layout.sharding_type for name, layout in plan.plan["tables"].items()}
    assert kinds == {table["table"]: table["sharding_type"] for table in explained["tables"]}


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--hardware", "9xz80"], "expected a name such as cpu"),
        (["--world", "12", "--local-world", "8"], "a world that is a multiple of local_world, got 12 of 8"),
        (["--forced", "rowwise"], "expected one of data_parallel"),
        (["--hbm", "80GB"], "--hbm: expected hardware with GPUs"),
        (["--device", "cuda", "--hbm", "much"], "expected a number and a unit"),
        (["--device", "cuda", "--hardware", "cpu"], "--device: expected none beside --hardware cpu"),
        (["--batch-size", "0"], "--batch-size: Input should be greater than 0"),
        (["--ddr", "1kB"], "expected more than is reserved for the dense layers"),
    ],
)
def test_what_the_command_refuses(three: Path, flags: list[str], sentence: str) -> None:
    with pytest.raises(SidrecError, match=sentence):
        main([str(three), *flags])


@pytest.mark.parametrize(
    ("flags", "hinted"),
    [
        *(([], True), (["--world", "2"], True), (["--device", "cpu"], True), (["--hardware", "4x2xcpu"], True)),
        *((["--ddr", "1TB"], False), (["--hardware", "2xcpu", "--ddr", "64GB"], False)),
        *(
            (["--hardware", "8xa100"], False),
            (["--device", "cuda"], False),
            (["--device", "cuda", "--ddr", "1TB"], False),
        ),
    ],
)
def test_a_plan_that_this_machines_memory_prevents_names_the_flag(three: Path, flags: list[str], hinted: bool) -> None:
    three.write_text(TABLES.replace("50000", str(10**12)))
    with pytest.raises(NoPlanError) as refused:
        main([str(three), *flags])
    assert ("give --ddr" in str(refused.value)) == hinted


def test_nothing_is_planned_where_the_export_could_not_be_written(three: Path) -> None:
    with pytest.raises(ValueError, match="--export: expected a folder that can be written"):
        main([str(three), "--export", str(three / "plan.json")])  # a file is no folder


def test_a_long_search_prints_the_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    seconds = iter([1.0, 4.0, 5.0, 7.0, 12.0])
    progress = search_progress(started=0.0, clock=lambda: next(seconds))
    steps = (("first", 0, 1), ("second", 0, 4), ("second", 1, 4), ("second", 2, 4), ("third", 0, 2))
    for stage, done, total in steps:
        progress(stage, done, total)
    assert capsys.readouterr().err.splitlines() == ["4 s: second", "7 s: second, 2 of 4, about 3 s more", "12 s: third"]


def test_a_cost_model_without_costs_of_tables_is_remarked_on() -> None:
    load, there = workload({"a": (5000, 16)}), hardware(2)
    free = CalibratedCost(Calibration(VERSION, "cpu", {2: UnitCosts({"steps": 4.0}, 4, ["m"], 0.0)}))
    explained = explain(search(load, there, sharders(), free), load, there, sharders(), free)
    assert explained.remarks[0].startswith("the cost model calibrated predicts 0 ms for every table")


@pytest.mark.parametrize(
    ("milliseconds", "cells"),
    [
        ({"looked_up_ids": 1e-3}, ["0.512+", "0.512", "unknown", "unknown"]),
        ({"looked_up_ids": 1e-3, "sent_ids": 1e-3}, ["0.640+", "0.512", "unknown", "0.128"]),
        ({"steps": 4.0}, ["unknown", "unknown", "unknown", "unknown"]),
        (dict.fromkeys(KINDS, 1e-9), ["0.000", "0.000", "0.000", "0.000"]),
    ],
)
def test_unknown_costs_are_not_printed_as_0_ms(milliseconds: dict[str, float], cells: list[str]) -> None:
    """By hand: the rank looks up 512 ids for two ranks of 256 rows; a rank sends half of its 256."""
    load, there = workload({"a": (5000, 16)}, rows_per_rank=256), hardware(2)
    cost = CalibratedCost(Calibration(VERSION, "cpu", {2: UnitCosts(milliseconds, 40, ["m"], 0.0)}))
    option = on_ranks(enumerate_options(load, there, sharders(), {"a": ("table_wise",)})["a"][0], [0])
    given = Candidate("given", [option], cost.rate([option], load, there))
    text = explanation_text(explain([given], load, there, sharders(), cost))
    (line,) = [line.split() for line in text.splitlines() if line.startswith("a ") and "table_wise" in line]
    assert line[-4:] == cells
    assert ("unknown: no measured plan tells this cost" in text) == ("unknown" in cells)


@pytest.mark.parametrize("columns", [100, 80, 60])
@pytest.mark.parametrize("subject", ["large", "long names"])
def test_an_explanation_fits_the_screen(
    subject: str, columns: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    path = tmp_path / "long.yaml"
    path.write_text(TABLES.replace("item", "advertiser_of_the_last_clicked_item_in_session"))
    if subject == "large":
        path.write_text(TABLES.replace("50000", "900000000").replace("900,", "40000000,"))
    main([str(path), "--world", "4", "--ddr", "90GB"])
    text = capsys.readouterr().out
    assert all(len(line) <= columns for line in text.splitlines()), max(text.splitlines(), key=len)
    names = ["item ", "user "] if subject == "large" else ["adv", "user "]  # shortened in its middle
    assert all(any(line.startswith(name) for line in text.splitlines()) for name in names)


def test_ranks_are_written_as_ranges() -> None:
    assert rank_ranges([3]) == "3"
    assert rank_ranges([0, 1, 2, 3]) == "0-3"
    assert rank_ranges([0, 4, 5, 5]) == "0,4-5"
    assert rank_ranges([0, 2, 4, 6, 8, 10]) == "6 ranks"


def test_a_plan_that_is_no_searchs_is_explained_as_well() -> None:
    load, there = workload({"a": (5000, 16)}), hardware(2)
    option = on_ranks(enumerate_options(load, there, sharders(), {"a": ("row_wise",)})["a"][0], [0, 1])
    given = Candidate("plan.json", [option], COST.rate([option], load, there))
    explained = explain([given, *search(load, there, sharders(), COST)], load, there, sharders(), COST)
    assert explained.tables[0].sharding_type == "row_wise"
    assert min(explained.candidates.values()) < explained.step
