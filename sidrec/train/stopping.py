"""Leaving when told to: SIGTERM from a scheduler, or Ctrl-C."""

import os
import signal
import threading
import time
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)
SAME_ORDER = 3.0
"""Seconds in which a second signal is the first order once more: a scheduler, or a terminal, tells every process, and
torchrun tells its ranks again what it was told itself."""


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

    def _note(self, number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if not self.told:
            self.told, self._first = number, now
        elif now - self._first > SAME_ORDER:
            os._exit(exit_status(self.told))


class Stopped(Exception):  # noqa: N818  # no error: somebody wanted it
    """All ranks agree to stop, in the middle of something that is not worth finishing."""


def exit_status(number: int) -> int:
    """What a shell reports of a process that a signal ended: 143 for SIGTERM, 130 for SIGINT."""
    return 128 + number
