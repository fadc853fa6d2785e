"""Costs regressed on measured plans, their file, and the command: what it prints and refuses."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sidrec.bench.calibrate import accuracy, calibrate, held_out
from sidrec.bench.regression import Sample, calibrate_costs, samples
from sidrec.bench.result import BenchResult, PlanMeasurement, Prediction, Timing
from sidrec.config import ConfigError
from sidrec.plans.calibration import VERSION, Calibration, UnitCosts, load_calibration, save_calibration
from sidrec.plans.cost import KINDS, NO_PLANS
from sidrec.schema import ContractError

COSTS = {"looked_up_ids": 2e-4, "exchanged_bytes": 5e-6, "exchanges": 1.5, "multiplications": 1e-8, "steps": 4.0}
MOST = {"looked_up_ids": 1e5, "exchanged_bytes": 4e6, "exchanges": 4}
COST_K = np.array([COSTS.get(kind, 0.0) for kind in KINDS])
MULTIPLICATIONS = {"model 0": 2e8, "model 1": 1e9, "model 2": 4e8}


def _samples(count: int, noise: float, seed: int = 0) -> list[Sample]:
    """Plans of random work, of which the slowest rank's takes what COSTS say."""
    rng = np.random.default_rng(seed)
    samples = []
    for n in range(count):
        workload = f"model {n % 3}"
        work_WK = rng.random((2, len(KINDS))) * np.array([MOST.get(kind, 0) for kind in KINDS])
        work_WK[:, KINDS.index("multiplications")] = MULTIPLICATIONS[workload]
        work_WK[:, KINDS.index("steps")] = 1
        step = float((work_WK @ COST_K).max() * rng.lognormal(0, noise))
        samples.append(Sample(workload, f"bench of {workload}", f"plan {n}", work_WK, step))
    return samples


def test_the_costs_that_made_the_measurements_are_found() -> None:
    found = calibrate_costs(_samples(40, noise=0.0))
    assert {kind: found.milliseconds[kind] for kind in COSTS} == pytest.approx(COSTS, rel=0.02)
    assert found.error < 0.01
    assert found.workloads == ["model 0", "model 1", "model 2"]


def test_the_spread_is_between_plans_of_one_workload() -> None:
    """A model that takes half as long again under every plan is no reason to doubt the order of its plans."""
    assert calibrate_costs(_samples(40, noise=0.0)).spread < 0.01
    noisy = _samples(60, noise=0.1)
    slower = [replace(each, step=each.step * 1.5) if each.workload == "model 1" else each for each in noisy]
    assert 0.02 < calibrate_costs(noisy).spread < 0.1
    assert calibrate_costs(slower).spread == pytest.approx(calibrate_costs(noisy).spread, abs=0.05)


def test_plans_not_fitted_to_are_predicted_under_noise() -> None:
    found = calibrate_costs(_samples(60, noise=0.05))
    for unseen in _samples(20, noise=0.0, seed=1):
        assert found.step(unseen.work_WK) == pytest.approx(unseen.step, rel=0.15)


def test_dense_layers_that_take_long_say_nothing_about_plans() -> None:
    plain = _samples(30, noise=0.0)
    heavy = [replace(each, step=each.step + 500.0) if each.workload == "model 1" else each for each in plain]
    expected, found = calibrate_costs(plain).milliseconds, calibrate_costs(heavy).milliseconds
    for kind in MOST:
        assert found[kind] == pytest.approx(expected[kind], rel=0.05)


def test_plans_measured_in_a_slow_hour_are_not_called_slow() -> None:
    """Two benches of one model, plans of the second 20 ms slower each: a fit that took them for one would be off."""
    first, second = _samples(30, noise=0.0), _samples(30, noise=0.0, seed=1)
    slow = [replace(each, step=each.step + 20.0, bench=f"{each.bench}, later") for each in second]
    found = calibrate_costs([*first, *slow])
    assert [found.milliseconds[kind] for kind in MOST] == pytest.approx([COSTS[kind] for kind in MOST], 0.02)
    assert found.workloads == ["model 0", "model 1", "model 2"]


def test_work_that_was_never_done_costs_nothing() -> None:
    assert calibrate_costs(_samples(20, noise=0.0)).milliseconds["replicated_bytes"] == 0.0


def test_a_world_that_was_not_measured_is_predicted_by_the_nearest() -> None:
    two = calibrate_costs(_samples(10, 0.0))
    calibration = Calibration(VERSION, "cpu", {2: two, 8: replace(two, samples=99)})
    assert [calibration.costs_for(world).samples for world in (1, 2, 3, 8, 64)] == [10, 10, 10, 99, 99]


def test_the_file_reads_back_equal(tmp_path: Path) -> None:
    calibration = Calibration(VERSION, "cpu", {2: calibrate_costs(_samples(10, 0.0))}, {"commit": "abc"})
    path = tmp_path / "calibration.json"
    save_calibration(path, calibration)
    assert load_calibration(path, "cpu") == calibration


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "expected valid JSON"),
        ('{"version": 7}', "expected a calibration of version 4, got 7"),
        ('{"version": 4, "device": "cpu"}', "worlds: Field required"),
        ('{"version": 4, "device": "cuda", "worlds": {}}', "expected a calibration of cpu, got one of cuda"),
        ('{"version": 4, "device": "cpu", "worlds": {}}', "at least one world, got none"),
    ],
)
def test_what_is_no_calibration_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "calibration.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_calibration(path, "cpu")


def test_nothing_measured_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least one measured plan"):
        calibrate_costs([])


def test_a_fit_of_fewer_kinds_reads_as_zero() -> None:
    assert UnitCosts({"exchanges": 2.0}, 1, ["m"], 0.0).costs().sum() == 2.0


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
LINEAR_K = np.linspace(1.0, 2.0, len(KINDS))


def _bench(name: str, plans: int, seed: int) -> BenchResult:
    """Plans whose steps take what their work costs; TorchRec expects the reverse."""
    rng = np.random.default_rng(seed)
    measured = []
    for n in range(plans):
        work_WK = rng.random((2, len(KINDS)))
        work_WK[:, [KINDS.index(kind) for kind in NO_PLANS]] = 1.0
        step = float((work_WK @ LINEAR_K).max())
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


def test_a_calibration_is_written_and_its_accuracy_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [_write(tmp_path, _bench(name, 25, seed)) for seed, name in enumerate(("criteo", "beauty"))]
    calibrate(files, tmp_path / "calibration.json")
    said = capsys.readouterr().out
    assert "2 rank(s), 50 plans of 2 workload(s)" in said
    lines = [line.split() for line in said.splitlines() if line.startswith("beauty")]
    assert all(len(line) <= 100 for line in said.splitlines()[:-1])  # the last names the file
    by_model = {" ".join(words[2:-4]): float(words[-3]) for words in lines}
    assert all("…" in words[1] and words[1].endswith("beauty.json") for words in lines)
    assert by_model["TorchRec's constants"] == -1.0
    assert by_model["other workloads"] > 0.9
    assert by_model["other plans"] > 0.9
    assert by_model["all plans"] > 0.98
    known = load_calibration(tmp_path / "calibration.json", "cpu").worlds[2].identifiability
    assert known is not None
    assert (known.plans, known.coefficients, known.rank) == (50, 16, 16)
    said = " ".join(said.split())
    assert f"median error: {known.left_out_workload:.0%} on plans of a workload left out" in said
    written = load_calibration(tmp_path / "calibration.json", "cpu")
    assert written.worlds[2].samples == 50
    assert written.conditions["benches"][str(files[0])] == {"commit": "abc"}


def test_fewer_plans_than_unknown_costs_are_refused_and_few_are_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "calibration.json"
    files = {plans: _write(tmp_path, _bench(f"plans {plans}", plans, 0)) for plans in (1, 5, 14, 15, 22, 23, 25)}
    unknown = len(KINDS) - len(NO_PLANS) + 1
    for plans in (1, 5, 14):
        with pytest.raises(
            ConfigError, match=rf"at least {unknown} distinct plans.* got {plans}; .*{unknown - plans} more"
        ):
            calibrate([files[plans]], out)
        assert not out.exists()
    for plans in (15, 22, 23, 25):
        calibrate([files[plans]], out)
        said = " ".join(capsys.readouterr().out.split())
        assert f"unknown costs: {unknown} (" in said
        assert f"from {plans} distinct plans" in said
        assert ("warning" in said) == (plans < 1.5 * unknown)


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
