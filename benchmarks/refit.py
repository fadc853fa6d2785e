"""What a ranker keeps of its lead when its catalog is fitted again: `start.old_catalog` on Beauty and Yelp.

    nice -n 10 python -m benchmarks.refit --folder build/refit [--sets beauty yelp] [--runs 5] [--jobs 2] [--write]

Each run has its own seed and fits. A ranker trains on train, with a catalog of the items shown there. The validation
split is the next day. For it there are two catalogs of all items: the old one, extended by its frozen tokenizer, and a
new one, fitted with another seed on the items shown in train and validation, and extended to the rest. Arms:

    kept      the old catalog
    carried   the new catalog; SID tables carried over by `start.old_catalog`
    anew      the new catalog; SID tables at their initial values (`start.without`)
    hid       item kind hid, for scale

Each arm scores the day before it trains on it (`at_once`), trains on it for an epoch, and scores test (`after`). What
is kept of the lead is (carried - anew) / (kept - anew). Recipes: recipes/claim, on train and validation one after the
other. --write records the runs in results/refit/runs.json and writes refit.md. A run that --folder holds is not trained
again.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from benchmarks import RESULTS
from benchmarks.tables import markdown_table, spread, spread_text
from sidrec.config import Recipe
from sidrec.config.item import HidItem, Item, SidCoordItem, SidItem
from sidrec.config.load import load_file
from sidrec.config.recipe import StartConfig
from sidrec.fit import extend_catalog, fit_catalog
from sidrec.io.files import read_json, write_json, write_text
from sidrec.io.places import local_path
from sidrec.metrics.exact import measure
from sidrec.parallel.process_group import Ranks, joined_ranks
from sidrec.schema import ITEM_ID, LOG, load_manifest
from sidrec.study.day_log import write_items
from sidrec.study.intervals import paired_interval
from sidrec.study.results import conditions
from sidrec.train.assembly import build_training, open_dataset
from sidrec.train.evaluation import score_split
from sidrec.train.run import train
from sidrec.train.warm_start import find_warm_start

RECIPES = Path(__file__).parent / "recipes/claim"
RUNS, PAGE = RESULTS / "refit/runs.json", Path(__file__).with_suffix(".md")
SETS = ("beauty", "yelp")
MODELS: Mapping[str, Item] = {"sid_coord": SidCoordItem(), "sid": SidItem(), "hid": HidItem()}
ARMS = ("kept", "carried", "anew")
MOMENTS = {"at_once": "the next day, before training on it", "after": "the day after, trained on one"}
METRICS = ("auc", "gauc", "log_loss")
DAY, LAST = "validation", "test"
NEW_FIT = 1000  # added to a run's number: the seed of its new catalog

Measured = dict[str, dict[str, float]]
"""Moment -> metric -> value."""


def main(argv: Sequence[str]) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.refit", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("build/refit"), help="for catalogs and runs")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=SETS)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--write", action="store_true", help=f"record in {RUNS.parent.name}/{RUNS.name}")
    parser.add_argument("--alone", nargs=2, metavar=("SET", "RUN"), help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    if given.alone:
        name, run = given.alone
        measure_run(given.folder / name, name, int(run))
        return 0
    wanted = [(name, run) for name in given.sets for run in range(given.runs)]
    with ThreadPoolExecutor(given.jobs) as pool:
        results = list(pool.map(lambda each: _in_a_process(given.folder, *each), wanted))
    recorded = {"conditions": conditions(), "runs": results}
    text = page(results)
    print(text)
    if given.write:
        RUNS.parent.mkdir(exist_ok=True)
        write_json(RUNS, recorded)
        write_text(PAGE, text)
    return 0


def _in_a_process(folder: Path, name: str, run: int) -> dict[str, Any]:
    path = result_file(folder / name, run)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "benchmarks.refit", "--folder", str(folder), "--alone", name, str(run)]
        subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    found: dict[str, Any] = read_json(path, "a measured run")
    return found


def result_file(folder: Path, run: int) -> Path:
    return folder / f"run{run}.json"


# One run: its catalogs, its first day, and every arm's next day.


@dataclass(frozen=True)
class Refitting:
    """A data set's recipe, and the folder of its catalogs and runs. run: the seed."""

    recipe: Recipe
    folder: Path
    run: int
    ranks: Ranks

    def catalog(self, name: str) -> Path:
        """name: old, old-all, new or new-all."""
        return self.folder / "catalogs" / f"{name}{self.run}"

    def fit_all(self) -> None:
        """Fits both catalogs, each on the items shown so far, and extends both to all items."""
        data = local_path(self.recipe.data.path, "data.path")
        for name, splits, seed in (("old", ("train",), self.run), ("new", ("train", DAY), NEW_FIT + self.run)):
            shown = self.folder / f"items-{name}{self.run}"
            shown.mkdir(parents=True, exist_ok=True)
            write_items(data, shown, shown_items(data, splits))
            fit_catalog(self._tokenizing(shown, name, seed), self.ranks, True, pictures=False)
            larger = self._tokenizing(data, f"{name}-all", seed)
            extend_catalog(larger, self.catalog(name), self.ranks, True, pictures=False)

    def _tokenizing(self, data: Path, catalog: str, seed: int) -> Recipe:
        recipe = self.recipe
        return replace(
            recipe,
            data=replace(recipe.data, path=data, catalog=self.catalog(catalog)),
            tokenizer=replace(recipe.tokenizer, seed=seed),
        )

    def training(self, model: str, name: str, catalog: str, start: StartConfig, splits: tuple[str, str]) -> Recipe:
        """splits: trained on, and evaluated."""
        trained, evaluated = splits
        recipe = self.recipe
        return replace(
            recipe,
            name=f"{model}-{name}",
            seed=self.run,
            data=replace(recipe.data, catalog=self.catalog(catalog), train_on=(trained,)),
            model=replace(recipe.model, item=MODELS[model]),
            start=start,
            train=replace(recipe.train, runs=self.folder / "runs", track=()),
            checkpoint=replace(recipe.checkpoint, keep=1),
            evaluate=replace(recipe.evaluate, splits=(evaluated,), save_predictions=False),
        )

    def start_of(self, arm: str, before: Recipe) -> StartConfig:
        start = StartConfig(checkpoint=before.run)
        if arm == "carried":
            return replace(start, old_catalog=self.catalog("old-all"))
        return replace(start, without=open_dataset(before, self.ranks).tables.sid_tables) if arm == "anew" else start

    def measure_model(self, model: str) -> dict[str, Any]:
        """Arm -> what it measured; the arm carried also says what was carried."""
        before = self.training(model, "before", "old", StartConfig(), ("train", DAY))
        train(before, self.ranks)
        found: dict[str, Any] = {}
        for arm in ARMS if model != "hid" else ("kept",):
            catalog = "old-all" if arm == "kept" else "new-all"
            recipe = self.training(model, arm, catalog, self.start_of(arm, before), (DAY, LAST))
            found[arm] = self.measure_arm(recipe)
            if arm == "carried":
                found[arm]["carried"] = read_json(recipe.run / "run.json", "facts")["start"]["refit"]["tables"]
        return found

    def measure_arm(self, recipe: Recipe) -> dict[str, Any]:
        data = open_dataset(recipe, self.ranks)
        start, training = find_warm_start(recipe, data, self.ranks), build_training(recipe, data, self.ranks)
        assert start is not None, "each arm starts from the first day's checkpoint"
        start.fill(training.model, training.optimizer, self.ranks)
        scored = score_split(recipe, data, training.model, DAY, self.ranks)
        at_once = measure(scored.label_N, scored.score_N, scored.user_N)
        train(recipe, self.ranks)
        after = read_json(recipe.run / "metrics.json", "metrics")[LAST]["all"]
        both = {"at_once": at_once, "after": after}
        return {moment: {metric: found[metric] for metric in METRICS} for moment, found in both.items()}


def measure_run(folder: Path, name: str, run: int) -> None:
    """Measures all models and arms; writes the run's file and, next to it, what trainings print."""
    recipe = load_file(RECIPES / f"{name}.yaml")
    folder.mkdir(parents=True, exist_ok=True)
    with joined_ranks() as ranks, (folder / f"run{run}.log").open("w") as output, redirect_stdout(output):
        refitting = Refitting(recipe, folder, run, ranks)
        refitting.fit_all()
        items = {
            f"items_{of}": int(shown_items(local_path(recipe.data.path, "data.path"), splits).sum())
            for of, splits in _SHOWN.items()
        }
        models = {model: refitting.measure_model(model) for model in MODELS}
    write_json(result_file(folder, run), {"set": name, "run": run, **items, "models": models})


_SHOWN = {"old": ("train",), "new": ("train", DAY), "all": ("train", DAY, LAST)}


def shown_items(data: Path, splits: Sequence[str]) -> NDArray[np.bool_]:
    """Whether each item id is shown in one of the splits, bool [ids]."""
    manifest = load_manifest(data / LOG)
    shown_I = np.zeros(manifest.ids[ITEM_ID], dtype=np.bool_)
    for split in splits:
        for file in manifest.files(split):
            shown_I[pq.read_table(data / LOG / file.path, columns=[ITEM_ID])[ITEM_ID].to_numpy()] = True
    shown_I[0] = False
    return shown_I


# The page.


def page(results: Sequence[Mapping[str, Any]]) -> str:
    """Figures of all sets, in Markdown."""
    parts = [HEAD]
    for name in dict.fromkeys(result["set"] for result in results):
        runs = [result for result in results if result["set"] == name]
        items = ", ".join(f"{runs[0][f'items_{of}']:,} {words}" for of, words in ITEMS_OF.items())
        parts += [f"## {name}\n\n{len(runs)} runs; items: {items}.", _scores(runs), _leads(runs), _carried(runs)]
    return "\n\n".join(parts) + "\n"


HEAD = """# A refitted catalog

Written by `python -m benchmarks.refit --write` from [results/refit/runs.json](results/refit/runs.json). The docstring
of `refit.py` says how it was measured. Mean ± standard deviation over runs, each with fits of its own; differences with
95% intervals of a paired t-test over runs. `at once`: the next day, scored before any training on it. `after`: the day
after, when the next day was trained on."""
ITEMS_OF = {"old": "in the old fit", "new": "in the new one", "all": "in the log"}


def values(runs: Sequence[Mapping[str, Any]], model: str, arm: str, moment: str, metric: str) -> list[float]:
    return [run["models"][model][arm][moment][metric] for run in runs]


def _scores(runs: Sequence[Mapping[str, Any]]) -> str:
    columns = [(moment, metric) for moment in MOMENTS for metric in METRICS]
    lines = []
    for model in MODELS:
        for arm in runs[0]["models"][model]:
            cells = [spread_text(spread(values(runs, model, arm, *column))) for column in columns]
            lines.append([model, arm if model != "hid" else "", *cells])
    return markdown_table(["model", "arm", *(_title(*column) for column in columns)], lines)


def _title(moment: str, metric: str) -> str:
    return f"{metric.upper().replace('_', ' ')}, {moment.replace('_', ' ')}"


def _leads(runs: Sequence[Mapping[str, Any]]) -> str:
    """Differences of arms, and the share of the lead that is kept at once. After a day little lead is left to share."""
    lines = []
    for model in ("sid_coord", "sid"):
        for moment in MOMENTS:
            for metric in ("auc", "gauc"):
                kept, carried, anew = (values(runs, model, arm, moment, metric) for arm in ARMS)
                pairs = ((carried, kept), (carried, anew), (kept, anew))
                share = shares(kept, carried, anew)
                text = _interval(share, [0.0] * len(share), 3) if moment == "at_once" else ""
                lines.append([model, _title(moment, metric), *(_interval(*pair, 4, "+") for pair in pairs), text])
    head = ["model", "metric", "carried - kept", "carried - anew", "kept - anew: the lead", "share of the lead kept"]
    return markdown_table(head, lines)


def shares(kept: Sequence[float], carried: Sequence[float], anew: Sequence[float]) -> list[float]:
    """(carried - anew) / (kept - anew) of each run."""
    found = (np.asarray(carried) - anew) / (np.asarray(kept) - anew)
    return [float(share) for share in found]


def _interval(one: Sequence[float], other: Sequence[float], digits: int, sign: str = "") -> str:
    found = paired_interval(one, other)
    ends = "" if found["low"] is None else f" [{found['low']:{sign}.{digits}f}, {found['high']:{sign}.{digits}f}]"
    return f"{found['difference']:{sign}.{digits}f}{ends}"


def _carried(runs: Sequence[Mapping[str, Any]]) -> str:
    """Rows of each table of the first run."""
    tables = runs[0]["models"]["sid_coord"]["carried"]["carried"]
    lines = [[name, *(f"{found[key]:,}" for key in ("rows", "carried", "anew"))] for name, found in tables.items()]
    return markdown_table(["table (run 0)", "rows", "carried", "begin anew"], lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
