"""A planned run, and what it will allocate: memory of each rank, /dev/shm and disk, by cause.

Estimates count what is allocated after the libraries are imported. Their parts: tables by the sharding plan
(`rank_tables`), loader processes (`loader_memory`), one training step (`sidrec.preflight.step_memory`).
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torch import nn
from torchrec.distributed.types import ModuleSharder, ShardingPlan
from torchrec.modules.mc_modules import ManagedCollisionModule

from sidrec.config import Recipe
from sidrec.config.recipe import DataConfig, DenseOptimizer
from sidrec.data.dataset import Sizes
from sidrec.data.item_tables import HID, ItemTables
from sidrec.data.loader import columns_of, loader_processes
from sidrec.data.rows import Columns
from sidrec.parallel.initial_values import ROWS_AT_A_TIME
from sidrec.parallel.update_counts import COUNT
from sidrec.plans.cost import REPLICATED
from sidrec.plans.hardware import Hardware
from sidrec.plans.options import STATE_BYTES, in_host_memory, options_of, table_bytes
from sidrec.plans.workload import Workload
from sidrec.preflight.step_memory import BatchShape, lookup_bytes, saved_for_backward
from sidrec.schema import Manifest

FILLING = {"cpu": 12, "cuda": 32}
"""Bytes for each value while a table is filled: drawn in float64, then cast to float32; on a GPU from a generator whose
words are tensors."""
PREDICTION, EXTRA = 32, 4
"""Bytes of a scored row, and of each additional value; see PredictionCollector."""
IN_STEP = 3
"""Batches that a rank's pipeline holds: in training, in transfer, and prefetched."""
AHEAD = 4
"""Batches that each loader process has ready."""
LIBRARIES = 90 << 20
"""Private bytes of a loader process that has no row yet: forked memory, imports, threads (measured)."""
FORK_SERVER = 60 << 20
"""Private bytes of the fork server and the resource tracker of a rank's loader processes (measured)."""
ON_DEVICE = {"sparse_dist": IN_STEP + 1, "prefetch": IN_STEP + 2, "plain": 2}
"""Batches on a GPU by `parallel.pipeline`: sparse_dist also holds the ids that the next step's ranks have exchanged,
prefetch those of two steps."""
NCCL_BUFFER, NCCL_CHANNELS, NCCL_GROUPS, PEER_CHANNELS = 4 << 20, 16, 2, 2
"""NCCL's buffers: bytes of one (NCCL_BUFFSIZE), channels of a group's rings, groups (all ranks; ranks of a machine),
channels to each other rank for the exchange of ids and vectors. Sends and receives have one each. Not measured."""
FRAGMENTS, EXPANDABLE_FRAGMENTS = 0.2, 0.05
"""Share of the memory that changes from step to step which CUDA's allocator reserves and cannot use: with fixed and
with expandable segments. Guesses: no GPU has run this."""
PICTURE = 60 << 20
"""Bytes of Matplotlib, which rank 0 imports when a split is evaluated, to draw the gate (measured)."""
ITEM_ROWS = "table rows of items, by item id"
DENSE_STATES = {"adam": 2, "adamw": 2, "adagrad": 1}
"""Values that torch's optimizer keeps for each parameter."""


@dataclass(frozen=True)
class PlannedRun:
    """A recipe with its data, its sharding plan and the hardware. Holds no allocated table.

    unique_items: expected item bags in a step of one rank. plan: places each table on ranks. hardware: numbers of ranks
    and machines.
    """

    recipe: Recipe
    manifest: Manifest
    tables: ItemTables
    sizes: Sizes
    workload: Workload
    unique_items: float
    hardware: Hardware
    plan: ShardingPlan
    sharders: Sequence[ModuleSharder[nn.Module]]

    @cached_property
    def columns(self) -> Columns:
        """Columns that are read from the log."""
        return columns_of(self.recipe.data, self.recipe.model, self.manifest)

    @cached_property
    def batch(self) -> BatchShape:
        """The largest batch of a rank."""
        return BatchShape(
            rows=max(1, self.recipe.data.batch_size // self.hardware.world),
            bags=1 + round(self.unique_items),
            history=self.recipe.model.history_pooling.kept(self.recipe.data.history_length),
            dense=self.sizes.dense,
            stats=len(self.sizes.stats_mean),
            item_features=self.tables.features,
            context=tuple(self.sizes.context_rows),
            context_ids=sum(self.columns.widths),
            context_bytes=np.dtype(self.columns.id_type).itemsize,
            context_lengths=bool(self.columns.log.lists),
            weights=self.tables.token_weights_IW.shape[1],
            granules=self.tables.granules_IG.shape[1],
            content=self.sizes.content,
        )

    @property
    def evaluated(self) -> tuple[str, ...]:
        """Splits that are evaluated, without repetition."""
        best = self.recipe.checkpoint.best
        return tuple(dict.fromkeys((*self.recipe.evaluate.splits, *((best.split,) if best else ()))))


# Estimates.


@dataclass(frozen=True)
class ResourceEstimate:
    """Bytes with one cause. recipe_keys: recipe keys that change them. approximate: typical instead of exact."""

    name: str
    bytes: int
    recipe_keys: str
    approximate: bool = False


@dataclass(frozen=True)
class RankEstimate:
    """Estimates for one rank, in host memory and in the memory of its GPU.

    shared: bytes of `host` that lie in /dev/shm. saved: bytes that the rank writes into a checkpoint.
    """

    host: tuple[ResourceEstimate, ...]
    device: tuple[ResourceEstimate, ...]
    shared: int
    saved: int


def total_bytes(estimates: Sequence[ResourceEstimate]) -> int:
    """The sum of all estimates."""
    return sum(each.bytes for each in estimates)


def estimate_ranks(run: PlannedRun, largest_group: int, starting: int = 0) -> list[RankEstimate]:
    """One entry for each rank.

    largest_group: rows of the log's largest row group. starting: bytes of a process that has imported everything and
    allocated nothing; 0 where the ranks already run.
    """
    step, shared, loaders = _step(run), _shared(run), _loaders(run, largest_group)
    dense = ResourceEstimate("dense layers", _dense(run), "model, optimizer.dense")
    found = []
    # A gate that reads the counts has all of them on every rank (UpdateCounts), besides those of the rank's own rows.
    copied = run.sizes.item_tables[HID].rows * COUNT.itemsize if run.recipe.model.item.reads_updates else 0
    for rank, tables in enumerate(rank_tables(run.plan, run.workload, run.hardware, run.sharders)):
        saved = tables.saved + tables.counts_saved + (_dense(run, saved=True) if rank == 0 else 0)
        counts = ResourceEstimate("updates received by each HID row", tables.counts + copied, "")
        host = [
            ResourceEstimate("a process with its libraries", starting, ""),
            _tables(tables.host),
            *loaders,
            shared,
            ResourceEstimate(ITEM_ROWS, row_bytes(run.tables), "model.item"),
            _predictions(run),
            *_copy(run, saved),
            *_picture(run, rank),
        ]
        device: list[ResourceEstimate] = []
        if run.hardware.device == "cpu":
            looked_up = ON_DEVICE[run.recipe.parallel.pipeline] * run.batch.unpacked_bytes
            host += [counts, dense, step, ResourceEstimate("looked-up batches", looked_up, "data.batch_size", True)]
        else:
            device = [_tables(tables.device), counts, dense, step, *device_overheads(run, step.bytes, os.environ)]
        found.append(RankEstimate(_largest_first(host), _largest_first(device), shared.bytes, saved))
    return found


def device_overheads(run: PlannedRun, step: int, environment: Mapping[str, str]) -> list[ResourceEstimate]:
    """GPU memory of a rank besides tables, layers and the step: rows of items, batches, NCCL's buffers, fragments.

    step: bytes of a step's vectors and activations. environment: PYTORCH_CUDA_ALLOC_CONF, or PYTORCH_ALLOC_CONF.
    """
    world = run.hardware.world
    batches = ON_DEVICE[run.recipe.parallel.pipeline] * (run.batch.packed_bytes + run.batch.unpacked_bytes)
    buffers = 2 * NCCL_BUFFER * (NCCL_GROUPS * NCCL_CHANNELS + PEER_CHANNELS * (world - 1)) if world > 1 else 0
    settings = "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"
    expandable = any("expandable_segments:True" in environment.get(name, "") for name in settings)
    share, keys = (EXPANDABLE_FRAGMENTS, "") if expandable else (FRAGMENTS, f"{settings[0]}=expandable_segments:True")
    return [
        ResourceEstimate(f"{ITEM_ROWS}, on the GPU", row_bytes(run.tables), "model.item"),
        ResourceEstimate("batches on the GPU", batches, "data.batch_size, parallel.pipeline", approximate=True),
        ResourceEstimate("NCCL's buffers", buffers, "", approximate=True),
        ResourceEstimate("fragments", round(share * (step + batches)), keys, approximate=True),
    ]


def _largest_first(estimates: Sequence[ResourceEstimate]) -> tuple[ResourceEstimate, ...]:
    """Estimates above 0 bytes."""
    return tuple(sorted((each for each in estimates if each.bytes), key=lambda each: -each.bytes))


def _tables(size: int) -> ResourceEstimate:
    return ResourceEstimate("tables and their optimizer", size, "model.embedding_dim, optimizer.tables, parallel")


def _dense(run: PlannedRun, *, saved: bool = False) -> int:
    return dense_bytes(run.workload.dense_parameters, run.recipe.optimizer.dense, saved=saved)


def _step(run: PlannedRun) -> ResourceEstimate:
    """The larger of a training step and the filling of the largest table, which comes before the first step."""
    model, dim, device = run.recipe.model, run.recipe.model.embedding_dim, run.hardware.device
    step = saved_for_backward(model, run.sizes, run.batch) + lookup_bytes(run.batch, dim, device)
    rows = max((table.num_embeddings for table in run.workload.tables.values()), default=0)
    filling = min(rows, ROWS_AT_A_TIME[device]) * dim * FILLING[device]
    return ResourceEstimate("a step's lookups and activations", max(step, filling), "data.batch_size", approximate=True)


def _shared(run: PlannedRun) -> ResourceEstimate:
    """Batches in /dev/shm of two loaders: the training loader's processes stay alive during an evaluation."""
    workers = loader_processes(run.recipe.data, run.hardware.local_world)
    batches = 2 * (AHEAD * workers + IN_STEP) if workers else 0
    keys = "data.batch_size, data.workers"
    return ResourceEstimate("batches in /dev/shm", batches * run.batch.packed_bytes, keys, approximate=True)


def _loaders(run: PlannedRun, largest_group: int) -> list[ResourceEstimate]:
    """The training loader and the loader of the largest evaluated split."""
    data = run.recipe.data
    workers = loader_processes(data, run.hardware.local_world)
    processes, rows = 0, 0
    trained = sum(map(run.manifest.rows, data.train_on))
    for rows_of_split in (trained, *sorted(map(run.manifest.rows, run.evaluated))[-1:]):
        memory = loader_memory(data, run.columns, run.tables, rows_of_split, largest_group, run.hardware.world)
        rows += memory.bytes * workers if workers else memory.rows
        processes += workers
    name = f"{processes} loader processes" if workers else "buffers of rows"
    server = FORK_SERVER if workers else 0
    return [ResourceEstimate(name, rows + server, "data.workers, data.shuffle_rows", approximate=True)]


def _predictions(run: PlannedRun) -> ResourceEstimate:
    """Predictions are there twice: collected by each rank, then gathered and sorted on all ranks."""
    return ResourceEstimate("scores of an evaluated split", 2 * _scored(run), "evaluate.splits", approximate=True)


def _scored(run: PlannedRun) -> int:
    """Bytes of the predictions of the largest evaluated split."""
    rows = max((run.manifest.rows(split) for split in run.evaluated), default=0)
    return rows * (PREDICTION + EXTRA * (1 + len(run.manifest.stats)))


def _copy(run: PlannedRun, saved: int) -> list[ResourceEstimate]:
    if not run.recipe.checkpoint.background:
        return []
    return [ResourceEstimate("a checkpoint's copy while it is written", saved, "checkpoint.background")]


def _picture(run: PlannedRun, rank: int) -> list[ResourceEstimate]:
    gated = rank == 0 and getattr(run.workload.model, "gate", None) is not None
    return [ResourceEstimate("a picture of the gate", PICTURE, "evaluate.splits", approximate=True)] if gated else []


def estimate_disk(run: PlannedRun, ranks: Sequence[RankEstimate]) -> list[ResourceEstimate]:
    """Disk of the run directory: as many checkpoints as it holds at one time, and predictions before compression."""
    checkpoint = run.recipe.checkpoint
    kept = checkpoint.keep + 1 + (checkpoint.best is not None)
    one = sum(rank.saved for rank in ranks)
    name = f"{kept} checkpoints of {one:,} bytes"
    estimates = [ResourceEstimate(name, kept * one, "checkpoint.keep, checkpoint.best")]
    if run.recipe.evaluate.save_predictions:
        estimates.append(ResourceEstimate("predictions", _scored(run), "evaluate.save_predictions", approximate=True))
    return estimates


@dataclass
class RankTables:
    """Bytes of the tables on one rank.

    host, device: weights and optimizer state, and gradients of replicated tables, by the memory that holds them.
    saved: bytes that the rank writes into a checkpoint; rank 0 alone writes replicated tables. counts, counts_saved:
    of the update counts of HID rows, which are on the device that trains.
    """

    host: int = 0
    device: int = 0
    saved: int = 0
    counts: int = 0
    counts_saved: int = 0


def rank_tables(
    plan: ShardingPlan, workload: Workload, hardware: Hardware, sharders: Sequence[ModuleSharder[nn.Module]]
) -> list[RankTables]:
    """One entry for each rank. Raises ConfigError for a table that the plan lacks."""
    ranks = [RankTables() for _ in range(hardware.world)]
    for option in options_of(plan, workload, hardware, sharders):
        replicated = option.sharding_type == REPLICATED
        on_host = in_host_memory(option, hardware.device)
        for shard, size in zip(option.shards, table_bytes(option, sharders), strict=True):
            assert shard.rank is not None, "the shards of a plan have ranks"
            rank = ranks[shard.rank]
            if on_host:
                rank.host += size.weights + size.state
            else:
                rank.device += size.weights + size.state
            if option.name == HID and (replicated or shard.offset[1] == 0):
                rank.counts += shard.size[0] * COUNT.itemsize
                rank.counts_saved += shard.size[0] * COUNT.itemsize if shard.rank == 0 or not replicated else 0
            if not replicated:
                rank.saved += size.weights + size.state
            elif shard.rank == 0:
                # A replicated table's state includes its gradient, which is not saved and as large as the weights,
                # which are saved: weights + (state - gradient) = state.
                rank.saved += size.state
    for rank in ranks:
        managed = managed_collision_bytes(workload.model) // hardware.world
        rank.saved += managed
        if hardware.device == "cpu":
            rank.host += managed
        else:
            rank.device += managed
    return ranks


def managed_collision_bytes(model: nn.Module) -> int:
    """Bytes of the id-to-row maps of all managed-collision tables, over all ranks."""
    managed = [module for module in model.modules() if isinstance(module, ManagedCollisionModule)]
    return sum(buffer.nbytes for module in managed for buffer in module.buffers())


def dense_bytes(parameters: int, optimizer: DenseOptimizer, *, saved: bool = False) -> int:
    """Bytes of the dense layers on each rank: parameters, optimizer state and gradients. saved: without gradients."""
    return parameters * STATE_BYTES * (1 + DENSE_STATES[optimizer.kind] + (not saved))


@dataclass(frozen=True)
class LoaderMemory:
    """Bytes of one loader process. items: its copy of the item tables. rows: its full shuffle buffers."""

    items: int
    rows: int

    @property
    def bytes(self) -> int:
        return LIBRARIES + self.items + self.rows


def loader_memory(
    data: DataConfig, columns: Columns, tables: ItemTables, rows: int, largest_group: int, world: int
) -> LoaderMemory:
    """Memory of a loader process for a split of `rows` rows in row groups of at most `largest_group` rows.

    Every process of a rank reads all lanes of that rank. For each lane it holds a buffer and the last row group.
    """
    lanes = max(1, data.lanes // world)
    lane = -(-rows // data.lanes)
    buffer, group = min(data.shuffle_rows, lane), min(largest_group, rows)
    held = lanes * (buffer + group)
    return LoaderMemory(item_bytes(tables), held * bytes_per_row(columns))


def bytes_per_row(columns: Columns) -> int:
    """Bytes of a decoded row in `sidrec.data.rows.Rows`."""
    number, half, flag = 8, 4, 1
    context = sum(columns.widths) * np.dtype(columns.id_type).itemsize
    halves = 2 + columns.history_length + len(columns.log.dense) + len(columns.log.stats)  # item, label
    return 2 * number + context + half * halves + flag  # row, user


def item_bytes(tables: ItemTables) -> int:
    """Bytes of all arrays by item id in a loader process, and of its scratch array for numbering items."""
    masks = {id(has_row_I): has_row_I for has_row_I in tables.for_workers().has_row.values() if has_row_I is not None}
    return sum(mask.nbytes for mask in masks.values()) + tables.codes_IL.nbytes + 4 * len(tables.rows_IF)


def row_bytes(tables: ItemTables) -> int:
    """Bytes of what batches look up for each item, of all items."""
    return sum(array.nbytes for array in (tables.rows_IF, tables.token_weights_IW, tables.granules_IG))
