"""Which rows of the train split a run's model was trained on: RUN/ledger, one file per rank and checkpoint interval.

What a file holds is as old as the checkpoint at the interval's end: it is on disk before that checkpoint is begun. What
lies beyond the checkpoint that a run goes on from is dropped, so that however often a run was killed, and on however
many ranks it went on, the ledger holds each step of its model once.

Shapes: B rows of a batch, N rows of a file.
"""

import os
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from sidrec.data.batch import Batch
from sidrec.schema import ContractError

EPOCH, STEP, ROW, TRAINED = "epoch", "step", "row", "trained"
SCHEMA = pa.schema({EPOCH: pa.int32(), STEP: pa.int64(), ROW: pa.int64(), TRAINED: pa.bool_()})
"""epoch: counted from 0. step: of the run, counted from 1. row: number within the train split. trained: false where the
row was in quarantine, or its step left out for not being finite."""
_NAME = re.compile(r"steps-(\d+)-(\d+)\.rank-\d+\.parquet")


class RowLedger:
    """Notes the rows of this rank's steps. Memory: 9 bytes per row until the next checkpoint, where the model is."""

    def __init__(self, folder: Path, rank: int) -> None:
        self._folder, self._rank = folder, rank
        self._steps: list[tuple[int, int, Tensor, Tensor]] = []

    def add(self, epoch: int, step: int, batch: Batch, *, trained: bool = True) -> None:
        """Notes a finished step of the run and its batch. trained: false if the step was left out."""
        trained_B = (batch.weight_B > 0) & trained
        # Cloned, because a pipeline reuses a batch's memory for the next one.
        self._steps.append((epoch, step, batch.row_B.clone(), trained_B))

    def flush(self) -> None:
        """Puts the steps since the last call on disk. Raises ContractError where they cannot be written."""
        if not self._steps:
            return
        first, last = self._steps[0][1], self._steps[-1][1]
        path = self._folder / f"steps-{first:09d}-{last:09d}.rank-{self._rank}.parquet"
        _write(path, pa.concat_tables([_table(*step) for step in self._steps]))
        self._steps = []


def _table(epoch: int, step: int, row_B: Tensor, trained_B: Tensor) -> pa.Table:
    """A step's rows, padding left out."""
    row_B = row_B.cpu()
    real_B = row_B >= 0
    row_N, trained_N = row_B[real_B].numpy(), trained_B.cpu()[real_B].numpy()
    return pa.table([np.full(len(row_N), epoch), np.full(len(row_N), step), row_N, trained_N], SCHEMA)


def _write(path: Path, table: pa.Table) -> None:
    partial = path.with_suffix(".partial")
    try:
        path.parent.mkdir(exist_ok=True)
        with partial.open("wb") as file:
            pq.write_table(table, file, compression="zstd")
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise ContractError(path, "a ledger that can be written", error.strerror or error) from None
    finally:
        partial.unlink(missing_ok=True)


def drop_after(folder: Path, step: int) -> None:
    """Leaves in a ledger what was trained on up to `step`; one process does so before a run goes on from there."""
    for partial in folder.glob("steps-*.partial"):  # by a process that was killed while it wrote
        if _NAME.fullmatch(partial.with_suffix(".parquet").name):
            partial.unlink()
    for path in ledger_files(folder):
        first, last = interval(path)
        if first > step:
            path.unlink()
        elif last > step:
            table = read_ledger(path)
            _write(
                path.with_name(path.name.replace(f"-{last:09d}.", f"-{step:09d}.")), table.filter(_up_to(table, step))
            )
            path.unlink()


def _up_to(table: pa.Table, step: int) -> pa.Array:
    return pa.array(table[STEP].to_numpy() <= step)


def ledger_files(folder: Path) -> list[Path]:
    """A ledger's files, by steps and ranks."""
    return sorted(path for path in folder.glob("steps-*.parquet") if _NAME.fullmatch(path.name))


def interval(path: Path) -> tuple[int, int]:
    """First and last step of a ledger's file."""
    found = _NAME.fullmatch(path.name)
    assert found, "ledger_files gives no others"
    return int(found[1]), int(found[2])


def read_ledger(path: Path) -> pa.Table:
    """One file's rows. Raises ContractError for a file that is none of a ledger's."""
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise ContractError(path, "a readable parquet file of a row ledger", error) from None
    if table.schema.names != SCHEMA.names or table.schema.types != SCHEMA.types:
        raise ContractError(path, f"columns {SCHEMA.names}", table.schema.names)
    return table
