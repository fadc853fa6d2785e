"""`python -m sidrec.train.ledger_check RUN`: was every row of the train split trained on exactly once per epoch?"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sidrec.errors import SidrecError
from sidrec.schema import LOG, ContractError, load_manifest
from sidrec.train.row_ledger import EPOCH, ROW, TRAINED, ledger_files, read_ledger
from sidrec.train.run_directory import RunDirectory

TRAIN = "train"


@dataclass(frozen=True)
class EpochRows:
    """What became of an epoch's rows.

    epoch: counted from 0. once: rows trained on exactly once. left_out: rows that were in quarantine, or in a step that
    was skipped. missing: row numbers that no step had. repeated: row numbers that were there more than once.
    """

    epoch: int
    once: int
    left_out: int
    missing: tuple[int, ...]
    repeated: tuple[int, ...]

    @property
    def exact(self) -> bool:
        """Whether each row was there exactly once."""
        return not self.missing and not self.repeated

    def __str__(self) -> str:
        words = f"epoch {self.epoch + 1}: {self.once:,} rows trained on once, {self.left_out:,} left out"
        for said, rows in (("missing", self.missing), ("repeated", self.repeated)):
            words += f", {len(rows):,} {said}" + (f" ({_some(rows)})" if rows else "")
        return words


def _some(rows: tuple[int, ...]) -> str:
    return ", ".join(map(str, rows[:5])) + (", ..." if len(rows) > 5 else "")


def check_ledger(run: Path) -> list[EpochRows]:
    """What became of the train split's rows in every epoch of a run, also of those that it has not reached.

    Memory: 3 bytes per row and epoch. Raises ConfigError for a folder that is no run, ContractError where there is no
    ledger, or one that names rows or epochs which the run does not have.
    """
    directory = RunDirectory(run)
    recipe = directory.recipe()
    files = ledger_files(directory.ledger)
    if not files:
        raise ContractError(directory.ledger, "the ledger of a run with train.row_ledger", "none")
    rows = load_manifest(recipe.data.path / LOG).rows(TRAIN)
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
    """Prints a line per epoch. Returns 0 where each row was there exactly once, 1 where not, 2 without a ledger."""
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
