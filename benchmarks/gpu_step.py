"""Samples a second of a training step: rankers of sidrec, and TorchRec's DLRM without and with SID-Coord plugged in.

    python -m benchmarks.gpu_step [--rows histories criteo mlperf] [--rounds 5] [--steps 20] [--write]
    python -m benchmarks.gpu_step --dry-run

Rows: `histories` have 50 past items, of about a million distinct ones in a batch of 65,536; D = 64 and five SID tables.
`criteo` is shaped like Kaggle's log. `mlperf` is MLPerf's DLRM-DCNv2, one GPU's share of its batch; its tables are cut
to `--table-rows`, so that two copies fit on one GPU.

All contenders of a kind of rows train in this process, in a world of one, on batches kept ready in pinned memory: the
loader takes no part. A round gives every contender `steps` steps between two synchronisations of the device; the next
round begins with another. Stages are the ranges of TorchRec's pipeline in a profile of five steps, the device's time
where there is a GPU. The bound is the time that the step's bytes (`benchmarks.gpu_bytes`) take at the bandwidth of a
copy on this device.

--dry-run: tiny sizes on the CPU, to see that the command works; its figures mean nothing, and --write refuses them.
--write replaces gpu_step.json. Without a GPU the command ends with a sentence.

Shapes: B rows of a batch, D width of an embedding.
"""

import argparse
import gc
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torchrec.datasets.utils import Batch as TorchRecBatch
from torchrec.models.dlrm import DLRM, DLRM_DCN
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from benchmarks import criteo_rows, mlperf_rows
from benchmarks.gpu_bytes import GB, StepShape, step_bytes
from benchmarks.plugged_step_time import Steps, sharded_training
from benchmarks.step_time import CODES, LEVELS, Shape, recipe_for, spread, write_data
from benchmarks.tables import markdown_table
from sidrec.data.batch import PackedBatch
from sidrec.io.files import write_json
from sidrec.parallel.process_group import Ranks, joined_ranks
from sidrec.plug import ItemCounts, attach
from sidrec.sid.catalog import Catalog
from sidrec.study.results import conditions
from sidrec.train.assembly import build_training, open_dataset, open_loader
from sidrec.train.step import TrainingStep
from sidrec.train.stopping import synced_batches

RESULT = Path(__file__).with_suffix(".json")
KEPT_BATCHES, WARM_UP, PROFILED = 4, 10, 5
HISTORIES = Shape(10_000_000, 0.97, 1_000_000, 13, 0, 4, {"context": ["user_id"], "embedding_dim": 64}, 65_536, 4, 50)
RANKERS: dict[str, dict[str, Any]] = {
    "HID-only twin": {"kind": "hid"},
    "SID-Coord": {"kind": "sid_coord"},
    "SID-Coord, recommended": {"kind": "sid_coord", "preset": "recommended"},
}
STAGES = {
    "## copy_batch_to_gpu": "batch to the device",
    "## start_sparse_data_dist": "ids to the shards",
    "## wait_sparse_data_dist": "ids to the shards",
    "## forward": "forward",
    "## backward": "backward to the embeddings",
    "## optimizer": "tables and optimizer",
}


# sidrec's rankers.


class Contender(NamedTuple):
    """steps: runs so many. gigabytes: what a step moves in the device's memory; None if that is not counted."""

    steps: Steps
    gigabytes: float | None = None


def rankers(shape: Shape, folder: Path, ranks: Ranks) -> Iterator[tuple[str, Contender]]:
    """sidrec's rankers on one log, as its trainer runs them."""
    write_data(folder, shape)
    for name, item in RANKERS.items():
        recipe = recipe_for(folder, shape, item)
        data = open_dataset(recipe, ranks)
        loader = open_loader(recipe, data, "train", shuffle=True, ranks=ranks)
        training = build_training(recipe, data, ranks)
        kept = [pinned(batch, ranks) for batch in islice(loader.packed_batches(0), KEPT_BATCHES)]
        loader.close()
        step = TrainingStep(
            training.model, training.optimizer, loader.reader, recipe.train, recipe.parallel.pipeline, 0, ranks
        )
        training.model.train()
        training.optimizer.set_factor(1.0)
        bags = round(statistics.mean(batch.bags for batch in kept))
        of_step = StepShape(shape.batch, bags, shape.history, recipe.model.embedding_dim, shape.dense, shape.stats)
        gigabytes = step_bytes(item, fused=True, shape=of_step).total() / GB
        yield name, Contender(_repeated(step, synced_batches(cycle(kept), sys.maxsize, ranks)), gigabytes)


def _repeated(step: TrainingStep, batches: Iterator[PackedBatch]) -> Steps:
    def steps(number: int) -> None:
        for _ in range(number):
            step.run(batches)

    return steps


def pinned(batch: PackedBatch, ranks: Ranks) -> PackedBatch:
    """The batch in memory that a GPU reads directly."""
    return replace(batch, block=batch.block.pin_memory()) if ranks.device.type == "cuda" else batch


def _as_new(ids: KeyedJaggedTensor) -> KeyedJaggedTensor:
    """The ids without what TorchRec's tensors remember of earlier steps."""
    return KeyedJaggedTensor(ids.keys(), ids.values(), lengths=ids.lengths(), stride=ids.stride())


# TorchRec's DLRM, alone and with SID-Coord plugged in.


def dlrms(
    batches: Sequence[TorchRecBatch], sizes: Sequence[int], item: str, dim: int, cross: bool, ranks: Ranks
) -> Iterator[tuple[str, Contender]]:
    """sizes: rows of each table, whose features are the batches' keys. cross: MLPerf's DCNv2 in place of products."""
    keys = batches[0].sparse_features.keys()
    kept = [batch.pin_memory() if ranks.device.type == "cuda" else batch for batch in batches]
    for name in ("TorchRec's DLRM", "TorchRec's DLRM + SID-Coord"):
        tables = EmbeddingBagCollection(
            tables=[
                EmbeddingBagConfig(name=f"t_{key}", feature_names=[key], num_embeddings=rows, embedding_dim=dim)
                for key, rows in zip(keys, sizes, strict=True)
            ],
            device=torch.device("meta"),
        )
        model: nn.Module = DLRM(tables, criteo_rows.DENSE, [512, 256, 64, dim], [512, 256, 1])
        if cross:
            over = [1024, 1024, 512, 256, 1]
            model = DLRM_DCN(tables, mlperf_rows.DENSE, [512, 256, dim], over, dcn_num_layers=3, dcn_low_rank_dim=512)
        if name.endswith("SID-Coord"):
            model = with_sids(model, item, sizes[keys.index(item)] - 1)
        stream = (_torchrec_batch_as_new(batch) for batch in cycle(kept))
        yield name, Contender(sharded_training(model, stream, postproc=True, device=ranks.device))


def with_sids(model: nn.Module, item: str, items: int) -> nn.Module:
    """The model with SID-Coord on one of its features, whose SIDs are random codes."""
    random = np.random.default_rng(0)
    catalog = Catalog(np.arange(1, items + 1), random.integers(0, CODES, (items, LEVELS)), (CODES,) * LEVELS)
    return attach(
        model, catalog, item, statistics=ItemCounts(torch.from_numpy(random.integers(0, 1000, (items + 1, 2))))
    )


def _torchrec_batch_as_new(batch: TorchRecBatch) -> TorchRecBatch:
    return TorchRecBatch(batch.dense_features, _as_new(batch.sparse_features), batch.labels)


# Kinds of rows.


def histories(flags: argparse.Namespace, folder: Path, ranks: Ranks) -> Iterator[tuple[str, Contender]]:
    """Rankers alone: TorchRec's DLRM has no history."""
    small = replace(HISTORIES, items=1000, users=1000, batch=64, history=5)
    return rankers(small if flags.dry_run else HISTORIES, folder, ranks)


def criteo(flags: argparse.Namespace, folder: Path, ranks: Ranks) -> Iterator[tuple[str, Contender]]:
    """TorchRec's DLRM on rows shaped like Kaggle's log."""
    found = criteo_rows.criteo_rows(KEPT_BATCHES, 64 if flags.dry_run else 65_536)
    batches = [
        TorchRecBatch(
            rows.dense_BX,
            KeyedJaggedTensor(
                list(criteo_rows.COLUMNS),
                rows.ids_FB.flatten(),
                lengths=torch.ones(rows.ids_FB.numel(), dtype=torch.int32),
            ),
            rows.label_B,
        )
        for rows in found
    ]
    return dlrms(batches, criteo_rows.CARDINALITIES, "C3", 64, False, ranks)


def mlperf(flags: argparse.Namespace, folder: Path, ranks: Ranks) -> Iterator[tuple[str, Contender]]:
    """DLRM-DCNv2; the item is the largest column with one id a row."""
    most = 1000 if flags.dry_run else flags.table_rows
    sizes = [min(rows, most) for rows in mlperf_rows.CARDINALITIES]
    batches = mlperf_rows.mlperf_batches(KEPT_BATCHES, 64 if flags.dry_run else mlperf_rows.ROWS_PER_GPU, sizes)
    return dlrms(batches, sizes, "cat_2", mlperf_rows.DIM, True, ranks)


ROWS = {"histories": histories, "criteo": criteo, "mlperf": mlperf}
BATCH = {"histories": HISTORIES.batch, "criteo": 65_536, "mlperf": mlperf_rows.ROWS_PER_GPU}


# Measuring.


def measure(
    contenders: Mapping[str, Contender], batch: int, rounds: int, steps: int, device: torch.device, copy: float
) -> dict[str, Any]:
    """Per contender: ms of a step and samples a second as [median, lowest, highest]; ms of a step by stage; and, where
    its bytes are counted, GB of a step, GB a second, and their share of `copy`, the GB a second of a copy."""
    for contender in contenders.values():
        contender.steps(WARM_UP)
    names = list(contenders)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            start = _clock(device)
            contenders[name].steps(steps)
            seconds[name].append((_clock(device) - start) / steps)
    return {
        name: {
            "ms": [round(1000 * value, 3) for value in spread(own)],
            "samples_per_second": [round(batch / value) for value in (spread(own)[0], max(own), min(own))],
            "stages_ms": stages(contenders[name].steps, device),
            **against_copy(contenders[name].gigabytes, statistics.median(own), copy),
        }
        for name, own in seconds.items()
    }


def against_copy(gigabytes: float | None, seconds: float, copy: float) -> dict[str, float]:
    """The rate of a step's bytes, and its share of a copy's: GB a second."""
    if gigabytes is None:
        return {}
    rate = gigabytes / seconds
    return {"gb": round(gigabytes, 3), "gb_per_second": round(rate, 1), "share_of_copy": round(rate / copy, 3)}


def _clock(device: torch.device) -> float:
    """Seconds: wall time when a GPU has done its work, or CPU time."""
    if device.type != "cuda":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def stages(run: Steps, device: torch.device) -> dict[str, float]:
    """ms of a step in each stage."""
    gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]) as found:
        run(PROFILED)
        _clock(device)
    spent: dict[str, float] = {}
    for event in found.key_averages():
        stage = next((stage for prefix, stage in STAGES.items() if event.key.startswith(prefix)), None)
        if stage:
            microseconds = event.device_time_total if gpu else event.cpu_time_total
            spent[stage] = round(spent.get(stage, 0) + microseconds / 1000 / PROFILED, 3)
    return spent


def bandwidth(device: torch.device, megabytes: int = 1024) -> float:
    """GB a second that a copy on the device reads and writes."""
    source = torch.zeros(megabytes << 18, device=device)
    target = torch.empty_like(source)
    times = []
    for _ in range(WARM_UP):
        start = _clock(device)
        target.copy_(source)
        times.append(_clock(device) - start)
    return 2 * source.numel() * 4 / min(times) / 1e9


def report(found: Mapping[str, Mapping[str, Any]]) -> str:
    rows = []
    for name, line in found.items():
        (ms, low, high), samples = line["ms"], line["samples_per_second"][0]
        of_stages = ", ".join(f"{stage} {value:.2f}" for stage, value in line["stages_ms"].items())
        rate = "not counted"
        if "gb" in line:
            rate = f"{line['gb']:.3f} GB, {line['gb_per_second']:,.1f} GB/s, {line['share_of_copy']:.0%} of the bound"
        rows.append([name, f"{ms:.2f} [{low:.2f}-{high:.2f}]", f"{samples:,}", rate, of_stages])
    return markdown_table(["contender", "ms per step", "samples per second", "bytes of a step", "ms by stage"], rows)


def main(argv: Sequence[str]) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_step", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--table-rows", type=int, default=20_000_000, help="most rows of a table of `mlperf`")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--write", action="store_true")
    flags = parser.parse_args(argv)
    if flags.dry_run and flags.write:
        parser.error("--write: expected figures of a GPU, got those of a dry run; leave one of the two out")
    if not flags.dry_run and not torch.cuda.is_available():
        parser.error("expected a GPU, found none; --dry-run shows on a CPU that the command works")
    rounds, steps = (1, 2) if flags.dry_run else (flags.rounds, flags.steps)
    result: dict[str, Any] = {"conditions": conditions(), "rounds": rounds, "steps_per_round": steps}
    with joined_ranks() as ranks:
        result["device"] = torch.cuda.get_device_name() if ranks.device.type == "cuda" else "CPU"
        copy = bandwidth(ranks.device, 8 if flags.dry_run else 1024)
        result["copy_gb_per_second"] = round(copy, 1)
        print(f"{result['device']}: a copy moves {copy:,.1f} GB/s, the bound", flush=True)
        for kind in flags.rows:
            with tempfile.TemporaryDirectory() as folder:
                contenders = dict(ROWS[kind](flags, Path(folder), ranks))
                batch = 64 if flags.dry_run else BATCH[kind]
                result[kind] = measure(contenders, batch, rounds, steps, ranks.device, copy)
            print(f"\n{kind}, batches of {batch:,} rows\n\n{report(result[kind])}", flush=True)
            del contenders
            gc.collect()
            torch.cuda.empty_cache()
    if flags.write:
        write_json(RESULT, result)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
