"""Figures of targets that recorded results hold only in parts. Each function takes a row's source and its arguments.

The source is the JSON of one file, the comparison of a study's runs.parquet, or a list of several in the row's order.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from sidrec.study.comparison import Comparison


class Measured(NamedTuple):
    """A figure, with the lowest and highest round or the ends of its interval where there are such."""

    value: float
    low: float | None = None
    high: float | None = None


Figures = Mapping[str, Measured]
"""What was measured -> figure; the name is empty where there is only one."""


# Quality of rankers and codes


def leads(found: Comparison, variant: str, reference: str, column: str, *datasets: str) -> Figures:
    """Data set -> the variant minus the reference."""
    return {f"{name}:": _difference(found, name, variant, reference, column) for name in datasets}


def relative_leads(found: Comparison, variant: str, reference: str, column: str, *datasets: str) -> Figures:
    """Data set -> that difference over the reference's mean."""
    made = {}
    for name in datasets:
        of = found.datasets[name].variants[variant].against[reference][column]
        assert of is not None, "a defined column"
        made[f"{name}:"] = Measured(of.relative if of.relative is not None else 0.0)
    return made


def ahead_of_rivals(found: Comparison, column: str, *datasets: str) -> Figures:
    """Data set -> the recommended preset minus the rival that has the highest mean."""
    made = {}
    for name in datasets:
        variants = found.datasets[name].variants
        means = {rival: of.metrics[column] for rival, of in variants.items() if rival in RIVALS}
        best = max(means, key=lambda rival: getattr(means[rival], "mean", 0.0))
        behind = _difference(found, name, best, "recommended", column)
        low, high = behind.low, behind.high
        assert low is not None, "an interval"
        assert high is not None, "an interval"
        made[f"{name} ({best}):"] = Measured(-behind.value, -high, -low)
    return made


RIVALS = (
    *("concatenation", "concatenation_dropout", "mean", "mean_dropout", "content", "content_dropout"),
    *("prefix_ngram", "prefix_ngram_exact", "prefix_ngram_dropout", "ngram", "all_bigrams", "spm"),
    *("match_stats", "gate_sid", "gate_sid_contrast"),
)
"""Variants of the claim that use HIDs and SIDs, or content, in another way than SID-Coord."""


def _difference(found: Comparison, dataset: str, variant: str, reference: str, column: str) -> Measured:
    of = found.datasets[dataset].variants[variant].against[reference][column]
    assert of is not None, "a defined column"
    assert of.interval is not None, "two runs"
    return Measured(of.difference, of.interval.low, of.interval.high)


def variants_with_seeds(sources: Any, seeds: int) -> Figures:
    """Data set or layout -> number of variants with at least so many seeds."""
    of = {
        name: rows for source in (sources if isinstance(sources, list) else [sources]) for name, rows in source.items()
    }
    return {f"{name}:": Measured(sum(len(row["seeds"]) >= seeds for row in rows.values())) for name, rows in of.items()}


def scale_hours(source: Any) -> Figures:
    """CPU hours of fits of ten million items."""
    results = source["results"]
    hours = results["rqvae"]["extrapolated"]["cpu_hours_at_most"]
    return {"RQ-KMeans": Measured(results["residual_kmeans"]["cpu_seconds"] / 3600), "RQ-VAE": Measured(hours)}


def scale_gigabytes(source: Any) -> Figures:
    """Own memory of fits of ten million items."""
    names = {"RQ-KMeans": "residual_kmeans", "RQ-VAE": "rqvae"}
    return {name: Measured(source["results"][key]["own_bytes"] / 1e9) for name, key in names.items()}


# Training steps and reading


def built_over_trained(sources: Any) -> Figures:
    """Rows per CPU second that the reader builds, over those that a step trains."""
    built = sources[0]["batches"]["4096"]["here"]["rows_per_cpu_second"]["all"]
    shapes = {"Criteo-like": "criteo", "Beauty-like": "beauty"}
    return {name: Measured(built / sources[1][key]["SID-Coord"]["rows_per_cpu_second"]) for name, key in shapes.items()}


def rows_prepared(source: Any) -> Figures:
    """Rows per CPU second, by contender and number of rows."""
    ours = [each for each in source["results"] if each["contender"].startswith("sidrec")]
    return {
        f"{each['contender'].removeprefix('sidrec, ')}, {each['rows']:,} rows:": Measured(*each["rows_per_cpu_s"])
        for each in ours
    }


def memory_growth(source: Any) -> Figures:
    """Peak memory of the most rows over that of the fewest."""
    peaks: dict[str, list[float]] = {}
    for each in source["results"]:
        peaks.setdefault(each["contender"].removeprefix("sidrec, "), []).append(each["peak_mib"])
    return {name: Measured(of[-1] / of[0]) for name, of in peaks.items() if len(of) > 1}


# Serving


def request_ratios(source: Any, variant: str) -> Figures:
    """CPU time of a request over that of HIDs alone, median of each round's and of the 99th percentiles."""
    found = {}
    for line in source["latency"]:
        own_N, twin_N = np.array(line["cpu_ms"][variant]), np.array(line["cpu_ms"]["hid_only"])
        low, value, high = np.quantile(own_N / twin_N, [0.1, 0.5, 0.9]).tolist()
        shape = f"{line['candidates']:,} x {line['history']}"
        found[f"{shape}:"] = Measured(value, low, high)
        found[f"{shape}, 99%:"] = Measured(float(np.quantile(own_N, 0.99) / np.quantile(twin_N, 0.99)))
    return found


def rows_scored(source: Any, *variants: str) -> Figures:
    """Rows a CPU second of batch scoring, with the lowest and highest round."""
    values = {name: source["batch"][name] for name in variants}
    return {f"{name}:": Measured(float(np.median(of)), min(of), max(of)) for name, of in values.items()}


def load_held(source: Any) -> Figures:
    """Body -> requests a second of the last rate that was held."""
    return {f"{kind}:": Measured(lines[-2]["rate"]) for kind, lines in source["rates"].items()}


# Sharding plans


def fewest_plans(source: Any) -> Figures:
    """Plans of the bench that has the fewest."""
    return {"": Measured(min(of["plans"] for name, of in source["spearman"].items() if "/" not in name))}


def held_out(source: Any) -> Figures:
    """Spearman's correlation by costs that are regressed on the other workloads."""
    benches = {name: of for name, of in source["spearman"].items() if "/" not in name}
    return {name: Measured(of["regressed on the other workloads"]) for name, of in benches.items()}


def chosen(source: Any, plan: str) -> Figures:
    """The ratio of steps that accuracy.json records for this plan."""
    found = {name.removeprefix("chosen/"): of[plan] for name, of in source["chosen"].items()}
    return {name: Measured(of["ratio"], of["low"], of["high"]) for name, of in found.items()}


def command_seconds(source: Any, group: str, clock: str) -> Figures:
    """Seconds of commands. clock: cpu or wall. Empty if the group was not measured."""
    times = source[group]["times"] if group in source else {}
    return {f"{title}:": Measured(of[f"{clock}_seconds"]) for title, of in times.items()}


# Training that survives


def kills(source: Any) -> Figures:
    """Kills of a campaign."""
    return {"": Measured(sum(len(run["strikes"]) for run in source["runs"]))}


def runs_with_complaints(sources: Any) -> Figures:
    """Runs of each campaign that did not end as the uninterrupted one."""
    return {
        f"of {len(source['runs'])} runs with {kills(source)[''].value} kills:": Measured(
            sum(bool(run["complaints"]) for run in source["runs"])
        )
        for source in sources
    }


def resharded_wrong(source: Any) -> Figures:
    """Cases that are neither equal nor converted."""
    outcomes = [case["outcome"] for case in source["cases"]]
    known = {outcome: outcomes.count(outcome) for outcome in ("equal", "converted")}
    counted = ", ".join(f"{count:,} {outcome}" for outcome, count in known.items())
    return {f"{counted}, wrong:": Measured(len(outcomes) - sum(known.values()))}


def fuzz_failures(source: Any) -> Figures:
    """Failures among all cases."""
    return {f"in {source['cases']:,} cases:": Measured(len(source["failures"]))}


def stall_steps(source: Any) -> Figures:
    """Time that training stands still for a checkpoint, over that of a step."""
    large = source["large, 1 rank(s)"]
    step = large["step_ms"][0] / 1000
    return {mode: Measured(large[mode]["stall_seconds"][0] / step) for mode in ("in the background", "waited for")}
