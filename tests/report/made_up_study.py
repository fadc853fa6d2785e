"""A comparison of made-up runs, with every kind of verdict, for reports and pictures."""

from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np

from sidrec.study.comparison import (
    Comparison,
    Cost,
    DatasetComparison,
    GateOfRun,
    PairedDifference,
    Spread,
    VariantResult,
    place,
)
from sidrec.study.draws import Counts
from sidrec.study.intervals import t_interval
from sidrec.study.proposals import Edge
from sidrec.study.search import Found
from sidrec.study.verdicts import MARGINS, Power, verdict

COLUMNS = ("AUC", "GAUC", "NE", "tail AUC", "warm-tail AUC", "cold AUC", "cold GAUC")
LEVELS = {
    "AUC": 0.78,
    "GAUC": 0.76,
    "NE": 0.81,
    "tail AUC": 0.75,
    "warm-tail AUC": 0.76,
    "cold AUC": 0.7,
    "cold GAUC": 0.7,
}
LEADS = {"hid_only": 0.0, "sid_only": 0.03, "published": 0.034, "mean_with_dropout": 0.0335, "recommended": 0.041}
"""Variant -> its lead over hid_only in all columns but NE, where it has the opposite sign."""
COUNTS = {
    "all": Counts(40_294, 20_147, 6_188, 7_012, 6_188, 40_294),
    "tail": Counts(18_272, 9_300, 5_201, 4_630, 3_950, 16_011),
    "warm_tail": Counts(14_479, 7_000, 4_708, 3_590, 3_100, 12_404),
    "cold": Counts(3_793, 2_617, 2_010, 1_040, 611, 2_121),
}


def made_up_study(
    datasets: Sequence[str] = ("beauty", "yelp"),
    leads: Mapping[str, float] = LEADS,
    runs: int = 10,
    columns: Sequence[str] = COLUMNS,
    references: Sequence[str] = ("hid_only", "sid_only", "recommended"),
    noise: float = 0.003,
) -> Comparison:
    """noise: standard deviation of a run's metric. Users move differences by a fifth of it."""
    random = np.random.default_rng(7)
    found = {}
    for dataset in datasets:
        common_CR = {column: random.normal(0, noise, runs) for column in columns}
        values = {
            (name, column): LEVELS[column]
            + (-1 if column == "NE" else 1) * lead
            + common_CR[column]
            + random.normal(0, noise * (5 if "cold" in column else 1), runs)
            for (name, lead), column in product(leads.items(), columns)
        }
        found[dataset] = DatasetComparison(
            recipe=f"recipes/{dataset}.yaml",
            counts=COUNTS,
            variants={
                name: VariantResult(
                    runs=tuple(range(runs)),
                    catalogs=0 if name == "hid_only" else runs,
                    metrics={column: Spread.of(values[name, column].tolist()) for column in columns},
                    cost=Cost(
                        Spread.of(random.normal(0.02 + 0.3 * lead, 0.0004, runs).tolist()),
                        Spread.of(random.normal(50 + 300 * lead, 2, runs).tolist()),
                        774_464 + int(2e6 * lead),
                        16_384,
                        26_113 + int(1e6 * lead),
                    ),
                    gates=gates_of(name, runs),
                    against={
                        reference: {
                            column: difference(column, values[name, column], values[reference, column], noise / 5)
                            for column in columns
                        }
                        for reference in references
                        if reference in leads and reference != name
                    },
                )
                for name, lead in leads.items()
            },
            conditions={"commit": ("0123456789ab",), "cpu": ("a CPU",), "cores": ("2",), "ranks": ("1",)},
        )
    return Comparison("claim", "test", tuple(columns), tuple(references), found)


def made_up_searches(datasets: Sequence[str] = ("beauty", "yelp")) -> dict[str, dict[str, Found]]:
    """As best.yaml has them: published is at an edge; hid_only has no key of SIDs."""
    random = np.random.default_rng(3)
    found: dict[str, dict[str, Found]] = {}
    for dataset in datasets:
        for name, lead in LEADS.items():
            tried = 0.75 + lead + random.normal(0, 0.004, 12)
            edges = [Edge(key="optimizer.tables.lr", end="low", value=0.01, limit=0.01)]
            found.setdefault(dataset, {})[name] = {
                "search": "0123456789abcdef",
                "split": "validation",
                "metric": "gauc",
                "runs": [0],
                "trials": 12,
                "pruned": 0,
                "diverged": 0,
                "trained": 12,
                "exploratory": 4 if name == "recommended" else 0,
                "cpu_seconds": 700.0,
                "trial": int(tried.argmax()),
                "value": float(tried.max()),
                "values": {"optimizer.tables.lr": 0.0312345, "model.hid_init": None},
                "edges": edges if name == "published" else [],
                "left_out": {"model.item.hid_dropout": "no such key"} if name == "hid_only" else {},
                "curve": [None, *np.maximum.accumulate(tried[1:]).tolist()],
            }
    return found


def gates_of(name: str, runs: int) -> tuple[GateOfRun, ...]:
    gates = tuple(GateOfRun(round(0.9 * (-1) ** run, 2), 0.2, 0.6 + run / 100, 0.1, 0.0) for run in range(runs))
    return {"published": gates, "recommended": (GateOfRun(None),) * runs}.get(name, ())


def difference(
    column: str, variant_n: np.ndarray, reference_n: np.ndarray, users: float = 0.0006, why: str = ""
) -> PairedDifference:
    """users: standard deviation of a difference over draws of users. why: no verdict, for this reason."""
    metric, found_n = place(column)[1], variant_n - reference_n
    over_runs = t_interval(found_n)
    drawn_nR = found_n[:, None] + np.random.default_rng(1).normal(0, users, 64)[None]
    margin = MARGINS[metric]
    return PairedDifference(
        runs=tuple(range(len(found_n))),
        difference=float(found_n.mean()),
        relative=float(found_n.mean() / reference_n.mean()),
        by_run=tuple(found_n.tolist()),
        over_runs=over_runs,
        over_users=None,
        hierarchical=over_runs,
        interval=over_runs,
        p=None,
        positive=int((found_n > 0).sum()),
        verdict="cannot tell" if why else verdict(metric, over_runs, margin),
        why=why,
        power=None if over_runs is None else Power.of(found_n, drawn_nR, over_runs.half_width, margin),
    )
