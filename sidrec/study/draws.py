"""What is recorded of a run beside its metrics: the metrics on draws of users, from which intervals are computed.

RESULTS/STUDY/draws.parquet has a row per run, so that intervals need no predictions and a study can go on elsewhere.
Users are drawn with replacement; on the cold slice, items are drawn too. The draws depend on the rows alone: runs of
the same rows have the same draws, and a difference of two runs at a draw is a paired one.

Format: `offsets` holds little-endian float16 [K, RESAMPLES], metric on the draw minus `actual`, NaN where undefined.
K: the entries of `actual` in their order. Rounding moves an offset by at most 2**-11 of itself: 5e-6 for one of .01.
"""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from sidrec.metrics.pairs import Ints
from sidrec.metrics.predictions import Predictions, load_predictions
from sidrec.metrics.resampling import Scored, resample
from sidrec.metrics.slices import ItemSlices, recipe_slices
from sidrec.schema import ContractError
from sidrec.study.definition import Study
from sidrec.study.jobs import Run
from sidrec.study.results import ResultTable, RunResult
from sidrec.train.run_directory import RunDirectory

DRAWS_FILE = "draws.parquet"
RESAMPLES = 256
SLICES = ("all", "tail", "warm_tail", "cold")
"""Slices of items that studies compare. warm_tail: tail items with at least one training row."""
ITEMS_DRAWN = ("cold",)
"""Slices of so few items that these are drawn too."""

log = logging.getLogger(__name__)


class RunDraws(TypedDict):
    """The draws of one run. rows: digest of the row, user, item and label of all rows.

    actual: slice -> metric -> value. counts: slice -> field of `Counts` -> value. offsets: see the format above.
    """

    dataset: str
    variant: str
    run: int
    recipe_hash: str
    rows: str
    counts: dict[str, dict[str, int]]
    actual: dict[str, dict[str, float | None]]
    offsets: bytes


@dataclass(frozen=True)
class Counts:
    """What a slice's metrics rest on. covered_users, covered_rows: users with both classes (GAUC), and their rows."""

    rows: int
    positives: int | None
    users: int
    items: int | None
    covered_users: int
    covered_rows: int


@dataclass(frozen=True)
class Draws:
    """actual: on all rows. offset_R: float16, on each draw of users minus that. NaN where undefined."""

    rows: str
    counts: dict[str, Counts]
    actual: dict[Scored, float]
    offset_R: dict[Scored, NDArray[np.float16]]


def measure_draws(predictions: Predictions, slices: ItemSlices, resamples: int = RESAMPLES) -> Draws:
    """The metrics of a run's predictions on draws of users."""
    masks = study_masks(slices, predictions.item_N)
    found = resample(predictions, masks, resamples, ITEMS_DRAWN)
    offset_R = {key: (found.resampled_R[key] - actual).astype(np.float16) for key, actual in found.actual.items()}
    counts = {name: _counts(predictions, mask_N) for name, mask_N in masks.items()}
    return Draws(rows_digest(predictions), counts, found.actual, offset_R)


def study_masks(slices: ItemSlices, item_N: Ints) -> dict[str, NDArray[np.bool_]]:
    """SLICES -> bool [N]."""
    masks = dict(slices.masks(item_N))
    masks["warm_tail"] = masks["tail"] & ~masks["cold"]
    return {name: masks[name] for name in SLICES}


def _counts(predictions: Predictions, mask_N: NDArray[np.bool_]) -> Counts:
    label_N = predictions.label_N[mask_N] > 0
    users, user_N = np.unique(predictions.user_N[mask_N], return_inverse=True)
    rows_V, positives_V = np.bincount(user_N, minlength=len(users)), np.bincount(user_N[label_N], minlength=len(users))
    covered_V = (positives_V > 0) & (positives_V < rows_V)
    return Counts(
        rows=int(mask_N.sum()),
        positives=int(label_N.sum()),
        users=len(users),
        items=len(np.unique(predictions.item_N[mask_N])),
        covered_users=int(covered_V.sum()),
        covered_rows=int(rows_V[covered_V].sum()),
    )


def rows_digest(predictions: Predictions) -> str:
    """Equal for predictions of the same rows, users, items and labels."""
    digest = hashlib.sha256()
    for values_N in (predictions.row_N, predictions.user_N, predictions.item_N):
        digest.update(np.ascontiguousarray(values_N, dtype="<i8").data)
    digest.update(np.ascontiguousarray(predictions.label_N, dtype="<f4").data)
    return digest.hexdigest()[:16]


def draws_table(study: Study, results: Path) -> ResultTable[RunDraws]:
    """The recorded draws of a study, by data set, variant and run."""
    return ResultTable(results / study.name / DRAWS_FILE, ("dataset", "variant", "run"), RunDraws)


def record_draws(study: Study, results: Path, run: Run) -> None:
    """Records a run's draws from the predictions in its run directory, where it has any; warns otherwise."""
    path = RunDirectory(run.directory).predictions(study.split)
    if not path.exists():
        log.warning("%s: no intervals over users, %s is missing", run, path)
        return
    draws = measure_draws(load_predictions(path, study.split), recipe_slices(run.checked()))
    draws_table(study, results).put(draws_row((run.dataset, run.variant, run.number), run.recipe_hash, draws))


def draws_row(run: tuple[str, str, int], recipe_hash: str, draws: Draws) -> RunDraws:
    """The row of a run (data set, variant, number)."""
    actual: dict[str, dict[str, float | None]] = {}
    for (items, metric), value in draws.actual.items():
        actual.setdefault(items, {})[metric] = None if np.isnan(value) else value
    return RunDraws(
        dataset=run[0],
        variant=run[1],
        run=run[2],
        recipe_hash=recipe_hash,
        rows=draws.rows,
        counts={name: dict(vars(of)) for name, of in draws.counts.items()},
        actual=actual,
        offsets=np.stack(list(draws.offset_R.values())).astype("<f2").tobytes(),
    )


def recorded_draws(
    study: Study, results: Path, found: Mapping[str, Mapping[str, Sequence[RunResult]]]
) -> dict[tuple[object, ...], Draws]:
    """Data set, variant and run -> draws, of those results that have some of the same recipe.

    found: data set -> variant -> results. Raises ContractError for a run of other rows than the data set's first.
    """
    recorded = draws_table(study, results).read()
    draws: dict[tuple[object, ...], Draws] = {}
    first: dict[str, tuple[object, ...]] = {}
    for result in _results(found):
        key = _key(result)
        of_run = recorded.get(key)
        if of_run is None or of_run["recipe_hash"] != result["recipe_hash"]:
            continue
        draws[key] = _decoded(of_run)
        first.setdefault(result["dataset"], key)
        if draws[key].rows != draws[first[result["dataset"]]].rows:
            names = ["/".join(map(str, of)) for of in (key, first[result["dataset"]])]
            where = f"{draws_table(study, results).path}: run {names[0]}"
            raise ContractError(where, f"the rows of {names[1]}, split {study.split}", "others: train it again")
    return draws


def _decoded(row: RunDraws) -> Draws:
    actual = {
        (items, metric): np.nan if value is None else value
        for items, metrics in row["actual"].items()
        for metric, value in metrics.items()
    }
    offset_KR = np.frombuffer(row["offsets"], dtype="<f2").reshape(len(actual), -1)
    counts = {name: Counts(**of) for name, of in row["counts"].items()}
    return Draws(row["rows"], counts, actual, dict(zip(actual, offset_KR, strict=True)))


def _key(result: RunResult) -> tuple[object, ...]:
    return result["dataset"], result["variant"], result["run"]


def _results(found: Mapping[str, Mapping[str, Sequence[RunResult]]]) -> list[RunResult]:
    return [result for variants in found.values() for of_variant in variants.values() for result in of_variant]
