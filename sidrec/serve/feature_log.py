"""A sampled log of what requests were scored with, in the columns of rows that `sidrec score` takes.

    FOLDER/part-TIME-NUMBER.parquet     a row for each candidate of a sampled request:

    request, timestamp                  the request's id, and when it was answered, in seconds since 1970
    user_id, item_id, history           source ids as texts; of a history what the model reads, oldest first
    stat_*, int_*                       float32, as the model read them
    other id columns                    texts, or lists of texts
    score, version                      the model's own probability, and the version that gave it

A request is drawn by a hash of its id, so that all servers draw the same ones. One thread writes: a request leaves its
values in a queue, and drops them if the queue is full. A part is written in one step. Rows that are dropped, because of
a full queue or a disk that cannot be written, are counted; no request waits or fails for the log.

Shapes: C candidates of a request.
"""

import logging
import queue
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sidrec.errors import ContractError
from sidrec.io.files import replaced_file
from sidrec.serve.batch_scoring import HISTORY, SCORE, VERSION
from sidrec.serve.bundle import Description
from sidrec.serve.protocol import RankRequest
from sidrec.serve.scorer import ITEM, USER, Ranked

REQUEST_ID, TIME = "request", "timestamp"
PART_ROWS = 50_000
PART_SECONDS, TICK_SECONDS = 60.0, 0.2
"""A part is written when it has this many rows, or is this old."""
CLOSE_SECONDS = 10.0
WAITING = 256
"""Requests that wait for the thread."""
LOG = logging.getLogger("sidrec.serve")
LIST = pa.list_(pa.string())
Count = Callable[[str, int], None]


@dataclass(frozen=True)
class Answered:
    """A request that was drawn, with its answer."""

    request: str
    seconds: int
    asked: RankRequest
    ranked: Ranked
    about: Description


class FeatureLog:
    """Draws requests and writes them, until it is closed."""

    def __init__(
        self, folder: Path, share: float, count: Count, part_rows: int = PART_ROWS, part_seconds: float = PART_SECONDS
    ) -> None:
        """share: of requests that are drawn. count: called with "written" or "dropped" and a number of rows.

        Raises ContractError for a share outside [0, 1] and a folder that cannot be made.
        """
        if not 0 <= share <= 1:
            raise ContractError("--feature-log-share", "a share in [0, 1]", share)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ContractError(folder, "a folder for the feature log", error) from None
        self._folder, self._share, self._count = folder, share, count
        self._part_rows, self._part_seconds = part_rows, part_seconds
        self._queue: queue.Queue[Answered | None] = queue.Queue(WAITING)
        self._thread = threading.Thread(target=self._write_parts, name="feature-log", daemon=True)
        self._thread.start()

    def offer(self, request: str, asked: RankRequest, ranked: Ranked, about: Description) -> None:
        """Takes a request with its answer, if it is drawn. Returns at once."""
        if crc32(request.encode()) >= self._share * 2**32:
            return
        try:
            self._queue.put_nowait(Answered(request, int(time.time()), asked, ranked, about))
        except queue.Full:
            self._count("dropped", len(asked.candidates))

    def close(self) -> None:
        """Writes what waits, and ends the thread; gives up on a disk that hangs."""
        with suppress(queue.Full):
            self._queue.put(None, timeout=CLOSE_SECONDS)
            self._thread.join(CLOSE_SECONDS)

    def _write_parts(self) -> None:
        """The thread."""
        waiting: list[Answered] = []
        begun = time.monotonic()
        while True:
            with suppress(queue.Empty):
                found = self._queue.get(timeout=TICK_SECONDS)
                if found is None:
                    break
                waiting.append(found)
            rows = sum(len(each.asked.candidates) for each in waiting)
            if rows >= self._part_rows or time.monotonic() >= begun + self._part_seconds:
                self._write(waiting)
                waiting, begun = [], time.monotonic()
        self._write(waiting)

    def _write(self, waiting: Sequence[Answered]) -> None:
        if not waiting:
            return
        rows = sum(len(each.asked.candidates) for each in waiting)
        path = self._folder / f"part-{waiting[0].seconds}-{uuid.uuid4().hex[:12]}.parquet"
        try:
            table = pa.concat_tables([rows_of(each) for each in waiting], promote_options="default")
            with replaced_file(path, durable=True, one_writer=True) as partial:
                pq.write_table(table, partial, compression="zstd")
        except (OSError, pa.ArrowException) as error:
            LOG.error("feature_log_failed", extra={"facts": {"error": str(error), "rows": rows}})
            self._count("dropped", rows)
        else:
            self._count("written", rows)


def rows_of(answered: Answered) -> pa.Table:
    """A row for each candidate."""
    asked, ranked, about = answered.asked, answered.ranked, answered.about
    count = len(asked.candidates)
    made: dict[str, Any] = {
        REQUEST_ID: _repeated(answered.request, pa.string(), count),
        TIME: _repeated(answered.seconds, pa.int64(), count),
        USER: _repeated(None if asked.user is None else str(asked.user), pa.string(), count),
        ITEM: _texts(asked.candidates),
        HISTORY: _repeated([str(each) for each in asked.history[-about.history_length :]], LIST, count),
    }
    made |= {name: asked.numbers[name] for name in (*about.stats, *about.dense)}
    for column in about.context:
        if column.name in asked.ids:
            ids = [str(each) for each in asked.ids[column.name]]
            if column.lists:
                made[column.name] = _repeated(ids, LIST, count)
            else:
                made[column.name] = _texts(ids) if len(ids) == count else _repeated(ids[0], pa.string(), count)
    return pa.table(made | {SCORE: ranked.score_C, VERSION: _repeated(ranked.version, pa.string(), count)})


def _texts(ids: Sequence[str | int]) -> pa.Array:
    return pa.array([str(each) for each in ids], pa.string())


def _repeated(value: object, kind: pa.DataType, count: int) -> pa.Array:
    """One value for every candidate; Arrow copies it, without Python objects."""
    return pa.array([value], kind).take(np.zeros(count, dtype=np.int64))
