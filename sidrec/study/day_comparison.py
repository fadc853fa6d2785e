"""Day forward as typed data: the twin and the twin with SIDs on days that no model has seen, by item age and updates.

A cell is one model of one day, scored on the next day. Its metrics are kept with R resamples of users, the same for all
cells, so that intervals come from the recorded cells alone. Runs, days and users are drawn with replacement together:
days as blocks, because what is launched or liked on a day is common to all its rows.

Shapes: N rows, V users, R resamples of users, n runs, D days.
"""

from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from sidrec.metrics.exact import FEW_USERS, SliceMetrics, measure
from sidrec.metrics.pairs import Floats
from sidrec.metrics.predictions import Predictions
from sidrec.metrics.resampling import SEED, LogLoss, MeanAuc, chunk_of, multiplicities
from sidrec.study.day_log import AGES, DayFacts
from sidrec.study.intervals import Interval, expansion, percentile_interval, t_interval
from sidrec.study.verdicts import MARGINS, Power, Verdict, advice, verdict

RESAMPLES = 256
REPLICATES = 4096
METRICS = ("gauc", "ne")
"""Metrics with intervals."""
TWIN, SIDS = "hid", "sids"
ARMS = (TWIN, SIDS)
"""The twin, HIDs alone, and the same model with SIDs."""
UPDATES = ("0 updates", "1-10 updates", "11-100 updates", "over 100 updates")
SLICES = ("all", *AGES, *UPDATES)


class Cell(TypedDict):
    """One model of one day, scored on the next day `day`.

    size: the HID table has 1/size of the run's bytes. metrics: slice -> metric. draws: base64 of float16
    [slices, METRICS, R], metrics on resamples minus the actual ones, slices in the order of `metrics`.
    step_seconds: median of the training on the day before. parameters: of the model, as in run.json.
    """

    run: int
    size: int
    arm: str
    day: str
    metrics: SliceMetrics
    draws: str
    step_seconds: float | None
    parameters: dict[str, int]
    catalog: str | None


# Cells.


def slice_masks(
    item_N: NDArray[np.int64], age_I: NDArray[np.int8], updates_I: NDArray[np.int64] | None
) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Yields (slice, bool [N]). age_I: index in AGES by item id. updates_I: of the item's HID row, None if unknown."""
    yield SLICES[0], np.ones(len(item_N), dtype=bool)
    age_N = age_I[item_N]
    yield from ((name, age_N == place) for place, name in enumerate(AGES))
    if updates_I is not None:
        known_N = np.where(item_N < len(updates_I), updates_I[np.minimum(item_N, len(updates_I) - 1)], 0)
        bucket_N = np.digitize(known_N, [1, 11, 101])
        yield from ((name, bucket_N == place) for place, name in enumerate(UPDATES))


def measure_cell(
    scored: Predictions, masks: Mapping[str, NDArray[np.bool_]], users: int, resamples: int = RESAMPLES
) -> tuple[SliceMetrics, str]:
    """Metrics by slice, and the draws of a Cell. users: V, more than the largest user id of all days."""
    found: SliceMetrics = {}
    statistics: list[tuple[MeanAuc, LogLoss]] = []
    for name, mask_N in masks.items():
        label_N, score_N, user_N = scored.label_N[mask_N], scored.score_N[mask_N], scored.user_N[mask_N]
        found[name] = {**measure(label_N, score_N, user_N), "items": len(np.unique(scored.item_N[mask_N]))}
        of_users = label_N, score_N, user_N, users
        statistics.append((MeanAuc.gauc(*of_users), LogLoss.of(*of_users)))
    drawn: list[list[Floats]] = [[] for _ in masks for _ in METRICS]
    for times_RV in multiplicities(users, resamples, SEED, chunk_of(users)):
        values = [
            value_R for gauc, ne in statistics for value_R in (gauc.resampled(times_RV), ne.resampled(times_RV)[0])
        ]
        for parts, value_R in zip(drawn, values, strict=True):
            parts.append(value_R)
    actual = [_number(found[name][metric]) for name in masks for metric in METRICS]
    offset_R = [np.concatenate(parts) - value for parts, value in zip(drawn, actual, strict=True)]
    return found, b64encode(np.stack(offset_R).astype(np.float16).tobytes()).decode()


def _number(value: float | int | None) -> float:
    return float("nan") if value is None else float(value)


def drawn_metrics(cell: Cell) -> dict[tuple[str, str], Floats]:
    """(slice, metric) -> [R]; NaN where a resample leaves it undefined."""
    keys = [(name, metric) for name in cell["metrics"] for metric in METRICS]
    offset = np.frombuffer(b64decode(cell["draws"]), np.float16).astype(np.float64).reshape(len(keys), -1)
    return {
        key: _number(cell["metrics"][key[0]][key[1]]) + offset_R for key, offset_R in zip(keys, offset, strict=True)
    }


# Intervals of a mean over days of paired differences.


def blocked_interval(
    drawn_nDR: Floats, weight_D: Floats, by_run_n: Floats, replicates: int = REPLICATES, seed: int = SEED
) -> Interval:
    """Percentile interval of the mean over runs and days, with runs, days and users drawn with replacement.

    drawn_nDR: paired difference of run n and day D on draw R of users; NaN counts in no mean. weight_D: of each day.
    by_run_n: each run's difference on the actual rows, whose deviations are expanded as in `hierarchical_interval`;
    those of days are not. Of a single run or day, the interval holds it fixed.
    """
    runs, days, draws = drawn_nDR.shape
    random = np.random.default_rng(seed)
    rounds = max(1, replicates // draws)
    known_nDR = ~np.isnan(drawn_nDR)
    drawn_nDR = drawn_nDR + ((expansion(runs) - 1) * (by_run_n - by_run_n.mean()))[:, None, None]
    values_nDR = np.where(known_nDR, drawn_nDR, 0.0)
    means = []
    for _ in range(rounds):
        run_Rn = random.multinomial(runs, np.full(runs, 1 / runs), size=draws)
        day_RD = random.multinomial(days, np.full(days, 1 / days), size=draws) * weight_D
        total_R = np.einsum("rn,rd,ndr->r", run_Rn, day_RD, known_nDR)
        sum_R = np.einsum("rn,rd,ndr->r", run_Rn, day_RD, values_nDR)
        means.append(sum_R[total_R > 0] / total_R[total_R > 0])
    return percentile_interval(np.concatenate(means))


@dataclass(frozen=True)
class SliceDifference:
    """A model minus its reference on one slice and metric: means over runs of the mean over days.

    A day weighs as its rows that count: all for NE, those of users with both classes for GAUC. rows, users, items:
    that count, over all days. by_day: difference by scored day, mean over runs, None where undefined. by_run: mean over
    days. interval: the wider of the hierarchical one (runs, days, users) and the t interval over runs. why: what keeps
    the verdict from being told, besides the interval's width.
    """

    rows: int
    users: int
    items: int
    reference: float
    model: float
    difference: float
    by_day: tuple[float | None, ...]
    by_run: tuple[float, ...]
    hierarchical: Interval
    over_runs: Interval | None
    interval: Interval
    verdict: Verdict
    why: str
    advice: str


def slice_difference(
    model: Sequence[Sequence[Cell]], reference: Sequence[Sequence[Cell]], name: str, metric: str
) -> SliceDifference | None:
    """model, reference: run -> day -> cell, paired. None where no day defines the metric."""
    days = [day for day, cell in enumerate(model[0]) if _defined(model, reference, day, name, metric)]
    if not days:
        return None
    counts = [model[0][day]["metrics"][name] for day in days]
    counted = "covered_rows" if metric == "gauc" else "rows"
    weight_D = np.array([float(of[counted] or 0) for of in counts])
    ours_nD, theirs_nD = (_values(of, days, name, metric) for of in (model, reference))
    found_nD = ours_nD - theirs_nD
    key = name, metric
    drawn_nDR = np.stack(
        [
            np.stack([drawn_metrics(one[day])[key] - drawn_metrics(other[day])[key] for day in days])
            for one, other in zip(model, reference, strict=True)
        ]
    )
    by_run_n = found_nD @ weight_D / weight_D.sum()
    over_runs, hierarchical = t_interval(by_run_n), blocked_interval(drawn_nDR, weight_D, by_run_n)
    interval = max((of for of in (over_runs, hierarchical) if of), key=lambda of: of.half_width)
    users = max(int(of["covered_users" if metric == "gauc" else "users"] or 0) for of in counts)
    why = _obstacle(len(model), users)
    margin = MARGINS[metric]
    told: Verdict = "cannot tell" if why else verdict(metric, interval, margin)
    mean_nR = np.nanmean(drawn_nDR, axis=1)
    sound = len(model) > 1 and not np.isnan(mean_nR).any()
    power = Power.of(by_run_n, mean_nR, interval.half_width, margin) if sound else None
    return SliceDifference(
        rows=int(sum(of[counted] or 0 for of in counts)),
        users=users,
        items=max(int(of["items"] or 0) for of in counts),
        reference=float((theirs_nD @ weight_D).mean() / weight_D.sum()),
        model=float((ours_nD @ weight_D).mean() / weight_D.sum()),
        difference=float(by_run_n.mean()),
        by_day=tuple(
            float(found_nD[:, days.index(day)].mean()) if day in days else None for day in range(len(model[0]))
        ),
        by_run=tuple(by_run_n.tolist()),
        hierarchical=hierarchical,
        over_runs=over_runs,
        interval=interval,
        verdict=told,
        why=why,
        advice=advice(power, len(model)) if told == "cannot tell" and not why else "",
    )


def _defined(
    model: Sequence[Sequence[Cell]], reference: Sequence[Sequence[Cell]], day: int, name: str, metric: str
) -> bool:
    cells = [of_run[day] for of_run in (*model, *reference)]
    return all(cell["metrics"].get(name, {}).get(metric) is not None for cell in cells)


def _values(runs: Sequence[Sequence[Cell]], days: Sequence[int], name: str, metric: str) -> Floats:
    return np.array([[_number(of_run[day]["metrics"][name][metric]) for day in days] for of_run in runs])


def _obstacle(runs: int, users: int) -> str:
    if runs < 2:
        return "one run: the noise of training is unknown"
    return f"{users} users on the fullest day are too few" if users < FEW_USERS else ""


# The whole comparison.

Differences = dict[str, dict[str, SliceDifference | None]]
"""Slice -> metric -> difference."""


@dataclass(frozen=True)
class ArmCost:
    """hid_bytes: of the HID table. item_parameters: of all item tables. step_seconds: median over runs and days."""

    hid_bytes: int
    item_parameters: int | None
    dense_parameters: int | None
    step_seconds: float | None


@dataclass(frozen=True)
class SizeComparison:
    """At 1/size of the HID table's bytes. costs: by arm. differences: with SIDs minus the twin of this size.

    runs: numbers of the complete runs. against_whole: with SIDs at this size minus the twin at size 1; empty at size 1.
    """

    size: int
    runs: tuple[int, ...]
    costs: dict[str, ArmCost]
    differences: Differences
    against_whole: Differences = field(default_factory=dict)


@dataclass(frozen=True)
class DayForward:
    """days: the first one is only trained on, the others are scored. item: the item section with SIDs.

    runs_wanted: of each size. catalogs: distinct ones that the runs used.
    """

    name: str
    checkpoint: str
    step: int
    days: tuple[DayFacts, ...]
    item: str
    runs_wanted: int
    catalogs: int
    sizes: tuple[SizeComparison, ...]
    notes: tuple[str, ...]
    conditions: dict[str, object]
    margins: dict[str, float] = field(default_factory=lambda: {metric: MARGINS[metric] for metric in METRICS})


Chains = Mapping[tuple[int, str], Mapping[int, Sequence[Cell]]]
"""(size, arm) -> run -> cells of all scored days, of complete chains."""


def compare_sizes(chains: Chains, hid_bytes: Mapping[int, int]) -> tuple[SizeComparison, ...]:
    """Sizes with at least one run that both models completed. hid_bytes: of the HID table at each size."""
    found = []
    for size in hid_bytes:
        runs = [run for run in chains[size, SIDS] if run in chains[size, TWIN]]
        whole = [run for run in runs if size != 1 and run in chains.get((1, TWIN), {})]
        if runs:
            costs = {arm: _cost([chains[size, arm][run] for run in runs], hid_bytes[size]) for arm in ARMS}
            differences = _differences(chains[size, SIDS], chains[size, TWIN], runs)
            against = _differences(chains[size, SIDS], chains[1, TWIN], whole) if whole else {}
            found.append(SizeComparison(size, tuple(runs), costs, differences, against))
    return tuple(found)


def _differences(
    model: Mapping[int, Sequence[Cell]], reference: Mapping[int, Sequence[Cell]], runs: Sequence[int]
) -> Differences:
    ours, theirs = ([of[run] for run in runs] for of in (model, reference))
    names = [name for name in SLICES if all(name in cell["metrics"] for cell in ours[0])]
    return {name: {metric: slice_difference(ours, theirs, name, metric) for metric in METRICS} for name in names}


def _cost(runs: Sequence[Sequence[Cell]], hid_bytes: int) -> ArmCost:
    cells = [cell for of_run in runs for cell in of_run]
    seconds = [cell["step_seconds"] for cell in cells if cell["step_seconds"] is not None]
    parameters = cells[-1]["parameters"]
    return ArmCost(
        hid_bytes,
        parameters.get("item_parameters"),
        parameters.get("dense_parameters"),
        float(np.median(seconds)) if seconds else None,
    )
