"""What each key of `precision`, and the fused kernels of dense layers, do to a recipe's losses.

    torchrun --nproc-per-node 2 -m benchmarks.precision_losses RECIPE --folder build/precision --seeds 3 --write

Trains RECIPE with its own keys, and with each changed one, on the same ranks, rows and seeds. A key that this device
cannot do is recorded with the sentence that refuses it. Two ranks at least exchange embeddings. --write records the
losses next to the default's in results/precision_losses.json, one entry for each kind of device.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import RESULTS
from sidrec.config import Recipe
from sidrec.config.load import load_file
from sidrec.errors import ConfigError, RankError
from sidrec.io.files import write_json
from sidrec.parallel.process_group import Ranks, joined_ranks
from sidrec.stack import find_stack
from sidrec.text import text_table
from sidrec.train.run import train

DEFAULT = "default"
VARIANTS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    DEFAULT: {},
    "optimizer.dense.fused: true": {"dense": {"fused": True}},
    "precision.tf32: true": {"precision": {"tf32": True}},
    "precision.backbone: bfloat16": {"precision": {"backbone": "bfloat16"}},
    "precision.tables: float16, rounding: stochastic": {"precision": {"tables": "float16"}},
    "precision.tables: float16, rounding: nearest": {"precision": {"tables": "float16", "rounding": "nearest"}},
    "precision.lookups: float16": {"precision": {"lookups": "float16"}},
    "precision.lookups: bfloat16": {"precision": {"lookups": "bfloat16"}},
    "precision.exchange, exchange_gradients: float16": {
        "precision": {"exchange": "float16", "exchange_gradients": "float16"}
    },
    "precision.exchange, exchange_gradients: bfloat16": {
        "precision": {"exchange": "bfloat16", "exchange_gradients": "bfloat16"}
    },
}
FILE = RESULTS / "precision_losses.json"


def main(argv: Sequence[str]) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--folder", type=Path, default=Path("build/precision"), help="for the runs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sharding", default="row_wise", help="parallel.sharding of all trainings")
    parser.add_argument("--write", action="store_true", help=f"record in {FILE.name}")
    given = parser.parse_args(argv)
    recipe = load_file(given.recipe)
    recipe = replace(recipe, parallel=replace(recipe.parallel, sharding=given.sharding))
    recipe = replace(recipe, train=replace(recipe.train, runs=given.folder, log_every=1))
    with joined_ranks() as ranks:
        measured = {name: _measured(recipe, name, given.seeds, ranks) for name in VARIANTS}
        kind = ranks.device.type
    if ranks.first:
        print(_table(measured))
        if given.write:
            recorded = json.loads(FILE.read_text()) if FILE.exists() else {}
            write_json(FILE, {**recorded, kind: {**_conditions(given, ranks.world), "variants": measured}})
    return 0


def _conditions(given: argparse.Namespace, ranks: int) -> dict[str, Any]:
    revision = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    stack = find_stack()
    return {
        "commit": subprocess.run(revision, check=True, capture_output=True, text=True).stdout.strip(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "torch": str(stack.torch),
        "torchrec": str(stack.torchrec),
        "recipe": given.recipe.name,
        "ranks": ranks,
        "sharding": given.sharding,
        "seeds": given.seeds,
    }


def _measured(recipe: Recipe, name: str, seeds: int, ranks: Ranks) -> dict[str, Any]:
    """Losses by seed, in nats: the mean over the last tenth of the steps, and that of the first evaluated split.

    Rank 0 alone writes and reads them.
    """
    trained, evaluated = [], []
    for seed in range(seeds):
        changed = _changed(replace(recipe, name=f"{list(VARIANTS).index(name)}", seed=seed), VARIANTS[name])
        try:
            train(changed, ranks)
        except (ConfigError, RankError) as error:
            return {"refused": str(error)}
        if not ranks.first:
            continue
        lines = map(json.loads, (changed.run / "metrics.jsonl").read_text().splitlines())
        losses = [line["loss"] for line in lines if "loss" in line]
        trained.append(statistics.fmean(losses[-max(1, len(losses) // 10) :]))
        metrics = json.loads((changed.run / "metrics.json").read_text())
        evaluated.append(metrics[recipe.evaluate.splits[0]]["all"])
    return {"train_loss": trained, "evaluated": evaluated}


def _changed(recipe: Recipe, keys: Mapping[str, Mapping[str, Any]]) -> Recipe:
    if "dense" in keys:
        dense = replace(recipe.optimizer.dense, **keys["dense"])
        recipe = replace(recipe, optimizer=replace(recipe.optimizer, dense=dense))
    return replace(recipe, precision=replace(recipe.precision, **keys.get("precision", {})))


def _table(measured: Mapping[str, Mapping[str, Any]]) -> str:
    default = measured[DEFAULT]
    lines = [("key", "train loss", "less the default's", "log loss", "less the default's", "AUC")]
    for name, found in measured.items():
        if "refused" in found:
            lines.append((name, "refused", "", "", "", ""))
            continue
        train = found["train_loss"]
        loss, own = ([each["log_loss"] for each in of["evaluated"]] for of in (found, default))
        lines.append(
            (
                name,
                f"{statistics.fmean(train):.5f}",
                _difference(train, default["train_loss"]),
                f"{statistics.fmean(loss):.5f}",
                _difference(loss, own),
                f"{statistics.fmean(each['auc'] for each in found['evaluated']):.4f}",
            )
        )
    return text_table(lines)


def _difference(values: Sequence[float], of_default: Sequence[float]) -> str:
    """Mean over seeds, and the range."""
    found = [value - other for value, other in zip(values, of_default, strict=True)]
    return f"{statistics.fmean(found):+.5f} ({min(found):+.5f} to {max(found):+.5f})"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
