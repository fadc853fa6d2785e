"""Cost of SID-Coord: CPU time of a training step against its HID-only twin, by parts, and without deduplication.

    python -m benchmarks.step_time [--shape beauty criteo] [--rounds 12] [--steps 3] [--write]

All contenders train in this process, on one thread of one core, through the product's own loader, planner, optimizer
and pipeline in a world of one; each has its own copy of the same batches, which are made outside the timed part.
A round gives every contender `steps` steps, and the next round begins with another. --write replaces step_time.json.

Shapes: B rows, T history positions, U item bags, M = B (1 + T) lookups of targets and histories, G item tables.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torchrec
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from sidrec.config import Recipe
from sidrec.config.load import parse
from sidrec.data.batch import Batch, PackedBatch
from sidrec.parallel.process_group import Ranks, joined_ranks
from sidrec.schema import ITEMS, LOG, LogFile, Manifest, log_schema, save_manifest
from sidrec.sid.catalog import Catalog
from sidrec.train.assembly import build_training, open_dataset, open_loader
from sidrec.train.optimizers import build_optimizer

WARM_UP_STEPS = 4
LEVELS, CODES = 3, 256


@dataclass(frozen=True)
class Shape:
    """A synthetic log, and the part of the recipe that does not depend on the item kind.

    popularity: exponent of the items' Zipf law. stats: number of stat_* columns. batch: rows of a batch.
    """

    items: int
    popularity: float
    users: int
    dense: int
    categories: int
    stats: int
    model: Mapping[str, Any]
    batch: int = 4096
    batches: int = 20
    history: int = 20

    @property
    def rows(self) -> int:
        """Rows of the log."""
        return self.batch * self.batches


CATEGORY_ROWS = 10_000
SHAPES = {
    "beauty": Shape(12_101, 1.05, 22_363, 3, 0, 4, {"context": ["user_id"]}),
    "criteo": Shape(
        100_000,
        1.05,
        50_000,
        13,
        26,
        4,
        {
            "context": [f"cat_{c}" for c in range(26)],
            "backbone": {"kind": "dlrm", "dense_layers": [512, 256, 64], "over_layers": [512, 256]},
        },
    ),
}

TWIN = "HID-only twin"
COORD = "SID-Coord"
BAGS_APART = "SID-Coord, no deduplication"
_ALONE = {"kind": "sid_coord", "fusion": {"kind": "mean"}, "gate": {"kind": "sum"}, "alignment": {"kind": "none"}}
CONTENDERS: dict[str, dict[str, Any]] = {
    TWIN: {"kind": "hid"},
    "+ SID tables": _ALONE,
    "+ attention": _ALONE | {"fusion": {"kind": "additive"}},
    "+ gate": _ALONE | {"fusion": {"kind": "additive"}, "gate": {"kind": "stats"}},
    COORD: {"kind": "sid_coord"},
    BAGS_APART: {"kind": "sid_coord"},
}
"""Each but the last adds one part of SID-Coord to the one before; SID-Coord itself adds alignment."""


def write_data(folder: Path, shape: Shape) -> None:
    """A data folder and a catalog of random codes, which repeat least: one pair of codes for almost every item."""
    rng = np.random.default_rng(0)
    ids = {"user_id": shape.users + 1, "item_id": shape.items + 1}
    ids |= {f"cat_{c}": CATEGORY_ROWS for c in range(shape.categories)}
    dense = tuple(f"int_{x}" for x in range(shape.dense))
    stats = tuple(f"stat_{s}" for s in range(shape.stats))
    file = LogFile("train/part-0.parquet", shape.rows, 0, shape.rows - 1)
    manifest = Manifest("synthetic", 0, ids, dense, stats, shape.history, {"train": (file,)})
    columns: dict[str, object] = {name: rng.integers(1, size, shape.rows) for name, size in ids.items()}
    columns |= {name: rng.random(shape.rows, dtype=np.float32) for name in dense}
    columns |= {name: rng.integers(0, 1000, shape.rows).astype(np.float32) for name in stats}
    columns["label"] = rng.integers(0, 2, shape.rows).astype(np.float32)
    columns["timestamp"] = np.arange(shape.rows)
    columns["item_id"] = zipf_items(rng, shape, shape.rows)
    offsets = np.arange(0, shape.rows * shape.history + 1, shape.history, dtype=np.int32)
    columns["history"] = pa.ListArray.from_arrays(offsets, zipf_items(rng, shape, shape.rows * shape.history))
    path = folder / "data" / LOG / file.path
    path.parent.mkdir(parents=True)
    schema = log_schema(manifest)
    pq.write_table(pa.table({name: columns[name] for name in schema.names}, schema=schema), path, row_group_size=16_384)
    save_manifest(manifest, folder / "data" / LOG)
    items = np.arange(1, shape.items + 1)
    impressions = np.bincount(np.asarray(columns["item_id"]), minlength=shape.items + 1)[1:]
    pq.write_table(pa.table({"item_id": items, "train_impressions": impressions}), folder / "data" / ITEMS)
    codes = rng.integers(0, CODES, (shape.items, LEVELS))
    Catalog(np.arange(1, shape.items + 1), codes, (CODES,) * LEVELS).save(folder / "catalog")


def zipf_items(rng: np.random.Generator, shape: Shape, size: int) -> np.ndarray:
    """Item ids in [1, items], drawn with probability proportional to id ** -popularity."""
    mass = np.cumsum(np.arange(1, shape.items + 1) ** -shape.popularity)
    return np.searchsorted(mass, rng.random(size) * mass[-1]).astype(np.int64) + 1


def recipe_for(folder: Path, shape: Shape, item: Mapping[str, Any]) -> Recipe:
    """The recipe's defaults (D = 16, element-wise Adagrad, Adam, planner, sparse-dist pipeline) with this item."""
    data = {"path": str(folder / "data"), "catalog": str(folder / "catalog"), "batch_size": shape.batch, "workers": 0}
    model = {**shape.model, "item": dict(item)}
    return parse({"name": "step-time", "data": {**data, "history_length": shape.history}, "model": model}, "step_time")


def bags_apart(loaded: PackedBatch) -> Batch:
    """The same batch with a bag of its own for the target and each history position: what deduplication saves."""
    batch = loaded.to(torch.device("cpu"))
    keys = batch.items.keys()
    lengths_GU = batch.items.lengths().view(len(keys), batch.bags)
    rows_GU = torch.zeros(lengths_GU.shape, dtype=torch.int64)
    rows_GU[lengths_GU > 0] = batch.items.values()
    bag_M = torch.cat([batch.target_B, batch.history_BT.flatten()])
    own_M = torch.arange(1, len(bag_M) + 1) * (bag_M > 0)
    bag_M = torch.cat([bag_M.new_zeros(1), bag_M])  # bag 0 stays empty
    lengths_GM = lengths_GU[:, bag_M]
    values = rows_GU[:, bag_M][lengths_GM > 0]
    items = KeyedJaggedTensor(keys=keys, values=values, lengths=lengths_GM.flatten(), stride=len(bag_M))
    size = len(batch.target_B)
    history_BT = own_M[size:].view(batch.history_BT.shape)
    return replace(batch, items=items, target_B=own_M[:size], history_BT=history_BT)


class Contender:
    """A recipe in training, as sidrec.train's Trainer drives it, with batches kept ready."""

    def __init__(self, recipe: Recipe, change: Callable[[PackedBatch], Batch | PackedBatch], ranks: Ranks) -> None:
        data = open_dataset(recipe, ranks)
        loader = open_loader(recipe, data, "train", shuffle=True, ranks=ranks)
        model = build_training(recipe, data, ranks).model
        self._source = map(change, chain.from_iterable(loader.packed_batches(epoch) for epoch in count()))
        self._ready: deque[Batch | PackedBatch] = deque()
        self._batches = self._waiting()  # one process has no other ranks to agree with
        self._optimizer = build_optimizer(model, recipe.optimizer, recipe.model.embedding_dim)
        self._pipeline = TrainPipelineSparseDist(model, self._optimizer, ranks.device)
        self.bags: list[int] = []
        model.train()

    def seconds(self, steps: int) -> float:
        """CPU seconds of a step, the mean over `steps`."""
        while len(self._ready) < steps + 3:  # the pipeline reads ahead
            self._ready.append(next(self._source))
            self.bags.append(self._ready[-1].bags)
        start = time.process_time()
        for _ in range(steps):
            self._optimizer.set_factor(1.0)
            self._pipeline.progress(self._batches)
        return (time.process_time() - start) / steps

    def _waiting(self) -> Iterator[Batch | PackedBatch]:
        while True:
            yield self._ready.popleft()


def measure(shape: Shape, rounds: int, steps: int, ranks: Ranks) -> tuple[dict[str, list[float]], dict[str, float]]:
    """CPU seconds per step of every contender and round; and every contender's mean number of bags."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_data(folder, shape)
        contenders = {
            name: Contender(
                recipe_for(folder, shape, item), bags_apart if name == BAGS_APART else lambda batch: batch, ranks
            )
            for name, item in CONTENDERS.items()
        }
        for contender in contenders.values():
            contender.seconds(WARM_UP_STEPS)
        names = list(contenders)
        seconds: dict[str, list[float]] = {name: [] for name in names}
        for turn in range(rounds):
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                seconds[name].append(contenders[name].seconds(steps))
        return seconds, {name: statistics.mean(contender.bags) for name, contender in contenders.items()}


def summary(seconds: Mapping[str, list[float]], bags: Mapping[str, float], batch: int) -> dict[str, dict[str, Any]]:
    """Per contender: milliseconds per step and ratio to the twin of the same round, as [median, lowest, highest]."""
    lines = {}
    for name, own in seconds.items():
        ratios = [mine / twin for mine, twin in zip(own, seconds[TWIN], strict=True)]
        lines[name] = {
            "bags": round(bags[name]),
            "cpu_ms": [round(1000 * value, 2) for value in spread(own)],
            "ratio": [round(value, 3) for value in spread(ratios)],
            "rows_per_cpu_second": round(batch / statistics.median(own)),
        }
    return lines


def spread(values: list[float]) -> tuple[float, float, float]:
    return statistics.median(values), min(values), max(values)


def conditions(rounds: int, steps: int) -> dict[str, object]:
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], check=True, capture_output=True, text=True)
    return {
        "commit": git.stdout.strip(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, one used",
        "torch": torch.__version__,
        "torchrec": torchrec.__version__,
        "rounds": rounds,
        "steps_per_round": steps,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--write", action="store_true")
    flags = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    result: dict[str, object] = conditions(flags.rounds, flags.steps)
    with joined_ranks() as ranks:
        torch.set_num_threads(1)
        for name in flags.shape:
            lines = summary(*measure(SHAPES[name], flags.rounds, flags.steps, ranks), SHAPES[name].batch)
            result[name] = lines
            print(f"\n{name}\n\n| contender | item bags | CPU ms per step | ratio to the twin | rows per CPU second |")
            print("|---|---|---|---|---|")
            for contender, line in lines.items():
                (ms, low, high), (ratio, least, most) = line["cpu_ms"], line["ratio"]
                print(
                    f"| {contender} | {line['bags']:,} | {ms:.1f} [{low:.1f}-{high:.1f}] "
                    f"| {ratio:.2f} [{least:.2f}-{most:.2f}] | {line['rows_per_cpu_second']:,} |",
                    flush=True,
                )
    if flags.write:
        Path(__file__).with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
