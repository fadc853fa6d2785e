"""Ends a rank that makes no progress: a step that hangs, a batch that does not come, an endless wait for other ranks.

Each rank watches itself in a thread and writes its place to the process group's store. The rank that reports a hang
reads all places, to name the ranks that are behind.
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

import torch
from torch import distributed as dist

from sidrec.errors import HangError, ReportedElsewhereError, print_error
from sidrec.parallel.process_group import Heartbeat, Ranks, outlast

HUNG = 75  # EX_TEMPFAIL of sysexits.h: worth another try
LONGEST_INTERVAL = 5.0  # seconds between two checks of the heartbeat


class HangReportedElsewhereError(ReportedElsewhereError, HangError):
    """The error on the ranks that do not report the hang."""


class Watchdog:
    """A context in which this rank must make progress.

    If its heartbeat does not beat for `minutes`, the process prints an error, writes its threads' stacks and its last
    collectives to files, and exits with status HUNG. torchrun then ends or restarts the other ranks.
    """

    def __init__(self, minutes: float, folder: Path, ranks: Ranks) -> None:
        """folder: for the stacks, hang-rank-R.txt, and the collectives, hang-rank-R.json; made if missing."""
        self._limit, self._folder, self._ranks = 60 * minutes, folder, ranks
        self._interval = min(LONGEST_INTERVAL, self._limit / 10)
        self._over = Event()
        self._thread = Thread(target=self._watch, daemon=True, name="watchdog")
        self._notes = _Notes(ranks, self._interval) if ranks.world > 1 else None

    def __enter__(self) -> "Watchdog":
        outlast(self._limit / 60)
        self._ranks.heartbeat.begin(self._ranks.heartbeat.task)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(self._interval)

    def _watch(self) -> None:
        while not self._over.wait(self._interval):
            if time.monotonic() - self._ranks.heartbeat.since > self._limit:
                self._end()
            if self._notes:
                self._notes.leave()

    def _end(self) -> None:
        self._leave_stacks()
        self._leave_collectives()
        found, reports = f"rank {self._ranks.rank} is stuck in {self._ranks.heartbeat.place}", True
        if self._notes:
            time.sleep(
                2 * self._interval
            )  # torchrun ends all at the first exit: other hung ranks first write their stacks
            notes = self._notes.read()
            silent = [rank for rank in range(self._ranks.world) if self._is_silent(notes.get(rank))]
            reports = not notes or self._ranks.rank == min(set(notes) - set(silent), default=self._ranks.rank)
            found = f"{_behind(notes, silent)}; {found}"
        written = f"stacks and collectives: {self._folder}/hang-*"
        message = f"no progress for {self._limit:.0f} s (train.hang_minutes): {found}; {written}"
        if not reports:
            time.sleep(self._interval)  # the reporting rank must exit first
        print_error(HangError(message) if reports else HangReportedElsewhereError(message))
        os._exit(HUNG)

    def _leave_stacks(self) -> None:
        with contextlib.suppress(OSError):  # a full disk must not keep the rank from exiting
            self._folder.mkdir(parents=True, exist_ok=True)
            with (self._folder / f"hang-rank-{self._ranks.rank}.txt").open("w", encoding="utf-8") as file:
                file.write(f"{self._ranks.heartbeat.place}\n")
                file.write(f"{self._collectives.name}: the last collectives (TORCH_NCCL_TRACE_BUFFER_SIZE)\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)

    @property
    def _collectives(self) -> Path:
        return self._folder / f"hang-rank-{self._ranks.rank}.json"

    def _leave_collectives(self) -> None:
        """Writes the last collectives as the flight recorders of gloo and NCCL have them: group, sizes, state.

        A GPU that hangs may keep the recorder from answering, and Python's lock with it: faulthandler, which needs no
        lock, then ends the process without the error, after another interval.
        """
        faulthandler.dump_traceback_later(self._interval + LONGEST_INTERVAL, exit=True)
        with contextlib.suppress(OSError, RuntimeError, ValueError):
            self._collectives.write_text(json.dumps(last_collectives(), indent=1), encoding="utf-8")
        faulthandler.cancel_dump_traceback_later()

    def _is_silent(self, note: "Note | None") -> bool:
        return note is None or time.time() - note.time > self._limit / 2


def last_collectives() -> dict[str, Any]:
    """What the flight recorders of this process hold, by backend; {} for builds of torch without one."""
    recorders = {"gloo": "_dump_fr_trace_json", "nccl": "_dump_nccl_trace_json"}
    found = {name: getattr(torch._C._distributed_c10d, dump, None) for name, dump in recorders.items()}
    return {name: json.loads(dump()) for name, dump in found.items() if dump is not None}


@dataclass(frozen=True)
class Note:
    """A rank's place. count, place: of its Heartbeat. time: of the note, in seconds since 1970."""

    count: int
    place: str
    time: float


class _Notes:
    """The ranks' notes in the process group's store, over a connection of its own that a blocked main thread does not
    block. If the store does not answer, its process (rank 0 or torchrun) hangs."""

    def __init__(self, ranks: Ranks, patience: float) -> None:
        store: Any = dist.distributed_c10d._get_default_store()
        store = store.clone()
        store.set_timeout(timedelta(seconds=max(1.0, patience)))
        self._store = dist.PrefixStore("watchdog", store)
        self._ranks = ranks
        self.leave()

    def leave(self) -> None:
        """Writes this rank's place."""
        heartbeat: Heartbeat = self._ranks.heartbeat
        note = Note(heartbeat.count, heartbeat.place, time.time())
        with contextlib.suppress(RuntimeError):
            self._store.set(f"{self._ranks.rank}", json.dumps(asdict(note)))

    def read(self) -> dict[int, Note]:
        """The notes by rank; empty if the store does not answer."""
        try:
            left = [rank for rank in range(self._ranks.world) if self._store.check([f"{rank}"])]
            return {rank: Note(**json.loads(self._store.get(f"{rank}"))) for rank in left}
        except RuntimeError:
            return {}


def _behind(notes: dict[int, Note], silent: list[int]) -> str:
    """Names the ranks that keep the others waiting."""
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
