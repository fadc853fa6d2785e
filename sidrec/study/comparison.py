"""A study's comparison as typed data: what every report of a study shows, made from recorded results alone.

Runs are paired by their number: run r of each variant has the training seed r and the catalog fit r. An interval for a
verdict is the wider of the hierarchical bootstrap over runs and users and the t interval over runs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np

from sidrec.metrics.exact import FEW_USERS
from sidrec.metrics.pairs import Floats
from sidrec.study.definition import Study
from sidrec.study.intervals import Interval, hierarchical_interval, paired_interval, t_interval
from sidrec.study.jobs import study_runs
from sidrec.study.results import GATES, RunResult, finished
from sidrec.study.verdicts import MARGINS, Power, Verdict, verdict

SLICES = ("all", "tail", "warm_tail", "cold")
"""Slices of items that studies compare. warm_tail: tail items with at least one training row."""
FEW_ITEMS = 30
"""Cold items below these support no verdict."""
CONDITIONS = ("commit", "cpu", "cores", "ranks", "python")


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
class Counts:
    """What a slice's metrics rest on. covered_users, covered_rows: users with both classes (GAUC), and their rows."""

    rows: int
    positives: int | None
    users: int
    items: int | None
    covered_users: int
    covered_rows: int


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
class VariantResult:
    """runs: numbers of its finished runs. catalogs: distinct catalogs among them; 0 where none is read.

    gates: Spearman correlation of the mean gate with exposure, by run, None where constant; empty without gates.
    against: reference -> column -> difference, None where the column is undefined or no run is paired.
    """

    runs: tuple[int, ...]
    catalogs: int
    metrics: dict[str, Spread | None]
    cost: Cost
    gates: tuple[float | None, ...]
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
    """Compares a study's finished runs, from RESULTS/STUDY alone."""
    found = finished(results, study, study_runs(study))
    datasets = {dataset: _dataset(study, str(study.datasets[dataset]), runs) for dataset, runs in found.items()}
    return Comparison(study.name, study.split, tuple(study.columns), tuple(study.references), datasets)


def _dataset(study: Study, recipe: str, runs: Mapping[str, Sequence[RunResult]]) -> DatasetComparison:
    everything = list(chain.from_iterable(runs.values()))
    counts = _counts(everything[0], study.split)
    return DatasetComparison(
        recipe,
        counts,
        {name: _variant(study, name, runs, counts) for name in runs},
        {name: tuple(dict.fromkeys(str(run["conditions"].get(name)) for run in everything)) for name in CONDITIONS},
    )


def _counts(run: RunResult, split: str) -> dict[str, Counts]:
    counts = {}
    for items, values in run["metrics"][split].items():
        if items in SLICES:
            known = {name: int(values.get(name) or 0) for name in ("rows", "users", "covered_users", "covered_rows")}
            more = {name: None if (of := values.get(name)) is None else int(of) for name in ("positives", "items")}
            counts[items] = Counts(**known, **more)  # type: ignore[arg-type]
    return counts


def _variant(
    study: Study, name: str, runs: Mapping[str, Sequence[RunResult]], counts: Mapping[str, Counts]
) -> VariantResult:
    own = runs[name]
    values = {column: _values(own, study.split, column) for column in study.columns}
    catalogs = {run["facts"]["catalog"] for run in own if "catalog" in run["facts"]}
    gates = [run["facts"][GATES] for run in own if isinstance(run["facts"].get(GATES), dict)]
    return VariantResult(
        runs=tuple(run["run"] for run in own),
        catalogs=len(catalogs),
        metrics={column: Spread.of(list(of.values())) for column, of in values.items()},
        cost=_cost(own),
        gates=tuple(found[study.split] for found in gates if study.split in found),  # type: ignore[index, operator]
        against={
            reference: {
                column: _difference(column, of, _values(runs[reference], study.split, column), counts)
                for column, of in values.items()
            }
            for reference in study.references
            if reference in runs and reference != name
        },
    )


def _values(runs: Sequence[RunResult], split: str, column: str) -> dict[int, float | None]:
    """Run number -> the column's value."""
    items, metric = place(column)
    return {run["run"]: run["metrics"][split].get(items, {}).get(metric) for run in runs}


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


def _difference(
    column: str,
    variant: Mapping[int, float | None],
    reference: Mapping[int, float | None],
    counts: Mapping[str, Counts],
    drawn_nR: Floats | None = None,
) -> PairedDifference | None:
    """drawn_nR: paired differences on draws of users, None where they are not recorded."""
    items, metric = place(column)
    runs = tuple(run for run in variant if run in reference)
    ours, theirs = [variant[run] for run in runs], [reference[run] for run in runs]
    if not runs or None in ours or None in theirs:
        return None
    ours_n, theirs_n = np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
    found_n = ours_n - theirs_n
    over_runs, pairs = t_interval(found_n), paired_interval(found_n.tolist(), [0.0] * len(runs))
    hierarchical = over_users = None
    if drawn_nR is not None:
        hierarchical, over_users = hierarchical_interval(drawn_nR), hierarchical_interval(drawn_nR.mean(0)[None])
    known = [interval for interval in (hierarchical, over_runs) if interval is not None]
    interval = max(known, key=lambda of: of.half_width) if known else None
    why = _obstacle(metric, items, len(runs), drawn_nR is not None, counts.get(items))
    margin = MARGINS[metric]
    return PairedDifference(
        runs=runs,
        difference=float(found_n.mean()),
        relative=float(found_n.mean() / theirs_n.mean()) if theirs_n.mean() else None,
        by_run=tuple(found_n.tolist()),
        over_runs=over_runs,
        over_users=over_users,
        hierarchical=hierarchical,
        interval=interval,
        p=pairs["p"],
        positive=pairs["positive"],
        verdict="cannot tell" if why else verdict(metric, interval, margin),
        why=why,
        power=Power.of(found_n, drawn_nR, interval.half_width, margin) if interval and len(runs) > 1 else None,
    )


def _obstacle(metric: str, items: str, runs: int, drawn: bool, counts: Counts | None) -> str:
    """Why no verdict is given, whatever the interval; empty where one is."""
    if runs < 2:
        return "one run: the noise of training is unknown"
    if not drawn:
        return "no draws of users are recorded for these runs"
    if counts is None:
        return ""
    users = counts.covered_users if metric in ("gauc", "uauc") else counts.users
    if users < FEW_USERS:
        return f"{users} users are too few"
    if items == "cold" and counts.items is not None and counts.items < FEW_ITEMS:
        return f"{counts.items} cold items are too few"
    return ""
