"""What a run will take beyond what its processes have already: memory, /dev/shm and disk, by what takes it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn
from torchrec.distributed.types import ModuleSharder, ShardingPlan
from torchrec.modules.mc_modules import ManagedCollisionModule

from sidrec.config.recipe import DataConfig, DenseOptimizer
from sidrec.data.item_tables import ItemTables
from sidrec.data.rows import Columns
from sidrec.parallel.initial_values import ROWS_AT_A_TIME
from sidrec.plans.cost import REPLICATED
from sidrec.plans.hardware import Hardware
from sidrec.plans.options import STATE_BYTES, in_host_memory, options_of, table_bytes
from sidrec.plans.workload import Workload
from sidrec.preflight.planned_run import PlannedRun
from sidrec.preflight.step_memory import kept_for_backward, looked_up

FILLING = 20
"""Bytes for each of the values that a table is filled with at a time: drawn twice in float64, then cast."""
PREDICTION, EXTRA = 32, 4
"""Bytes of a scored row, and of each further value; see PredictionCollector."""
IN_STEP = 3
"""Batches that a rank's pipeline holds: in training, on their way, and read ahead."""
AHEAD = 4
"""Batches that each loader process has ready."""


@dataclass(frozen=True)
class Need:
    """Bytes for `what`. about: reckoned from what is typical, not counted. keys: what of the recipe changes it."""

    what: str
    bytes: int
    keys: str
    about: bool = False


@dataclass(frozen=True)
class RankNeeds:
    """One rank's, in the memory of its machine and of its GPU. shared: of `host`, what lies in /dev/shm.

    saved: bytes that it writes into a checkpoint.
    """

    host: tuple[Need, ...]
    device: tuple[Need, ...]
    shared: int
    saved: int


def total(needs: Sequence[Need]) -> int:
    """Bytes of all."""
    return sum(need.bytes for need in needs)


def rank_needs(run: PlannedRun, largest_group: int, starting: int = 0) -> list[RankNeeds]:
    """One entry for each rank. largest_group: rows of the log's largest row group. starting: bytes of a process that
    has imported everything and allocated nothing, for ranks that are not there yet."""
    step, shared, loaders = _step(run), _shared(run), _loaders(run, largest_group)
    dense = Need("dense layers", _dense(run), "model, optimizer.dense")
    found = []
    for rank, tables in enumerate(rank_tables(run.plan, run.workload, run.hardware, run.sharders)):
        saved = tables.saved + (_dense(run, saved=True) if rank == 0 else 0)
        host = [
            Need("a process with its libraries", starting, ""),
            *_tables(tables.host),
            *loaders,
            shared,
            _predictions(run),
            *_copy(run, saved),
        ]
        device: list[Need] = []
        if run.hardware.device == "cpu":
            host += [dense, step]
        else:
            device = [*_tables(tables.device), dense, step]
        found.append(RankNeeds(_some(host), _some(device), shared.bytes, saved))
    return found


def _some(needs: Sequence[Need]) -> tuple[Need, ...]:
    """Those that take anything, the largest first."""
    return tuple(sorted((need for need in needs if need.bytes), key=lambda need: -need.bytes))


def _tables(size: int) -> list[Need]:
    return [Need("tables and their optimizer", size, "model.embedding_dim, optimizer.tables, parallel")]


def _dense(run: PlannedRun, *, saved: bool = False) -> int:
    return dense_bytes(run.workload.dense_parameters, run.recipe.optimizer.dense, saved=saved)


def _step(run: PlannedRun) -> Need:
    """A step, or what fills the largest table before the first one, whichever takes more."""
    model, dim = run.recipe.model, run.recipe.model.embedding_dim
    step = kept_for_backward(model, run.sizes, run.batch) + looked_up(run.batch, dim)
    rows = max((table.num_embeddings for table in run.workload.tables.values()), default=0)
    filling = min(rows, ROWS_AT_A_TIME) * dim * FILLING
    return Need("a step's lookups and activations", max(step, filling), "data.batch_size", about=True)


def _shared(run: PlannedRun) -> Need:
    """Batches on their way through /dev/shm, of two loaders: training's processes live on while others evaluate."""
    workers = run.recipe.data.workers
    batches = 2 * (AHEAD * workers + IN_STEP) if workers else 0
    return Need("batches in /dev/shm", batches * run.batch.bytes, "data.batch_size, data.workers", about=True)


def _loaders(run: PlannedRun, largest_group: int) -> list[Need]:
    data, workers = run.recipe.data, run.recipe.data.workers
    processes, rows = 0, 0
    for split in ("train", max(run.evaluated, key=run.manifest.rows)):
        memory = loader_memory(
            data, run.columns, run.tables, run.manifest.rows(split), largest_group, run.hardware.world
        )
        rows += memory.bytes * workers if workers else memory.rows
        processes += workers
    what = f"{processes} loader processes" if workers else "buffers of rows"
    server = FORK_SERVER if workers else 0
    return [Need(what, rows + server, "data.workers, data.shuffle_rows", about=True)]


def _predictions(run: PlannedRun) -> Need:
    """Collected by each rank, then gathered and sorted on all."""
    return Need("scores of an evaluated split", 2 * _scored(run), "evaluate.splits", about=True)


def _scored(run: PlannedRun) -> int:
    rows = max(run.manifest.rows(split) for split in run.evaluated)
    return rows * (PREDICTION + EXTRA * (1 + len(run.manifest.stats)))


def _copy(run: PlannedRun, saved: int) -> list[Need]:
    background = run.recipe.checkpoint.background
    return [Need("a checkpoint's copy while it is written", saved, "checkpoint.background")] if background else []


def disk_needs(run: PlannedRun, ranks: Sequence[RankNeeds]) -> list[Need]:
    """Of the run directory: every checkpoint it may hold at a time, and predictions, which compress."""
    checkpoint = run.recipe.checkpoint
    kept = checkpoint.keep + 1 + (checkpoint.best is not None)
    one = sum(rank.saved for rank in ranks)
    needs = [Need(f"{kept} checkpoints of {one:,} bytes", kept * one, "checkpoint.keep, checkpoint.best")]
    if run.recipe.evaluate.save_predictions:
        needs.append(Need("predictions", _scored(run), "evaluate.save_predictions", about=True))
    return needs


# What a plan puts on each rank, in bytes: tables and their optimizer's state, and what of them a checkpoint holds.


DENSE_STATES = {"adam": 2, "adamw": 2, "adagrad": 1}
"""Values that torch's optimizer keeps for each parameter."""


@dataclass
class RankTables:
    """Bytes of one rank. host, device: tables, their state and, of replicated ones, their gradient; by where they lie.

    saved: what this rank writes into a checkpoint of its tables: each replicated one is written by rank 0 alone.
    """

    host: int = 0
    device: int = 0
    saved: int = 0


def rank_tables(
    plan: ShardingPlan, workload: Workload, hardware: Hardware, sharders: Sequence[ModuleSharder[nn.Module]]
) -> list[RankTables]:
    """One entry for each rank. Raises ConfigError for a table that the plan lacks."""
    ranks = [RankTables() for _ in range(hardware.world)]
    for option in options_of(plan, workload, hardware, sharders):
        replicated = option.sharding_type == REPLICATED
        on_host = in_host_memory(option, hardware.device)
        for shard, size in zip(option.shards, table_bytes(option, sharders), strict=True):
            assert shard.rank is not None, "the shards of a plan are placed"
            rank = ranks[shard.rank]
            if on_host:
                rank.host += size.weights + size.state
            else:
                rank.device += size.weights + size.state
            if not replicated:
                rank.saved += size.weights + size.state
            elif shard.rank == 0:
                rank.saved += size.state  # of which one part is the gradient: as many bytes as the weights
    for rank in ranks:
        slots = slot_bytes(workload.model) // hardware.world
        rank.saved += slots
        if hardware.device == "cpu":
            rank.host += slots
        else:
            rank.device += slots
    return ranks


def slot_bytes(model: nn.Module) -> int:
    """Of the slots of managed tables, over all ranks."""
    managed = [module for module in model.modules() if isinstance(module, ManagedCollisionModule)]
    return sum(buffer.nbytes for module in managed for buffer in module.buffers())


def dense_bytes(parameters: int, optimizer: DenseOptimizer, *, saved: bool = False) -> int:
    """Of what is not a table, on every rank: parameters and the optimizer's state, and gradients unless it is saved."""
    return parameters * STATE_BYTES * (1 + DENSE_STATES[optimizer.kind] + (not saved))


# What a loader process keeps in memory: its copy of the item tables, and the rows of its rank's lanes.
#
# Shapes: I item ids, C context columns, T history positions, X dense and S statistics columns.


LIBRARIES = 90 << 20
"""Bytes that a loader process has to itself before it holds a row: what it forked, imported and started (measured)."""
FORK_SERVER = 60 << 20
"""Bytes of the processes that start a rank's loader processes and clean up after them (measured)."""


@dataclass(frozen=True)
class LoaderMemory:
    """Bytes of one loader process. items: by item id. rows: buffers of the lanes, full."""

    items: int
    rows: int

    @property
    def bytes(self) -> int:
        return LIBRARIES + self.items + self.rows


def bytes_per_row(columns: Columns) -> int:
    """Of a decoded row, as `sidrec.data.rows.Rows` holds it."""
    number, value, flag = 8, 4, 1
    numbers = 3 + len(columns.context) + columns.history_length  # row, user, item
    values = 1 + len(columns.log.dense) + len(columns.log.stats)  # label
    return numbers * number + values * value + flag


def item_bytes(tables: ItemTables) -> int:
    """Of everything by item id that crosses to a process, and of the numbers by which it finds unique items."""
    per_item: Mapping[str, object] = tables.per_item
    arrays = [array for array in per_item.values() if isinstance(array, np.ndarray)]
    return tables.rows_IF.nbytes + sum(array.nbytes for array in arrays) + 8 * len(tables.rows_IF)


def loader_memory(
    data: DataConfig, columns: Columns, tables: ItemTables, rows: int, largest_group: int, world: int
) -> LoaderMemory:
    """A process that reads a split of `rows` rows in row groups of at most `largest_group`.

    Every process of a rank reads all lanes of it: each holds a buffer and the row group read last, and the one that is
    being filled its parts and the whole.
    """
    lanes = max(1, data.lanes // world)
    lane = -(-rows // data.lanes)
    buffer, group = min(data.shuffle_rows, lane), min(largest_group, rows)
    held = lanes * (buffer + group) + buffer
    return LoaderMemory(item_bytes(tables), held * bytes_per_row(columns))
