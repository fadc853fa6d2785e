"""Steps of the preparation of Criteo's days, each of which is done once: read a day, number the values, encode a day.

A step leaves its record (JSON) in scratch when all its files are whole; a step with a record is not done again.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.criteo_blocks import blocks
from data_prep.criteo_layout import VOCABULARY, day_file, vocabulary_file
from data_prep.criteo_npy import GrowingNpy, fingerprint, parts_of
from data_prep.criteo_rows import CATEGORICAL, DENSE, Tally, read_rows
from data_prep.criteo_vocabulary import FIRST, ValueCounts, VocabularyIds, hashed_ids, vocabulary
from data_prep.work_folder import WorkFolder, file_facts

ENCODED_ROWS = 1 << 16  # rows encoded at a time
COUNTED_VALUES = 1 << 22  # distinct values in memory while a day is read, before their counts are put away

Watch = Callable[[int], object]


@dataclass(frozen=True)
class Day:
    """One raw file and the number K of its day_K_*.npy."""

    number: int
    source: Path

    def file(self, kind: str) -> str:
        return day_file(self.number, kind)

    @property
    def files(self) -> tuple[str, str, str]:
        return self.file("dense"), self.file("sparse"), self.file("labels")

    @property
    def reading(self) -> str:
        """Name of the step that reads the day."""
        return f"read_{self.number}"

    @property
    def encoding(self) -> str:
        """Name of the step that turns the day's values into ids."""
        return f"encoded_{self.number}"


@dataclass(frozen=True)
class Steps:
    """The steps in one work folder. hash_rows: table rows that ids are hashed into; None: ids by a vocabulary."""

    work: WorkFolder
    threshold: int
    hash_rows: int | None
    block_bytes: int

    def record(self, name: str) -> dict[str, Any] | None:
        """What a finished step said."""
        path = self.work.scratch / f"{name}.json"
        return json.loads(path.read_text()) if path.exists() else None

    def done(self, name: str) -> dict[str, Any]:
        """The record of a step that is finished by now."""
        record = self.record(name)
        assert record is not None, f"step {name} has not been done"
        return record

    def rows(self, day: Day) -> int:
        """Of a day that was read."""
        return self.done(day.reading)["tally"]["rows"]

    def _finish(self, name: str, facts: dict[str, object]) -> None:
        path = self.work.scratch / f"{name}.json"
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(facts))
        partial.replace(path)

    def outdated(self, day: Day) -> bool:
        """The day was read from a file that is no longer the same."""
        record = self.record(day.reading)
        return record is not None and record["source"] != _facts(day)

    def forget(self, day: Day) -> None:
        """The day is read again."""
        (self.work.scratch / f"{day.reading}.json").unlink()

    def read_day(self, day: Day, watch: Watch) -> None:
        """Raw text to dense, labels and ids, or, with a vocabulary, to values and their counts in scratch.

        Raises ContractError as `read_rows` and `blocks` do.
        """
        source = _facts(day)
        dense, sparse, labels = (self.work.data / name for name in day.files)
        hashed = self.hash_rows is not None
        values, kind = (sparse, np.int32) if hashed else (self._values(day), np.uint32)
        counts = _Counts(self, day)
        tally = Tally.empty()
        with (
            GrowingNpy(dense, len(DENSE), np.float32) as dense_file,
            GrowingNpy(values, len(CATEGORICAL), kind) as values_file,
            GrowingNpy(labels, 1, np.int32) as labels_file,
        ):
            for block in blocks(day.source, self.block_bytes, watch):
                rows = read_rows(block)
                tally += rows.tally
                dense_file.append(rows.dense_NX)
                labels_file.append(rows.label_N1)
                if self.hash_rows is not None:
                    values_file.append(hashed_ids(rows.value_NC, self.hash_rows))
                else:
                    values_file.append(rows.value_NC)
                    counts.add(rows.value_NC)
        facts = {"source": source, "tally": asdict(tally), "count_files": counts.finish()}
        files = {path.name: fingerprint(path) for path in ((dense, sparse, labels) if hashed else (dense, labels))}
        self._finish(day.reading, facts | {"files": files})

    def number_values(self, days: tuple[Day, ...]) -> None:
        """The vocabulary of every column over all days, as vocabulary/C*.npy: the value of id i in place i - FIRST.
        One column in memory at a time."""
        (self.work.data / VOCABULARY).mkdir(exist_ok=True)
        distinct, rows = [], []
        for column in CATEGORICAL:
            total = ValueCounts()
            for path in self._count_files(days):
                with np.load(path) as stored:
                    total.add(stored[f"{column}_values"], stored[f"{column}_counts"])
            values, counts = total.total()
            vocabulary_V = vocabulary(values, counts, self.threshold)
            np.save(self.work.data / vocabulary_file(column), vocabulary_V)
            distinct.append(len(values))
            rows.append(FIRST + len(vocabulary_V))
        files = {name: fingerprint(self.work.data / name) for name in map(vocabulary_file, CATEGORICAL)}
        self._finish(VOCABULARY, {"distinct": distinct, "table_rows": rows, "files": files})

    def encoders(self) -> list[VocabularyIds]:
        """Of every column, once the values are numbered."""
        return [VocabularyIds.of(np.load(self.work.data / vocabulary_file(column))) for column in CATEGORICAL]

    def encode_day(self, day: Day, encoders: list[VocabularyIds], watch: Watch) -> None:
        """Values in scratch to ids; the values are deleted."""
        sparse = self.work.data / day.file("sparse")
        with GrowingNpy(sparse, len(CATEGORICAL), np.int32) as file:
            for value_NC in parts_of(self._values(day), ENCODED_ROWS):
                columns = [ids(value_NC[:, column]) for column, ids in enumerate(encoders)]
                file.append(np.stack(columns, axis=1))
                watch(len(value_NC))
        self._finish(day.encoding, {"files": {sparse.name: fingerprint(sparse)}})
        self._values(day).unlink()

    def _values(self, day: Day) -> Path:
        return self.work.scratch / f"day_{day.number}_values.npy"

    def count_file(self, day: Day, number: int) -> Path:
        return self.work.scratch / f"day_{day.number}_counts_{number}.npz"

    def _count_files(self, days: tuple[Day, ...]) -> list[Path]:
        numbers = ((day, range(self.done(day.reading)["count_files"])) for day in days)
        return [self.count_file(day, number) for day, files in numbers for number in files]


class _Counts:
    """Counts of a day's values, put away in scratch whenever COUNTED_VALUES are held."""

    def __init__(self, steps: Steps, day: Day) -> None:
        self._steps, self._day, self._files = steps, day, 0
        self._columns = [ValueCounts() for _ in CATEGORICAL]

    def add(self, value_NC: np.ndarray) -> None:
        for column, count in enumerate(self._columns):
            count.count(value_NC[:, column])
        if sum(count.held for count in self._columns) > COUNTED_VALUES:
            self._put_away()

    def finish(self) -> int:
        """The number of files that hold the counts."""
        if any(count.held for count in self._columns):
            self._put_away()
        return self._files

    def _put_away(self) -> None:
        arrays: dict[str, np.ndarray] = {}
        for column, count in zip(CATEGORICAL, self._columns, strict=True):
            arrays[f"{column}_values"], arrays[f"{column}_counts"] = count.total()
        np.savez(self._steps.count_file(self._day, self._files), **arrays)  # type: ignore[arg-type]
        self._files += 1
        self._columns = [ValueCounts() for _ in CATEGORICAL]


def _facts(day: Day) -> list[object]:
    return list(file_facts((day.source,))[0])
