"""What came of loading: losses that go on, losses that go on as the stated conversion lets them, or a refusal."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from benchmarks.reshard_matrix.rankers import OPTIMIZERS
from benchmarks.reshard_matrix.runs import Plan, Run
from sidrec.config.recipe import RowwiseAdagradTables

TOLERANCE = 1e-6


class Outcome(StrEnum):
    """What a case is, by its optimizer and the two plans, and whether it came so."""

    EQUAL = "equal"
    CONVERTED = "converted"
    WRONG = "wrong"


@dataclass(frozen=True)
class Verdict:
    """run: the one that has loaded. difference: largest of its losses from those of the run that saved and went on.

    between: the same between two uninterrupted runs, of the plan that saved and of the one that loads.
    """

    run: Run
    outcome: Outcome
    difference: float | None
    between: float


def judge(saved: Sequence[Run], loaded: Sequence[Run]) -> list[Verdict]:
    """One verdict for each run that has loaded; saved: the runs that went on uninterrupted, of all plans."""
    whole = {run.plan: run for run in saved}
    return [_judge(whole, run) for run in loaded]


def _judge(whole: dict[Plan, Run], run: Run) -> Verdict:
    assert run.start is not None, "it has loaded"
    start = whole[run.start]
    between = _difference(start, whole[run.plan])
    if run.refusal is not None:
        return Verdict(run, Outcome.WRONG, None, between)
    difference = _difference(start, run)
    if difference <= TOLERANCE:
        return Verdict(run, Outcome.EQUAL, difference, between)
    recut = _keeps_row_sums(run.plan) and start.columns != run.columns
    # A conversion takes the run closer to the plan that it came from than that plan is to this one.
    outcome = Outcome.CONVERTED if recut and difference <= max(between, TOLERANCE) else Outcome.WRONG
    return Verdict(run, outcome, difference, between)


def _difference(one: Run, other: Run) -> float:
    return max(abs(loss - reference) for loss, reference in zip(one.losses, other.losses, strict=True))


def _keeps_row_sums(plan: Plan) -> bool:
    config = OPTIMIZERS[plan.optimizer]
    return any(isinstance(tables, RowwiseAdagradTables) for tables in (config.tables, config.hid))
