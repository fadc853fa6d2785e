"""The search for the best values of each variant on each data set, as the section `tuning` of a study describes it.

RESULTS/STUDY/trials.parquet has one row per trained run of a trial. All else (the next points, what is pruned, the best
trial) is computed from these rows, so that a search can be stopped anywhere and goes on where it was, with any number
of runs at a time. RESULTS/STUDY/best.yaml has the outcome; its part `tuned` is merged into the recipes of the study's
final runs.
"""

import hashlib
import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypedDict, cast

import yaml

from sidrec.config import ConfigError, Recipe, load_mapping
from sidrec.io.files import write_text
from sidrec.schema import ContractError
from sidrec.study import proposals
from sidrec.study.definition import Overrides, Study
from sidrec.study.jobs import TRIAL, Run, merge, run_of, variant_recipe
from sidrec.study.proposals import Axes, Edge, Point, Trial
from sidrec.study.results import Conditions, ResultTable, RunResult, conditions
from sidrec.study.runner import LATE, Failed, Record
from sidrec.study.tuning import Tuning

TRIALS_FILE = "trials.parquet"
BEST_FILE = "best.yaml"
NAMED = 5  # searches that an error names
DIVERGED = re.compile(r"sidrec: error: step \d+: expected (a finite loss|finite weights) and")
"""The trainer's message for a loss, a gradient or a weight that is not finite (NonFiniteError)."""

log = logging.getLogger(__name__)


class TrialResult(TypedDict):
    """One trained run of a trial.

    search: digest of all that decides a variant's trials, but for their number. point: what optuna proposed. values:
    what the recipe got. recipe_hash: of the recipe without the trial's name. value: None if training diverged.
    """

    study: str
    dataset: str
    variant: str
    search: str
    trial: int
    run: int
    point: Point
    values: dict[str, Any]
    recipe_hash: str
    recipe: Overrides
    finished: str
    conditions: Conditions
    split: str
    metric: str
    value: float | None
    cpu_seconds: float


class Found(TypedDict):
    """The finished search of one variant on one data set.

    trial, value, values: the best trial, its mean metric over the runs, and what the recipe gets. trials: the budget;
    of them, pruned and diverged. runs: run numbers of a trial. trained: runs of this search. exploratory: runs of
    earlier searches, with another space or recipe. edges: best values at the edge of the space. left_out: key of the
    space that the variant cannot use -> why. curve: the best value so far after each trial, None while there is none.
    """

    search: str
    split: str
    metric: str
    runs: list[int]
    trials: int
    pruned: int
    diverged: int
    trained: int
    exploratory: int
    cpu_seconds: float
    trial: int
    value: float
    values: dict[str, Any]
    edges: list[Edge]
    left_out: dict[str, str]
    curve: list[float | None]


class Best(TypedDict):
    """best.yaml. Both: data set -> variant. tuned: overrides, as a study's key of that name has them."""

    tuned: dict[str, dict[str, Overrides]]
    searches: dict[str, dict[str, Found]]


Train = Callable[[Sequence[Run], Record], Failed]
"""Trains runs, some at a time, and records the result of each when it ends. Returns those that failed."""


def search(study: Study, results: Path, train: Train) -> list[Run]:
    """Searches until every variant has all its trials, only failed runs are left, or no run would end in time.

    Variants take turns, batch by batch, so that their budgets are equal wherever the search is stopped. Returns
    the failed runs. Raises ConfigError for a space with mistakes, before anything is trained.
    """
    contenders, records = check_search(study), trial_results(results, study)
    for contender in contenders:
        for key, reason in contender.left_out.items():
            log.info("%s: %s is left out of the space: %s", contender, key, reason)
    failed: dict[tuple[object, ...], Run] = {}
    while True:
        recorded = list(records.read().values())
        standings = [contender.standing(recorded) for contender in contenders]
        best = _best(contenders, standings, recorded)
        _write_best(study, results, best)
        wanted = {job.run.key: job for standing in standings for job in standing.wanted if job.run.key not in failed}
        if not wanted:
            _warn_of_edges(best)
            return list(failed.values())
        ended, budget = sum(standing.ended for standing in standings), sum(contender.budget for contender in contenders)
        log.info("%s: %d of %d trials have ended, %d runs are next", study.name, ended, budget, len(wanted))
        late = False
        for run, message in train([job.run for job in wanted.values()], partial(_record, records, wanted)):
            if message == LATE:
                late = True
            elif DIVERGED.search(message):
                log.warning("%s diverged and counts as the worst trial", run)
                records.put(wanted[run.key].diverged())
            else:
                failed[run.key] = run
        if late:
            return list(failed.values())


def _record(
    records: ResultTable[TrialResult], wanted: Mapping[tuple[object, ...], "Job"], run: Run, result: RunResult
) -> None:
    records.put(wanted[run.key].measured(result))


def trial_results(results: Path, study: Study) -> ResultTable[TrialResult]:
    """The recorded runs of a study's trials."""
    keys = ("dataset", "variant", "search", "trial", "run")
    return ResultTable(results / study.name / TRIALS_FILE, keys, TrialResult)


# One variant on one data set.


@dataclass(frozen=True)
class Job:
    """A run of a trial that has to be trained."""

    contender: "Contender"
    trial: int
    point: Point
    run: Run

    def measured(self, result: RunResult) -> TrialResult:
        """The row of a run that ended. Raises ContractError if the metric is undefined on these rows."""
        tuning = self.contender.tuning
        value = result["metrics"][tuning.split]["all"][tuning.metric]
        if value is None:
            raise ContractError(
                f"split {tuning.split}", f"rows that define {tuning.metric}", "none: choose another metric"
            )
        return self._row(float(value), result["conditions"], result["finished"], result["cpu_seconds"])

    def diverged(self) -> TrialResult:
        """The row of a run whose training diverged."""
        return self._row(None, conditions(), datetime.now(UTC).isoformat(timespec="seconds"), 0.0)

    def _row(self, value: float | None, facts: Conditions, finished: str, cpu_seconds: float) -> TrialResult:
        contender = self.contender
        return TrialResult(
            study=contender.study.name,
            dataset=contender.dataset,
            variant=contender.variant,
            search=contender.digest,
            trial=self.trial,
            run=self.run.number,
            point=self.point,
            values=proposals.values_of(contender.axes, self.point),
            recipe_hash=contender.recipe_hash(self.run),
            recipe=self.run.recipe,
            finished=finished,
            conditions=facts,
            split=contender.tuning.split,
            metric=contender.tuning.metric,
            value=value,
            cpu_seconds=cpu_seconds,
        )


@dataclass(frozen=True)
class Standing:
    """Where a search is. trials: in order, the last ones perhaps with runs to come. ended: how many of them have none.
    wanted: the runs to train next, none at the end."""

    trials: list[Trial]
    ended: int
    wanted: list[Job]


@dataclass(frozen=True)
class Contender:
    """One variant on one data set, with what of the space it can use.

    raw: its merged recipe, without any trial's values. recipe: the same, checked. left_out: key -> why.
    """

    study: Study
    tuning: Tuning
    dataset: str
    variant: str
    raw: Overrides
    recipe: Recipe
    axes: Axes
    left_out: dict[str, str]
    digest: str

    def __str__(self) -> str:
        return f"{self.dataset}/{self.variant}"

    @property
    def budget(self) -> int:
        """Number of trials."""
        return proposals.trials_of(self.tuning, self.axes)

    def run(self, trial: int, point: Point, number: int) -> Run:
        """Run `number` of a trial: the recipe of a final run, trained on the split `train` alone."""
        name = f"{self.variant}{TRIAL}{self.digest[:6]}-{trial}"
        recipe = merge(merge(self.raw, self.overrides(point)), {"data": {"train_on": ["train"]}})
        folder = self.study.work / self.study.name / "trials" / self.dataset
        return run_of(self.study, self.dataset, name, number, recipe, self.tuning.split, folder)

    def overrides(self, point: Point) -> Overrides:
        """What a point changes in the recipe."""
        return proposals.overrides_of(self.raw, self.recipe, proposals.values_of(self.axes, point))

    def recipe_hash(self, run: Run) -> str:
        """The same for two trials with the same values."""
        return replace(run, recipe={**run.recipe, "name": self.variant}).recipe_hash

    def recorded(self, rows: Sequence[TrialResult]) -> list[TrialResult]:
        """This variant's rows on this data set."""
        return [row for row in rows if row["dataset"] == self.dataset and row["variant"] == self.variant]

    def standing(self, rows: Sequence[TrialResult]) -> Standing:
        """Replays the search on recorded runs. rows: of any variant, data set and search.

        Raises ConfigError for a trial whose recipe is refused.
        """
        rows = self.recorded(rows)
        points = {row["trial"]: row["point"] for row in rows if row["search"] == self.digest}
        values = {row["recipe_hash"]: row["value"] for row in rows}  # of earlier searches too
        trials: list[Trial] = []
        while len(trials) < self.budget:
            numbers = proposals.batch_of(self.tuning, self.axes, len(trials))
            if any(number not in points for number in numbers):
                proposed = proposals.next_points(self.tuning, self.axes, trials)
                points = dict(zip(numbers, proposed, strict=True)) | points
            batch, wanted = self._batch([Trial(number, points[number], ()) for number in numbers], trials, values)
            trials += batch
            if wanted:
                return Standing(trials, len(trials) - len(batch), wanted)
        return Standing(trials, len(trials), [])

    def _batch(
        self, batch: list[Trial], earlier: Sequence[Trial], values: Mapping[str, float | None]
    ) -> tuple[list[Trial], list[Job]]:
        """The batch with its recorded values, and the runs that it needs next: one for each trial that is not pruned.

        values: recipe hash -> metric.
        """
        going = list(range(len(batch)))
        for number in self.tuning.runs:
            jobs: dict[str, Job] = {}
            for place in going:
                trial = batch[place]
                run = self.run(trial.number, trial.point, number)
                recipe_hash = self.recipe_hash(run)
                if recipe_hash in values:
                    batch[place] = replace(trial, values=(*trial.values, values[recipe_hash]))
                else:
                    run.checked()
                    jobs.setdefault(recipe_hash, Job(self, trial.number, trial.point, run))
            if jobs:
                return batch, list(jobs.values())
            others = [*earlier, *batch]
            going = [place for place in going if not self._is_pruned(batch[place], others)]
        return batch, []

    def _is_pruned(self, trial: Trial, all_trials: Sequence[Trial]) -> bool:
        return proposals.is_pruned(self.tuning, trial, [other for other in all_trials if other.number != trial.number])

    def is_finished(self, best: "Best") -> bool:
        """Whether best.yaml has this search, with the present budget."""
        found = best["searches"].get(self.dataset, {}).get(self.variant)
        return found is not None and found["search"] == self.digest and found["trials"] == self.budget

    def found(self, standing: Standing, rows: Sequence[TrialResult]) -> tuple[Overrides, Found] | None:
        """The overrides of the best trial and the record of the search; None while it goes on, or if none is best."""
        best = proposals.best_trial(self.tuning, standing.trials)
        if standing.wanted or best is None:
            return None
        runs, value = len(self.tuning.runs), best.mean(len(self.tuning.runs))
        assert value is not None, "the best trial has all runs"
        so_far = [proposals.best_trial(self.tuning, standing.trials[: end + 1]) for end in range(self.budget)]
        mine = [row for row in self.recorded(rows) if row["search"] == self.digest]
        return self.overrides(best.point), Found(
            search=self.digest,
            split=self.tuning.split,
            metric=self.tuning.metric,
            runs=list(self.tuning.runs),
            trials=self.budget,
            pruned=sum(len(trial.values) < runs and not trial.diverged for trial in standing.trials),
            diverged=sum(trial.diverged for trial in standing.trials),
            trained=len(mine),
            exploratory=len(self.recorded(rows)) - len(mine),
            cpu_seconds=round(sum(row["cpu_seconds"] for row in mine), 1),
            trial=best.number,
            value=value,
            values=proposals.values_of(self.axes, best.point),
            edges=proposals.edges(self.axes, best.point),
            left_out=self.left_out,
            curve=[None if trial is None else trial.mean(runs) for trial in so_far],
        )


def check_search(study: Study) -> "list[Contender]":
    """Every variant on every data set. Raises as `contenders_of`; InstallationError without optuna."""
    proposals.load_optuna()
    return contenders_of(study)


def contenders_of(study: Study) -> list[Contender]:
    """Every variant on every data set. Raises ConfigError for a space or a recipe with mistakes."""
    tuning = study.tuning
    if tuning is None:
        raise ConfigError(f"study {study.name}: expected the section `tuning`, got none")
    proposals.check_keys(tuning)
    contenders = []
    for dataset in study.datasets:
        for variant in study.variants:
            raw = variant_recipe(study, dataset, variant)
            recipe = run_of(study, dataset, variant, 0, raw).checked()
            axes, left_out = proposals.usable_axes(tuning, raw, recipe)
            digest = _digest(tuning, axes, raw)
            contenders.append(Contender(study, tuning, dataset, variant, raw, recipe, axes, left_out, digest))
    for key in tuning.space:
        if all(key in contender.left_out for contender in contenders):
            reason = contenders[0].left_out[key]
            raise ConfigError(f"tuning.space: expected keys that some variant can use, got {key}: {reason}")
    return contenders


def _digest(tuning: Tuning, axes: Axes, raw: Overrides) -> str:
    """Of all that decides a variant's trials but for their number, so that a budget can be raised later."""
    decides = {**asdict(tuning), "trials": None, "keys": sorted(axes), "recipe": raw}
    return hashlib.sha256(json.dumps(decides, sort_keys=True, default=str).encode()).hexdigest()[:12]


# best.yaml


def _warn_of_edges(best: Best) -> None:
    for dataset, variants in best["searches"].items():
        for variant, found in variants.items():
            for edge in found["edges"]:
                text = "%s/%s: the best %s, %s, is at the %s edge of the space (%s): a better one may lie outside"
                log.warning(text, dataset, variant, edge["key"], edge["value"], edge["end"], edge["limit"])


def _best(contenders: Sequence[Contender], standings: Sequence[Standing], rows: Sequence[TrialResult]) -> Best:
    """What the finished searches found."""
    best = Best(tuned={}, searches={})
    for contender, standing in zip(contenders, standings, strict=True):
        found = contender.found(standing, rows)
        if found is not None:
            overrides, facts = found
            best["tuned"].setdefault(contender.dataset, {})[contender.variant] = overrides
            best["searches"].setdefault(contender.dataset, {})[contender.variant] = facts
    return best


def _write_best(study: Study, results: Path, best: Best) -> None:
    path = results / study.name / BEST_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, yaml.safe_dump(dict(best), sort_keys=False, allow_unicode=True, width=120))


def load_best(study: Study, results: Path) -> Best:
    """What was found so far, for reports; empty before any search has ended."""
    path = results / study.name / BEST_FILE
    return cast(Best, load_mapping(path, "YAML file")) if path.exists() else Best(tuned={}, searches={})


def with_best(study: Study, results: Path, unfinished: bool = False) -> Study:
    """The study with its best values merged into `tuned`, for the final runs; unchanged without the section `tuning`.

    unfinished: of the variants that have some, for a report on what there is. Otherwise raises ConfigError unless
    best.yaml has every variant's finished search with the present budget, space and recipes.
    """
    if study.tuning is None:
        return study
    best = load_best(study, results)
    missing = [] if unfinished else [str(of) for of in contenders_of(study) if not of.is_finished(best)]
    if missing:
        some = ", ".join(missing[:NAMED]) + (f" and {len(missing) - NAMED} more" if len(missing) > NAMED else "")
        expected = "the finished search of every variant (`sidrec study FILE --tune`)"
        raise ConfigError(f"{results / study.name / BEST_FILE}: expected {expected}, got none for {some}")
    return replace(study, tuned=merge(study.tuned, best["tuned"]))
