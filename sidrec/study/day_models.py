"""The models and data of a day-forward study: its plan, and what of it is on disk.

WORK/days/dayNN      rows of a day (`day_log`)       WORK/past         items that the catalogs are fitted on
WORK/catalogs/fitR   catalog of run R, and what it was extended to, day by day
WORK/base/sizeK      twin with 1/K of the HID table's bytes, trained as the run was
WORK/runs            the run directory of the last day of a chain: one model of one run over all days
"""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sidrec.checkpoint.stored_tables import StoredCheckpoint, open_checkpoint
from sidrec.config import ConfigError, Recipe
from sidrec.config.item import HashedItem, HidItem
from sidrec.config.item_parts import ModuloIndex
from sidrec.config.load import parse
from sidrec.config.recipe import StartConfig
from sidrec.data.item_tables import HID
from sidrec.fit import extend_catalog, fit_catalog
from sidrec.io.files import read_json, write_json
from sidrec.io.places import local_path
from sidrec.metrics.predictions import Predictions
from sidrec.parallel.process_group import Ranks
from sidrec.schema import ITEM_ID, LOG, USER_ID, load_manifest
from sidrec.study.day_comparison import (
    SIDS,
    TWIN,
    Cell,
)
from sidrec.study.day_log import (
    SPLIT,
    Day,
    DayFacts,
    FirstSeen,
    end_of_splits,
    find_days,
    write_day,
    write_past,
)
from sidrec.study.results import ResultTable
from sidrec.train.evaluate_run import OtherData, score_other_data
from sidrec.train.run import train

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Question:
    """What is asked. sizes: the HID table has 1/size of the run's bytes. item: the item section with SIDs.

    days: None: each of `logs` is a day. catalog: None: fitted for each run, by the run's section tokenizer.
    """

    checkpoint: Path
    logs: tuple[Path, ...]
    days: int | None
    runs: int
    sizes: tuple[int, ...]
    item: Mapping[str, Any]
    catalog: Path | None
    results: Path
    work: Path


class DayForwardStudy:
    """A day-forward study: its plan, and the state that is on disk."""

    def __init__(self, question: Question, ranks: Ranks) -> None:
        """Raises SidrecError for a checkpoint, log or item section that the study cannot be made of."""
        self.question, self.ranks = question, ranks
        self.work, self.results = question.work, question.results
        self.start = open_checkpoint(question.checkpoint)
        self.recipe = checked_recipe(self.start, question.sizes)
        self.data = local_path(self.recipe.data.path, "data.path of the run's recipe")
        self.with_sids = item_with_sids(self.recipe, question.item)
        self.past_end = end_of_splits(self.data, self.recipe.data.train_on)
        self.days = find_days(question.logs, self.past_end, question.days)
        self._same_question()
        self.cells = ResultTable(self.results / "cells.parquet", ("run", "size", "arm", "day"), Cell)

    def _same_question(self) -> None:
        """Raises ConfigError if the results folder holds cells of another question; the number of runs may differ."""
        asked = asdict(replace(self.question, results=Path(), work=Path(), runs=0))
        asked |= {"days": [asdict(day) for day in self.days], "step": self.start.position.step}
        asked = json.loads(json.dumps(asked, default=str))
        path = self.results / "question.json"
        if path.exists() and (before := read_json(path, "the question of a study")) != asked:
            differing = ", ".join(key for key in asked if before.get(key) != asked[key])
            expected = "expected results of this question"
            raise ConfigError(f"{self.results}: {expected}, got one that differs in {differing}; give another --name")
        self.results.mkdir(parents=True, exist_ok=True)
        write_json(path, asked)

    @cached_property
    def _prepared(self) -> tuple[list[DayFacts], dict[str, NDArray[np.int64]]]:
        """Writes the folders of all days. Returns their facts, and day -> `first_seen`."""
        seen = FirstSeen(load_manifest(self.data / LOG).ids[ITEM_ID])
        seen.add(self.data, self.days[0].first)
        updates_I = stored_updates(self.start) if self.recipe.model.item.hid_rows_are_ids else None
        if updates_I is not None:
            seen.know(updates_I > 0)
        write_past(self.data, self.work / "past", seen.times_I < self.days[0].first)
        facts, times = [], {}
        for day in self.days:
            facts.append(write_day(day, self.folder(day), seen))
            times[day.name] = seen.times_I.copy()
        return facts, times

    @property
    def facts(self) -> list[DayFacts]:
        return self._prepared[0]

    @property
    def first_seen(self) -> dict[str, NDArray[np.int64]]:
        """Day -> when each item id was first seen, until the day ends."""
        return self._prepared[1]

    def folder(self, day: Day) -> Path:
        return self.work / "days" / day.name

    # Slices: when items were first seen, and how often the twin updated their HID rows.

    @cached_property
    def users(self) -> int:
        """More than the largest user id of any day."""
        return max(load_manifest(self.folder(day) / LOG).ids[USER_ID] for day in self.days)

    def updates(self, day: Day) -> NDArray[np.int64] | None:
        """Updates of each item's HID row in the twin of run 0 that scores this day; None for hashed rows."""
        path = self.work / "updates" / f"{day.name}.npy"
        return np.load(path) if path.is_file() else None

    def keep_updates(self, day: Day, model: Path) -> None:
        """model: the run directory of the twin that scores this day."""
        found = stored_updates(open_checkpoint(model)) if self.recipe.model.item.hid_rows_are_ids else None
        if found is not None:
            path = self.work / "updates" / f"{day.name}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, found)

    # Catalogs.

    def catalog(self, run: int, day: Day) -> Path:
        """The catalog of a run that knows the items seen before the day ends: fitted on the past, extended day by day.

        Fits or extends it where it is not there yet.
        """
        root = self.work / "catalogs" / ("given" if self.question.catalog else f"fit{run}")
        before = self.question.catalog or root / "past"
        if not before.exists():
            with self._quietly():
                fit_catalog(self._fitting(self.work / "past", before, run), self.ranks, pictures=False)
        for until in self.days[: day.number]:
            larger = root / until.name
            if not larger.exists():
                with self._quietly():
                    extend_catalog(self._fitting(self.folder(until), larger, run), before, self.ranks, pictures=False)
            before = larger
        return before

    def _fitting(self, data: Path, catalog: Path, run: int) -> Recipe:
        tokenizer = replace(self.recipe.tokenizer, seed=run)
        return replace(self.recipe, data=replace(self.recipe.data, path=data, catalog=catalog), tokenizer=tokenizer)

    # Models.

    @cached_property
    def hid_rows(self) -> dict[int, int]:
        """Size -> rows of the HID table, which grows with new items at size 1 and an exact index."""
        rows = self.start.tables[HID].weight.shape[0]
        return {size: rows if size == 1 else max(2, round(rows / size)) for size in self.question.sizes}

    @property
    def hid_bytes(self) -> dict[int, int]:
        return {size: 4 * rows * self.recipe.model.embedding_dim for size, rows in self.hid_rows.items()}

    def item(self, arm: str, size: int) -> Any:
        index = self.recipe.model.item.hids if size == 1 else ModuloIndex(rows=self.hid_rows[size])
        assert index is not None, "the run has HIDs"
        return HidItem(hid_index=index) if arm == TWIN else replace(self.with_sids, hid_index=index)

    def base(self, size: int) -> Path:
        """Where the chains of a size start: the run, or a twin of the size that is trained here as the run was."""
        if size == 1:
            return self.start.path
        recipe = replace(
            plain(self.recipe),
            name=f"size{size}",
            model=replace(self.recipe.model, item=self.item(TWIN, size)),
            train=replace(self.recipe.train, runs=self.work / "base", track=()),
        )
        if not any((recipe.run / "checkpoints").glob("step-*/index.json")):
            log.info("training the twin with 1/%d of the HID table's bytes on the past", size)
        self.trained(recipe)
        return recipe.run

    def day_recipe(self, run: int, size: int, arm: str, day: Day, start: Path) -> Recipe:
        """Trains on one day."""
        catalog = self.catalog(run, day) if arm == SIDS else self.recipe.data.catalog
        return replace(
            plain(self.recipe),
            name=day.name,
            seed=run,
            data=replace(self.recipe.data, path=self.folder(day), catalog=catalog, train_on=(SPLIT,)),
            model=replace(self.recipe.model, item=self.item(arm, size)),
            start=StartConfig(checkpoint=start, grow=arm == SIDS and day is self.days[0]),
            checkpoint=replace(self.recipe.checkpoint, every=0, keep=1, best=None),
            train=replace(self.recipe.train, runs=self.chain(run, size, arm), epochs=1, track=()),
        )

    def chain(self, run: int, size: int, arm: str) -> Path:
        return self.work / "runs" / f"run{run}" / f"size{size}" / arm

    def trained(self, recipe: Recipe) -> None:
        """Trains where the run is not finished. Raises SystemExit if a signal stopped it."""
        recipe.run.parent.mkdir(parents=True, exist_ok=True)
        with self._quietly():
            status = train(recipe, self.ranks)
        if status:
            raise SystemExit(status)

    def scored(self, recipe: Recipe, run: int, arm: str, day: Day) -> Predictions:
        """Scores a day by a trained run."""
        catalog = self.catalog(run, day) if arm == SIDS else None
        with self._quietly():
            return score_other_data(recipe.run, OtherData(self.folder(day), catalog), SPLIT, self.ranks)

    @contextmanager
    def _quietly(self) -> Iterator[None]:
        """Sends what trainings and fits print to WORK/train.log."""
        with (self.work / "train.log").open("a", encoding="utf-8") as output, redirect_stdout(output):
            yield


def checked_recipe(start: StoredCheckpoint, sizes: Sequence[int]) -> Recipe:
    """The recipe of the checkpoint. Raises ConfigError where the study cannot start from it."""
    recipe = start.recipe
    if recipe.model.item.kind != "hid":
        raise ConfigError(
            f"--checkpoint: expected a run of item kind hid, which SIDs are added to, got {start.path} of kind "
            f"{recipe.model.item.kind}"
        )
    if any(size > 1 for size in sizes) and recipe.start.checkpoint is not None:
        raise ConfigError(
            "--sizes: expected 1 alone for a run that itself started from a checkpoint, because the twins of other "
            f"sizes are trained from scratch on its data, got {', '.join(map(str, sizes))}"
        )
    return recipe


def item_with_sids(recipe: Recipe, section: Mapping[str, Any]) -> HashedItem:
    """The item section with SIDs, as the recipe would have it. Raises ConfigError."""
    tree = asdict(recipe)
    item = parse({**tree, "model": {**tree["model"], "item": dict(section)}}, "--item").model.item
    if not isinstance(item, HashedItem) or item.sids is None or item.hid_part is None:
        raise ConfigError(
            f"--item: expected a kind with HIDs and SIDs that can start from HIDs alone (start.grow), got {item.kind}"
        )
    return item


def plain(recipe: Recipe) -> Recipe:
    """A recipe without evaluations, extra checkpoints, and a plan for other ranks than one, which needs no search."""
    return replace(
        recipe,
        parallel=replace(recipe.parallel, plan=None, calibration=None, sharding="table_wise"),
        checkpoint=replace(recipe.checkpoint, every=0, keep=1),
        evaluate=replace(recipe.evaluate, splits=(), save_predictions=True),
    )


def stored_updates(found: StoredCheckpoint) -> NDArray[np.int64] | None:
    """Updates of each HID row; None in a checkpoint of a version that did not count them."""
    counts = found.tables[HID].updates
    return None if counts is None else counts.rows(0, counts.shape[0]).flatten().numpy().astype(np.int64)
