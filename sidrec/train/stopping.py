"""Leaving when told to: SIGTERM from a scheduler, or Ctrl-C."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

from sidrec.data.batch import Batch, pad_items
from sidrec.errors import Notice, ReportedElsewhereError, print_error
from sidrec.parallel.process_group import READS, Ranks, largest, largest_each, raise_on_all_ranks

SIGNALS = (signal.SIGTERM, signal.SIGINT)
SAME_ORDER = 3.0
"""Seconds in which a second signal is the first order once more: a scheduler, or a terminal, tells every process, and
torchrun tells its ranks again what it was told itself."""


class StopNotice(Notice):
    """What is said of a training that was told to stop; never raised."""


class StopSaidElsewhereNotice(ReportedElsewhereError, StopNotice):  # noqa: N818
    """The same on a rank that does not speak."""


class Stopping:
    """Inside, SIGTERM and SIGINT are noted for the training loop to obey; outside, they do what they did before.

    The second signal, later than SAME_ORDER seconds after the first, ends the process at once, with the same status.

    told: the signal that reached this rank, or 0. agreed: the signal that all ranks know of since their last
    agreement, or 0: the same on every rank.
    """

    def __init__(self) -> None:
        self.told = 0
        self.agreed = 0
        self._first = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Stopping":
        if threading.current_thread() is threading.main_thread():  # Python allows nobody else to handle signals
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self.told and not self.agreed and error is None:  # too late for the loop, so not yet obeyed
            signal.raise_signal(self.told)

    def agree(self, ranks: Ranks, done: int, steps: int) -> None:
        """After the last step: whether some rank was told to stop, and what it comes to. done: of `steps` steps."""
        self.agreed = largest(ranks, self.told)
        if self.agreed:
            name = signal.Signals(self.agreed).name
            what = f"{name}: stopped after step {done}/{steps}, which is saved; the same command goes on from there"
            print_error((StopNotice if ranks.first else StopSaidElsewhereNotice)(what))

    def _note(self, number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if not self.told:
            self.told, self._first = number, now
        elif now - self._first > SAME_ORDER:
            os._exit(exit_status(self.told))


def exit_status(number: int) -> int:
    """What a shell reports of a process that a signal ended: 143 for SIGTERM, 130 for SIGINT."""
    return 128 + number


# Batches that all ranks can use together: equally many item bags on every rank, or an error on every rank.


FAILED = 1 << 40  # more bags than any batch has


def synced_batches(
    batches: Iterator[Batch], steps: int, ranks: Ranks, stopping: Stopping | None = None
) -> Iterator[Batch]:
    """Yields `steps` batches, padded with empty item bags to the count of the rank that has most.

    One small all-reduce per step carries that count, whether some rank failed to make its batch, so that no rank waits
    in a collective for one that has left, and whether some rank was told to stop, which `stopping` then knows on every
    rank. Raises this rank's error, or RankError with another's.
    """
    for _ in range(steps):
        ranks.pulse.beat(READS)
        batch: Batch | None = None
        error: Exception | None = None
        try:
            batch = next(batches)
        except Exception as problem:
            error = problem if not isinstance(problem, StopIteration) else RuntimeError("the reader ended too early")
        told = stopping.told if stopping else 0
        bags, told = largest_each(ranks, [FAILED if batch is None else batch.bags, told])
        if stopping:
            stopping.agreed = told
        if bags == FAILED:
            raise_on_all_ranks(ranks, error)
        assert batch is not None, "agree raises where a rank failed"
        yield pad_items(batch, bags)
