"""A split as batches: opens it for this rank, and runs the worker processes that build batches ahead of training."""

import atexit
import logging
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from multiprocessing import active_children, forkserver, resource_tracker
from multiprocessing.context import ForkServerContext

import torch
from torch.utils.data import DataLoader

from sidrec.config.model import ModelConfig
from sidrec.config.recipe import DataConfig
from sidrec.data import worker
from sidrec.data.batch import Batch, PackedBatch, packed
from sidrec.data.history_routes import HistoryRoutes, history_routes
from sidrec.data.item_tables import ItemTables
from sidrec.data.reader import Lanes, LogReader, Shuffling
from sidrec.data.rows import Columns, joint_index
from sidrec.data.worker import StepDataset, WorkerResult, as_is, exit_with_training, start_like_training
from sidrec.io.local_cache import session
from sidrec.io.parquet_places import RowGroupCache, bytes_of_groups
from sidrec.io.places import StorePath
from sidrec.schema import ITEM_ID, LABEL, LOG, USER_ID, ContractError, Manifest, log_schema
from sidrec.text import byte_size, did_you_mean

CACHE_BYTES = 20e9  # where the recipe leaves `data.cache_gb` out
BATCHES_AHEAD = 4  # per worker: enough to hide the reading of a buffer
ROW_ERRORS_LOGGED = 5
CORES_PER_PROCESS, MOST_PROCESSES = 4, 4
"""Where the recipe leaves `data.workers` out. Each process reads and checks all rows of its rank, which is half of its
work or more: four feed less than twice the rows of one."""
logger = logging.getLogger(__name__)


def open_split(
    data: DataConfig,
    model: ModelConfig,
    split: str | Sequence[str],
    *,
    rank: int,
    world: int,
    seed: int,
    shuffle: bool,
    tables: ItemTables,
    manifest: Manifest,
    context_rows: Mapping[str, int] | None = None,
    local_world: int = 1,
    pin_memory: bool = False,
) -> "SplitLoader":
    """Checks all files of a split and opens this rank's share of it.

    split: one, or several that are read as one.
    shuffle: read in the recipe's order, drawn with `seed`; otherwise in file order, lane by lane.
    context_rows: see `columns_of`. local_world: see `loader_processes`.

    Raises ContractError for files that break the contract or columns that the log lacks, ConfigError for a batch size
    that is not a multiple of the lanes or lanes that are not a multiple of the ranks.
    """
    columns = columns_of(data, model, manifest, context_rows)
    splits = (split,) if isinstance(split, str) else tuple(split)
    lanes = Lanes(sum(map(manifest.rows, splits)), data.lanes, data.batch_size)
    own_lanes = lanes.of_rank(rank, world)
    groups = joint_index(data.path / LOG, splits, manifest)
    shuffling = Shuffling(data.shuffle_rows, seed, data.order if shuffle else "file", data.lanes)
    stored = _row_group_cache(data, columns) if isinstance(data.path, StorePath) else None
    reader = LogReader(groups, columns, lanes, shuffling, own_lanes, data.bad_rows == "refuse", stored)
    routes = history_routes(model.history_pooling, tables)
    return SplitLoader(reader, tables, world, loader_processes(data, local_world), routes, pin_memory=pin_memory)


def _row_group_cache(data: DataConfig, columns: Columns) -> RowGroupCache:
    """Raises ContractError if the disk has no room for the cache that the recipe asks for."""
    folder = session()
    free = shutil.disk_usage(folder).free + bytes_of_groups(folder)
    bound = int(min(CACHE_BYTES, free / 2) if data.cache_gb is None else data.cache_gb * 1e9)
    if free < bound:
        got = f"{byte_size(free)}; set a smaller value, or SIDREC_CACHE to another folder"
        raise ContractError("data.cache_gb", f"{byte_size(bound)} of free disk in {folder.parent}", got)
    return RowGroupCache(folder, bound, tuple(log_schema(columns.log).names))


def loader_processes(data: DataConfig, local_world: int, cores: int | None = None) -> int:
    """Loader processes of a rank. local_world: ranks on this machine. cores: None for those of this process."""
    if data.workers is not None:
        return data.workers
    cores = len(os.sched_getaffinity(0)) if cores is None else cores
    return min(max(1, cores // local_world // CORES_PER_PROCESS), MOST_PROCESSES)


def columns_of(
    data: DataConfig, model: ModelConfig, manifest: Manifest, context_rows: Mapping[str, int] | None = None
) -> Columns:
    """The columns that a model reads. Raises ContractError for one that the log lacks.

    context_rows: rows of the context tables, if they may be fewer than the log's ids.
    """
    labels = (LABEL, *manifest.labels)
    if data.label not in labels:
        expected = f"a label of the log, which has {', '.join(labels)}"
        raise ContractError("data.label", expected, repr(data.label) + did_you_mean(data.label, labels))
    dense = manifest.dense if model.dense is None else model.dense
    for key, wanted, known in (("model.context", model.context, manifest.ids), ("model.dense", dense, manifest.dense)):
        for column in wanted:
            if column not in known:
                raise ContractError(key, f"columns of the log, which has {sorted(known)}", repr(column))
    ids = {column: rows for column, rows in manifest.ids.items() if column in (USER_ID, ITEM_ID, *model.context)}
    others = () if data.label == LABEL else (data.label,)
    lists = {column: entry for column, entry in manifest.lists.items() if column in model.context}
    log = replace(manifest, ids=ids, dense=dense, labels=others, lists=lists)
    rows = context_rows or {}
    fewer = any(rows.get(column, manifest.ids[column]) < manifest.ids[column] for column in model.context)
    rows_C = tuple(rows[column] for column in model.context) if fewer else ()
    return Columns(log, model.context, data.history_length, data.label, rows_C)


class SplitLoader:
    """This rank's batches of a split.

    steps: batches per epoch, equal on every rank. rows: rows of the split over all ranks.
    quarantined: broken rows this rank has read so far; they have weight 0 and, unlike padding, a row number.
    reader: the source of rows.
    """

    def __init__(
        self,
        reader: LogReader,
        tables: ItemTables,
        world: int,
        workers: int,
        routes: HistoryRoutes | None,
        *,
        pin_memory: bool,
    ) -> None:
        self.steps = reader.lanes.steps
        self.rows = reader.lanes.rows
        self.quarantined = 0
        self.reader = reader
        self._logged: set[str] = set()
        self._tables = tables
        self._dataset = StepDataset(reader, tables.for_workers(), world, routes)
        self._workers, self._pin_memory = workers, pin_memory
        self._context = _worker_context() if workers else None
        self._loader: DataLoader[WorkerResult] | None = None

    def batches(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """`packed_batches`, on the CPU."""
        return (batch.to(torch.device("cpu")) for batch in self.packed_batches(epoch, first_step))

    def packed_batches(self, epoch: int, first_step: int = 0) -> Iterator[PackedBatch]:
        """The batches of an epoch from `first_step` on; one epoch at a time.

        A batch depends on (epoch, step) alone, not on earlier iterations or the number of workers.
        Raises ContractError for data that breaks the contract, unless it is quarantined; ValueError for a step outside
        [0, steps].
        """
        if not 0 <= first_step <= self.steps:
            raise ValueError(f"first_step: expected a step in [0, {self.steps}], got {first_step}")
        self._dataset.seek(epoch, first_step)
        if self._loader is None:
            self._loader = self._start()
        refusal: ContractError | None = None
        for result in _until_a_worker_dies(self._loader):
            if isinstance(result.outcome, ContractError):
                refusal = result.outcome
                break  # raised outside the loop: a traceback through it would keep the workers alive
            self._log(result.row_errors)
            self.quarantined += result.quarantined
            yield packed(result.outcome, self._tables)
        if refusal is not None:
            self.close()
            raise refusal

    def close(self) -> None:
        """Stops the worker processes and frees their memory. The next epoch starts new ones."""
        self._loader = None

    def _start(self) -> "DataLoader[WorkerResult]":
        begin: Callable[[int], None] = exit_with_training
        if self.reader.stored is not None:
            begin = partial(start_like_training, dict(os.environ))
        return DataLoader(
            self._dataset,
            batch_size=None,
            collate_fn=as_is,
            num_workers=self._workers,
            multiprocessing_context=self._context,
            worker_init_fn=begin if self._workers else None,
            prefetch_factor=BATCHES_AHEAD if self._workers else None,
            persistent_workers=self._workers > 0,
            pin_memory=self._pin_memory,
            generator=torch.Generator(),  # DataLoader draws a seed per epoch from it, not from training's generator
        )

    def _log(self, row_errors: tuple[str, ...]) -> None:
        for row_error in row_errors:
            if len(self._logged) < ROW_ERRORS_LOGGED and row_error not in self._logged:
                self._logged.add(row_error)
                logger.warning("row in quarantine: %s", row_error)


def _until_a_worker_dies(loader: "DataLoader[WorkerResult]") -> Iterator[WorkerResult]:
    """The workers' results; if a worker is killed, a ContractError as the last one."""
    try:
        batches = iter(loader)
        atexit.unregister(_kill_workers)
        atexit.register(_kill_workers)  # handlers run in reverse order: this one before those that wait for workers
        yield from batches
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        got = f"{str(error).splitlines()[0]} (less memory: smaller data.shuffle_rows or data.workers)"
        yield WorkerResult(ContractError("data.workers", "loader processes that live as long as training", got))


def _kill_workers() -> None:
    """Kills workers at exit, if an error's traceback keeps the loader alive.

    multiprocessing would send SIGTERM, which workers block, and wait for ever.
    """
    for process in active_children():
        if process.daemon:
            process.kill()


def _worker_context() -> ForkServerContext:
    """A fork server that has imported the worker's module and nothing else.

    A fork of the training process could inherit locks held by threads of gloo, OpenMP or arrow, and wait for ever.
    Server and workers inherit blocked SIGTERM and SIGINT: schedulers and terminals send these to every process, but
    training needs its workers until it has stopped. Workers exit with training.
    """
    context = torch.multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([worker.__name__])
    resource_tracker.ensure_running()  # otherwise the server starts it, which unblocks the signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))
    try:
        forkserver.ensure_running()  # its imports take seconds: they run while the training process goes on
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context
