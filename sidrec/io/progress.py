"""Progress of long work: a bar on stderr if that is a terminal, else a line now and then."""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TextIO

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 30.0


def is_terminal(stream: TextIO) -> bool:
    """Whether a bar can be shown: on a terminal that has columns, which those of some containers have not."""
    if not stream.isatty():
        return False
    try:
        return os.get_terminal_size(stream.fileno()).columns > 0
    except (OSError, ValueError):
        return True


@contextmanager
def looking(look: Callable[[], None], seconds: float) -> Iterator[None]:
    """Calls `look` every so many seconds while the block runs, from a thread that ends with it."""
    end = threading.Event()

    def repeat() -> None:
        while not end.wait(seconds):
            look()

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


class Bar(tqdm):
    """tqdm, with the same arguments, which prints lines instead where stderr is no terminal.

    disable: True shows neither bar nor lines, as on ranks other than the first.
    """

    def __init__(
        self, iterable: Iterable[Any] | None = None, *, desc: str, disable: bool | None = None, **settings: Any
    ) -> None:
        self._lines = disable is None and not is_terminal(sys.stderr)
        super().__init__(iterable, desc=desc, disable=bool(disable) or self._lines, **settings)
        self._what = desc
        self._began = self._last = time.monotonic()
        self._first = self._done = float(settings.get("initial", 0))

    def update(self, n: float | None = 1) -> bool | None:
        """Adds `n` units of work."""
        if self._lines:
            self._count(n or 0.0)
        return super().update(n)

    def __iter__(self) -> Iterator[Any]:
        if not self._lines:
            yield from super().__iter__()
            return
        for each in self.iterable:
            yield each
            self._count(1)

    def _count(self, n: float) -> None:
        self._done += n
        now = time.monotonic()
        if now - self._last < SECONDS_BETWEEN_LINES:
            return
        self._last = now
        print(self.line(now - self._began), file=sys.stderr, flush=True)

    def line(self, seconds: float) -> str:
        """The work done and the time left, after `seconds` of work."""
        if not self.total:
            return f"{self._what}: {self._done:,.0f} done"
        left = seconds / max(self._done - self._first, 1e-9) * max(0.0, self.total - self._done)
        return f"{self._what}: {self._done / self.total:.0%}  ETA {timedelta(seconds=round(left))}"
