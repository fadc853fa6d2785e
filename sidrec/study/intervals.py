"""Intervals of differences between variants: over users, by a paired bootstrap, and over seeds, by a paired t-test.

Users are drawn with replacement and bring all their rows along (Efron & Tibshirani 1993, percentile intervals). The
same draws serve every variant, seed, slice and metric, so that noise that variants share cancels in a difference. No
resample is sorted again: pooled AUC comes from cumulated multiplicities over rows sorted once, GAUC and UAUC from each
user's AUC. The bootstrap is recorded in RESULTS/STUDY/DATASET/bootstrap.json, so that tables need no predictions.

Shapes: N rows, V users, R resamples, P positive and M negative rows.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from sidrec.io.files import read_json, write_json
from sidrec.metrics.pairs import Floats, Ints, Reals, pair_counts
from sidrec.metrics.predictions import Predictions, load_predictions
from sidrec.metrics.slices import ItemSlices, load_item_slices
from sidrec.schema import ITEMS, ContractError
from sidrec.study.definition import Study
from sidrec.study.jobs import Run, study_runs
from sidrec.study.results import RunResult, finished
from sidrec.train.run_directory import RunDirectory

BOOTSTRAP_FILE = "bootstrap.json"

LEVEL = 0.95
RESAMPLES = 1000
SEED = 0
SLICES = ("all", "tail", "cold")
CHUNK = 50  # resamples at a time: R x N intermediate values stay small

log = logging.getLogger(__name__)

Scored = tuple[str, str]  # slice, metric


class Difference(TypedDict):
    """difference: A - B on the actual rows. low, high: ends of the interval. resamples: those that define it."""

    difference: float
    low: float
    high: float
    resamples: int


Differences = dict[str, dict[str, dict[str, dict[str, Difference | None]]]]
"""Reference -> variant -> slice -> metric -> difference, None where the metric is undefined."""


class Bootstrap(TypedDict):
    """unit: what is resampled. level: of the intervals. runs: variant -> identity of each of its runs, by seed."""

    unit: str
    resamples: int
    seed: int
    level: float
    runs: dict[str, list[str]]
    references: list[str]
    differences: Differences


def load_bootstrap(study: Study, dataset: Path, variants: Mapping[str, Sequence[RunResult]]) -> Bootstrap | None:
    """The recorded bootstrap of a data set; None where there is none of exactly these runs and references."""
    path = dataset / BOOTSTRAP_FILE
    if not path.exists():
        return None
    bootstrap: Bootstrap = read_json(path, "the bootstrap of a study")
    same_runs = bootstrap["runs"] == identities(variants)
    return bootstrap if same_runs and bootstrap["references"] == list(study.references) else None


def identities(variants: Mapping[str, Sequence[RunResult]]) -> dict[str, list[str]]:
    """Variant -> names of its runs: recipe hash and time of the end, as training a recipe again makes another run."""
    return {name: [f"{run['recipe_hash']} {run['finished']}" for run in runs] for name, runs in variants.items()}


def update_bootstraps(study: Study, results: Path) -> None:
    """Bootstraps each data set whose finished runs differ from its recorded bootstrap's, from the runs' predictions.

    Where a run directory is missing (results of another machine), warns and leaves the data set without intervals.
    """
    runs = study_runs(study) if study.references else []
    for dataset, variants in finished(results, study, runs).items():
        folder = results / study.name / dataset
        if load_bootstrap(study, folder, variants) is not None:
            continue
        numbers = {name: {result["run"] for result in of_variant} for name, of_variant in variants.items()}
        trained = [run for run in runs if run.dataset == dataset and run.number in numbers.get(run.variant, ())]
        missing = [str(run) for run in trained if not _predictions_path(study, run).exists()]
        if missing:
            log.warning("%s: no intervals, predictions are missing for %s", dataset, ", ".join(missing))
            continue
        log.info("%s: bootstrap of %d runs", dataset, len(trained))
        folder.mkdir(parents=True, exist_ok=True)
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


@dataclass(frozen=True)
class Resampled:
    """One variant's metrics, mean over seeds: on the actual rows, and [R] on the resamples; NaN where undefined."""

    actual: dict[Scored, float]
    resampled_R: dict[Scored, Floats]


def bootstrap_differences(
    predictions: Mapping[str, Sequence[Predictions]],
    slices: ItemSlices,
    references: Sequence[str],
    resamples: int = RESAMPLES,
) -> Differences:
    """Differences of every variant to every reference, in pooled AUC, GAUC and UAUC on all, tail and cold items.

    predictions: variant -> one per seed, all of the same rows. Raises ContractError naming a variant with other rows.
    """
    check_same_rows(predictions)
    variants = resample(predictions, slices, resamples)
    return {
        reference: {
            name: resampled_differences(variants[name], variants[reference]) for name in variants if name != reference
        }
        for reference in references
        if reference in variants
    }


def check_same_rows(predictions: Mapping[str, Sequence[Predictions]]) -> None:
    """Raises ContractError naming a variant whose rows are not those of the first."""
    first = next(iter(predictions.values()))[0]
    for name, seeds in predictions.items():
        for found in seeds:
            for column in ("row_N", "user_N", "item_N", "label_N"):
                if not np.array_equal(getattr(found, column), getattr(first, column)):
                    expected = f"the rows of every other run of split {first.split}"
                    raise ContractError(
                        f"predictions of {name}", expected, f"another {column.removesuffix('_N')} column"
                    )


def resample(
    predictions: Mapping[str, Sequence[Predictions]],
    slices: ItemSlices,
    resamples: int,
    names: Sequence[str] = SLICES,
    probabilities: bool = False,
) -> dict[str, Resampled]:
    """Every variant's metrics on the same draws of users.

    predictions: variant -> one per seed, all of the same rows. names: of the slices. probabilities: also log loss and
    normalised entropy.
    """
    first = next(iter(predictions.values()))[0]
    users, user_N = np.unique(first.user_N, return_inverse=True)
    user_N = user_N.astype(np.int64)
    masks = {name: mask_N for name, mask_N in slices.masks(first.item_N) if name in names}
    statistics = {
        name: [_statistics(run, user_N, len(users), masks, probabilities) for run in seeds]
        for name, seeds in predictions.items()
    }
    actual_1V = np.ones((1, len(users)), dtype=np.int64)
    actual = {name: _mean_over_seeds(seeds, actual_1V) for name, seeds in statistics.items()}
    chunks: dict[str, list[dict[Scored, Floats]]] = {name: [] for name in predictions}
    for multiplicity_RV in user_multiplicities(len(users), resamples, SEED):
        for name, seeds in statistics.items():
            chunks[name].append(_mean_over_seeds(seeds, multiplicity_RV))
    return {
        name: Resampled(
            {key: float(values[0]) for key, values in actual[name].items()},
            {key: np.concatenate([chunk[key] for chunk in chunks[name]]) for key in actual[name]},
        )
        for name in predictions
    }


def _statistics(
    run: Predictions, user_N: Ints, users: int, masks: Mapping[str, NDArray[np.bool_]], probabilities: bool
) -> "Statistics":
    statistics: Statistics = {}
    for name, mask_N in masks.items():
        rows = run.label_N[mask_N], run.score_N[mask_N], user_N[mask_N]
        statistics[(name, "auc")] = PooledAuc.of(*rows)
        gauc = MeanAuc.gauc(*rows, users)
        statistics[(name, "gauc")] = gauc
        statistics[(name, "uauc")] = gauc.uauc()
        if probabilities:
            statistics[(name, "log_loss")] = LogLoss.of(*rows, users, normalised=False)
            statistics[(name, "ne")] = LogLoss.of(*rows, users, normalised=True)
    return statistics


def _mean_over_seeds(seeds: Sequence["Statistics"], multiplicity_RV: Ints) -> dict[Scored, Floats]:
    return {
        key: np.asarray(np.mean([statistics[key].resampled(multiplicity_RV) for statistics in seeds], axis=0))
        for key in seeds[0]
    }


def resampled_differences(variant: Resampled, reference: Resampled) -> dict[str, dict[str, Difference | None]]:
    """Slice -> metric -> difference with its interval."""
    differences: dict[str, dict[str, Difference | None]] = {}
    for key, actual in variant.actual.items():
        moved_R = variant.resampled_R[key] - reference.resampled_R[key]
        moved_R = moved_R[~np.isnan(moved_R)]
        found = actual - reference.actual[key]
        differences.setdefault(key[0], {})[key[1]] = None if np.isnan(found) else interval(found, moved_R)
    return differences


def interval(found: float, moved_R: Floats) -> Difference:
    """The difference found, with the percentile interval of those that resamples give."""
    low, high = np.quantile(moved_R, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Difference(difference=found, low=float(low), high=float(high), resamples=len(moved_R))


class PairedInterval(TypedDict):
    """difference: mean over pairs of A - B. low, high, p: of a paired t-test, None for a single pair; p also if all are
    equal.

    positive: pairs with a difference above 0.
    """

    difference: float
    low: float | None
    high: float | None
    p: float | None
    pairs: int
    positive: int


def paired_interval(variant: Sequence[float], reference: Sequence[float]) -> PairedInterval:
    """The difference of two variants over repetitions that are paired, such as seeds, with its t interval."""
    from scipy.special import stdtr, stdtrit

    moved = np.asarray(variant) - np.asarray(reference)
    found = PairedInterval(
        difference=float(moved.mean()), low=None, high=None, p=None, pairs=len(moved), positive=int((moved > 0).sum())
    )
    if len(moved) > 1:
        error = float(moved.std(ddof=1)) / np.sqrt(len(moved))
        half = float(stdtrit(len(moved) - 1, (1 + LEVEL) / 2)) * error
        found["low"], found["high"] = found["difference"] - half, found["difference"] + half
        found["p"] = float(2 * stdtr(len(moved) - 1, -abs(found["difference"]) / error)) if error else None
    return found


@dataclass(frozen=True)
class Interval:
    """Both ends."""

    low: float
    high: float

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2


def t_interval(found_n: Floats) -> Interval | None:
    """Of the mean over independent runs; None for a single run."""
    pairs = paired_interval(found_n.tolist(), [0.0] * len(found_n))
    return (
        None if pairs["low"] is None or pairs["high"] is None else Interval(float(pairs["low"]), float(pairs["high"]))
    )


REPLICATES = 4096


def hierarchical_interval(drawn_nR: Floats, replicates: int = REPLICATES, seed: int = SEED) -> Interval:
    """Percentile interval of the mean over runs, with runs and users both drawn with replacement.

    drawn_nR: each run's value on the same R draws of users, all defined. Each replicate draws n runs and takes one of
    the draws of users; each of these is taken equally often. Of a single run, the interval is over users alone.
    """
    runs, draws = drawn_nR.shape
    rounds = max(1, replicates // draws)
    times_Bn = np.random.default_rng(seed).multinomial(runs, np.full(runs, 1 / runs), size=rounds * draws)
    mean_B = np.einsum("bn,nb->b", times_Bn, np.tile(drawn_nR, rounds)) / runs
    low, high = np.quantile(mean_B, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high))


def user_multiplicities(users: int, resamples: int, seed: int) -> Iterator[Ints]:
    """Yields int64 [r, V] with r up to CHUNK: how often each user is drawn, each row summing to V."""
    random = np.random.default_rng(seed)
    for start in range(0, resamples, CHUNK):
        yield np.stack(
            [
                np.bincount(random.integers(0, users, users), minlength=users)
                for _ in range(min(CHUNK, resamples - start))
            ]
        ).astype(np.int64)


@dataclass(frozen=True)
class PooledAuc:
    """AUC over all rows, each counted as often as its user is drawn; ties one half.

    positive_users_P, negative_users_M: users of the rows, negatives ascending by score.
    below_P, upto_P: per positive row, how many negatives score lower, and lower or equal.
    """

    positive_users_P: Ints
    negative_users_M: Ints
    below_P: Ints
    upto_P: Ints

    @classmethod
    def of(cls, label_N: Reals, score_N: Reals, user_N: Ints) -> "PooledAuc":
        """user_N: int64 in [0, V)."""
        positive_N = label_N > 0
        order_M = np.argsort(score_N[~positive_N], kind="stable")
        negatives_M = score_N[~positive_N][order_M]
        positives_P = score_N[positive_N]
        return cls(
            user_N[positive_N],
            user_N[~positive_N][order_M],
            np.searchsorted(negatives_M, positives_P, side="left").astype(np.int64),
            np.searchsorted(negatives_M, positives_P, side="right").astype(np.int64),
        )

    def resampled(self, multiplicity_RV: Ints) -> Floats:
        """float64 [R]; NaN where a resample lacks a class."""
        weight_RP = np.take(multiplicity_RV, self.positive_users_P, axis=1)
        cumulated_RM = np.zeros((len(multiplicity_RV), len(self.negative_users_M) + 1), dtype=np.int64)
        np.cumsum(np.take(multiplicity_RV, self.negative_users_M, axis=1), axis=1, out=cumulated_RM[:, 1:])
        twice_won_RP = np.take(cumulated_RM, self.below_P, axis=1) + np.take(cumulated_RM, self.upto_P, axis=1)
        pairs_R = weight_RP.sum(axis=1) * cumulated_RM[:, -1]
        return _ratio(np.einsum("rp,rp->r", weight_RP, twice_won_RP), 2 * pairs_R)


@dataclass(frozen=True)
class MeanAuc:
    """A mean of covered users' AUCs, each counted as often as drawn. weight_V: 0 for users without both classes."""

    weight_V: Floats
    auc_V: Floats

    @classmethod
    def gauc(cls, label_N: Reals, score_N: Reals, user_N: Ints, users: int) -> "MeanAuc":
        """Users weighted by their rows. user_N: int64 in [0, users); users without rows are allowed."""
        rows_V, auc_V = np.zeros(users), np.zeros(users)
        present, group_N = np.unique(user_N, return_inverse=True)
        counts = pair_counts(label_N, score_N, group_N.astype(np.int64))
        covered = present[counts.covered]
        rows_V[covered] = counts.rows[counts.covered]
        auc_V[covered] = counts.auc()
        return cls(rows_V, auc_V)

    def uauc(self) -> "MeanAuc":
        """The same users, all weighted alike."""
        return MeanAuc((self.weight_V > 0).astype(np.float64), self.auc_V)

    def resampled(self, multiplicity_RV: Ints) -> Floats:
        """float64 [R]; NaN where no covered user is drawn."""
        return _ratio(multiplicity_RV @ (self.weight_V * self.auc_V), multiplicity_RV @ self.weight_V)


@dataclass(frozen=True)
class LogLoss:
    """Mean log loss in nats, or that over the entropy of the rows' base rate. Sums by user."""

    loss_V: Floats
    positives_V: Floats
    rows_V: Floats
    normalised: bool

    @classmethod
    def of(cls, label_N: Reals, score_N: Reals, user_N: Ints, users: int, normalised: bool) -> "LogLoss":
        """user_N: int64 in [0, users)."""
        score = score_N.astype(np.float64)
        loss_N = np.logaddexp(0.0, np.where(label_N > 0, -score, score))
        positive_N, rows_N = (label_N > 0).astype(np.float64), np.ones(len(loss_N))
        loss_V, positives_V, rows_V = (
            np.bincount(user_N, weights, minlength=users).astype(np.float64) for weights in (loss_N, positive_N, rows_N)
        )
        return cls(loss_V, positives_V, rows_V, normalised)

    def resampled(self, multiplicity_RV: Ints) -> Floats:
        """float64 [R]; NaN without rows and, if normalised, where a resample lacks a class."""
        rows_R = multiplicity_RV @ self.rows_V
        loss_R = _ratio(multiplicity_RV @ self.loss_V, rows_R)
        if not self.normalised:
            return loss_R
        base_R = _ratio(multiplicity_RV @ self.positives_V, rows_R)
        with np.errstate(divide="ignore", invalid="ignore"):
            entropy_R = -(base_R * np.log(base_R) + (1 - base_R) * np.log1p(-base_R))
        return _ratio(loss_R, np.nan_to_num(entropy_R))


def _ratio(numerator_R: Floats | Ints, denominator_R: Floats | Ints) -> Floats:
    undefined_R = np.full(len(numerator_R), np.nan)
    return np.divide(numerator_R, denominator_R, out=undefined_R, where=denominator_R > 0)


Statistics = dict[Scored, PooledAuc | MeanAuc | LogLoss]
