"""A checkpoint as something to read from, by a process that need not have its model: tables, recipe, catalog."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from sidrec.checkpoint.folder import BEST, check_file, checkpoint_path, checkpoints
from sidrec.checkpoint.index import INDEX, CheckpointIndex, read_index
from sidrec.checkpoint.piece import CheckpointError
from sidrec.checkpoint.position import Position, read_best, read_position
from sidrec.checkpoint.stored_table import CheckpointTable, checkpoint_tables
from sidrec.config import Recipe, load_file


@dataclass(frozen=True)
class StoredCheckpoint:
    """A checkpoint's folder and its index."""

    path: Path
    index: CheckpointIndex

    @cached_property
    def tables(self) -> Mapping[str, CheckpointTable]:
        """Its embedding tables by name."""
        return checkpoint_tables(self.path, self.index)

    @cached_property
    def recipe(self) -> Recipe:
        """Of the run that wrote it: beside its files, or in the run directory that it lies in. Raises ConfigError."""
        beside, run = self.path / "config.yaml", self.path.parent.parent / "config.yaml"
        return load_file(run if run.is_file() and not beside.is_file() else beside)

    @cached_property
    def position(self) -> Position:
        """Where it stands, and with which catalog it was trained. Raises CheckpointError."""
        return read_position(self.path)

    def check_files(self, names: Iterable[str], progress: Callable[[int], object] = lambda size: None) -> None:
        """Reads files and holds them against the index. progress: is told the size of each that is read.

        Raises CheckpointError for the first that is not as it was written.
        """
        for name in sorted(names):
            check_file(self.path / name, self.index.files[name])
            progress(self.index.files[name].size)


def open_checkpoint(path: Path) -> StoredCheckpoint:
    """Opens a checkpoint; or of a run directory the best where the run keeps one, else the newest.

    Raises CheckpointError where there is none.
    """
    if (path / INDEX).is_file():
        return StoredCheckpoint(path, read_index(path))
    folder = path / "checkpoints"
    there = checkpoints(folder)
    if (folder / BEST).is_file():
        there = [checkpoint_path(folder, read_best(folder / BEST).step)]
    if not there:
        raise CheckpointError(f"{path}: expected a run directory with checkpoints, or one of these, got neither")
    return StoredCheckpoint(there[0], read_index(there[0]))
