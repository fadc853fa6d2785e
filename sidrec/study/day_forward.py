"""`sidrec study --checkpoint RUN --log FOLDER ...`: what SIDs add to a model that has converged, day forward.

From the weights of a run of HIDs alone, two models train on, a day at a time: the twin, and the same model with SIDs
(`start.grow`), which scores as the twin before its first step. Each day is scored by the models of the day before.
Recorded in RESULTS: cells.parquet, a row per scored day, model and run. A run has the training seed and the catalog fit
of its number. A chain is one model of one run over all days.
"""

import json
import logging
import shutil
import time
from collections.abc import Mapping
from typing import Any

from sidrec.config import Recipe
from sidrec.errors import TrainingError
from sidrec.study.day_comparison import (
    ARMS,
    SIDS,
    TWIN,
    Cell,
    DayForward,
    compare_sizes,
    measure_cell,
    slice_masks,
)
from sidrec.study.day_log import Day, day_length, item_ages
from sidrec.study.day_models import DayForwardStudy
from sidrec.study.results import conditions
from sidrec.train.progress import median_step_seconds
from sidrec.train.run_directory import RunDirectory

log = logging.getLogger(__name__)

# Running: run by run, size by size, day by day.


def run_study(study: DayForwardStudy, minutes: float | None = None) -> bool:
    """Trains and scores what is not recorded. Returns whether all of it is. minutes: after which no cell begins."""
    clock = Clock(minutes, _waiting(study))
    log.info("%d cells, %d of them to train", len(_all_cells(study)), clock.waiting)
    for run in range(study.question.runs):
        for size in study.question.sizes:
            for arm in ARMS:
                if not _run_chain(study, run, size, arm, clock):
                    log.info("stopping after %.1f minutes with %d cells to go", clock.minutes_spent, clock.waiting)
                    return False
    return True


class Clock:
    """Time spent and left. waiting: cells to go."""

    def __init__(self, minutes: float | None, waiting: int) -> None:
        self.limit, self.waiting, self.done = minutes, waiting, 0
        self.begun = time.monotonic()

    @property
    def minutes_spent(self) -> float:
        return (time.monotonic() - self.begun) / 60

    def is_over(self) -> bool:
        """Whether another cell would probably end after the limit."""
        of_cell = self.minutes_spent / self.done if self.done else 0.0
        return self.limit is not None and self.minutes_spent + of_cell > self.limit

    def count(self) -> str:
        """Counts a finished cell; returns the time left, as text."""
        self.done += 1
        self.waiting -= 1
        return f"ETA {self.minutes_spent / self.done * self.waiting:.1f} min"


def _all_cells(study: DayForwardStudy) -> list[tuple[object, ...]]:
    scored = study.days[1:]
    runs = range(study.question.runs)
    return [
        (run, size, arm, day.name) for run in runs for size in study.question.sizes for arm in ARMS for day in scored
    ]


def _waiting(study: DayForwardStudy) -> int:
    recorded = study.cells.read()
    return sum(key not in recorded for key in _all_cells(study))


def _run_chain(study: DayForwardStudy, run: int, size: int, arm: str, clock: Clock) -> bool:
    """Trains a model on day after day, and scores each next day. Returns False if the time is over."""
    recorded = study.cells.read()
    if all((run, size, arm, day.name) in recorded for day in study.days[1:]):
        return True
    study.facts  # noqa: B018  writes the days
    start = study.base(size)
    for day, scored in zip(study.days, study.days[1:], strict=False):
        if clock.is_over():
            return False
        key = (run, size, arm, scored.name)
        recipe = study.day_recipe(run, size, arm, day, start)
        study.trained(recipe)
        if key not in recorded:
            if (run, size, arm) == (0, study.question.sizes[0], TWIN):
                study.keep_updates(scored, recipe.run)
            study.cells.put(_cell(study, recipe, run, size, arm, scored))
            log.info("run %d, 1/%d of the HID bytes, %s: scored %s, %s", run, size, arm, scored, clock.count())
        if start.is_relative_to(study.work / "runs"):
            shutil.rmtree(start / "checkpoints")
        start = recipe.run
    shutil.rmtree(study.chain(run, size, arm))
    return True


def _cell(study: DayForwardStudy, recipe: Recipe, run: int, size: int, arm: str, day: Day) -> Cell:
    scored = study.scored(recipe, run, arm, day)
    age_I = item_ages(study.first_seen[day.name], day.first, day_length(study.days))
    masks = dict(slice_masks(scored.item_N, age_I, study.updates(day)))
    metrics, draws = measure_cell(scored, masks, study.users)
    directory = RunDirectory(recipe.run)
    facts: Mapping[str, Any] = json.loads(directory.facts.read_text(encoding="utf-8"))
    lines = [json.loads(line) for line in directory.log.read_text(encoding="utf-8").splitlines()]
    if not metrics["all"]["rows"]:
        raise TrainingError(f"{directory.path}: expected scores of {day}, got none")
    return Cell(
        run=run,
        size=size,
        arm=arm,
        day=day.name,
        metrics=metrics,
        draws=draws,
        step_seconds=median_step_seconds(lines, recipe.data.batch_size),
        parameters=facts["parameters"],
        catalog=directory.fingerprint.read_text(encoding="utf-8").strip() if arm == SIDS else None,
    )


# What was found.


def compared(study: DayForwardStudy) -> DayForward:
    """The comparison, from recorded cells and the facts of the days. Sizes without a complete run are left out."""
    recorded, scored = study.cells.read(), [day.name for day in study.days[1:]]
    chains: dict[tuple[int, str], dict[int, list[Cell]]] = {}
    for size in study.question.sizes:
        for arm in ARMS:
            of_run = {
                run: [recorded[run, size, arm, day] for day in scored]
                for run in range(study.question.runs)
                if all((run, size, arm, day) in recorded for day in scored)
            }
            chains[size, arm] = of_run
    catalogs = {cells[0]["catalog"] for (_, arm), of in chains.items() if arm == SIDS for cells in of.values()}
    return DayForward(
        name=study.results.name,
        checkpoint=str(study.start.path),
        step=study.start.position.step,
        days=tuple(study.facts),
        item=json.dumps(dict(study.question.item)),
        runs_wanted=study.question.runs,
        catalogs=len(catalogs),
        sizes=compare_sizes(chains, study.hid_bytes),
        notes=tuple(_notes(study)),
        conditions=dict(conditions()),
    )


def _notes(study: DayForwardStudy) -> list[str]:
    notes = [
        "all runs start from the same weights: what another training of the run itself would change is not in here"
    ]
    if not all(day.shown for day in study.facts):
        notes.append("negatives of the log are sampled, not shown rows: scores rank what users took against a draw")
    if study.question.catalog is not None:
        notes.append("one catalog for all runs: the noise of its fit is not in the intervals")
    if len(study.days) < 3:
        notes.append("one scored day: what differs between days is not in the intervals")
    if not study.recipe.model.item.hid_rows_are_ids:
        notes.append("HIDs are hashed: items share rows, so there are no slices by updates")
    return notes
