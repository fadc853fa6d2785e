"""Ends a rank that gets nowhere: a step that never ends, a batch that never comes, a rank that another waits for.

Each rank watches itself, in a thread of its own, and leaves notes of where it is in the ranks' store. The one that
speaks for all reads them, to say who is behind.
"""

import contextlib
import faulthandler
import json
import os
import time
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from threading import Event, Thread
from typing import Any

from torch import distributed as dist

from sidrec.errors import HangError, ReportedElsewhereError, print_error
from sidrec.parallel.process_group import Pulse, Ranks

HUNG = 75  # EX_TEMPFAIL of sysexits.h: worth another try
LONGEST_LOOK = 5.0  # seconds between two looks at the pulse


class HangSaidElsewhereError(ReportedElsewhereError, HangError):
    """The same on a rank that does not speak."""


class Watchdog:
    """Inside, this rank must make progress: its pulse beats at least once in `minutes`, or the process ends with status
    HUNG, after a sentence and a file of its threads' stacks. torchrun then ends the other ranks or starts all again.
    """

    def __init__(self, minutes: float, folder: Path, ranks: Ranks) -> None:
        """folder: where stacks go, as hang-rank-R.txt; it need not be there."""
        self._limit, self._folder, self._ranks = 60 * minutes, folder, ranks
        self._look = min(LONGEST_LOOK, self._limit / 10)
        self._over = Event()
        self._thread = Thread(target=self._watch, daemon=True, name="watchdog")
        self._notes = _Notes(ranks, self._look) if ranks.world > 1 else None

    def __enter__(self) -> "Watchdog":
        self._ranks.pulse.begin(self._ranks.pulse.task)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(self._look)

    def _watch(self) -> None:
        while not self._over.wait(self._look):
            if time.monotonic() - self._ranks.pulse.since > self._limit:
                self._end()
            if self._notes:
                self._notes.leave()

    def _end(self) -> None:
        self._leave_stacks()
        found, speaks = f"rank {self._ranks.rank} is stuck in {self._ranks.pulse.place}", True
        if self._notes:
            time.sleep(2 * self._look)  # other ranks hang as well: each leaves its stacks before torchrun ends it
            notes = self._notes.read()
            silent = [rank for rank in range(self._ranks.world) if self._is_silent(notes.get(rank))]
            speaks = not notes or self._ranks.rank == min(set(notes) - set(silent), default=self._ranks.rank)
            found = f"{_behind(notes, silent)}; {found}"
        sentence = f"no progress for {self._limit:.0f} s (train.hang_minutes): {found}; stacks: {self._folder}/hang-*"
        if not speaks:
            time.sleep(self._look)  # the first to leave has torchrun end the others: let it be the one that speaks
        print_error(HangError(sentence) if speaks else HangSaidElsewhereError(sentence))
        os._exit(HUNG)

    def _leave_stacks(self) -> None:
        with contextlib.suppress(OSError):  # a full disk must not keep a rank from leaving
            self._folder.mkdir(parents=True, exist_ok=True)
            with (self._folder / f"hang-rank-{self._ranks.rank}.txt").open("w") as file:
                file.write(f"{self._ranks.pulse.place}\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)

    def _is_silent(self, note: "Note | None") -> bool:
        return note is None or time.time() - note.time > self._limit / 2


@dataclass(frozen=True)
class Note:
    """Where a rank was. count, place: as Pulse has them. time: of the note, in seconds since 1970."""

    count: int
    place: str
    time: float


class _Notes:
    """The ranks' notes in the store that they met in; over a connection of its own, which the rank's own thread cannot
    hold up. A store that does not answer says nothing of anybody: then its own process hangs."""

    def __init__(self, ranks: Ranks, patience: float) -> None:
        store: Any = dist.distributed_c10d._get_default_store()
        store = store.clone()
        store.set_timeout(timedelta(seconds=max(1.0, patience)))
        self._store = dist.PrefixStore("watchdog", store)
        self._ranks = ranks
        self.leave()

    def leave(self) -> None:
        """Says where this rank is."""
        pulse: Pulse = self._ranks.pulse
        note = Note(pulse.count, pulse.place, time.time())
        with contextlib.suppress(RuntimeError):
            self._store.set(f"{self._ranks.rank}", json.dumps(asdict(note)))

    def read(self) -> dict[int, Note]:
        """The notes by rank; none at all where the store does not answer."""
        try:
            left = [rank for rank in range(self._ranks.world) if self._store.check([f"{rank}"])]
            return {rank: Note(**json.loads(self._store.get(f"{rank}"))) for rank in left}
        except RuntimeError:
            return {}


def _behind(notes: dict[int, Note], silent: list[int]) -> str:
    """Who keeps the others waiting, in words."""
    if not notes:
        return "the ranks' store does not answer: the process that keeps it hangs, rank 0 or torchrun"
    if silent:
        last = [f"rank {rank}" + (f" (last noted in {notes[rank].place})" if rank in notes else "") for rank in silent]
        return f"no sign of life from {', '.join(last)}"
    first = min(note.count for note in notes.values())
    behind = {rank: note.place for rank, note in notes.items() if note.count == first}
    if len(behind) == len(notes):
        return "all ranks are in the same place"
    return "behind: " + ", ".join(f"rank {rank} in {place}" for rank, place in sorted(behind.items()))
