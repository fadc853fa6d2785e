"""What measured plans say about costs: made-up plans whose costs, collinear work, repetitions and noise are known."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from sidrec.bench.calibrate import determined, order_warning
from sidrec.bench.identifiability import check_identified, distinct_plans, identifiability, predicted_left_out
from sidrec.bench.regression import Sample, calibrate_costs
from sidrec.config import ConfigError
from sidrec.plans.calibration import Identifiability
from sidrec.plans.cost import KINDS

Change = Callable[[np.ndarray, np.random.Generator], None]
IDS, BYTES, BAGS, SENT, EXCHANGES = (
    KINDS.index(kind) for kind in ("looked_up_ids", "looked_up_bytes", "pooled_bags", "sent_ids", "exchanges")
)
USED = [IDS, BYTES, BAGS, SENT, EXCHANGES]
COST_K = np.array([2.0 if k in USED else 0.0 for k in range(len(KINDS))])
BASE = 5.0  # milliseconds that no plan changes


def _bench(
    plans: int, name: str = "a", change: Change | None = None, noise: float = 0.0, seed: int = 0
) -> list[Sample]:
    """Plans on one rank with random amounts of five kinds of work, then changed by `change` in place."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(plans):
        work_WK = np.zeros((1, len(KINDS)))
        work_WK[0, USED] = rng.random(len(USED))
        work_WK[0, KINDS.index("steps")] = 1.0
        if change is not None:
            change(work_WK[0], rng)
        step = float((work_WK @ COST_K).max() + BASE) * float(rng.lognormal(0, noise))
        made.append(Sample(f"model {name}", f"bench {name}", f"plan {number}", work_WK, step))
    return made


def _proportional(work_K: np.ndarray, rng: np.random.Generator) -> None:
    work_K[BYTES] = 64 * work_K[IDS]


def _nearly_proportional(work_K: np.ndarray, rng: np.random.Generator) -> None:
    work_K[BYTES] = 64 * work_K[IDS] * rng.normal(1, 0.003)


def _a_sum(work_K: np.ndarray, rng: np.random.Generator) -> None:
    work_K[SENT] = work_K[IDS] + work_K[BAGS]


def _constant(work_K: np.ndarray, rng: np.random.Generator) -> None:
    work_K[EXCHANGES] = 2.0


def _none(work_K: np.ndarray, rng: np.random.Generator) -> None:
    work_K[EXCHANGES] = 0.0


def _known(samples: Sequence[Sample]) -> Identifiability:
    return identifiability(samples, calibrate_costs(samples))


NAMES = {IDS: "looked_up_ids", BYTES: "looked_up_bytes", BAGS: "pooled_bags", SENT: "sent_ids", EXCHANGES: "exchanges"}


@pytest.mark.parametrize(
    ("samples", "rank", "inseparable"),
    [
        (_bench(30), 6, []),
        (_bench(30, noise=0.05), 6, []),
        (_bench(30) + _bench(30, "b", seed=1), 7, []),
        (_bench(30, change=_proportional), 5, [IDS, BYTES]),
        (_bench(30, change=_nearly_proportional), 6, [IDS, BYTES]),
        (_bench(30, change=_proportional) + _bench(30, "b", seed=1), 7, []),  # the second bench separates them
        (_bench(30, change=_a_sum), 5, [IDS, BAGS, SENT]),
        (_bench(30, change=_constant), 5, [EXCHANGES]),
        (_bench(30, change=_constant) + _bench(30, "b", _constant, seed=1), 6, [EXCHANGES]),
        (_bench(30, change=_none), 5, []),
        (_bench(3), 3, [IDS, BYTES, BAGS, SENT, EXCHANGES]),
        (_bench(1), 1, [IDS, BYTES, BAGS, SENT, EXCHANGES]),
        (_bench(1) * 20, 1, [IDS, BYTES, BAGS, SENT, EXCHANGES]),
    ],
)
def test_costs_that_plans_do_not_separate_are_named(samples: list[Sample], rank: int, inseparable: list[int]) -> None:
    known = _known(samples)
    assert known.rank == rank
    assert set(known.inseparable) == {NAMES[k] for k in inseparable}
    assert (known.condition is None) == (rank < known.coefficients)
    never = {kind for k, kind in enumerate(KINDS) if not any(sample.work_WK[:, k].any() for sample in samples)}
    assert set(known.absent) == never
    assert known.coefficients == len(set(USED) - {KINDS.index(kind) for kind in never}) + len(
        {s.bench for s in samples}
    )


def _again(samples: Sequence[Sample], bench: str, factor: float = 1.0) -> list[Sample]:
    return [replace(sample, bench=bench, step=sample.step * factor) for sample in samples]


@pytest.mark.parametrize(
    ("samples", "plans", "coefficients"),
    [
        (_bench(1), 1, 6),
        (_bench(2), 2, 6),
        (_bench(5), 5, 6),
        (_bench(1) * 40, 1, 6),
        (_bench(3) * 7, 3, 6),
        (_bench(5, noise=0.1) + _bench(5, noise=0.2), 5, 6),  # equal work, other times
        (_bench(5) + _again(_bench(5), "b", 1.3), 6, 7),
        (_bench(5) + _again(_bench(5), "b") + _again(_bench(5), "c", 2.0), 7, 8),
        (_bench(3) + _bench(3, "b", seed=1), 6, 7),
        (_bench(4, change=_none), 4, 5),
    ],
)
def test_fewer_distinct_plans_than_coefficients_are_refused(
    samples: list[Sample], plans: int, coefficients: int
) -> None:
    known = _known(samples)
    assert (known.plans, known.coefficients) == (plans, coefficients)
    benches = len({sample.bench for sample in samples})
    got = rf"{coefficients} distinct plans, .*{coefficients - benches} kinds of work and {benches} bench.* got {plans};"
    with pytest.raises(ConfigError, match=got):
        check_identified(samples, known, 2)


@pytest.mark.parametrize(
    ("samples", "doubted"),
    [
        (_bench(6), True),
        (_bench(8), True),
        (_bench(9), False),
        (_bench(90), False),
        (_bench(5, change=_none), True),
        (_bench(4) + _bench(4, "b", seed=1), True),
        (_bench(6) + _bench(6, "b", seed=1), False),
        (_bench(90, change=_proportional), True),  # singular
        (_bench(90, change=_proportional) + _bench(90, "b", seed=1), False),
    ],
)
def test_few_plans_are_warned_of_and_many_are_not(samples: list[Sample], doubted: bool) -> None:
    known = _known(samples)
    check_identified(samples, known, 1)
    said = determined(samples, known)
    assert said[0].startswith(f"unknown costs: {known.coefficients} (")
    assert any(line.startswith("warning: ") for line in said) == doubted


def test_a_kind_that_makes_plans_faster_is_regressed_to_zero_and_named() -> None:
    samples = _bench(40)
    cheaper = [replace(each, step=each.step - 3.0 * each.work_WK[0, SENT]) for each in samples]
    assert _known(samples).zero == []
    assert _known(cheaper).zero == ["sent_ids"]
    assert any(line == "unknown, since regressed to 0: sent_ids" for line in determined(cheaper, _known(cheaper)))


def test_a_kind_that_no_busiest_rank_has_is_named() -> None:
    """The rank with all lookups is always slower than the one with all bags, so that bags seem to cost nothing."""
    samples = []
    for each in _bench(12):
        work_WK = np.vstack([each.work_WK[0], 0 * each.work_WK[0]])
        work_WK[:, BAGS] = [0.0, 1e-3]
        samples.append(replace(each, work_WK=work_WK, step=float((work_WK @ COST_K).max() + BASE)))
    known = _known(samples)
    assert "pooled_bags" in known.zero
    assert "pooled_bags" in known.ranges
    assert known.coefficients == 5


def test_ranges_are_of_the_busiest_rank_over_plans_with_such_work() -> None:
    work_WK = np.zeros((2, len(KINDS)))
    work_WK[:, IDS] = [3.0, 7.0]
    samples = [Sample("m", "b", f"{n}", n * work_WK, 1.0 + n) for n in range(4)]
    assert _known(samples).ranges == {"looked_up_ids": (7.0, 21.0)}


@pytest.mark.parametrize("noise", [0.0, 0.02, 0.1, 0.3])
def test_the_error_of_plans_left_out_is_not_that_of_the_regression(noise: float) -> None:
    """With as many plans as costs the regression passes through all of them, whatever they took."""
    samples = _bench(6, noise=noise, seed=3)
    costs, known = calibrate_costs(samples), _known(samples)
    assert known.left_out_plan is not None
    assert known.left_out_workload is None
    assert known.left_out_plan >= costs.error
    many = _known(_bench(60, noise=noise) + _bench(60, "b", noise=noise, seed=1))
    assert many.left_out_plan == pytest.approx(0.67 * noise, rel=0.5, abs=0.01)  # .67: median of |a normal variable|
    assert many.left_out_workload == pytest.approx(0.67 * noise, rel=0.7, abs=0.01)


def test_a_plan_is_left_out_with_its_repetitions() -> None:
    """A plan of 10 times its cost: neither of its two names may help to predict the other."""
    samples = _bench(20)
    slow = [
        replace(samples[0], step=samples[0].step * 10),
        replace(samples[0], plan="again", step=samples[0].step * 10),
    ]
    predicted = predicted_left_out([*samples[1:], *slow])
    assert predicted is not None
    assert predicted[-2:] == pytest.approx([samples[0].step] * 2, rel=0.05)


@pytest.mark.parametrize(
    ("samples", "warned"),
    [
        (_bench(30), False),
        (_bench(30, noise=0.05), False),
        (_bench(30, noise=0.05) + _bench(30, "b", noise=0.05, seed=1), False),
        (_bench(30, noise=5.0), True),
        (_bench(30, noise=5.0, seed=7), True),
        (_bench(30, noise=5.0) + _bench(30, "b", noise=5.0, seed=1), True),
        ([replace(each, step=float(10 + n * 7 % 30)) for n, each in enumerate(_bench(30))], True),  # times of no plan
        ([replace(each, step=10.0) for each in _bench(30)], False),  # nothing to order
        (_bench(1), False),
        (_bench(1) * 9, False),
    ],
)
def test_costs_that_do_not_order_plans_are_warned_of(samples: list[Sample], warned: bool) -> None:
    assert bool(order_warning(samples, predicted_left_out(samples))) == warned


def test_nothing_can_be_left_out_of_one_plan() -> None:
    assert predicted_left_out(_bench(1) * 3) is None
    assert predicted_left_out(_bench(9), by_workload=True) is None


def test_ranks_in_another_order_are_the_same_plan() -> None:
    work_WK = np.zeros((2, len(KINDS)))
    work_WK[:, IDS] = [3.0, 7.0]
    samples = [Sample("m", "b", "one", work_WK, 1.0), Sample("m", "b", "other", work_WK[::-1], 1.0)]
    assert distinct_plans(samples, COST_K) == 1
