"""The recorded benches: written back as they were, and how well costs predicted them."""

import json
from pathlib import Path

import pytest

from benchmarks import RESULTS
from benchmarks.recorded_benches import CHOSEN, accuracy_of, record, recorded, recorded_all, write_back
from sidrec.bench.identifiability import identifiability
from sidrec.bench.regression import calibrate_costs, samples
from sidrec.bench.result import load_bench, parse_bench
from sidrec.plans.calibration import load_calibration
from tests.bench.bench_results import made_up


def test_a_bench_survives_a_round_trip(tmp_path: Path) -> None:
    names = ("tables-2", "chosen/tables-2")
    for name in names:
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "bench.json").write_text(json.dumps(made_up(("auto", "row_wise")).as_json()))
    record(tmp_path, tmp_path / "benches.parquet")
    assert set(recorded_all(tmp_path / "benches.parquet")) == set(names)
    for path in write_back(tmp_path / "again", tmp_path / "benches.parquet"):
        assert load_bench(path) == made_up(("auto", "row_wise"))


def test_the_recorded_benches_are_benches() -> None:
    benches = recorded_all()
    assert len(benches) == 38
    for name, raw in benches.items():
        assert parse_bench(raw, Path(name)).complete, name
    assert recorded("amazon_beauty-2") == benches["amazon_beauty-2"]


def test_the_recorded_calibration_is_regressed_again() -> None:
    """Two workloads more or less would change costs by a factor; processors differ in the last digits."""
    benches = {name: parse_bench(raw, Path(name)) for name, raw in recorded_all().items()}
    recorded_costs = load_calibration(RESULTS / "plans" / "calibration.json", "cpu").worlds
    for world, costs in recorded_costs.items():
        of = [
            sample
            for name, bench in benches.items()
            if not name.startswith(CHOSEN) and bench.hardware["world"] == world
            for sample in samples(bench, name)
        ]
        found = calibrate_costs(of)
        assert found.milliseconds == pytest.approx(costs.milliseconds, rel=1e-6, abs=1e-12)
        known = identifiability(of, found)
        assert (known.coefficients, known.rank, known.absent, known.inseparable) == (26, 26, [], [])
        assert known.left_out_plan is not None
        assert known.left_out_workload is not None
        assert 0.05 < known.left_out_plan <= known.left_out_workload + 0.05 < 0.3


def test_auto_is_compared_with_the_fastest_other_plan_of_a_chosen_bench() -> None:
    raw = recorded("chosen/ten_million-2")
    found = accuracy_of({"chosen/ten_million-2": parse_bench(raw, Path("bench.json"))})["chosen"]
    steps = {plan["name"]: plan["timings"]["step"]["p50"] for plan in raw["plans"] if plan["failed"] is None}
    fastest = min((name for name in steps if name != "auto"), key=steps.__getitem__)
    both = found["chosen/ten_million-2"]  # type: ignore[index]
    assert both["auto"]["over"] == fastest
    assert both["torchrec"]["over"] == "auto"
