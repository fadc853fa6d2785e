"""A data set's bootstrap on record: RESULTS/STUDY/DATASET/bootstrap.json, so that tables need no predictions."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

from benchmarks.study.definition import Study
from benchmarks.study.differences import LEVEL, RESAMPLES, SEED, Differences, bootstrap_differences
from benchmarks.study.runs import Run, study_runs
from benchmarks.study.store import RunResult, finished
from sidrec.metrics.predictions import Predictions, load_predictions
from sidrec.metrics.slices import load_item_slices
from sidrec.schema import ITEMS, ContractError
from sidrec.train.run_directory import RunDirectory, write_json

BOOTSTRAP_FILE = "bootstrap.json"

log = logging.getLogger(__name__)


class Bootstrap(TypedDict):
    """unit: what is resampled. level: of the intervals. runs: variant -> `identity` of each of its runs, by seed."""

    unit: str
    resamples: int
    seed: int
    level: float
    runs: dict[str, list[str]]
    references: list[str]
    differences: Differences


def load_bootstrap(study: Study, dataset: Path, variants: Mapping[str, Sequence[RunResult]]) -> Bootstrap | None:
    """The bootstrap in a data set's folder; None when there is none, or one of other runs or references."""
    path = dataset / BOOTSTRAP_FILE
    if not path.exists():
        return None
    try:
        bootstrap: Bootstrap = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ContractError(path, "valid JSON", error) from None
    same_runs = bootstrap["runs"] == identities(variants)
    return bootstrap if same_runs and bootstrap["references"] == list(study.references) else None


def identities(variants: Mapping[str, Sequence[RunResult]]) -> dict[str, list[str]]:
    """Names the runs that a bootstrap is of: training the same recipe again makes another run."""
    return {name: [f"{run['recipe_hash']} {run['finished']}" for run in runs] for name, runs in variants.items()}


def update_bootstraps(study: Study, results: Path) -> None:
    """Bootstraps each data set whose finished runs have changed since, from the predictions in the run directories.

    Where a run directory is gone (results made elsewhere) it says so and leaves the data set without intervals.
    """
    runs = study_runs(study) if study.references else []
    for dataset, variants in finished(results, runs).items():
        folder = results / study.name / dataset
        if load_bootstrap(study, folder, variants) is not None:
            continue
        seeds = {name: {result["seed"] for result in of_variant} for name, of_variant in variants.items()}
        trained = [run for run in runs if run.dataset == dataset and run.seed in seeds.get(run.variant, ())]
        missing = [str(run) for run in trained if not _predictions_path(study, run).exists()]
        if missing:
            log.warning("%s: no intervals, predictions are missing for %s", dataset, ", ".join(missing))
            continue
        log.info("%s: bootstrap of %d runs", dataset, len(trained))
        write_json(folder / BOOTSTRAP_FILE, _bootstrap(study, trained, variants))


def _predictions_path(study: Study, run: Run) -> Path:
    return RunDirectory(run.directory).predictions(study.split)


def _bootstrap(study: Study, runs: Sequence[Run], variants: Mapping[str, Sequence[RunResult]]) -> Bootstrap:
    recipe = runs[0].checked()
    slices = load_item_slices(recipe.data.path / ITEMS, recipe.evaluate.head_share, recipe.evaluate.tail_share)
    predictions: dict[str, list[Predictions]] = {}
    for run in runs:
        found = load_predictions(_predictions_path(study, run), study.split)
        predictions.setdefault(run.variant, []).append(found)
    return Bootstrap(
        unit="users",
        resamples=RESAMPLES,
        seed=SEED,
        level=LEVEL,
        runs=identities(variants),
        references=list(study.references),
        differences=bootstrap_differences(predictions, slices, study.references),
    )
