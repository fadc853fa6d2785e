"""Stops on SIGTERM or Ctrl-C: all ranks stop after the same step and save a checkpoint of it."""

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NamedTuple

from sidrec.data.batch import PackedBatch, pad_items
from sidrec.errors import Notice, ReportedElsewhereError, print_error
from sidrec.parallel.process_group import READS, LargestEach, Ranks, largest, raise_on_all_ranks

SIGNALS = (signal.SIGTERM, signal.SIGINT)
SAME_ORDER = 3.0
"""Seconds within which a second signal counts as the same order: schedulers and terminals signal every process, and
torchrun forwards the signal to its ranks."""


class StopNotice(Notice):
    """Printed when a training stops on a signal; never raised."""


class StopReportedElsewhereNotice(ReportedElsewhereError, StopNotice):  # noqa: N818
    """The notice on the other ranks, where it is not printed: rank 0 prints it."""


class Stopping:
    """A context that records SIGTERM and SIGINT for the training loop.

    A second signal, more than SAME_ORDER seconds after the first, ends the process at once, with the same exit status.

    received: the signal that reached this rank, or 0. agreed: the signal that had reached any rank at the last
    synchronization, or 0; the same on every rank.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, leave: Callable[[int], object] = os._exit) -> None:
        """clock: returns seconds. leave: ends the process with a status."""
        self._clock, self._leave = clock, leave
        self.received = 0
        self.agreed = 0
        self._first = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Stopping":
        if threading.current_thread() is threading.main_thread():  # Python handles signals only there
            self._before = {number: signal.signal(number, self._record) for number in SIGNALS}
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self.received and not self.agreed and error is None:  # it came after the last synchronization
            signal.raise_signal(self.received)

    def agree(self, ranks: Ranks, done: int, steps: int) -> None:
        """Call after the last step: synchronizes `agreed` and prints the signal. done: of `steps` steps."""
        self.agreed = largest(ranks, self.received)
        if self.agreed:
            name = signal.Signals(self.agreed).name
            what = f"{name}: stopped after step {done}/{steps}, which is saved; the same command goes on from there"
            print_error((StopNotice if ranks.first else StopReportedElsewhereNotice)(what))

    def _record(self, number: int, _: FrameType | None) -> None:
        now = self._clock()
        if not self.received:
            self.received, self._first = number, now
        elif now - self._first > SAME_ORDER:
            self._leave(exit_status(self.received))


def exit_status(number: int) -> int:
    """The status that a shell reports for a process ended by a signal: 143 for SIGTERM, 130 for SIGINT."""
    return 128 + number


FAILED = 1 << 40  # instead of a number of bags; larger than any


def synced_batches(
    batches: Iterator[PackedBatch], steps: int, ranks: Ranks, stopping: Stopping | None = None
) -> Iterator[PackedBatch]:
    """Yields `steps` batches, padded with empty item bags to the largest count of any rank.

    One small all-reduce per step carries three facts: that count; whether a rank failed to make its batch, so that the
    others do not wait for it; whether a rank received a signal, which sets `stopping.agreed` on every rank. On a GPU
    (`Ranks.runs_ahead`) it begins a batch early, so that no rank waits for another one's host in each step.
    Raises this rank's error, or RankError with another's.
    """
    begun: deque[_Read] = deque()
    for step in range(steps):
        while len(begun) <= ranks.runs_ahead and step + len(begun) < steps:
            begun.append(_read(batches, ranks, stopping))
        read = begun.popleft()
        bags, received = read.agreement.wait()
        if stopping:
            stopping.agreed = received
        if bags == FAILED:
            raise_on_all_ranks(ranks, read.error)
        assert read.batch is not None, "raise_on_all_ranks raises if a rank failed"
        yield pad_items(read.batch, bags)


class _Read(NamedTuple):
    """This rank's batch, or the error in place of it, and the ranks' agreement on it, which has begun."""

    batch: PackedBatch | None
    error: Exception | None
    agreement: LargestEach


def _read(batches: Iterator[PackedBatch], ranks: Ranks, stopping: Stopping | None) -> _Read:
    ranks.heartbeat.beat(READS)
    batch: PackedBatch | None = None
    error: Exception | None = None
    try:
        batch = next(batches)
    except Exception as problem:
        error = problem if not isinstance(problem, StopIteration) else RuntimeError("the reader ended too early")
    facts = [FAILED if batch is None else batch.bags, stopping.received if stopping else 0]
    return _Read(batch, error, LargestEach(ranks, facts))
