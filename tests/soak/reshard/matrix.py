"""Saves with every optimizer, sharding type and number of ranks, loads with every other, and compares losses."""

import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from sidrec.config.recipe import RowwiseAdagradTables
from sidrec.io.files import write_json, write_text
from sidrec.study.results import conditions
from tests.soak.reshard.runs import OPTIMIZERS, SAVED_AFTER, STEPS, Plan, Run
from tests.soak.reshard.worker import read_runs
from tests.soak.subject import make_subject

ROOT = Path(__file__).parents[3]
WORLDS = (1, 2, 4)

log = logging.getLogger(__name__)


def run_matrix(out: Path, seed: int = 0, worlds: Sequence[int] = WORLDS) -> list["Verdict"]:
    """Saves and loads on these numbers of ranks; writes out/result.json and out/report.md. seed: of the log."""
    facts: dict[str, object] = {**conditions(), "seed": seed}
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="reshard-matrix-") as folder:
        make_subject(Path(folder), seed)
        for action in ("save", "load"):
            for world in worlds:
                log.info("%s on %d rank(s)", action, world)
                _start_ranks(action, world, Path(folder))
        verdicts = judge(read_runs(Path(folder), "saved"), read_runs(Path(folder), "loaded"))
    facts["seconds"] = round(time.monotonic() - began)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "result.json", {"conditions": facts, "cases": list(map(_case, verdicts))})
    write_text(out / "report.md", report_text(facts, verdicts))
    return verdicts


def _case(found: "Verdict") -> dict[str, object]:
    """Plain data: how columns are cut is the same for all cases of a plan, and left out."""
    run = found.run
    return {
        "saved": asdict(run.start) if run.start else None,
        "loaded": asdict(run.plan),
        "outcome": found.outcome,
        "difference": found.difference,
        "between": found.between,
        "refusal": run.refusal,
    }


def _start_ranks(action: str, world: int, folder: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(world)]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    command += ["-m", "tests.soak.reshard.worker", action, str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


# Verdicts: equal losses, losses after a documented conversion, or wrong.

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


# The report.


def report_text(facts: Mapping[str, Any], verdicts: Sequence[Verdict]) -> str:
    """report.md. facts: the conditions."""
    counted = {kind: sum(found.outcome is kind for found in verdicts) for kind in Outcome}
    lines = [
        "# Checkpoints loaded by other plans",
        "",
        f"{len(verdicts):,} cases: saved after {SAVED_AFTER} steps, loaded by another plan and number of ranks, "
        f"trained for {STEPS - SAVED_AFTER} more. Losses equal those of the run that saved and went on, within "
        f"{TOLERANCE:g}, in {counted[Outcome.EQUAL]:,}; {counted[Outcome.CONVERTED]:,} go on from converted row-wise "
        f"Adagrad, as columns were cut differently; {counted[Outcome.WRONG]} are wrong.",
        "",
        *_wrong(verdicts),
        "| optimizer | cases | equal | converted | largest difference where equal |",
        "|---|---|---|---|---|",
        *(_optimizer(name, verdicts) for name in dict.fromkeys(found.run.plan.optimizer for found in verdicts)),
        "",
        *_pairs("sharding", [(found, _start(found).sharding, found.run.plan.sharding) for found in verdicts]),
        *_pairs("ranks", [(found, str(_start(found).world), str(found.run.plan.world)) for found in verdicts]),
        *_conversions([found for found in verdicts if found.outcome is Outcome.CONVERTED]),
        f"Conditions: {', '.join(f'{name} {value}' for name, value in facts.items())}.",
        "",
    ]
    return "\n".join(lines)


def _start(found: Verdict) -> Any:
    return found.run.start


def _wrong(verdicts: Sequence[Verdict]) -> list[str]:
    wrong = [found for found in verdicts if found.outcome is Outcome.WRONG]
    if not wrong:
        return []
    said = (f"* {found.run.start} -> {found.run.plan}: {found.run.refusal or found.difference}" for found in wrong)
    return ["Not as it should be:", "", *said, ""]


def _optimizer(name: str, verdicts: Sequence[Verdict]) -> str:
    own = [found for found in verdicts if found.run.plan.optimizer == name]
    equal = [found.difference or 0.0 for found in own if found.outcome is Outcome.EQUAL]
    converted = sum(found.outcome is Outcome.CONVERTED for found in own)
    return f"| {name} | {len(own)} | {len(equal)} | {converted} | {max(equal, default=0.0):.2g} |"


def _pairs(what: str, cases: Sequence[tuple[Verdict, str, str]]) -> list[str]:
    """Equal, converted and wrong cases by what saved (rows) and what loaded (columns)."""
    names = list(dict.fromkeys(saved for _, saved, _ in cases))
    lines = [f"Equal / converted / wrong, by {what} that saved (rows) and that loaded (columns):", ""]
    lines += [f"| | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for row in names:
        cells = []
        for column in names:
            found = [verdict.outcome for verdict, saved, loaded in cases if (saved, loaded) == (row, column)]
            cells.append(" / ".join(str(found.count(kind)) for kind in Outcome))
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return [*lines, ""]


def _conversions(converted: Sequence[Verdict]) -> list[str]:
    if not converted:
        return []
    largest = max(found.difference or 0.0 for found in converted)
    between = max(found.between for found in converted)
    return [
        f"Where row-wise Adagrad was converted, losses differ from the run that saved by {largest:.2g} at most; two "
        f"runs of the two plans that were never interrupted differ by up to {between:.2g}.",
        "",
    ]
