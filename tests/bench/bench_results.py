"""Made-up results of benches, of any size and with what makes a page hard, for the tests of the page."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from sidrec.bench.result import PHASES, VERSION, BenchResult, PlanMeasurement, Prediction, Timing

TYPES = ("table_wise", "row_wise", "column_wise", "table_row_wise", "table_column_wise", "grid_shard", "data_parallel")
HOSTILE = '</script><img src=x onerror=alert(1)> & "quoted" <b>\'s'
LONG = "plans/beauty_sid_coord/calibrated/second_attempt_with_hot_items_replicated_" + "x" * 60 + ".json"
SHARES = {"input_dist": 0.15, "lookup": 0.3, "output_dist": 0.2, "dense_forward": 0.1, "backward": 0.4}


def made_up(
    names: Sequence[str], world: int = 4, tables: int = 8, rounds: int = 5, predicted: bool = True, seed: int = 0
) -> BenchResult:
    """One measured plan for each name, in no order; the calibrated predictions are near, the default ones far off."""
    rng = np.random.default_rng(seed)
    plans = [_plan(name, TYPES[index % 7], world, tables, rounds, predicted, rng) for index, name in enumerate(names)]
    return BenchResult(
        version=VERSION,
        workload={"name": "criteo-mlperf, rows / 100", "rows_per_rank": 512, "tables": tables, "zipf": 1.05},
        hardware={
            **{"name": "this machine", "device": "cpu", "world": world, "local_world": min(world, 8)},
            **{"ddr": 12 * 2**30, "ddr_bandwidth": 8.2e9, "intra_bandwidth": 1.1e9, "cpu": "Xeon, 2 cores"},
        },
        conditions={
            **{"commit": "59bfb89", "held_fixed": ["batches", "first weights", "SGD 0.1"], "omp_threads": 1},
            "steps": {"warm_up": 5, "timed": 10},
        },
        rounds_wanted=rounds,
        complete=True,
        plans=plans,
    )


def failed(name: str, sentence: str) -> PlanMeasurement:
    return PlanMeasurement(name, {}, sentence, [], {}, [], [], None, None)


def _plan(
    name: str, kind: str, world: int, tables: int, rounds: int, predicted: bool, rng: np.random.Generator
) -> PlanMeasurement:
    names = [f"t_cat_{table}" for table in range(tables)]
    held = [0] if kind == "table_wise" else list(range(world))
    layouts = {
        table: {"rows": 40_000, "width": 64, "sharding_type": kind, "compute_kernel": "fused", "ranks": held}
        for table in names
    }
    step = float(rng.uniform(40, 120))
    whole = {"version": 1, "world": world, "local_world": world, "device": "cpu", "tables": {"sparse": layouts}}
    return PlanMeasurement(
        name=name,
        plan=whole,
        failed=None,
        rounds=[float(step * rng.uniform(0.95, 1.08)) for _ in range(rounds)],
        timings={phase: _timing(step * SHARES.get(phase, 1.0), rng) for phase in PHASES},
        memory=[int(each) for each in rng.uniform(1e8, 9e8, world)],
        lookups=[float(each) for each in rng.uniform(8_000, 16_000, world)],
        cpu=[float(each) for each in rng.uniform(step / 2, step, world)],
        default=_prediction(step * rng.uniform(0.05, 0.4), names, world, rng) if predicted else None,
        calibrated=_prediction(step * rng.uniform(0.93, 1.06), names, world, rng) if predicted else None,
    )


def _timing(median: float, rng: np.random.Generator) -> Timing:
    return Timing(float(median * rng.uniform(0.9, 0.99)), median, float(median * rng.uniform(1.01, 1.2)))


def _prediction(step: float, tables: Sequence[str], world: int, rng: np.random.Generator) -> Prediction:
    """Each rank's tables sum to at most the step, the last rank's to just that."""
    cost = rng.uniform(0.1, 1, (len(tables), world)) ** 3
    cost *= step / cost.sum(0).max()
    return Prediction(float(step), {table: [float(each) for each in cost[row]] for row, table in enumerate(tables)})


def plan(name: str, step: float, **changes: Any) -> PlanMeasurement:
    timings = {"step": Timing(step - 1, step, step + 2), "lookup": Timing(1.0, 2.5, 3.0), "backward": Timing(4, 5, 6)}
    whole = PlanMeasurement(name, {}, None, [step], timings, [2**20, 3 * 2**20], [10.0, 10.0], None, None, [3.0, 4.0])
    return dataclasses.replace(whole, **changes)


def prediction(step: float) -> Prediction:
    return Prediction(step, {"item": [step, 0.0]})


def result_of(*plans: PlanMeasurement) -> BenchResult:
    return dataclasses.replace(made_up([]), plans=list(plans))


CASES = {
    "seven types": made_up(["auto", *TYPES]),
    "twelve, some failed": dataclasses.replace(
        made_up([*TYPES, LONG, HOSTILE, "a", "b", "c"], world=8, tables=26),
        plans=[
            failed("no_memory", "table item: expected at most 12 GiB\nmore"),
            *made_up([*TYPES, LONG, HOSTILE], 8).plans,
        ],
    ),
    "one plan, one rank": made_up(["auto"], world=1, tables=1, rounds=1),
    "all failed": result_of(failed("grid_shard", "pools by MEAN"), failed(HOSTILE, HOSTILE)),
    "no plan": made_up([]),
    "no predictions": made_up(TYPES, world=2, predicted=False),
    "64 ranks": made_up([*TYPES, LONG], world=64, tables=60),
    "before the first round": result_of(plan("auto", 1.0, timings={}, rounds=[], memory=[], lookups=[])),
    "step alone": result_of(plan("auto", 9.0, timings={"step": Timing(8, 9, 10)}), plan("row_wise", 900.0)),
    "several names, one dropped": dataclasses.replace(
        made_up([*TYPES, "slow"]),
        plans=[
            dataclasses.replace(made_up(TYPES).plans[0], aliases=["auto", "torchrec", "table_column_wise_by_hand"]),
            *made_up(TYPES).plans[1:],
            dataclasses.replace(
                plan("slow", 4000.0), dropped="after 1 round", memory=[1] * 4, lookups=[1.0] * 4, cpu=[1.0] * 4
            ),
        ],
    ),
    "all alike": result_of(*(plan(name, 5.0, default=prediction(5.0)) for name in ("a", "b", "c", "d"))),
}
