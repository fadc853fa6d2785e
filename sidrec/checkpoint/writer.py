"""Writes one checkpoint of all ranks: there whole or not at all, the outdated ones removed."""

import os
import shutil
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from sidrec.checkpoint.folder import BEST, PARTIAL, checkpoint_path, checkpoints, remove
from sidrec.checkpoint.index import INDEX, StoredFile, read_index, write_index
from sidrec.checkpoint.piece import CheckpointError, Piece
from sidrec.checkpoint.position import POSITION, Position, best_text, position_text
from sidrec.checkpoint.storage import save_pieces
from sidrec.parallel.process_group import Ranks, together, total


class CheckpointWriter:
    """Writes the checkpoints of one run into its folder. Every rank has one and calls it together with the others.

    keep: newest checkpoints that are kept, and the best one. beside: name -> text of files that lie beside the pieces.
    ranks: their control group is used for nothing else, so that a thread of its own can write.
    """

    def __init__(self, folder: Path, keep: int, beside: Mapping[str, str], ranks: Ranks) -> None:
        self._folder, self._keep, self._beside, self._ranks = folder, keep, beside, ranks

    def write(self, pieces: Sequence[Piece], position: Position) -> None:
        """Writes step-N, N the position's step, unless it is there. Raises CheckpointError, on all ranks, where one
        cannot write; then nothing of it is left."""
        final = checkpoint_path(self._folder, position.step)
        if total(self._ranks, int(final.exists())):
            self._together(final, lambda: self._tidy(position))  # the best may be another one since
            return
        partial = final.with_name(final.name + PARTIAL)
        size = total(self._ranks, sum(piece.values.numel() * piece.values.element_size() for piece in pieces))
        self._together(partial, lambda: self._prepare(partial, size))
        try:
            self._together(partial, lambda: save_pieces(partial, pieces, self._ranks.rank, self._ranks.control))
            self._together(partial, lambda: self._complete(partial, final, position))
        except BaseException:
            if self._ranks.first:
                shutil.rmtree(partial, ignore_errors=True)
            raise

    def _together(self, path: Path, action: Callable[[], None]) -> None:
        def one_sentence() -> None:
            try:
                action()
            except OSError as error:
                raise CheckpointError(f"{error.filename or path}: {error.strerror or error}") from None

        together(self._ranks, one_sentence)

    def _prepare(self, partial: Path, size: int) -> None:
        if not self._ranks.first:
            return
        free = shutil.disk_usage(self._folder).free
        if free < size:
            raise CheckpointError(f"{self._folder}: expected room for a checkpoint of {size:,} bytes, got {free:,}")
        partial.mkdir()

    def _complete(self, partial: Path, final: Path, position: Position) -> None:
        if not self._ranks.first:
            return
        files = {name: text.encode() for name, text in self._beside.items()}
        files[POSITION] = position_text(position).encode()
        for name, content in files.items():
            (partial / name).write_bytes(content)
        index = read_index(partial)
        stored = {name: StoredFile(len(content), zlib.crc32(content)) for name, content in files.items()}
        write_index(partial, replace(index, files={**index.files, **stored}))
        for name in (*files, INDEX, "."):
            _to_disk(partial / name)
        partial.replace(final)
        self._tidy(position)
        _to_disk(self._folder)

    def _tidy(self, position: Position) -> None:
        if not self._ranks.first:
            return
        kept = {checkpoint_path(self._folder, position.best.step)} if position.best else set()
        best = self._folder / BEST
        if position.best:
            partial = best.with_suffix(PARTIAL)
            partial.write_text(best_text(position.best))
            partial.replace(best)
        else:
            best.unlink(missing_ok=True)
        for outdated in checkpoints(self._folder)[self._keep :]:
            if outdated not in kept:
                remove(outdated)


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
