"""A log that another program wrote, checked and described: `python -m data_prep.adopt DATA`.

DATA holds log/<split>/*.parquet as `sidrec.schema` spells it, written by a Spark job, say. The command reads every row
once, in processes, and prints all that breaks the contract as one report. Without a problem it writes what is missing:
items.parquet, id maps from folders of parts, and last log/manifest.json, which makes the folder a data folder.

Files that are there stay as they are, unless --replace is given; the rows of the log always do.

Shapes: I item ids.
"""

import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Annotated, cast

import numpy as np
import pyarrow as pa
import tyro

from sidrec import schema
from sidrec.command_line import metavar
from sidrec.errors import ContractError, print_warning
from sidrec.io.files import read_json
from sidrec.io.output_lock import locked
from sidrec.schema import LogFile, Manifest
from sidrec.text import did_you_mean

from .adopt_files import ORDER, GivenFile, given_columns, given_files
from .adopt_items import (
    GivenItems,
    GivenMap,
    given_items,
    given_maps,
    train_impressions,
    write_given_items,
    write_given_maps,
)
from .adopt_leaks import history_warnings, stat_warnings
from .adopt_report import Problems
from .adopt_rows import GroupFacts, GroupTask, Reading, Task, checksum, empty_sample, in_order, read_group
from .build import rate, summary
from .command import refuse_flags, rows_bar, run
from .splits import SPLITS

ADOPTED = "adopted"  # key of a manifest's protocol, by which this command knows its own manifests
ROWS_PER_JOB = 500_000  # a process takes a second to start
STEP_GROUPS = 64  # row groups whose statistics are compared with their items' rows
SAMPLED_ROWS, SAMPLED_ENTRIES = 50_000, 2_000_000  # rows of the sampled users, and entries of their histories
SPARSE, SMALL_TABLE = 4, 1_000_000  # a table of this many rows per row of the log, and of this many rows, is a mistake


@dataclass(frozen=True)
class AdoptCommand:
    """Checks a log that another program wrote, such as a Spark job, and makes it a data folder."""

    data: tyro.conf.Positional[Annotated[Path, metavar("DATA")]]
    """Folder with log/<split>/*.parquet; also items.parquet or items/, ids/<column>.parquet or ids/<column>/."""
    check: bool = False
    """Only check; write nothing."""
    replace: bool = False
    """Replace what this command did not write: the manifest; items.parquet, by the parts in items/ or by itself with
    train_impressions and fixed-size vectors; id maps, by the parts in ids/<column>/."""
    jobs: Annotated[int | None, metavar("JOBS", "one for each core, fewer for small logs")] = None
    """Processes that read rows."""
    examples: int = 5
    """Rows or files that the report names for each problem."""
    history_length: Annotated[int | None, metavar("LENGTH", "the longest that is found")] = None
    """Longest history that the job writes. A longer one is a problem."""
    id_rows: Annotated[tuple[str, ...], metavar("COLUMN=ROWS", "the largest id + 1, or those of the map")] = ()
    """Rows of the embedding tables of id columns without a map, which leave space for the ids of later days."""
    name: Annotated[str | None, metavar("NAME", "the name of DATA")] = None
    """Name of the log, for the manifest."""
    written_by: Annotated[str | None, metavar("TEXT", "the programs that the files name")] = None
    """Job or team that wrote the rows, for the manifest."""

    def run(self) -> None:
        with locked(self.data):
            adopt(self)


def adopt(command: AdoptCommand) -> None:
    """Checks the folder, prints the report, and writes what is missing; the manifest comes last.

    Raises ContractError for a folder that breaks the contract, after the report, and for flags that cannot be used.
    """
    _check_flags(command)
    data, problems, notes = command.data, Problems(command.examples), list[str]()
    log = data / schema.LOG
    files = given_files(log, problems, notes)
    _check_manifest(log, command)
    columns = given_columns(files, problems, notes)
    maps = given_maps(data, command.replace, list(columns.ids), problems, notes)
    items = given_items(data, command.replace, problems, notes)
    columns = replace(columns, ids={**columns.ids, **{name: found.digest.ids + 1 for name, found in maps.items()}})
    facts = _read_rows(command, files, columns, items, problems)
    ids = _id_rows(command, facts, columns, maps, items, problems)
    counted_I = np.zeros(ids[schema.ITEM_ID], np.int64)
    if not problems:
        counted_I = facts.rows_by_item("train", ids[schema.ITEM_ID])
        counted_I = train_impressions(items, counted_I, problems, notes)
    warnings = [*_warnings(facts, columns, ids), *stat_warnings(facts.numbers, columns.stats)]
    warnings += history_warnings(facts.numbers, facts.sample())
    for line in notes:
        print(f"note: {line}", flush=True)
    for line in warnings:
        print_warning(line)
    if problems:
        print(problems.text(), flush=True)
        expected = "a log that keeps the contract (docs/own_log.md)"
        raise ContractError(data, expected, f"{problems.number()}, listed above; nothing was written")
    manifest = _manifest(command, files, columns, facts, ids, maps, items, counted_I)
    if command.check:
        print(f"{data}: {facts.numbers['rows']:,} rows keep the contract; without --check, {_unwritten(items, maps)}")
        return
    write_given_maps(data, maps)
    if items.write:
        write_given_items(data, items, counted_I)
    schema.save_manifest(manifest, log)
    print(summary(data))


def _check_flags(command: AdoptCommand) -> None:
    rules: dict[str, tuple[bool, str, object]] = {"--examples": (command.examples >= 1, "at least 1", command.examples)}
    if command.jobs is not None:
        rules["--jobs"] = (command.jobs >= 1, "at least 1", command.jobs)
    if command.history_length is not None:
        rules["--history-length"] = (command.history_length >= 0, "at least 0", command.history_length)
    refuse_flags(rules)


def _check_manifest(log: Path, command: AdoptCommand) -> None:
    """Refuses to replace a manifest that this command did not write."""
    path = log / schema.MANIFEST
    if command.check or command.replace or not path.exists():
        return
    raw = read_json(path, "a log manifest")
    protocol = raw.get("protocol") if isinstance(raw, dict) else None
    if not isinstance(protocol, dict) or ADOPTED not in protocol:
        expected = "none, or one that `sidrec prep adopt` wrote (or the flag --replace)"
        raise ContractError(path, expected, "a manifest of other origin")


def _unwritten(items: GivenItems, maps: dict[str, GivenMap]) -> str:
    files = [f"ids/{column}.parquet" for column, found in maps.items() if found.write is not None]
    files += [schema.ITEMS] if items.write else []
    return f"the command writes {', '.join([*files, f'{schema.LOG}/{schema.MANIFEST}'])}"


# All rows.


@dataclass
class LogFacts:
    """What the pass over the rows found.

    numbers, by_split, largest, longest: as in `GroupFacts`. spans, times: first and last time of each file (by path)
    and each split. checksums: CRC-32 by path. items: split -> ids and rows of its items, both int64, ids ascending.
    samples: rows of sampled users.
    """

    numbers: Counter[str] = field(default_factory=Counter)
    by_split: dict[str, Counter[str]] = field(default_factory=dict)
    largest: dict[str, int] = field(default_factory=dict)
    longest: dict[str, int] = field(default_factory=dict)
    spans: dict[str, tuple[int, int]] = field(default_factory=dict)
    times: dict[str, tuple[int, int]] = field(default_factory=dict)
    checksums: dict[str, int] = field(default_factory=dict)
    items: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    samples: list[pa.Table] = field(default_factory=list)

    def add(self, file: GivenFile, found: GroupFacts) -> None:
        self.numbers.update(found.numbers)
        self.by_split.setdefault(file.split, Counter()).update(found.numbers)
        for mine, other in ((self.largest, found.largest), (self.longest, found.longest)):
            mine.update({name: max(mine.get(name, 0), value) for name, value in other.items()})
        if found.first <= found.last:
            for spans, key in ((self.spans, file.path), (self.times, file.split)):
                first, last = spans.get(key, (found.first, found.last))
                spans[key] = min(first, found.first), max(last, found.last)
        pair = self.items.get(file.split)
        self.items[file.split] = (found.items, found.item_rows) if pair is None else _summed(*pair, found)
        if found.sample is not None and found.sample.num_rows:
            self.samples.append(found.sample)

    def rows_by_item(self, split: str, ids: int) -> np.ndarray:
        """Rows of a split on each item: int64 [ids]."""
        rows_I = np.zeros(ids, np.int64)
        if split in self.items:
            found, rows = self.items[split]
            rows_I[found] = rows
        return rows_I

    def sample(self) -> pa.Table:
        return pa.concat_tables(self.samples) if self.samples else empty_sample()


def _summed(items: np.ndarray, rows: np.ndarray, found: GroupFacts) -> tuple[np.ndarray, np.ndarray]:
    both, place = np.unique(np.concatenate([items, found.items]), return_inverse=True)
    return both, np.bincount(place, np.concatenate([rows, found.item_rows]), minlength=len(both)).astype(np.int64)


def _read_rows(
    command: AdoptCommand, files: Sequence[GivenFile], columns: Manifest, items: GivenItems, problems: Problems
) -> LogFacts:
    """Reads all rows and the files' checksums, in processes. Adds problems of rows, and of the files' order."""
    facts, rows = LogFacts(), sum(file.rows for file in files)
    entries = sum(file.history_entries for file in files)
    jobs = command.jobs or min(len(os.sched_getaffinity(0)), 1 + rows // ROWS_PER_JOB)
    with tempfile.TemporaryDirectory(prefix="sidrec-adopt-") as scratch, rows_bar("checking rows", rows) as bar:
        listed_I, known = items.listed(), None
        if listed_I is not None:
            known = Path(scratch) / "items.npy"
            np.save(known, listed_I)
        share = min(1.0, SAMPLED_ROWS / max(1, rows), SAMPLED_ENTRIES / max(1, entries))
        log = command.data / schema.LOG
        reading = Reading(log, columns, known, command.history_length, share, command.examples)
        groups = list(_group_tasks(files))
        tasks: list[Task] = [(read_group, (reading, task)) for task in groups]
        tasks += [(checksum, (log / file.path,)) for file in files]
        owners: list[GroupTask | GivenFile] = [*groups, *files]
        for owner, found in zip(owners, in_order(jobs, tasks), strict=True):
            if isinstance(owner, GroupTask):
                group = cast(GroupFacts, found)
                problems.add(group.faults)
                facts.add(owner.file, group)
                bar.update(owner.file.groups[owner.group])
            else:
                facts.checksums[owner.path] = cast(int, found)
    _check_file_order(files, facts, problems)
    if not facts.numbers["rows"] and not problems:
        problems.found("at least one row", log, "none", what="folders")
    return facts


def _group_tasks(files: Sequence[GivenFile]) -> Iterable[GroupTask]:
    places = [(file, group) for file in files for group, rows in enumerate(file.groups) if rows]
    every = max(1, len(places) // STEP_GROUPS)
    starts = {file.path: [0, *accumulate(file.groups)] for file in files}
    for number, (file, group) in enumerate(places):
        yield GroupTask(file, group, starts[file.path][group], number % every == 0)


def _check_file_order(files: Sequence[GivenFile], facts: LogFacts, problems: Problems) -> None:
    """The reader lays a split's files end to end: the next begins at the last time of the one before, or later."""
    for split in dict.fromkeys(file.split for file in files):
        for before, file in pairwise(_in_time(files, facts, split)):
            last, first = facts.spans[before.path][1], facts.spans[file.path][0]
            if first < last:
                rule = f"files of {split}: expected one after the other in time"
                got = f"begins at {first}, log/{before.path} ends at {last}"
                problems.found(rule, f"log/{file.path}", got, f"Spark: {ORDER}")


def _in_time(files: Sequence[GivenFile], facts: LogFacts, split: str) -> list[GivenFile]:
    """The files of a split that have rows, in the order of time."""
    filled = [file for file in files if file.split == split and file.path in facts.spans]
    return sorted(filled, key=lambda file: (facts.spans[file.path], file.path))


# Ids and warnings.


def _id_rows(
    command: AdoptCommand,
    facts: LogFacts,
    columns: Manifest,
    maps: dict[str, GivenMap],
    items: GivenItems,
    problems: Problems,
) -> dict[str, int]:
    """Table rows of each id column: those of its map, or above the largest id, or what --id-rows states."""
    found = {name: facts.largest.get(name, 0) + 1 for name in columns.ids}
    listed = int(items.ids_N.max(initial=0)) + 1
    found[schema.ITEM_ID] = max(found[schema.ITEM_ID], facts.largest.get(schema.HISTORY, 0) + 1, listed)
    if schema.ITEM_ID in maps and listed > maps[schema.ITEM_ID].digest.ids + 1:
        rule = f"items, column {schema.ITEM_ID}: expected ids of the map, up to {maps[schema.ITEM_ID].digest.ids:,}"
        problems.found(rule, command.data / schema.ITEMS, listed - 1)
    stated = {name: entry.digest.ids + 1 for name, entry in maps.items()}
    for words in command.id_rows:
        name, _, rows = words.partition("=")
        if name not in found:
            known = f"an id column of the log, {', '.join(found)}"
            raise ContractError("--id-rows", known, repr(words) + did_you_mean(name, found))
        if name in maps or not rows.isdecimal() or not found[name] <= int(rows) <= schema.LARGEST_TABLE:
            expected = f"a column without a map, and at least {found[name]:,} rows for {name}, such as {name}=1000000"
            raise ContractError("--id-rows", expected, repr(words))
        stated[name] = int(rows)
    return found | stated


def _warnings(facts: LogFacts, columns: Manifest, ids: dict[str, int]) -> list[str]:
    rows = facts.numbers["rows"]
    found = [
        f"{name} has ids up to {facts.largest[name]:,} in {rows:,} rows: embedding tables have a row for each id; "
        "number ids from 1 up without gaps"
        for name in columns.ids
        if facts.largest.get(name, 0) > max(SMALL_TABLE, SPARSE * rows)
    ]
    for split, numbers in facts.by_split.items():
        if numbers["rows"] and numbers["positives"] in (0, numbers["rows"]):
            found.append(f"every label of {split} is {int(numbers['positives'] > 0)}")
    times = facts.times
    for earlier, later in pairwise([split for split in SPLITS if split in times]):
        if times[later][0] < times[earlier][1]:
            found.append(
                f"{later} begins at {times[later][0]}, {earlier} ends at {times[earlier][1]}: training sees what is "
                f"later than rows of {later}"
            )
    return found


# The manifest.


def _manifest(
    command: AdoptCommand,
    files: Sequence[GivenFile],
    columns: Manifest,
    facts: LogFacts,
    ids: dict[str, int],
    maps: dict[str, GivenMap],
    items: GivenItems,
    impressions_I: np.ndarray,
) -> Manifest:
    rows = facts.numbers["rows"]
    splits = {}
    for split in dict.fromkeys(file.split for file in files):
        entries = [
            LogFile(file.path, file.rows, *facts.spans[file.path], facts.checksums[file.path])
            for file in _in_time(files, facts, split)
        ]
        splits[split] = tuple(entries)
    length = facts.longest.get(schema.HISTORY, 0) if command.history_length is None else command.history_length
    return replace(
        columns,
        source=command.name or command.data.resolve().name,
        ids=ids,
        history_length=length,
        splits={split: entries for split, entries in splits.items() if entries},
        lists={
            name: schema.ListColumn(facts.longest.get(name, 0), facts.numbers[f"{name} ids"] / max(1, rows))
            for name in sorted(columns.lists)
        },
        id_maps={name: found.digest for name, found in maps.items()},
        protocol=_protocol(command, files, columns, facts, impressions_I, stated=items.impressions_N is not None),
    )


def _protocol(
    command: AdoptCommand,
    files: Sequence[GivenFile],
    columns: Manifest,
    facts: LogFacts,
    impressions_I: np.ndarray,
    stated: bool,
) -> dict[str, object]:
    """manifest.protocol. Without `as_of`, which marks folders that data_prep wrote and may replace."""
    numbers, labels = facts.numbers, columns.labels
    test_I = facts.rows_by_item("test", len(impressions_I))
    return {
        ADOPTED: {
            "by": "sidrec prep adopt",
            "written_by": command.written_by or ", ".join(sorted({file.writer for file in files})),
            "words": "rows, labels, splits, histories and statistics are the owner's. That histories and stat_* "
            "columns count only what was before a row is the owner's claim: samples were searched for signs against it",
            "history_length": "the longest history that was found" if command.history_length is None else "as stated",
            "train_impressions": "of items.parquet, as found" if stated else "rows of the train split",
        },
        "rows": numbers["rows"],
        "positive_rate": rate(numbers["positives"], numbers["rows"]),
        "splits": {
            split: {"rows": found["rows"], "positive_rate": rate(found["positives"], found["rows"])}
            for split, found in facts.by_split.items()
            if found["rows"]
        },
        "split": {
            "words": "cut by the owner; first and last time of each split are facts of the files",
            "times": {split: list(span) for split, span in facts.times.items()},
        },
        "cold_share_of_test_rows": rate(int(test_I[impressions_I == 0].sum()), int(test_I.sum())),
        "further_labels": {name: rate(numbers[f"{name} positives"], numbers["rows"]) for name in labels},
    }


if __name__ == "__main__":
    run(AdoptCommand, "data_prep.adopt", "data/clicks --check", "data/clicks --jobs 16")
