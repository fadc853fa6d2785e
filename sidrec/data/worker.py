"""What a loader's worker processes do: read and build their steps of an epoch.

Imports no torchrec: it costs a worker's start seconds and hundreds of megabytes, and workers only fill blocks.
"""

import multiprocessing
import os
import threading
from collections.abc import Iterator, Mapping
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from sidrec.data.batch_arrays import BatchArrays, BatchBlock, PerItem, block_of
from sidrec.data.reader import LogReader
from sidrec.schema import ContractError

T = TypeVar("T")


class Built(NamedTuple):
    """What a worker sends: a batch, or the error that ends the epoch; and what is wrong with quarantined rows."""

    outcome: BatchBlock | ContractError
    complaints: tuple[str, ...] = ()


class Steps(IterableDataset[Built]):
    """Worker k of K builds steps first + k, first + k + K, ...: DataLoader asks workers in turn, which keeps order.

    features, rows_IF, per_item: as BatchArrays takes them.
    """

    def __init__(
        self,
        reader: LogReader,
        features: tuple[str, ...],
        rows_IF: np.ndarray,
        per_item: Mapping[str, PerItem],
        world: int,
    ) -> None:
        self._reader, self._features, self._rows_IF, self._world = reader, features, rows_IF, world
        self._per_item = per_item
        self._position = torch.zeros(2, dtype=torch.int64)
        self._position.share_memory_()  # type: ignore[no-untyped-call]  # workers outlive an epoch

    def seek(self, epoch: int, step: int) -> None:
        """Where the next iteration begins, in all processes."""
        self._position.copy_(torch.tensor([epoch, step]))

    def __iter__(self) -> Iterator[Built]:
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        epoch, first = self._position.tolist()
        return self._build(epoch, range(first + number, self._reader.lanes.steps, workers))

    def _build(self, epoch: int, steps: range) -> Iterator[Built]:
        arrays = BatchArrays(self._features, self._rows_IF, self._per_item, self._reader.columns.context)
        try:
            for step in self._reader.steps(epoch, steps):
                yield Built(block_of(arrays(step.rows, step.rows_of_all_ranks / self._world)), step.complaints)
        except ContractError as error:
            yield Built(error)


def end_with_training(_: int) -> None:
    """Lets a worker end when the training process is gone, however it went.

    A worker's parent is the fork server, which in turn lives as long as it has workers: a killed training process would
    leave both behind for ever.
    """
    training = multiprocessing.parent_process()
    assert training is not None, "a loader's worker is started by multiprocessing"

    def wait() -> None:
        training.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True, name="end with training").start()


def as_is(item: T) -> T:
    """For DataLoader, which would otherwise convert what it is given. Here because workers import where it lives."""
    return item
