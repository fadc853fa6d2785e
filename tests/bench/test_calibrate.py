"""From benches to a calibration file: what is fitted, what is said, what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sidrec.bench.calibrate import accuracy, calibrate, held_out, samples
from sidrec.bench.result import BenchResult, PlanMeasurement, Prediction, Timing
from sidrec.config import ConfigError
from sidrec.plans.cost import KINDS, NO_PLANS, load_calibration
from sidrec.schema import ContractError

FAILED = PlanMeasurement(
    name="grid",
    plan={},
    failed="cannot be built",
    rounds=[],
    timings={},
    memory=[],
    lookups=[],
    default=None,
    calibrated=None,
)
COST_K = np.linspace(1.0, 2.0, len(KINDS))


def _bench(name: str, plans: int, seed: int) -> BenchResult:
    """Plans whose steps take what their work costs; TorchRec expects the reverse."""
    rng = np.random.default_rng(seed)
    measured = []
    for n in range(plans):
        work_WK = rng.random((2, len(KINDS)))
        work_WK[:, [KINDS.index(kind) for kind in NO_PLANS]] = 1.0
        step = float((work_WK @ COST_K).max())
        work = {kind: work_WK[:, k].tolist() for k, kind in enumerate(KINDS)}
        timings = {"step": Timing(step, step, step)}
        predicted = Prediction(100.0 - step, {})
        measured.append(replace(FAILED, name=f"plan {n}", failed=None, timings=timings, default=predicted, work=work))
    return BenchResult(
        1, {"name": name}, {"world": 2, "device": "cpu"}, {"commit": "abc"}, 1, True, [*measured, FAILED]
    )


def _write(folder: Path, bench: BenchResult) -> Path:
    path = folder / f"{bench.workload['name']}.json"
    path.write_text(json.dumps(bench.as_json()))
    return path


def test_a_calibration_is_written_and_its_accuracy_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [_write(tmp_path, _bench(name, 25, seed)) for seed, name in enumerate(("criteo", "beauty"))]
    calibrate(files, tmp_path / "calibration.json")
    said = capsys.readouterr().out
    assert "2 rank(s), 50 plans of 2 workload(s)" in said
    lines = [line.split() for line in said.splitlines() if line.startswith("beauty")]
    by_model = {" ".join(words[2:-4]): float(words[-3]) for words in lines}
    assert {words[1] for words in lines} == {str(files[1])}
    assert by_model["TorchRec's constants"] == -1.0
    assert by_model["calibrated on the other workloads"] > 0.9
    assert by_model["calibrated on all"] > 0.98
    written = load_calibration(tmp_path / "calibration.json", "cpu")
    assert written.worlds[2].samples == 50
    assert written.conditions["benches"][str(files[0])] == {"commit": "abc"}


def test_fewer_plans_than_unknown_costs_are_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few, many = _write(tmp_path, _bench("few", 5, 0)), _write(tmp_path, _bench("many", 25, 0))
    calibrate([few], tmp_path / "calibration.json")
    said = " ".join(capsys.readouterr().out.split())
    unknown = len(KINDS) - len(NO_PLANS) + 1
    assert f"unknown costs: {unknown} (" in said
    assert "warning: fewer plans than unknown costs: the costs are not determined" in said
    calibrate([many], tmp_path / "calibration.json")
    said = " ".join(capsys.readouterr().out.split())
    assert f"unknown costs: {unknown} (" in said
    assert "from 25 plans" in said
    assert "warning" not in said


def test_accuracy_by_hand() -> None:
    found = accuracy([1.0, 2.0, 30.0, 40.0], [20.0, 10.0, 30.0, 40.0])
    assert found.spearman == pytest.approx(0.8)  # ranks 1 2 3 4 and 2 1 3 4: 1 - 6 * 2 / (4 * 15)
    assert found.error == pytest.approx(0.4)  # .95, .8, 0, 0
    assert found.regret == pytest.approx(1.0)  # the plan expected to take 1 takes 20, the fastest 10


def test_one_plan_has_no_order() -> None:
    assert accuracy([1.0], [2.0]).spearman is None
    assert accuracy([1.0, 1.0], [2.0, 3.0]).spearman is None


def test_one_workload_cannot_be_held_out() -> None:
    assert held_out(samples(_bench("criteo", 5, 0), "x")) == {}


def test_benches_of_one_workload_are_held_out_together() -> None:
    """The second bench of criteo took ten times as long: a fit that knows it is no fit to the others."""
    again = _bench("criteo", 25, 2)
    slow = [replace(each, bench="b", step=each.step * 10) for each in samples(again, "b")]
    found = held_out([*samples(_bench("criteo", 25, 0), "a"), *slow, *samples(_bench("beauty", 25, 1), "c")])
    assert set(found) == {"a", "b", "c"}
    assert found["a"].error < 0.3
    assert found["b"].error > 0.8


def test_a_bench_that_counted_no_work_is_refused(tmp_path: Path) -> None:
    bench = _bench("criteo", 2, 0)
    file = _write(tmp_path, replace(bench, plans=[replace(plan, work={}) for plan in bench.plans]))
    with pytest.raises(ContractError, match="plan plan 0: expected work of the kinds looked_up_ids"):
        calibrate([file], tmp_path / "calibration.json")
    assert not (tmp_path / "calibration.json").exists()


def test_benches_of_two_kinds_of_device_are_refused(tmp_path: Path) -> None:
    one, other = _bench("criteo", 2, 0), _bench("beauty", 2, 1)
    files = [_write(tmp_path, one), _write(tmp_path, replace(other, hardware={"world": 2, "device": "cuda"}))]
    with pytest.raises(ConfigError, match="expected benches of one kind of device"):
        calibrate(files, tmp_path / "calibration.json")


def test_a_bench_without_measured_plans_is_refused(tmp_path: Path) -> None:
    bench = _bench("criteo", 0, 0)
    with pytest.raises(ConfigError, match="expected at least one measured plan, got none"):
        calibrate([_write(tmp_path, bench)], tmp_path / "calibration.json")


@pytest.mark.parametrize("text", ["{", '{"version": 9}', '{"version": 1, "plans": 3}'])
def test_what_is_no_bench_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bench.json"
    path.write_text(text)
    with pytest.raises(ContractError, match="expected"):
        calibrate([path], tmp_path / "calibration.json")
