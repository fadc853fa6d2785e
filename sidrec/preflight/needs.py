"""What a run will take beyond what its processes have already: memory, /dev/shm and disk, by what takes it."""

from collections.abc import Sequence
from dataclasses import dataclass

from sidrec.parallel.initial import ROWS_AT_A_TIME
from sidrec.preflight.loader_memory import FORK_SERVER, loader_memory
from sidrec.preflight.planned_run import PlannedRun
from sidrec.preflight.step_memory import kept_for_backward, looked_up
from sidrec.preflight.table_memory import dense_bytes, rank_tables

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
