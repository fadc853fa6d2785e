"""The row ledger: which rows of the train split a run's model was trained on, and a check that each was there once.

`python -m sidrec.train.ledger_check RUN` checks a run. RUN/ledger holds one file per rank and checkpoint interval. A
file is on disk before the checkpoint at its interval's end is written. A run that resumes first drops the rows beyond
its checkpoint. The ledger therefore holds each step of the model once, even if the run was killed often and resumed on
another number of ranks.

Shapes: B rows of a batch, N rows of a file, E epochs.
"""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from sidrec.data.batch import Batch
from sidrec.errors import SidrecError
from sidrec.io.files import replaced_file
from sidrec.schema import LOG, ContractError, load_manifest
from sidrec.train.run_directory import RunDirectory

EPOCH, STEP, ROW, TRAINED = "epoch", "step", "row", "trained"
SCHEMA = pa.schema({EPOCH: pa.int32(), STEP: pa.int64(), ROW: pa.int64(), TRAINED: pa.bool_()})
"""epoch: counted from 0. step: of the run, counted from 1. row: number within the splits trained on. trained: false if
the row was quarantined or its step skipped."""
_NAME = re.compile(r"steps-(\d+)-(\d+)\.rank-\d+\.parquet")


class RowLedger:
    """Records the rows of this rank's steps. Device memory: 9 bytes per row since the last checkpoint."""

    def __init__(self, folder: Path, rank: int) -> None:
        self._folder, self._rank = folder, rank
        self._steps: list[tuple[int, int, Tensor, Tensor]] = []

    def add(self, epoch: int, step: int, batch: Batch, *, trained: bool = True) -> None:
        """Records a finished step of the run and its batch. trained: false if the step was skipped."""
        trained_B = (batch.weight_B > 0) & trained
        # Cloned, because a pipeline reuses a batch's memory for the next one.
        self._steps.append((epoch, step, batch.row_B.clone(), trained_B))

    def flush(self) -> None:
        """Writes the steps since the last call to disk. Raises ContractError where they cannot be written."""
        if not self._steps:
            return
        first, last = self._steps[0][1], self._steps[-1][1]
        path = self._folder / f"steps-{first:09d}-{last:09d}.rank-{self._rank}.parquet"
        _write(path, pa.concat_tables([_table(*step) for step in self._steps]))
        self._steps = []


def _table(epoch: int, step: int, row_B: Tensor, trained_B: Tensor) -> pa.Table:
    """A step's rows without padding."""
    row_B = row_B.cpu()
    real_B = row_B >= 0
    row_N, trained_N = row_B[real_B].numpy(), trained_B.cpu()[real_B].numpy()
    return pa.table([np.full(len(row_N), epoch), np.full(len(row_N), step), row_N, trained_N], SCHEMA)


def _write(path: Path, table: pa.Table) -> None:
    try:
        path.parent.mkdir(exist_ok=True)
        with replaced_file(path, durable=True, one_writer=True) as partial:
            pq.write_table(table, partial, compression="zstd")
    except OSError as error:
        raise ContractError(path, "a ledger that can be written", error.strerror or error) from None


def drop_after(folder: Path, step: int) -> None:
    """Removes from a ledger the rows of steps after `step`. One process calls it before a run resumes there."""
    for partial in folder.glob("steps-*.partial"):  # of a process that was killed while it wrote
        if _NAME.fullmatch(_finished_name(partial)):
            partial.unlink()
    for path in ledger_files(folder):
        first, last = interval(path)
        if first > step:
            path.unlink()
        elif last > step:
            table = read_ledger(path)
            kept = table.filter(pa.array(table[STEP].to_numpy() <= step))
            _write(path.with_name(path.name.replace(f"-{last:09d}.", f"-{step:09d}.")), kept)
            path.unlink()


def _finished_name(partial: Path) -> str:
    """NAME.parquet of NAME.parquet.partial, and of NAME.partial, which sidrec 0.1.0 wrote."""
    return f"{partial.name.removesuffix('.partial').removesuffix('.parquet')}.parquet"


def ledger_files(folder: Path) -> list[Path]:
    """A ledger's files, by steps and ranks."""
    return sorted(path for path in folder.glob("steps-*.parquet") if _NAME.fullmatch(path.name))


def interval(path: Path) -> tuple[int, int]:
    """First and last step of a ledger's file."""
    found = _NAME.fullmatch(path.name)
    assert found, "ledger_files returns no other names"
    return int(found[1]), int(found[2])


def read_ledger(path: Path) -> pa.Table:
    """One file's rows, with the columns of SCHEMA. Raises ContractError for any other file."""
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise ContractError(path, "a readable parquet file of a row ledger", error) from None
    if table.schema.names != SCHEMA.names or table.schema.types != SCHEMA.types:
        raise ContractError(path, f"columns {SCHEMA.names}", table.schema.names)
    return table


# The check: was every row of the train split trained on exactly once per epoch?


@dataclass(frozen=True)
class EpochRows:
    """Counts of an epoch's rows.

    epoch: counted from 0. once: rows trained on exactly once. left_out: rows that were quarantined, or in a skipped
    step. missing: numbers of rows that no step had. repeated: numbers of rows that came more than once.
    """

    epoch: int
    once: int
    left_out: int
    missing: tuple[int, ...]
    repeated: tuple[int, ...]

    @property
    def exact(self) -> bool:
        """Whether each row came exactly once."""
        return not self.missing and not self.repeated

    def __str__(self) -> str:
        words = f"epoch {self.epoch + 1}: {self.once:,} rows trained on once, {self.left_out:,} left out"
        for what, rows in (("missing", self.missing), ("repeated", self.repeated)):
            words += f", {len(rows):,} {what}" + (f" ({_first_five(rows)})" if rows else "")
        return words


def _first_five(rows: tuple[int, ...]) -> str:
    return ", ".join(map(str, rows[:5])) + (", ..." if len(rows) > 5 else "")


def check_ledger(run: Path) -> list[EpochRows]:
    """Counts the train split's rows in every epoch of a run, including epochs that it has not reached.

    Memory: 3 bytes per row and epoch. Raises ConfigError for a folder that is no run, ContractError where there is no
    ledger, or one with rows or epochs that the run does not have.
    """
    directory = RunDirectory(run)
    recipe = directory.recipe()
    files = ledger_files(directory.ledger)
    if not files:
        raise ContractError(directory.ledger, "the ledger of a run with train.row_ledger", "none")
    rows = sum(map(load_manifest(recipe.data.path / LOG).rows, recipe.data.train_on))
    seen_EN = np.zeros((recipe.train.epochs, rows), dtype=np.uint16)
    trained_EN = np.zeros((recipe.train.epochs, rows), dtype=bool)
    for path in files:
        table = read_ledger(path)
        epoch_N, row_N = table[EPOCH].to_numpy(), table[ROW].to_numpy()
        if len(row_N) and (row_N.min() < 0 or row_N.max() >= rows):
            raise ContractError(path, f"rows in [0, {rows})", f"{row_N.min()} to {row_N.max()}")
        if len(epoch_N) and (epoch_N.min() < 0 or epoch_N.max() >= recipe.train.epochs):
            raise ContractError(path, f"{recipe.train.epochs} epochs", f"epochs {epoch_N.min()} to {epoch_N.max()}")
        np.add.at(seen_EN, (epoch_N, row_N), 1)
        taken_N = table[TRAINED].to_numpy()
        trained_EN[epoch_N[taken_N], row_N[taken_N]] = True
    return [_counted(epoch, *of_epoch) for epoch, of_epoch in enumerate(zip(seen_EN, trained_EN, strict=True))]


def _counted(epoch: int, seen_N: np.ndarray, trained_N: np.ndarray) -> EpochRows:
    once_N = seen_N == 1
    return EpochRows(
        epoch,
        once=int((once_N & trained_N).sum()),
        left_out=int((once_N & ~trained_N).sum()),
        missing=tuple(np.flatnonzero(seen_N == 0).tolist()),
        repeated=tuple(np.flatnonzero(seen_N > 1).tolist()),
    )


def main(argv: Sequence[str]) -> int:
    """Prints a line per epoch. Returns 0 if each row came exactly once, 1 if not, 2 without a ledger."""
    if len(argv) != 1:
        print("usage: python -m sidrec.train.ledger_check RUN", file=sys.stderr)
        return 2
    try:
        epochs = check_ledger(Path(argv[0]))
    except SidrecError as error:
        print(f"sidrec: error: {error}", file=sys.stderr)
        return 2
    print(*epochs, sep="\n")
    return 0 if all(epoch.exact for epoch in epochs) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
