"""Saves checkpoints while training goes on, and decides what becomes of training when one cannot be saved."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Thread

from torch import distributed as dist

from sidrec.checkpoint.folder import bytes_written, remove_left_over
from sidrec.checkpoint.piece import CheckpointError, Piece
from sidrec.checkpoint.piece_copies import PieceCopies
from sidrec.checkpoint.position import Position
from sidrec.checkpoint.writer import CheckpointWriter
from sidrec.config import ConfigError
from sidrec.config.checkpoint import CheckpointConfig
from sidrec.failure import SaidElsewhereError
from sidrec.parallel.process_group import RankError, Ranks
from sidrec.parallel.pulse import WRITES

LOOK = 5.0  # seconds between two looks at how far a checkpoint is


class Saver:
    """Saves one run's checkpoints. Every rank has one and calls its methods together with the others.

    In the background a thread writes from a copy of the pieces and talks to the other ranks' threads over a gloo group
    of its own. Failures of any rank are known to all ranks when the next checkpoint is saved, or at `finish`.
    """

    def __init__(self, folder: Path, config: CheckpointConfig, beside: Mapping[str, str], ranks: Ranks) -> None:
        """folder: of the run's checkpoints; what killed processes left in it half-written is removed.

        beside: name -> text of files that lie beside the pieces.
        """
        self._folder, self._config, self._copies = folder, config, PieceCopies()
        self._pulse = ranks.pulse
        writers = replace(ranks, control=dist.new_group(backend="gloo"))
        self._writer = CheckpointWriter(folder, config.keep, beside, writers)
        self._thread: Thread | None = None
        self._error: Exception | None = None
        self._failures: list[ConfigError] = []  # in a row
        if ranks.first:
            remove_left_over(folder)

    def save(self, pieces: Sequence[Piece], position: Position, *, wait: bool = False) -> None:
        """Saves step-N, N the position's step. Waits for the checkpoint before it, and with `wait` for this one.

        A failure is said, and training can go on. Raises CheckpointError, on all ranks, for the
        `checkpoint.failures`-th in a row, and with `wait` for any.
        """
        self._go_on()
        owned = [piece for piece in pieces if piece.owned]
        beside_training = self._config.background and not wait
        if beside_training:
            owned = self._copies.take(owned)
        self._thread = Thread(target=self._try, args=(owned, position), daemon=True, name="checkpoint")
        self._thread.start()
        if wait:
            self.finish()
        elif not beside_training:
            self._go_on()

    def finish(self) -> None:
        """Waits for the checkpoint under way. Raises CheckpointError, on all ranks, where the last one failed."""
        self._settle()
        if self._failures:
            self._stop("the last one failed")

    def leave(self, seconds: float) -> None:
        """Waits for the checkpoint under way, but not for ever: for a rank that ends with an error."""
        if self._thread is not None:
            self._thread.join(seconds)

    def _try(self, pieces: Sequence[Piece], position: Position) -> None:
        try:
            self._writer.write(pieces, position)
            self._failures.clear()
        except Exception as error:  # for the training thread to meet
            self._error = error

    def _go_on(self) -> None:
        """Meets the failure of the checkpoint under way, if it fails, and lets training go on unless it is one too
        many."""
        before = len(self._failures)
        self._settle()
        count = len(self._failures)
        if count >= self._config.failures:
            self._stop(f"{count} in a row failed")
        if count > before and not isinstance(self._failures[-1], SaidElsewhereError):
            said = f"sidrec: a checkpoint was not saved, {count} in a row: {self._failures[-1]}"
            print(said, file=sys.stderr, flush=True)

    def _settle(self) -> None:
        """Waits for the checkpoint under way, and notes its failure."""
        if self._thread is not None:
            self._wait(self._thread)
            self._thread = None
        error, self._error = self._error, None
        if error is None:
            return
        if not isinstance(error, ConfigError):  # no failed write: other ranks are gone
            raise error
        self._failures.append(error)

    def _wait(self, thread: Thread) -> None:
        """However long it takes while some rank still writes: then none of them hangs."""
        before = -1
        while thread.is_alive():
            written = bytes_written(self._folder)
            if written != before:
                self._pulse.beat(WRITES)
            before = written
            thread.join(LOOK)

    def _stop(self, what: str) -> None:
        last = self._failures[-1]
        kind = RankError if isinstance(last, SaidElsewhereError) else CheckpointError
        raise kind(f"{self._folder}: expected checkpoints to be saved, got: {what}: {last}") from None
