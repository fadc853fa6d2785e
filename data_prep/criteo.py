"""Criteo's raw click logs to the .npy files of TorchRec's Criteo data set: `python -m data_prep.criteo SRC... OUT`.

For each raw file, OUT holds day_K_dense.npy float32 [N, 13], day_K_sparse.npy int32 [N, 26] and day_K_labels.npy int32
[N, 1]. It also holds vocabulary/C1.npy to C26.npy (unless ids are hashed), and manifest.json, which describes them.

The work is done in steps: read a day, number the values, encode a day. A step writes its record (JSON) to scratch when
all its files are whole; a rerun skips steps that have a record. So a killed command continues after the last finished
day, and its files have the same bytes.

Text is read once, block by block: memory does not depend on the number of rows. It depends on distinct values: about 50
bytes for each value of one column while they are numbered, 8 bytes for each id while days are encoded. Disk beside
OUT: counts of values, and 104 bytes per row until its day is encoded.

Shapes: N rows of a day or block, 13 dense and C = 26 categorical columns, V values of a vocabulary.
"""

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import tyro

from sidrec import schema
from sidrec.command_line import metavar
from sidrec.errors import ContractError
from sidrec.io.files import read_json, write_json
from sidrec.io.progress import Bar

from .command import WorkFolder, file_facts, refuse_flags, rows_bar, run
from .criteo_layout import (
    VOCABULARY,
    EarlierVocabulary,
    day_file,
    fingerprint,
    growing_npy,
    parts_of,
    vocabulary_file,
)
from .criteo_rows import (
    CATEGORICAL,
    DENSE,
    DENSE_TRANSFORM,
    FIRST,
    Tally,
    ValueCounts,
    VocabularyIds,
    blocks,
    hashed_ids,
    read_rows,
    vocabulary,
)

FIRST_LOOK = 1 << 16  # bytes of every file that are checked before any work
LARGEST_TABLE = 1 << 31  # ids are int32
ENCODED_ROWS = 1 << 16  # rows encoded at a time
COUNTED_VALUES = 1 << 22  # distinct values in memory while a day is read; more are moved to scratch
FORMAT = 1
Watch = Callable[[int], object]


@dataclass(frozen=True)
class CriteoCommand:
    """Writes .npy files of dense features, ids and labels from raw Criteo logs (train.txt or day_*, plain or .gz)."""

    paths: Annotated[
        tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="SRC... OUT", help_behavior_hint="(required)")
    ]
    """Raw files, and last the folder to write. Files called day_K keep their number, others are numbered as given."""
    threshold: int = 3
    """Values of categorical columns that occur less often than this share the id 1."""
    hash_rows: Annotated[int | None, metavar("ROWS", "ids by a vocabulary")] = None
    """Hash ids into tables of this many rows, in one pass, instead of making a vocabulary."""
    vocabulary: Annotated[Path | None, metavar("FOLDER", "a new one")] = None
    """Folder of an earlier preparation, whose values keep their ids; new values follow."""
    block_kib: int = 16_384
    """Text in memory at a time, in KiB."""
    overwrite: bool = False
    """Replace OUT if it exists and holds nothing but what data_prep wrote."""

    def run(self) -> None:
        self.check()
        prepare(numbered(self.paths[:-1]), self.paths[-1], self)
        print(f"{self.paths[-1]}: {summary(self.paths[-1])}")

    def check(self) -> None:
        """Raises ContractError that names the first flag whose value cannot be used."""
        fits = self.hash_rows is None or 2 <= self.hash_rows <= LARGEST_TABLE
        folders = list(map(str, self.paths))
        rules = {
            "SRC... OUT": (len(folders) >= 2, "at least one raw file, and the folder to write", folders),
            "--threshold": (self.threshold >= 1, "at least 1", self.threshold),
            "--hash-rows": (fits, f"from 2 to {LARGEST_TABLE}", self.hash_rows),
            "--vocabulary, --hash-rows": (self.vocabulary is None or self.hash_rows is None, "one of them", "both"),
            "--block-kib": (1 <= self.block_kib <= 1 << 20, f"from 1 to {1 << 20}", self.block_kib),
        }
        refuse_flags(rules)


def prepare(days: "tuple[Day, ...]", out: Path, command: CriteoCommand) -> None:
    """Writes the folder `out`, which appears when all steps are done.

    Raises ContractError for invalid input. Days that were read before it are kept for the next run.
    """
    earlier = None if command.vocabulary is None else EarlierVocabulary.open(command.vocabulary)
    for day in days:  # checks the start of every file, so that a wrong one is refused now and not after hours
        read_rows(next(blocks(day.source, FIRST_LOOK)))
    configuration = {
        "format": FORMAT,
        "days": [(day.number, str(day.source.resolve())) for day in days],
        "categorical": ids_in_words(command.threshold, command.hash_rows, earlier is not None),
        **({} if earlier is None else {"vocabulary": file_facts(earlier.files)}),
    }
    work, steps = _open(days, out, configuration, command)
    try:
        _read(days, steps)
    except ContractError:
        if not any(steps.record(day.reading) for day in days):
            work.discard()
        raise
    if command.hash_rows is None:
        _encode(days, steps, earlier)
    write_json(work.data / schema.MANIFEST, manifest(days, steps, earlier is not None))
    work.publish()


@dataclass(frozen=True)
class Day:
    """A raw file, and the number K of its day_K_*.npy."""

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


def numbered(sources: tuple[Path, ...]) -> tuple[Day, ...]:
    """Raw files as days, sorted by the number in their names if all have one, else in the given order.

    Raises ContractError for two files of one day.
    """
    names = [re.match(r"day_(\d+)(?!\d)", source.name) for source in sources]
    if not all(names):
        return tuple(Day(number, source) for number, source in enumerate(sources))
    days = sorted((Day(int(name[1]), source) for name, source in zip(names, sources, strict=True) if name), key=_number)
    for before, day in pairwise(days):
        if before.number == day.number:
            raise ContractError(f"{before.source}, {day.source}", "files of different days", f"day {day.number} twice")
    return tuple(days)


def _number(day: Day) -> int:
    return day.number


def _open(
    days: tuple[Day, ...], out: Path, configuration: dict[str, object], command: CriteoCommand
) -> tuple[WorkFolder, "Steps"]:
    """The work folder, without the records of files that have changed since."""
    inputs = [day.source for day in days] + ([] if command.vocabulary is None else [command.vocabulary])
    work = WorkFolder.open(out, configuration, command.overwrite, inputs)
    steps = Steps(work, command.threshold, command.hash_rows, command.block_kib << 10)
    outdated = [day for day in days if steps.outdated(day)]
    if outdated and steps.record(VOCABULARY):  # values of other days may be deleted already
        work.discard()
        work = WorkFolder.open(out, configuration, command.overwrite, inputs)
    else:
        for day in outdated:
            steps.forget(day)
    return work, steps


def _read(days: tuple[Day, ...], steps: "Steps") -> None:
    sizes = {day: day.source.stat().st_size for day in days}
    with Bar(total=sum(sizes.values()), desc="reading", unit="B", unit_scale=True, disable=None) as bar:
        for day in days:
            if steps.record(day.reading):
                bar.update(sizes[day])
            else:
                steps.read_day(day, bar.update)


def _encode(days: tuple[Day, ...], steps: "Steps", earlier: EarlierVocabulary | None) -> None:
    if not steps.record(VOCABULARY):
        steps.number_values(days, earlier)
    rows = {day: steps.rows(day) for day in days}
    encoders = steps.encoders()
    with rows_bar("encoding", sum(rows.values())) as bar:
        for day in days:
            if steps.record(day.encoding):
                bar.update(rows[day])
            else:
                steps.encode_day(day, encoders, bar.update)


# The steps and their records.


@dataclass(frozen=True)
class Steps:
    """The steps in a work folder. hash_rows: rows of the tables that ids are hashed into; None: ids by a vocabulary."""

    work: WorkFolder
    threshold: int
    hash_rows: int | None
    block_bytes: int

    def record(self, name: str) -> dict[str, Any] | None:
        """The record of a step, None if it is not finished."""
        path = self.work.scratch / f"{name}.json"
        return read_json(path, "the record of a finished step") if path.exists() else None

    def done(self, name: str) -> dict[str, Any]:
        """The record of a step that is finished."""
        record = self.record(name)
        assert record is not None, f"step {name} has not been done"
        return record

    def rows(self, day: Day) -> int:
        """Number of rows of a day that was read."""
        return self.done(day.reading)["tally"]["rows"]

    def _finish(self, name: str, facts: dict[str, object]) -> None:
        write_json(self.work.scratch / f"{name}.json", facts)

    def outdated(self, day: Day) -> bool:
        """Whether the day's file has changed since it was read."""
        record = self.record(day.reading)
        return record is not None and record["source"] != _facts(day)

    def forget(self, day: Day) -> None:
        """Removes the record of reading the day, so that it is read again."""
        (self.work.scratch / f"{day.reading}.json").unlink()

    def read_day(self, day: Day, watch: Watch) -> None:
        """Writes dense, labels and ids of a day; with a vocabulary, values and their counts in scratch instead of ids.

        Raises ContractError as `read_rows` and `blocks` do.
        """
        source = _facts(day)
        dense, sparse, labels = (self.work.data / name for name in day.files)
        hashed = self.hash_rows is not None
        values, kind = (sparse, np.int32) if hashed else (self._values(day), np.uint32)
        counts = _Counts(self, day)
        tally = Tally.empty()
        with (
            growing_npy(dense, len(DENSE), np.float32) as dense_file,
            growing_npy(values, len(CATEGORICAL), kind) as values_file,
            growing_npy(labels, 1, np.int32) as labels_file,
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

    def number_values(self, days: tuple[Day, ...], earlier: EarlierVocabulary | None) -> None:
        """Writes vocabulary/C*.npy over all days: the value of id i is at index i - FIRST. One column at a time.

        earlier: its values come first, and then the new ones.
        """
        (self.work.data / VOCABULARY).mkdir(exist_ok=True)
        distinct, rows = [], []
        for column in CATEGORICAL:
            total = ValueCounts()
            for path in self._count_files(days):
                with np.load(path) as stored:
                    total.add(stored[f"{column}_values"], stored[f"{column}_counts"])
            values, counts = total.total()
            known_V = np.zeros(0, np.uint32) if earlier is None else earlier.values(column)
            new = ~np.isin(values, known_V)
            vocabulary_V = np.concatenate([known_V, vocabulary(values[new], counts[new], self.threshold)])
            np.save(self.work.data / vocabulary_file(column), vocabulary_V)
            distinct.append(len(values))
            rows.append(FIRST + len(vocabulary_V))
        files = {name: fingerprint(self.work.data / name) for name in map(vocabulary_file, CATEGORICAL)}
        self._finish(VOCABULARY, {"distinct": distinct, "table_rows": rows, "files": files})

    def encoders(self) -> list[VocabularyIds]:
        """Encoders of all columns, after `number_values`."""
        return [VocabularyIds.of(np.load(self.work.data / vocabulary_file(column))) for column in CATEGORICAL]

    def encode_day(self, day: Day, encoders: list[VocabularyIds], watch: Watch) -> None:
        """Writes the ids of a day whose values are in scratch, and deletes the values."""
        sparse = self.work.data / day.file("sparse")
        with growing_npy(sparse, len(CATEGORICAL), np.int32) as file:
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
    """Counts of a day's values. Moves them to a file in scratch whenever COUNTED_VALUES are in memory."""

    def __init__(self, steps: Steps, day: Day) -> None:
        self._steps, self._day, self._files = steps, day, 0
        self._columns = [ValueCounts() for _ in CATEGORICAL]

    def add(self, value_NC: np.ndarray) -> None:
        for column, count in enumerate(self._columns):
            count.count(value_NC[:, column])
        if sum(count.held for count in self._columns) > COUNTED_VALUES:
            self._write()

    def finish(self) -> int:
        """Writes the rest. Returns the number of files with counts."""
        if any(count.held for count in self._columns):
            self._write()
        return self._files

    def _write(self) -> None:
        arrays: dict[str, np.ndarray] = {}
        for column, count in zip(CATEGORICAL, self._columns, strict=True):
            arrays[f"{column}_values"], arrays[f"{column}_counts"] = count.total()
        np.savez(self._steps.count_file(self._day, self._files), **arrays)  # type: ignore[arg-type]
        self._files += 1
        self._columns = [ValueCounts() for _ in CATEGORICAL]


def _facts(day: Day) -> list[object]:
    return list(file_facts((day.source,))[0])


# manifest.json. format, rows; dense: the transform; categorical: how ids were made, table_rows (largest id + 1) and,
# with a vocabulary, distinct values, by column; days: source, rows, positives, and counts of missing, non-finite and
# negative raw values by column; files: size and sha256 of each.


def ids_in_words(threshold: int, hash_rows: int | None, goes_on: bool = False) -> dict[str, object]:
    if hash_rows is not None:
        return {"kind": "hashing", "ids": f"0 missing, else 1 + value mod {hash_rows - 1}"}
    words = "0 missing; 1 in all files less often than the threshold; from 2 on the most frequent first, then by value"
    if goes_on:
        words = f"{words}; those of an earlier vocabulary before new ones"
    return {"kind": VOCABULARY, "threshold": threshold, "ids": words}


def manifest(days: tuple[Day, ...], steps: Steps, goes_on: bool) -> dict[str, object]:
    """The manifest, when all steps of the days are done. goes_on: ids go on from an earlier vocabulary."""
    described: list[dict[str, object]] = []
    files: dict[str, object] = {}
    numbers: dict[str, object] = {"table_rows": [steps.hash_rows] * len(CATEGORICAL)}
    if steps.hash_rows is None:
        numbers = steps.done(VOCABULARY)
        files |= cast(dict[str, object], numbers.pop("files"))
    for day in days:
        read = steps.done(day.reading)
        described.append(
            {"day": day.number, "source": {"name": day.source.name, "bytes": read["source"][1]}, **read["tally"]}
        )
        own = read["files"] if steps.hash_rows else read["files"] | steps.done(day.encoding)["files"]
        files |= {name: own[name] for name in day.files}
    return {
        "format": FORMAT,
        "rows": sum(map(steps.rows, days)),
        "dense": DENSE_TRANSFORM,
        "categorical": ids_in_words(steps.threshold, steps.hash_rows, goes_on) | numbers,
        "days": described,
        "files": files,
    }


def summary(out: Path) -> str:
    """One line on the finished folder."""
    facts = read_json(out / schema.MANIFEST, "the manifest of prepared Criteo files")
    rows, tables = facts["rows"], sum(facts["categorical"]["table_rows"])
    positive = sum(day["positives"] for day in facts["days"]) / rows
    return f"{len(facts['days'])} files, {rows:,} rows, {positive:.2%} positive, tables of {tables:,} rows in all"


if __name__ == "__main__":
    run(
        CriteoCommand,
        "data_prep.criteo",
        "train.txt data/criteo-npy",
        "day_0.gz day_1.gz data/terabyte-npy --hash-rows 1000000",
    )
