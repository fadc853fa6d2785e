"""A study's comparison as typed data: what every report of a study shows, made from recorded results alone.

Runs are paired by their number: run r of each variant has the training seed r and the catalog fit r. An interval for a
verdict is the wider of the hierarchical bootstrap over runs and users and the t interval over runs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sidrec.metrics.exact import FEW_USERS
from sidrec.metrics.pairs import Floats
from sidrec.metrics.resampling import Scored
from sidrec.study.definition import Study
from sidrec.study.draws import SLICES, Counts, Draws, recorded_draws
from sidrec.study.intervals import Interval, hierarchical_interval, paired_interval, percentile_interval, t_interval
from sidrec.study.jobs import study_runs
from sidrec.study.results import GATES, RunResult, finished
from sidrec.study.verdicts import MARGINS, Power, Verdict, verdict

FEW_ITEMS = 30
"""Cold items below these support no verdict."""
CONDITIONS = ("commit", "cpu", "cores", "ranks", "python")
NO_CATALOG = "None"
"""The catalog's fingerprint in the run directory of a run that reads no catalog."""


@dataclass(frozen=True)
class Spread:
    """Over runs. sd: sample standard deviation, None for one run. values: by run."""

    mean: float
    sd: float | None
    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float | int | None]) -> "Spread | None":
        """None where a run left the value undefined, or without runs."""
        known = tuple(float(value) for value in values if value is not None)
        if not known or len(known) < len(values):
            return None
        return cls(float(np.mean(known)), float(np.std(known, ddof=1)) if len(known) > 1 else None, known)


@dataclass(frozen=True)
class PairedDifference:
    """A variant minus a reference, on one column.

    runs: numbers of the runs that both have. difference: of the means over these. relative: over the reference's mean.
    by_run: each run's difference. over_runs: t interval. over_users: with these runs held fixed. hierarchical: over
    runs and users (on cold slices, items too). interval: the wider of hierarchical and over_runs. p: of the paired
    t-test. positive: runs with a difference above 0. Intervals are None where they cannot be computed.
    why: what keeps the verdict from being told; empty where nothing but the interval's width does.
    """

    runs: tuple[int, ...]
    difference: float
    relative: float | None
    by_run: tuple[float, ...]
    over_runs: Interval | None
    over_users: Interval | None
    hierarchical: Interval | None
    interval: Interval | None
    p: float | None
    positive: int
    verdict: Verdict
    why: str
    power: Power | None


@dataclass(frozen=True)
class Cost:
    """step_seconds: None where it was not recorded. cpu_seconds: of a whole run. item_parameters: of the tables of
    HIDs, SIDs and contents; context_parameters: of other tables."""

    step_seconds: Spread | None
    cpu_seconds: Spread | None
    item_parameters: int | None
    context_parameters: int | None
    dense_parameters: int | None


@dataclass(frozen=True)
class GateOfRun:
    """What the gate of one run does on the study's split; None where it was not recorded.

    rank: Spearman correlation of the mean gate with exposure over deciles; None where the gate is constant. least,
    most: mean gate of the least and the most exposed decile. never: mean gate of items never shown before. saturated:
    share of rows whose gate is at 0 or 1.
    """

    rank: float | None
    least: float | None = None
    most: float | None = None
    never: float | None = None
    saturated: float | None = None

    @classmethod
    def of(cls, recorded: Mapping[str, Any] | float | None) -> "GateOfRun":
        """From gate_<split>.json, or from its correlation alone, as earlier versions recorded it."""
        if not isinstance(recorded, Mapping):
            return cls(recorded)
        never, gate = recorded["never_shown"], recorded["gate"]
        return cls(
            recorded["spearman_of_deciles"], gate[0], gate[-1], never and never["gate"], recorded.get("saturated")
        )


@dataclass(frozen=True)
class VariantResult:
    """runs: numbers of its finished runs. catalogs: distinct catalogs among them; 0 where none is read.

    gates: by run; empty without gates.
    against: reference -> column -> difference, None where the column is undefined or no run is paired.
    """

    runs: tuple[int, ...]
    catalogs: int
    metrics: dict[str, Spread | None]
    cost: Cost
    gates: tuple[GateOfRun, ...]
    against: dict[str, dict[str, PairedDifference | None]]


@dataclass(frozen=True)
class DatasetComparison:
    """counts: slice -> what its metrics rest on. conditions: name -> distinct values among the runs."""

    recipe: str
    counts: dict[str, Counts]
    variants: dict[str, VariantResult]
    conditions: dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Comparison:
    """margins: metric -> the largest difference that counts as a tie. datasets: those with a finished run."""

    study: str
    split: str
    columns: tuple[str, ...]
    references: tuple[str, ...]
    datasets: dict[str, DatasetComparison]
    margins: dict[str, float] = field(default_factory=lambda: dict(MARGINS))


def place(column: str) -> tuple[str, str]:
    """The slice and metric of a column: "warm-tail AUC" is ("warm_tail", "auc"), "AUC" is ("all", "auc")."""
    *items, metric = column.lower().split()
    return (items[0].replace("-", "_") if items else "all"), metric


def comparison(study: Study, results: Path) -> Comparison:
    """Compares a study's finished runs, from RESULTS/STUDY alone. Raises ContractError for runs of other rows."""
    found = finished(results, study, study_runs(study))
    draws = recorded_draws(study, results, found)
    datasets = {dataset: _dataset(study, runs, draws) for dataset, runs in found.items()}
    return Comparison(study.name, study.split, tuple(study.columns), tuple(study.references), datasets)


@dataclass(frozen=True)
class MeasuredRun:
    """A run with what was measured of it. draws: None where none are recorded."""

    result: RunResult
    split: str
    draws: Draws | None

    def value(self, scored: Scored) -> float | None:
        """A slice's metric; None where it is undefined or was not measured."""
        items, metric = scored
        value = self.result["metrics"][self.split].get(items, {}).get(metric)
        if value is None and self.draws is not None:
            value = self.draws.actual.get(scored, np.nan)
        return None if value is None or np.isnan(value) else float(value)


Runs = Mapping[int, MeasuredRun]
"""Run number -> run, of one variant."""


def _dataset(
    study: Study, found: Mapping[str, Sequence[RunResult]], draws: Mapping[tuple[object, ...], Draws]
) -> DatasetComparison:
    runs: dict[str, Runs] = {
        name: {
            run["run"]: MeasuredRun(run, study.split, draws.get((run["dataset"], run["variant"], run["run"])))
            for run in of_variant
        }
        for name, of_variant in found.items()
    }
    everything = [run for of_variant in runs.values() for run in of_variant.values()]
    counts = next((run.draws.counts for run in everything if run.draws), _counts(everything[0]))
    conditions = {
        name: tuple(dict.fromkeys(str(run.result["conditions"].get(name)) for run in everything)) for name in CONDITIONS
    }
    recipe = str(study.datasets[everything[0].result["dataset"]])
    return DatasetComparison(recipe, counts, {name: _variant(study, name, runs, counts) for name in runs}, conditions)


def _counts(run: MeasuredRun) -> dict[str, Counts]:
    """From the run's metrics, where no draws are recorded."""
    counts = {}
    for items, values in run.result["metrics"][run.split].items():
        if items in SLICES:
            known = {name: int(values.get(name) or 0) for name in ("rows", "users", "covered_users", "covered_rows")}
            more = {name: None if (of := values.get(name)) is None else int(of) for name in ("positives", "items")}
            counts[items] = Counts(**known, **more)  # type: ignore[arg-type]
    return counts


def _variant(study: Study, name: str, runs: Mapping[str, Runs], counts: Mapping[str, Counts]) -> VariantResult:
    own = [run.result for run in runs[name].values()]
    gates: list[Any] = [run["facts"][GATES] for run in own if isinstance(run["facts"].get(GATES), dict)]
    return VariantResult(
        runs=tuple(runs[name]),
        catalogs=len({run["facts"].get("catalog", NO_CATALOG) for run in own} - {NO_CATALOG}),
        metrics={
            column: Spread.of([run.value(place(column)) for run in runs[name].values()]) for column in study.columns
        },
        cost=_cost(own),
        gates=tuple(GateOfRun.of(found[study.split]) for found in gates if study.split in found),
        against={
            reference: {
                column: paired_difference(place(column), runs[name], runs[reference], counts)
                for column in study.columns
            }
            for reference in study.references
            if reference in runs and reference != name
        },
    )


def _cost(runs: Sequence[RunResult]) -> Cost:
    parameters = runs[0]["facts"].get("parameters")
    count = {key: int(value) for key, value in parameters.items()} if isinstance(parameters, dict) else {}
    steps = [run["step_seconds"] for run in runs]
    return Cost(
        None if None in steps else Spread.of(steps),
        Spread.of([run["cpu_seconds"] for run in runs]),
        count.get("item_parameters"),
        count.get("context_parameters"),
        count.get("dense_parameters"),
    )


def paired_difference(
    scored: Scored, variant: Runs, reference: Runs, counts: Mapping[str, Counts]
) -> PairedDifference | None:
    """The variant minus the reference over the runs that both have; None where there are none, or one is undefined."""
    (items, metric), numbers = scored, tuple(number for number in variant if number in reference)
    pairs = [(variant[number], reference[number]) for number in numbers]
    values = [(ours.value(scored), theirs.value(scored)) for ours, theirs in pairs]
    if not values or any(None in pair for pair in values):
        return None
    ours_n, theirs_n = np.array(values, dtype=np.float64).T
    found_n = ours_n - theirs_n
    drawn_nR = _paired_draws(scored, pairs, found_n)
    over_runs, test = t_interval(found_n), paired_interval(ours_n.tolist(), theirs_n.tolist())
    hierarchical = None if drawn_nR is None else hierarchical_interval(found_n, drawn_nR)
    known = [interval for interval in (hierarchical, over_runs) if interval is not None]
    interval = max(known, key=lambda of: of.half_width) if known else None
    why, margin = _obstacle(scored, len(numbers), drawn_nR is not None, counts.get(items)), MARGINS[metric]
    return PairedDifference(
        runs=numbers,
        difference=float(found_n.mean()),
        relative=float(found_n.mean() / theirs_n.mean()) if theirs_n.mean() else None,
        by_run=tuple(found_n.tolist()),
        over_runs=over_runs,
        over_users=None if drawn_nR is None else percentile_interval(drawn_nR.mean(axis=0)),
        hierarchical=hierarchical,
        interval=interval,
        p=test["p"],
        positive=test["positive"],
        verdict="cannot tell" if why else verdict(metric, interval, margin),
        why=why,
        power=Power.of(found_n, drawn_nR, interval.half_width, margin) if interval and len(numbers) > 1 else None,
    )


def _paired_draws(scored: Scored, pairs: Sequence[tuple[MeasuredRun, MeasuredRun]], found_n: Floats) -> Floats | None:
    """Differences by run and draw, float64 [n, R], of the draws that define them all.

    None where a run has no draws, or where less than half of its draws define the metric.
    """
    offsets = []
    for ours, theirs in pairs:
        if ours.draws is None or theirs.draws is None:
            return None
        offsets.append(ours.draws.offset_R[scored].astype(np.float64) - theirs.draws.offset_R[scored])
    drawn_nR = found_n[:, None] + np.stack(offsets)
    defined_R = ~np.isnan(drawn_nR).any(axis=0)
    return drawn_nR[:, defined_R] if 2 * int(defined_R.sum()) >= defined_R.size else None


def _obstacle(scored: Scored, runs: int, drawn: bool, counts: Counts | None) -> str:
    """Why no verdict is given, whatever the interval; empty where one is."""
    items, metric = scored
    if runs < 2:
        return "one run: the noise of training is unknown"
    if not drawn:
        return "no draws of users are recorded for all of these runs"
    if counts is None:
        return ""
    users = counts.covered_users if metric in ("gauc", "uauc") else counts.users
    if users < FEW_USERS:
        return f"{users} users are too few"
    if items == "cold" and counts.items is not None and counts.items < FEW_ITEMS:
        return f"{counts.items} cold items are too few"
    return ""
