"""What 0.1.0 left can be used: catalogs load, runs are evaluated and resumed, plan files train."""

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.golden import golden_set, losses, product
from tests.golden.artifacts import ARTIFACTS
from tests.golden.golden_set import EXACT, LOSSES, METRICS, Tolerance, differences

MIDDLE, LAST = 12, 22


def log_of(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, without speeds."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "samples_per_second"} for line in lines]


def without_items(metrics: dict[str, Any]) -> dict[str, Any]:
    """The metrics without the number of items of each slice, which 0.1.0 did not write."""
    slices = {split: found.items() for split, found in metrics.items()}
    return {
        split: {name: {key: value for key, value in entry.items() if key != "items"} for name, entry in found}
        for split, found in slices.items()
    }


def same_run(name: str, found: Path, other: Tolerance = LOSSES) -> None:
    """Checks losses and metrics of a run directory against the committed run of that name."""
    golden = ARTIFACTS / "runs" / name / "seed0"
    assert differences(log_of(golden), log_of(found), other) == []
    before, now = (json.loads((run / "metrics.json").read_text()) for run in (golden, found))
    assert differences(before, without_items(now), METRICS if other != EXACT else EXACT) == []


def interrupted(folder: Path, name: str) -> Path:
    """The run as it was when it had been killed after its middle checkpoint. Returns the run directory."""
    run = folder / "runs" / name / "seed0"
    shutil.rmtree(run / "checkpoints" / f"step-{LAST}", ignore_errors=True)
    for path in (run / "metrics.json", *run.glob("*_test.*")):
        path.unlink()
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[: MIDDLE + 3]))
    return run


@pytest.mark.parametrize("name", ["catalog", "weighted"])
def test_catalogs_load(name: str) -> None:
    catalog = product.load_catalog(ARTIFACTS / name)
    card = json.loads((ARTIFACTS / name / "catalog.json").read_text())
    assert (len(catalog), catalog.fingerprint) == (card["items"], card["fingerprint"])
    stored = pq.read_table(ARTIFACTS / name / "codes.parquet").to_pydict()
    levels = [stored[f"sid_{level}"] for level in range(1, catalog.codes_NL.shape[1] + 1)]
    assert catalog.codes_NL.T.tolist() == levels


def test_a_run_is_evaluated_to_its_metrics(folder: Path) -> None:
    run = folder / "runs" / "one" / "seed0"
    golden = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").unlink()
    with product.inside(folder):
        losses.run(product.command(["evaluate", "runs/one/seed0"]))
    found = json.loads((run / "metrics.json").read_text())
    assert differences(golden, without_items(found), golden_set.allowed(METRICS)) == []


def test_a_run_is_resumed(folder: Path) -> None:
    run = interrupted(folder, "one")
    with product.inside(folder):
        said = losses.run(product.command(["train", "one.yaml"]))
    assert f"step {MIDDLE}" in said.out
    assert f"step {MIDDLE}/" not in said.out  # was not trained again
    same_run("one", run, golden_set.allowed(LOSSES))


def test_a_run_of_two_ranks_is_resumed_on_two(folder: Path) -> None:
    run = interrupted(folder, "two")
    product.on_ranks(2, folder, [["train", "two.yaml"]])
    same_run("two", run, golden_set.allowed(LOSSES))


def test_a_run_of_two_ranks_is_resumed_on_one(folder: Path) -> None:
    run = interrupted(folder, "two")
    with product.inside(folder):
        losses.run(product.command(["train", "two.yaml", "--parallel.plan", "None"]))
    same_run("two", run, LOSSES)  # one rank adds in another order than two


def test_the_plan_of_a_run_trains(folder: Path) -> None:
    with product.inside(folder):
        words = ["train", "one.yaml", "--name", "planned", "--plan", "runs/one/seed0/plan.json"]
        losses.run(product.command(words))
    same_run("one", folder / "runs" / "planned" / "seed0", golden_set.allowed(LOSSES))
    plans = [json.loads((folder / "runs" / name / "seed0" / "plan.json").read_text()) for name in ("one", "planned")]
    assert plans[0] == plans[1]
