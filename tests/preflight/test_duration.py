"""How long a run takes: from logs and measurements, and never a guess."""

import json
from datetime import timedelta
from pathlib import Path

import pytest

from sidrec.config import Recipe, save
from sidrec.doctor.measured_run import Rate, duration_finding, logged_rate
from tests.small_log import small_recipe


def log(recipe: Recipe, speeds: list[float], ranks: int = 1) -> None:
    recipe.run.mkdir(parents=True)
    lines = [json.dumps({"step": 5 * n, "samples_per_second": speed}) for n, speed in enumerate(speeds)]
    (recipe.run / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 99, "samp']) + "\n")  # killed in a line
    (recipe.run / "run.json").write_text(json.dumps({"ranks": ranks, "device": "cpu", "threads_per_rank": 1}))
    save(recipe, recipe.run / "config.yaml")


def test_without_a_run_or_measurement_it_is_unknown(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path)
    assert logged_rate(recipe, 1) is None
    found = duration_finding(recipe, 600, None)
    assert (found.state, found.found) == ("note", "unknown until the first steps are done")


def test_the_time_is_rows_over_rate(tmp_path: Path) -> None:
    """Two epochs of 36,000 rows at 10, 20 and 40 samples a second."""
    found = duration_finding(small_recipe(tmp_path), 36_000, Rate(10, 20, 40, "as measured"))
    times = [str(timedelta(hours=hours)) for hours in (1, 0.5, 2)]
    assert found.found.startswith(
        f"about {times[0]} ({times[1]} to {times[2]}) for 72,000 rows at 20 samples/s (p10 10, "
    )


def test_a_logged_rate_excludes_the_first_steps_and_names_its_conditions(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path)
    log(recipe, [1.0, 100.0, 200.0, 300.0])
    rate = logged_rate(recipe, 1)
    assert rate is not None
    assert (rate.p10, rate.p50, rate.p90) == pytest.approx((120, 200, 280))
    assert rate.source == f"as {recipe.run} logged on 1 rank(s), cpu, 1 thread(s) each, batches of 64"


def test_other_conditions_are_reported(tmp_path: Path) -> None:
    log(small_recipe(tmp_path), [1.0, 100.0, 200.0, 300.0], ranks=2)
    other = small_recipe(tmp_path, seed=1, data={"batch_size": 128})
    rate = logged_rate(other, 4)
    assert rate is not None
    assert rate.source.endswith("batches of 64, while this is for 4 rank(s) and batches of 128")


def test_a_log_that_is_too_short_gives_no_estimate(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path)
    log(recipe, [1.0, 100.0, 200.0])
    assert logged_rate(recipe, 1) is None
