"""Anchors of the claim's HID-only twin: FuxiCTR's DIN, DCNv2 and PPNet on the same rows.

    OMP_NUM_THREADS=1 python -m benchmarks.fuxictr_anchors beauty yelp movielens mind [--models DIN DCNv2 PPNet]

Question: does an independent, well-known implementation of a ranker on item ids reach more AUC or GAUC than ours? Each
set is a recipe of recipes/claim, whose data folder must be there. The protocol is that of the claim's studies:

* **Inputs**: those of the recipe with item kind `hid`, all of them: user id, other context columns, item id, history,
  dense columns, log(1 + length of the history), and the statistics as standardized logarithms. A history shares the
  item's table. No context column may be a list.
* **Rows**: those of the recipe in its own order and batches for the run's seed (FuxiCTR then does not shuffle). One
  epoch. Tables have the recipe's width; networks are as in FuxiCTR's configuration templates, its optimizer is Adam.
* **Tuning**: POINTS for every model, seed 0, trained on train, chosen by GAUC on validation. The other runs train on
  the recipe's `train_on`, and are measured once, on test. The twin has twelve trials.
* **Metrics**: sidrec's own, from predictions that lie in WORK/SET. FuxiCTR outputs probabilities as float32, which
  become logits; beyond 1e-7 and 1 - 1e-7 they are cut.

FuxiCTR runs in an environment of its own, WORK/venv, which this command makes: the package 2.3.10 with this PyTorch.
The package lacks the three models: they come from its repository, cloned from --source into WORK/zoo.

Results are written to results/anchors/SET.json after each model's runs of a seed. A run that is recorded with the same
settings is skipped.

Shapes: N rows, T history positions.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import RESULTS
from benchmarks.tables import markdown_table
from sidrec.config.load import load_mapping, parse
from sidrec.config.recipe import Recipe
from sidrec.data.dataset import stat_moments
from sidrec.data.loader import columns_of
from sidrec.data.reader import Lanes, LogReader, Shuffling
from sidrec.data.rows import Rows, joint_index
from sidrec.errors import ContractError
from sidrec.io.files import read_json, write_json
from sidrec.metrics.exact import SliceMetrics, measure_slices
from sidrec.metrics.predictions import Predictions
from sidrec.metrics.slices import load_item_slices
from sidrec.model.fusion_and_gate import StandardizeStats
from sidrec.schema import ITEM_ID, ITEMS, LABEL, LOG, USER_ID, Manifest, load_manifest
from sidrec.study.results import RUNS_FILE, conditions, run_table

FUXICTR, COMMIT = "2.3.10", "0245987fdc1d43c36164ea496a02324885a8557a"
SOURCE = "https://github.com/reczoo/FuxiCTR"
FIT = Path(__file__).with_name("fuxictr_fit.py")
RECIPES = Path(__file__).parent / "recipes" / "claim"
TRAIN, VALIDATION, TEST = "train", "validation", "test"
HISTORY, LENGTH = "history", "history_length"
CUT = 1e-7
"""Least probability, and least distance from 1."""
POINTS: tuple[dict[str, float], ...] = tuple(
    {"learning_rate": rate, "embedding_regularizer": weight} for rate in (0.001, 0.003, 0.01) for weight in (0.0, 1e-6)
)
POOLED = [{"name": HISTORY, "feature_encoder": "layers.MaskedAveragePooling()"}]
MODELS: dict[str, dict[str, Any]] = {
    "DIN": {
        "module": "model_zoo/DIN/src",
        "settings": {
            "dnn_hidden_units": [500, 500, 500],
            "attention_hidden_units": [64],
            "din_target_field": ITEM_ID,
            "din_sequence_field": HISTORY,
        },
    },
    "DCNv2": {
        "module": "model_zoo/DCNv2/src",
        "settings": {"parallel_dnn_hidden_units": [500, 500, 500], "num_cross_layers": 3},
        "feature_specs": POOLED,
    },
    "PPNet": {
        "module": "model_zoo/PEPNet/src",
        "settings": {"hidden_units": [64, 64, 64], "gate_hidden_dim": 64, "gate_priors": [ITEM_ID, USER_ID]},
        "feature_specs": POOLED,
    },
}
"""Model -> its folder in FuxiCTR's repository, and what its configuration template sets; the rest is its default."""


# The environment.


def make_environment(work: Path, source: str) -> None:
    """Installs FuxiCTR into WORK/venv and clones its repository into WORK/zoo, unless they are there."""
    venv, zoo = work / "venv", work / "zoo"
    if not (venv / "complete").exists():
        packages = [f"fuxictr=={FUXICTR}", f"torch=={torch.__version__}"]
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
        pip = [str(python_of(work)), "-m", "pip", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", "-q", *packages], check=True)
        (venv / "complete").touch()
    if not zoo.exists():
        subprocess.run(["git", "clone", "-q", source, zoo], check=True)
    subprocess.run(["git", "-C", zoo, "checkout", "-q", COMMIT], check=True)


def python_of(work: Path) -> Path:
    return work / "venv" / "bin" / "python"


# Rows for FuxiCTR.


def twin_recipe(path: Path) -> Recipe:
    """The recipe with item kind `hid`."""
    raw = load_mapping(path, "recipe")
    return parse({**raw, "model": {**raw.get("model", {}), "item": {"kind": "hid"}}}, str(path))


class Export:
    """Writes a recipe's rows to `folder` as FuxiCTR reads them: NAME.npz with an array per column, feature_map.json.

    Raises ContractError for a log that breaks the contract, or with a context column of lists.
    """

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        self.recipe, self.folder = recipe, folder
        self.manifest: Manifest = load_manifest(recipe.data.path / LOG)
        self.columns = columns_of(recipe.data, recipe.model, self.manifest)
        if self.columns.log.lists:
            expected = "columns with one id a row, which FuxiCTR's models take"
            raise ContractError("model.context", expected, sorted(self.columns.log.lists))
        mean_S, std_S = stat_moments(recipe.data.path, self.manifest)
        self._standardize = StandardizeStats(torch.tensor(mean_S), torch.tensor(std_S))
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "feature_map.json", self.feature_map())

    def rows(self, splits: Sequence[str], seed: int | None = None) -> Rows:
        """The rows of an epoch as one block. seed: in the order of the recipe's run with it; None: in file order."""
        data = self.recipe.data
        lanes = Lanes(sum(map(self.manifest.rows, splits)), data.lanes, data.batch_size)
        groups = joint_index(data.path / LOG, splits, self.manifest)
        shuffling = Shuffling(data.shuffle_rows, seed or 0, "file" if seed is None else data.order, data.lanes)
        reader = LogReader(groups, self.columns, lanes, shuffling, range(data.lanes), refuse=data.bad_rows == "refuse")
        parts = [step.rows for step in reader.steps(0, range(lanes.steps))]
        rows, first = Rows.empty(sum(int(part.good_N.sum()) for part in parts), self.columns), 0
        for part in parts:
            index = np.flatnonzero(part.good_N)
            rows.put(first, part, index)
            first += len(index)
        if seed is not None:
            return rows
        ordered = Rows.empty(len(rows), self.columns)
        ordered.put(0, rows, np.argsort(rows.row_N, kind="stable"))
        return ordered

    def write(self, name: str, rows: Rows) -> None:
        """Writes NAME.npz."""
        np.savez(self.folder / name, allow_pickle=False, **self.arrays(rows))

    def arrays(self, rows: Rows) -> dict[str, "np.ndarray[Any, Any]"]:
        """An array [N] of every column; the history is [N, T]."""
        found = dict(zip(self.columns.context, rows.context_NC.T.astype(np.int64), strict=True))
        found |= {ITEM_ID: rows.item_N.astype(np.int64), HISTORY: rows.history_NT.astype(np.int64)}
        found |= dict(zip(self.columns.log.dense, rows.dense_NX.T, strict=True))
        found[LENGTH] = np.log1p((rows.history_NT > 0).sum(axis=1)).astype(np.float32)
        if self._stats:
            found |= dict(zip(self._stats, self._standardize(torch.from_numpy(rows.stats_NS)).numpy().T, strict=True))
        return found | {LABEL: rows.label_N}

    @property
    def _stats(self) -> tuple[str, ...]:
        return self.manifest.stats if self.recipe.model.stats_as_dense else ()

    def feature_map(self) -> dict[str, Any]:
        """FuxiCTR's description of the columns. Id 0 of items is its padding, a vector of zeros."""
        item = {"source": "", "vocab_size": self.manifest.ids[ITEM_ID], "padding_idx": 0}
        features: dict[str, dict[str, Any]] = {
            name: {"source": "", "type": "categorical", "vocab_size": self.manifest.ids[name]}
            for name in self.columns.context
        }
        features[ITEM_ID] = {"type": "categorical", **item}
        sequence = {"type": "sequence", "max_len": self.recipe.data.history_length, "share_embedding": ITEM_ID}
        features[HISTORY] = {**sequence, **item}
        features |= {
            name: {"source": "", "type": "numeric"} for name in (*self.columns.log.dense, LENGTH, *self._stats)
        }
        return {
            "dataset_id": self.folder.name,
            "num_fields": len(features),
            "labels": [LABEL],
            "features": [{name: spec} for name, spec in features.items()],
        }


def predictions(split: str, rows: Rows, probability_N: "np.ndarray[Any, Any]") -> Predictions:
    """FuxiCTR's scores of `rows`, in their order, as predictions. Raises ContractError for scores of other rows."""
    if probability_N.shape != rows.row_N.shape or not ((probability_N >= 0) & (probability_N <= 1)).all():
        expected = f"{len(rows)} probabilities, one of each row"
        raise ContractError(f"FuxiCTR's scores of {split}", expected, f"shape {list(probability_N.shape)}")
    cut_N = np.clip(probability_N.astype(np.float64), CUT, 1 - CUT)
    score_N = (np.log(cut_N) - np.log1p(-cut_N)).astype(np.float32)
    return Predictions(split, rows.row_N, rows.user_N, rows.item_N.astype(np.int64), rows.label_N, score_N)


# Runs.


class Anchors:
    """The runs of one data set, recorded in `result`."""

    def __init__(self, name: str, recipe: Recipe, work: Path, result: Path) -> None:
        self.recipe, self.work, self.result = recipe, work, result
        self.export = Export(recipe, work / name)
        settings = {
            "fuxictr": FUXICTR,
            "zoo": COMMIT,
            "points": list(POINTS),
            "models": MODELS,
            "data": {**asdict(recipe.data), "path": str(recipe.data.path), "catalog": None},
            "embedding_dim": recipe.model.embedding_dim,
            "features": self.export.feature_map(),
        }
        settings = json.loads(json.dumps(settings, default=str))
        self.found: dict[str, Any] = read_json(result, "recorded anchors") if result.is_file() else {}
        if self.found.get("settings") != settings:
            self.found = {"settings": settings, "conditions": conditions(), "tuning": [], "runs": []}
        self.found["conditions"]["threads"] = os.environ.get("OMP_NUM_THREADS", "all")

    def tune(self, models: Sequence[str], points: int) -> None:
        """Trains every model with the first `points` points."""
        done = {(run["model"], run["point"]) for run in self.found["tuning"]}
        missing = [(model, point, 0) for model in models for point in range(points) if (model, point) not in done]
        self._train("tuning", missing, (TRAIN,), VALIDATION)

    def measure(self, models: Sequence[str], seeds: int) -> None:
        """Trains every model with its chosen point and each seed; chosen: the most GAUC on validation."""
        chosen = {model: self.chosen(model) for model in models}
        self.found["runs"] = [
            run for run in self.found["runs"] if chosen.get(run["model"], run["point"]) == run["point"]
        ]
        done = {(run["model"], run["seed"]) for run in self.found["runs"]}
        for seed in range(seeds):
            missing = [(model, point, seed) for model, point in chosen.items() if (model, seed) not in done]
            self._train("runs", missing, self.recipe.data.train_on, TEST)

    def chosen(self, model: str) -> int:
        runs = [run for run in self.found["tuning"] if run["model"] == model]
        return int(max(runs, key=lambda run: (run["metrics"]["all"]["gauc"], -run["point"]))["point"])

    def _train(self, kind: str, runs: Sequence[tuple[str, int, int]], train_on: Sequence[str], split: str) -> None:
        """Trains runs (model, point, seed) of one seed, a process for each model; records them under `kind`."""
        if not runs:
            return
        export, scored = self.export, self.export.rows((split,))
        export.write(TRAIN, export.rows(train_on, seed=runs[0][2]))
        export.write(VALIDATION, export.rows((VALIDATION,)))
        export.write(split, scored)
        evaluate = self.recipe.evaluate
        items = self.recipe.data.path / ITEMS
        slices = load_item_slices(items, evaluate.head_share, evaluate.tail_share, train_on)
        for model in dict.fromkeys(run[0] for run in runs):
            own = [run for run in runs if run[0] == model]
            for run, (probability_N, facts) in zip(own, self._fit(own, split), strict=True):
                found = predictions(split, scored, probability_N)
                found.save(self._out(*run, split).with_suffix(".parquet"))
                record = dict(zip(("model", "point", "seed"), run, strict=True))
                self.found["packages"] = facts.pop("packages")
                self.found[kind].append({**record, **facts, "metrics": measure_slices(found, slices)})
            self.result.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.result, self.found)

    def _fit(
        self, runs: Sequence[tuple[str, int, int]], split: str
    ) -> Iterator[tuple["np.ndarray[Any, Any]", dict[str, Any]]]:
        """Runs FuxiCTR. Yields the probabilities of `split`, and facts, of each run."""
        folder, width = self.export.folder.resolve(), self.recipe.model.embedding_dim
        job = {"zoo": str((self.work / "zoo").resolve()), "folder": str(folder), "dataset": folder.name}
        job |= {"train": TRAIN, "validation": VALIDATION, "scored": split}
        details = []
        for model, point, seed in runs:
            known = MODELS[model]
            gate = {"gate_emb_dim": width} if model == "PPNet" else {}
            settings = {"embedding_dim": width, **gate, **known["settings"], **POINTS[point]}
            feature_map = {"embedding_dim": width, "feature_specs": known.get("feature_specs")}
            details.append({"model": model, "module": known["module"], "settings": settings, "seed": seed})
            details[-1] |= {"feature_map": feature_map, "out": str(self._out(model, point, seed, split).resolve())}
        write_json(folder / "job.json", {**job, "batch_size": self.recipe.data.batch_size, "runs": details})
        subprocess.run([python_of(self.work), "-P", FIT, folder / "job.json"], check=True)
        for run in runs:
            out = self._out(*run, split)
            yield np.load(out.with_suffix(".npy")), read_json(out.with_suffix(".json"), "facts of a run")

    def _out(self, model: str, point: int, seed: int, split: str) -> Path:
        return self.export.folder / f"{model}-{split}-point{point}-seed{seed}"


# The report.


def report(name: str, found: Mapping[str, Any]) -> str:
    """A Markdown table: means over the runs and standard deviations on test, of anchors and of recorded twins."""
    lines = [_line(twin, metrics, "its study's", cpu) for twin, metrics, cpu in _twins(name)]
    for model in dict.fromkeys(run["model"] for run in found["runs"]):
        runs = [run for run in found["runs"] if run["model"] == model]
        point = ", ".join(f"{key} {value:g}" for key, value in found["settings"]["points"][runs[0]["point"]].items())
        lines.append(_line(model, [run["metrics"] for run in runs], point, [run["cpu_seconds"] for run in runs]))
    header = ["model", "runs", "AUC", "GAUC", "users in GAUC", "NE", "tail AUC", "cold AUC", "chosen", "CPU s"]
    return markdown_table(header, lines)


def _twins(name: str) -> Iterator[tuple[str, list[SliceMetrics], list[float]]]:
    """Name, metrics on test and CPU seconds of the HID-only runs that the claim's studies recorded on this set.

    The study of another backbone calls the set SET_ppnet.
    """
    for study in ("claim", "claim_early", "claim_x1", "claim_movielens", "claim_ppnet"):
        runs = run_table(RESULTS / study / RUNS_FILE).read().values()
        sets = (name, f"{name}_{study.removeprefix('claim_')}")
        own = [run for run in runs if run["dataset"] in sets and run["variant"] == "hid_only"]
        if own:
            yield f"hid_only of {study}", [run["metrics"][TEST] for run in own], [run["cpu_seconds"] for run in own]


def _line(name: str, metrics: Sequence[SliceMetrics], chosen: str, cpu_seconds: Sequence[float]) -> list[object]:
    shown = (("all", "auc"), ("all", "gauc"), ("all", "ne"), ("tail", "auc"), ("cold", "auc"))
    auc, gauc, *others = (_spread([run[rows][metric] for run in metrics]) for rows, metric in shown)
    covered = f"{metrics[0]['all']['covered_users']:,}"
    return [name, len(metrics), auc, gauc, covered, *others, chosen, f"{statistics.mean(cpu_seconds):.0f}"]


def _spread(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    return f"{statistics.mean(known):.4f}" + (f" ± {statistics.stdev(known):.4f}" if len(known) > 1 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", metavar="SET", help="a recipe of recipes/claim, such as movielens")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), help="default: all three")
    parser.add_argument("--seeds", type=int, default=5, help="runs of each model on test (default: 5)")
    parser.add_argument("--points", type=int, default=len(POINTS), help="tuning trials of each model (default: all)")
    parser.add_argument("--work", type=Path, default=Path("build/fuxictr"), help="default: build/fuxictr")
    parser.add_argument("--source", default=SOURCE, help=f"FuxiCTR's repository, or a clone (default: {SOURCE})")
    parser.add_argument("--out", type=Path, default=RESULTS / "anchors", help="folder of SET.json (default: results)")
    parser.add_argument("--report", action="store_true", help="print what is recorded, train nothing")
    flags = parser.parse_args()
    if flags.report:
        for name in flags.sets:
            print(f"\n{name}\n\n{report(name, read_json(flags.out / f'{name}.json', 'recorded anchors'))}")
        return
    make_environment(flags.work, flags.source)
    for name in flags.sets:
        recipe = twin_recipe(RECIPES / f"{name}.yaml")
        anchors = Anchors(name, replace(recipe, name=name), flags.work, flags.out / f"{name}.json")
        anchors.tune(flags.models, flags.points)
        anchors.measure(flags.models, flags.seeds)
        print(f"\n{name}\n\n{report(name, anchors.found)}", flush=True)


if __name__ == "__main__":
    main()
