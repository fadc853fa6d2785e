"""What a calibration does not know: costs that are missing, plans outside of the measured range, doubts."""

from dataclasses import replace
from pathlib import Path

import pytest

from sidrec.config.recipe import ParallelConfig
from sidrec.parallel.planning import plan_for
from sidrec.plans.calibration import (
    VERSION,
    CalibratedCost,
    Calibration,
    Identifiability,
    UnitCosts,
    load_calibration,
    save_calibration,
)
from sidrec.plans.cost import KINDS, TorchRecCost
from sidrec.plans.options import enumerate_options, on_ranks
from tests.plans.tables_workload import hardware, sharders, workload


def _calibrated(**milliseconds: float) -> CalibratedCost:
    return CalibratedCost(Calibration(VERSION, "cpu", {4: UnitCosts(milliseconds, 1, ["m"], 0.0)}))


KNOWN = Identifiability(
    plans=40,
    coefficients=10,
    rank=10,
    condition=7.0,
    absent=["replicated_bytes"],
    zero=["sent_ids", "sorted_ids"],
    inseparable=[],
    ranges={},
    left_out_plan=0.05,
    left_out_workload=0.2,
)
EVERYTHING = {kind: 1.0 for kind in KINDS if kind not in ("replicated_bytes", "sent_ids", "sorted_ids")}


@pytest.mark.parametrize(
    ("kind", "milliseconds", "unknown"),
    [
        ("table_wise", EVERYTHING, ["input_dist"]),
        ("row_wise", EVERYTHING, ["input_dist"]),
        ("data_parallel", EVERYTHING, ["comms"]),  # its only work; no lookups are counted for replicas
        ("row_wise", {**EVERYTHING, "sorted_ids": 1.0}, []),
        ("table_wise", {**EVERYTHING, "sorted_ids": 1.0}, ["input_dist"]),
        ("data_parallel", {**EVERYTHING, "replicated_bytes": 1.0}, []),
        ("table_wise", {"exchanged_bytes": 1.0}, ["lookups", "input_dist"]),
        ("row_wise", {"exchanged_bytes": 1.0}, ["lookups", "comms", "input_dist"]),
        ("table_wise", {"pooled_bags": 1.0}, ["comms", "input_dist"]),
        ("column_wise", {"steps": 1.0, "exchanges": 3.0}, ["lookups", "comms", "input_dist"]),
        ("table_wise", {}, ["lookups", "comms", "input_dist"]),
    ],
)
def test_parts_without_a_cost_are_unknown_not_free(
    kind: str, milliseconds: dict[str, float], unknown: list[str]
) -> None:
    load, there = workload({"a": (5000, 16)}), hardware()
    option = enumerate_options(load, there, sharders(), {"a": (kind,)})["a"][0]
    assert _calibrated(**milliseconds).unknown_parts(option, load, there) == unknown
    assert TorchRecCost().unknown_parts(option, load, there) == []


AMOUNTS = {"sent_ids": 384.0, "exchanges": 1.0, "looked_up_ids": 2048.0}  # of one table by table on four ranks


@pytest.mark.parametrize(
    ("ranges", "outside"),
    [
        ({"sent_ids": (384.0, 384.0)}, []),
        ({"sent_ids": (100.0, 400.0)}, []),
        ({"sent_ids": (10.0, 366.0)}, []),  # within 5%
        ({"sent_ids": (400.0, 900.0)}, []),
        ({"sent_ids": (10.0, 300.0)}, ["sent_ids 384 (measured: 10 to 300)"]),
        ({"sent_ids": (500.0, 900.0)}, ["sent_ids 384 (measured: 500 to 900)"]),
        ({"exchanges": (2.0, 4.0)}, ["exchanges 1 (measured: 2 to 4)"]),
        ({"looked_up_ids": (1e6, 2e6)}, ["looked_up_ids 2,048 (measured: 1,000,000 to 2,000,000)"]),
        ({"replicated_bytes": (5.0, 6.0)}, []),  # the plan has none
        ({"steps": (5.0, 6.0), "multiplications": (5.0, 6.0)}, []),  # the same under every plan
        ({"sent_ids": (1.0, 2.0), "exchanges": (7.0, 9.0)}, ["sent_ids 384", "exchanges 1 (measured: 7 to 9)"]),
    ],
)
def test_a_plan_outside_of_the_measured_range_is_said(
    ranges: dict[str, tuple[float, float]], outside: list[str]
) -> None:
    load, there = workload({"a": (5000, 16)}), hardware()
    option = on_ranks(enumerate_options(load, there, sharders(), {"a": ("table_wise",)})["a"][0], [1])
    costs = UnitCosts(EVERYTHING, 40, ["m"], 0.0, identifiability=replace(KNOWN, ranges=ranges))
    said = CalibratedCost(Calibration(VERSION, "cpu", {4: costs})).remarks([option], load, there)
    assert "work of this plan whose cost is unknown, and counted as 0 ms: sent_ids (regressed to 0)" in said[0]
    assert said[-1] == "the calibration's median error: 20% on plans of a workload left out, 5% on plans left out"
    found = [line for line in said if line.startswith("outside the calibrated range")]
    assert len(found) == bool(outside)
    assert all(part in found[0] for part in outside)


@pytest.mark.parametrize(
    ("known", "world", "said"),
    [
        (KNOWN, 4, []),
        (KNOWN, 2, ["measured on 4 rank(s): for 2 the costs of the nearest number are used"]),
        (replace(KNOWN, plans=12), 4, ["rests on 12 distinct plans for 10 coefficients"]),
        (replace(KNOWN, inseparable=["exchanges"]), 4, ["do not separate from each other: exchanges"]),
        (replace(KNOWN, left_out_plan=None, left_out_workload=None), 4, ["not known, since no plan could be left out"]),
        (None, 4, ["the calibration is of an earlier version", "It rests on: 40 plan(s) for 14 kinds of work"]),
    ],
)
def test_doubts_about_a_calibration_are_said(known: Identifiability | None, world: int, said: list[str]) -> None:
    load, there = workload({"a": (5000, 16)}), hardware(world)
    option = on_ranks(enumerate_options(load, there, sharders(), {"a": ("table_wise",)})["a"][0], [1])
    costs = UnitCosts(dict.fromkeys(KINDS, 1.0), 40, ["m"], 0.0, identifiability=known)
    found = " ".join(CalibratedCost(Calibration(VERSION, "cpu", {4: costs})).remarks([option], load, there))
    assert all(part in found for part in said)
    assert ("nearest" in found, "rests on" in found) == (world == 2, known is None or known.plans == 12)
    assert TorchRecCost().remarks([option], load, there) == []


@pytest.mark.parametrize(
    ("ranges", "said"),
    [
        ({"looked_up_ids": (1.0, 1e9)}, ""),
        ({"looked_up_ids": (1e7, 1e9)}, "outside the calibrated range, so that the prediction extrapolates"),
        ({"sent_ids": (1.0, 2.0)}, "sent_ids 384 (measured: 1 to 2)"),
    ],
)
def test_a_training_outside_of_the_measured_range_is_warned(
    ranges: dict[str, tuple[float, float]], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = replace(KNOWN, ranges=ranges)
    costs = UnitCosts(dict.fromkeys(KINDS, 1.0), 40, ["m"], 0.0, identifiability=known)
    file, load, there = tmp_path / "calibration.json", workload({"a": (5000, 16)}), hardware()
    save_calibration(file, Calibration(VERSION, "cpu", {4: costs}))
    assert load_calibration(file, "cpu").worlds[4].identifiability == known
    plan_for(load.model, sharders(), ParallelConfig(calibration=file, sharding="table_wise"), lambda: load, there)
    warned = capsys.readouterr().err
    assert warned.startswith(f"sidrec: warning: {file}: outside") if said else not warned
    assert said in warned
