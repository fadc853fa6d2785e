"""A calibration finds the costs that made the measurements, orders plans it has not seen, and survives its file."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sidrec.bench.calibrate import Sample, calibrate_costs
from sidrec.config import ConfigError
from sidrec.plans.cost import KINDS, VERSION, Calibration, UnitCosts, load_calibration, save_calibration

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


def test_a_bench_in_a_slow_hour_says_nothing_about_plans() -> None:
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
    ("text", "said"),
    [
        ("{", "expected valid JSON"),
        ('{"version": 7}', "expected a calibration of version 4, got 7"),
        ('{"version": 4, "device": "cpu"}', "worlds: Field required"),
        ('{"version": 4, "device": "cuda", "worlds": {}}', "expected a calibration of cpu, got one of cuda"),
        ('{"version": 4, "device": "cpu", "worlds": {}}', "at least one world, got none"),
    ],
)
def test_what_is_no_calibration_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "calibration.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        load_calibration(path, "cpu")


def test_nothing_measured_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least one measured plan"):
        calibrate_costs([])


def test_a_fit_of_fewer_kinds_reads_as_zero() -> None:
    assert UnitCosts({"exchanges": 2.0}, 1, ["m"], 0.0).costs().sum() == 2.0
