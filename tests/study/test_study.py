"""Studies: what is trained, what is skipped, what survives a failure, and the reports that come out."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from sidrec.cli import main as sidrec
from sidrec.config import ConfigError
from sidrec.study.comparison import comparison
from sidrec.study.definition import load_study
from sidrec.study.jobs import merge, study_runs
from sidrec.study.results import run_results
from tests import fake_trainer

ROOT = Path(__file__).parents[2]
SMALL: dict[str, Any] = {
    "runs": [0],
    "command": [sys.executable, fake_trainer.__file__, "{recipe}", "{ranks}"],
    "variants": {"weak": {}, "strong": {"optimizer": {"tables": {"lr": 2.0}}}},
}
COMPARED: dict[str, Any] = {"references": ["weak"], "command": [*SMALL["command"], "predictions"]}


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    impressions = [max(0, 15 - item) for item in range(fake_trainer.ITEMS)]  # the last five items are cold
    items = {"item_id": range(1, fake_trainer.ITEMS + 1), "train_impressions": impressions}
    pq.write_table(pa.table(items), "data/items.parquet")
    recipe = {
        "name": "world",
        "data": {"path": "data", "catalog": "catalog"},
        "optimizer": {"tables": {"kind": "adagrad", "lr": 0.1}},
    }
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))


def _write_study(**changes: Any) -> str:
    Path("small.yaml").write_text(
        yaml.safe_dump({"datasets": {"world": "recipe.yaml"}, **SMALL, **changes}, sort_keys=False)
    )
    return "small.yaml"


def _study(*words: str, **changes: Any) -> int:
    return sidrec(["study", *words, _write_study(**changes), "--results", "results"])


def _trained() -> list[str]:
    """What the trainer was called for since the last time asked."""
    calls = Path("runs/studies/small/calls")
    lines = calls.read_text().splitlines() if calls.exists() else []
    calls.unlink(missing_ok=True)
    return lines


def _log() -> str:
    return Path("runs/studies/small/study.log").read_text()


def test_merging_goes_section_by_section_and_replaces_another_kind_whole() -> None:
    base = {"model": {"dim": 16, "item": {"kind": "sid_coord", "gate": {"kind": "stats", "hidden": 64}}}, "seed": 0}
    assert merge(base, {"model": {"dim": 8}})["model"] == {"dim": 8, "item": base["model"]["item"]}  # type: ignore[index]
    assert merge(base, {"model": {"item": {"kind": "hid"}}})["model"] == {"dim": 16, "item": {"kind": "hid"}}
    gate = merge(base, {"model": {"item": {"gate": {"hidden": 8}}}})["model"]["item"]["gate"]
    assert gate == {"kind": "stats", "hidden": 8}
    same_kind = merge(base, {"model": {"item": {"kind": "sid_coord", "fusion": {"kind": "mean"}}}})["model"]["item"]
    assert set(same_kind) == {"kind", "gate", "fusion"}
    assert base["seed"] == 0
    assert merge({"layers": [1, 2]}, {"layers": [3]}) == {"layers": [3]}


def test_every_run_leaves_one_row_with_its_conditions() -> None:
    assert _study(runs=[0, 1]) == 0
    assert _trained() == ["world/weak/seed0", "world/strong/seed0", "world/weak/seed1", "world/strong/seed1"]
    results = run_results(Path("results"), load_study(Path("small.yaml")))
    assert list(results.read()) == [("world", name, seed) for seed in (0, 1) for name in ("weak", "strong")]
    result = results.get("world", "strong", 1)
    assert result is not None
    assert result["metrics"]["test"]["all"]["gauc"] == 0.5 + 2.0 / 20
    assert result["facts"] == {"ranks": 1}
    assert result["recipe"]["optimizer"]["tables"] == {"kind": "adagrad", "lr": 2.0}
    assert result["recipe"]["name"] == "strong"
    assert result["conditions"]["ranks"] == 1
    assert {"commit", "cpu", "cores", "memory_gib", "packages"} <= set(result["conditions"])
    assert result["cpu_seconds"] > 0
    assert result["wall_seconds"] > 0


def test_finished_runs_are_skipped_unless_their_recipe_changed() -> None:
    _study()
    _trained()
    assert _study() == 0
    assert _trained() == []
    assert _study(variants={"weak": {}, "strong": {"optimizer": {"tables": {"lr": 1.0}}}}) == 0
    assert _trained() == ["world/strong/seed0"]
    assert "world/strong/run0: the recipe has changed since it was trained" in _log()


@pytest.mark.parametrize("keep", [False, True])
def test_predictions_of_recorded_runs_are_kept_on_request(keep: bool) -> None:
    _study(**{**COMPARED, "keep": keep})
    run = Path("runs/studies/small/world/weak/seed0")
    assert (run / "metrics.json").exists()
    assert (run / "predictions_test.parquet").exists() == keep
    _trained()
    assert _study(**{**COMPARED, "keep": keep}) == 0
    assert _trained() == []


def test_a_new_seed_trains_only_that_seed() -> None:
    _study()
    _trained()
    _study(runs=[0, 1])
    assert _trained() == ["world/weak/seed1", "world/strong/seed1"]


def test_a_variant_may_have_more_seeds_than_the_others() -> None:
    assert _study(runs_of={"strong": 2}) == 0
    assert _trained() == ["world/weak/seed0", "world/strong/seed0", "world/strong/seed1"]
    with pytest.raises(ConfigError, match=r"runs_of: expected one of \['weak', 'strong'\], got 'other'"):
        load_study(Path(_write_study(runs_of={"other": [0]})))


def test_a_failed_run_is_logged_and_does_not_stop_the_others() -> None:
    broken = {"broken": {"optimizer": {"schedule": {"warmup_steps": 13}}}, "weak": {}}
    assert _study(variants=broken, runs=[0]) == 1
    assert _trained() == ["world/broken/seed0", "world/weak/seed0"]
    assert "world/broken/run0 failed: exit status 1" in _log()
    assert "unlucky warm-up" in _log()
    assert run_results(Path("results"), load_study(Path("small.yaml"))).get("world", "broken", 0) is None
    assert _study(variants=broken, runs=[0]) == 1  # tries again, from where it was
    assert _trained() == ["world/broken/seed0 resumed"]


def test_a_run_directory_of_another_recipe_is_not_resumed() -> None:
    broken = {"weak": {"optimizer": {"schedule": {"warmup_steps": 13}}}}
    _study(variants=broken, runs=[0])
    _trained()
    assert _study(variants={"weak": {}}, runs=[0]) == 0
    assert _trained() == ["world/weak/seed0"]


def test_a_stopped_study_stops_its_training() -> None:
    command = [sys.executable, "-m", "sidrec", "study", _write_study(command=[*SMALL["command"], "hang"])]
    study = subprocess.Popen([*command, "--results", "results"], env={**os.environ, "PYTHONPATH": str(ROOT)})
    pid = Path("runs/studies/small/world/weak/seed0/pid")
    try:
        _wait_until(lambda: pid.exists() and pid.read_text() != "")
        study.terminate()
        assert study.wait(timeout=300) == 128 + 15
    finally:
        study.kill()
    _wait_until(lambda: not psutil.pid_exists(int(pid.read_text())))
    assert [path for path in Path("results").rglob("*") if path.is_file()] == []


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline, "waited for 300 s"
        time.sleep(0.05)


def test_a_mistake_in_any_recipe_is_found_before_training(capsys: pytest.CaptureFixture[str]) -> None:
    assert _study(variants={"weak": {}, "typo": {"optimizer": {"tables": {"rate": 1}}}}) == 2
    assert _trained() == []
    message = capsys.readouterr().err
    assert "recipe of world/typo/run0: 1 mistake(s)" in message
    assert "optimizer.tables.adagrad.rate" in message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sedes": [1]}, "sedes: Unexpected keyword argument"),
        ({"runs": []}, "runs: Tuple should have at least 1 item"),
        ({"runs": 0}, "runs: .*expected at least one run, got 0"),
        ({"runs": [0, 0]}, "runs: .*expected every run number once"),
        ({"runs": "folder"}, "runs: .*a number of runs or a list of run numbers .* `work`"),
        ({"seeds": [0]}, "seeds is the former name of runs: expected one of them"),
        ({"references": ["week"]}, r"references: expected one of \['weak', 'strong'\], got 'week'"),
        ({"tuned": {"world": {"week": {}}}}, "tuned.world: expected one of"),
        ({"variants": {"weak": {}, "a/b": {}}}, "variants: expected letters, digits"),
        ({"datasets": {}}, "datasets: Dictionary should have at least 1 item"),
    ],
)
def test_a_wrong_study_is_refused_by_key(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_study(Path(_write_study(**changes)))


def test_a_study_that_is_missing_or_no_yaml_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"none.yaml: expected a readable YAML file"):
        load_study(Path("none.yaml"))
    Path("broken.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match=r"broken.yaml: expected valid YAML"):
        load_study(Path("broken.yaml"))


def test_tuned_values_are_merged_last() -> None:
    tuned = {"world": {"strong": {"optimizer": {"tables": {"lr": 3.0}}}}}
    runs = study_runs(load_study(Path(_write_study(tuned=tuned))))
    assert {run.variant: run.recipe["optimizer"]["tables"]["lr"] for run in runs} == {"weak": 0.1, "strong": 3.0}


@pytest.mark.parametrize("path", sorted(ROOT.glob("benchmarks/studies/*.yaml")), ids=lambda path: path.stem)
def test_shipped_studies_lead_to_recipes_without_mistakes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for run in study_runs(load_study(path)):
        assert run.checked().seed == run.number


def test_where_runs_are_put_does_not_change_the_recipe_hash() -> None:
    here, there = (study_runs(load_study(Path(_write_study(work=work)))) for work in ("a", "b"))
    assert [run.recipe_hash for run in here] == [run.recipe_hash for run in there]
    assert len({run.recipe_hash for run in here}) == 2


def test_reports_are_rebuilt_from_recorded_results_alone(capsys: pytest.CaptureFixture[str]) -> None:
    _study(runs=[0, 1], **COMPARED)
    folder = Path("results/small")
    before = {name: (folder / name).read_text() for name in ("report.md", "report.html", "summary.json")}
    shutil.rmtree("runs")
    for name in before:
        (folder / name).unlink()
    capsys.readouterr()
    assert _study("--report", runs=[0, 1], **COMPARED) == 0
    assert {name: (folder / name).read_text() for name in before} == before
    # AUC by the fake trainer: .5 + lr / 10 + seed / 100; sd of (0, .01) is .01 / sqrt(2)
    assert (
        "| strong | 2 | \N{EN DASH} | .7050 ± .0071 | .6000 ± .0000 | .7050 ± .0071 | .7050 ± .0071 |"
        in before["report.md"]
    )
    difference = json.loads(before["summary.json"])["world"]["strong"]["against"]["weak"]["GAUC"]
    assert 0 < difference["interval"]["low"] <= difference["difference"] <= difference["interval"]["high"]
    assert difference["verdict"] == "won"
    said = "strong is ahead of weak on GAUC by +.0950"
    assert said in before["report.md"]
    assert said in before["report.html"]
    assert capsys.readouterr().out.startswith(f"world: {said}")


def test_intervals_need_no_predictions_of_earlier_runs() -> None:
    _study(**COMPARED)
    shutil.rmtree("runs")
    _study(runs=[0, 1], **COMPARED)  # run 1 has predictions, run 0 no longer does
    study = load_study(Path(_write_study(runs=[0, 1], **COMPARED)))
    found = comparison(study, Path("results")).datasets["world"].variants["strong"].against["weak"]["AUC"]
    assert found is not None
    assert (found.runs, found.why) == ((0, 1), "")
    assert found.hierarchical is not None
    assert "no intervals" not in _log()


def test_runs_without_predictions_have_no_intervals_over_users() -> None:
    _study(runs=[0, 1])
    assert "world/weak/run0: no intervals over users" in _log()
    study = load_study(Path(_write_study(runs=[0, 1], references=["weak"])))
    found = comparison(study, Path("results")).datasets["world"].variants["strong"].against["weak"]["AUC"]
    assert found is not None
    assert (found.hierarchical, found.verdict) == (None, "cannot tell")
    assert "no draws of users are recorded" in found.why


def test_a_report_before_any_run_reports_none() -> None:
    assert _study("--report") == 0
    assert "No run has finished." in Path("results/small/report.md").read_text()
