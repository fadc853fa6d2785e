"""One pass over the rows of a log that another program wrote, row group by row group, in processes.

The rules for rows are the reader's own (`sidrec.data.rows.broken_rows`); the further ones here need what the reader
does not look at: all items, the histories' length, the unit of times. A process holds one batch of a row group at a
time, and returns counts, faults and a sample of users' rows. Results are taken in the order of the files, so they do
not depend on the number of processes.

Shapes: N rows of a batch, I item ids.
"""

import multiprocessing
import signal
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sidrec import schema
from sidrec.data.rows import broken_rows
from sidrec.errors import ContractError
from sidrec.io.files import readable
from sidrec.schema import INT64, Manifest, crc32_of, log_schema, same_type

from .adopt_files import ORDER, GivenFile
from .adopt_leaks import history_ends, stat_steps
from .adopt_report import Fault, castable
from .draws import uniforms
from .source_files import open_stream

BATCH, LEAST_BATCH = 1 << 16, 1 << 10  # rows in memory at a time
BATCH_ENTRIES = 1 << 22  # about as many entries of histories in memory at a time
LATEST = 100_000_000_000  # seconds: the year 5138; larger times are milliseconds or finer
VALUE = 60  # characters of a list that a report shows
AHEAD = 4  # tasks waiting for each process
USER_KEY = 0xAD0B7  # tells the draw of users from others
NO_SECONDS = 'times are seconds since 1970; Spark: F.floor(F.col("timestamp") / 1000) for milliseconds'


@dataclass(frozen=True)
class Reading:
    """What every row group is read with. A value that processes share.

    columns: the manifest of `given_columns`, with known numbers of ids. items: .npy file, bool [I], items that
    items.parquet lists; None without it. history_length: longest history that is allowed. users: share of users that is
    sampled. shown: examples kept of each fault.
    """

    log: Path
    columns: Manifest
    items: Path | None
    history_length: int | None
    users: float
    shown: int


@dataclass(frozen=True)
class GroupTask:
    """A row group. first_row: number of its first row in the file. steps: also compare stat_* columns."""

    file: GivenFile
    group: int
    first_row: int
    steps: bool


@dataclass
class GroupFacts:
    """What a row group holds. first, last: smallest and largest time. largest: id column -> largest id.

    numbers: "rows", "positives", "COLUMN positives" of further labels, "COLUMN ids" of list columns, and the counts of
    `adopt_leaks`. longest: list column -> most entries. items, item_rows: item ids, ascending, and how many rows
    each has. sample: rows of the sampled users.
    """

    first: int = INT64[1]
    last: int = INT64[0]
    largest: dict[str, int] = field(default_factory=dict)
    numbers: Counter[str] = field(default_factory=Counter)
    longest: dict[str, int] = field(default_factory=dict)
    items: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    item_rows: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    faults: list[Fault] = field(default_factory=list)
    sample: pa.Table | None = None


def read_group(reading: Reading, task: GroupTask) -> GroupFacts:
    """Checks and counts the rows of a row group."""
    facts, samples, items = GroupFacts(), [], []
    path = reading.log / task.file.path
    names = [name for name in log_schema(reading.columns).names if task.file.type_of(name) is not None]
    start, before = task.first_row, INT64[0]
    try:
        with readable(f"{path}, row group {task.group}", "readable column data"), open_stream(path) as file:
            for batch in file.iter_batches(
                batch_rows(task.file), row_groups=[task.group], columns=names, use_threads=False
            ):
                table = as_contract(pa.Table.from_batches([batch]), reading.columns)
                where = f"log/{task.file.path}, row group {task.group}"
                rules = rules_of(table, reading)
                facts.faults += row_faults(table, rules, where, start, reading.shown)
                before = _check_order(table, facts, where, start, before)
                sound = _sound(table, rules)
                items.append(_count(sound, reading, facts, task))
                samples.append(_sampled(sound, reading.users))
                start += table.num_rows
    except ContractError as error:
        facts.faults.append(Fault("readable column data", 1, "row groups", (f"{error.args[0]}: {error.args[2]}",)))
    if items:
        facts.items, place = np.unique(np.concatenate([ids for ids, _ in items]), return_inverse=True)
        rows = np.concatenate([rows for _, rows in items])
        facts.item_rows = np.bincount(place, rows, minlength=len(facts.items)).astype(np.int64)
        facts.sample = pa.concat_tables(samples)
    return facts


def batch_rows(file: GivenFile) -> int:
    """Rows of a batch: fewer where histories are long."""
    mean = file.history_entries / max(1, file.rows)
    return int(min(BATCH, max(LEAST_BATCH, BATCH_ENTRIES / max(1.0, mean))))


def as_contract(table: pa.Table, columns: Manifest) -> pa.Table:
    """The table with the contract's columns and types.

    Columns of other types are cast where that can be checked; columns that are missing, or cannot be cast, are filled
    with values that keep the contract: their own problem is reported from the footer.
    """
    made = []
    for wanted in log_schema(columns):
        places = table.schema.get_all_field_indices(wanted.name)
        found = table.column(places[0]) if len(places) == 1 else None
        if found is not None and same_type(found.type, wanted.type):
            made.append(found)
        elif found is not None and castable(found.type, wanted.type):
            if pa.types.is_timestamp(found.type):
                found = found.cast(pa.timestamp("s"), safe=False)
            made.append(found.cast(wanted.type, safe=False))
        else:
            value = pa.scalar([] if pa.types.is_list(wanted.type) else 0, wanted.type)
            made.append(pa.chunked_array([pa.repeat(value, table.num_rows)]))
    return pa.Table.from_arrays(made, names=log_schema(columns).names).combine_chunks()


# Faults.


def rules_of(table: pa.Table, reading: Reading) -> dict[str, np.ndarray]:
    """Rule -> bool [N], rows that break it: the reader's rules, and those of this module."""
    rules = broken_rows(table, reading.columns)
    times = table[schema.TIMESTAMP].fill_null(0).to_numpy()
    further = {f"column {schema.TIMESTAMP}, expected seconds since 1970": np.abs(times) > LATEST}
    if reading.history_length is not None:
        lengths = pc.fill_null(pc.list_value_length(table[schema.HISTORY]), 0).to_numpy()
        rule = f"column {schema.HISTORY}, expected at most {reading.history_length} items"
        further[rule] = lengths > reading.history_length
    if reading.items is not None:
        known_I = _known(reading.items)
        rule = f"column {schema.ITEM_ID}, expected an item of {schema.ITEMS}, or 0"
        further[rule] = ~_listed(table[schema.ITEM_ID].fill_null(0).to_numpy(), known_I)
        further[f"column {schema.HISTORY}, expected items of {schema.ITEMS}"] = _unlisted(table, known_I)
    return rules | {rule: broken_N for rule, broken_N in further.items() if broken_N.any()}


@cache
def _known(path: Path) -> np.ndarray:
    return np.asarray(np.load(path, mmap_mode="r"))


def _listed(ids: np.ndarray, known_I: np.ndarray) -> np.ndarray:
    """Whether ids are listed. Ids below 0 and null entries are left to the reader's rules."""
    inside = (ids >= 0) & (ids < len(known_I))
    return np.where(inside, known_I[np.where(inside, ids, 0)], ids < 0)


def _unlisted(table: pa.Table, known_I: np.ndarray) -> np.ndarray:
    lists = table[schema.HISTORY].combine_chunks()
    entries = pc.fill_null(pc.list_flatten(lists), 0).to_numpy(zero_copy_only=False)
    broken_N = np.zeros(table.num_rows, dtype=bool)
    broken_N[pc.list_parent_indices(lists).to_numpy(zero_copy_only=False)[~_listed(entries, known_I)]] = True
    return broken_N


def row_faults(table: pa.Table, rules: Mapping[str, np.ndarray], where: str, start: int, shown: int) -> list[Fault]:
    """Faults of a batch. rules: see `rules_of`. start: number of its first row in the file."""
    faults = []
    for rule, broken_N in rules.items():
        column = rule.partition(",")[0].removeprefix("column ")
        rows = np.flatnonzero(broken_N)
        examples = tuple(
            f"{where}, row {start + row} of the file: {_value(table, column, row)}" for row in rows[:shown].tolist()
        )
        remedy = NO_SECONDS if rule.endswith("since 1970") else ""
        faults.append(Fault(rule.replace(", expected", ": expected", 1), len(rows), "rows", examples, remedy))
    return faults


def _value(table: pa.Table, column: str, row: int) -> str:
    value = table[column][row].as_py()
    if value is None:
        return "a missing value"
    text = str(value)
    return text if len(text) <= VALUE else f"{len(value)} ids, {text[:VALUE]}..."


def _check_order(table: pa.Table, facts: GroupFacts, where: str, start: int, before: int) -> int:
    """Adds rows that are earlier than the row before them. before: time of that of the first row. Returns the last."""
    times = np.concatenate([[before], table[schema.TIMESTAMP].drop_null().to_numpy()])
    back = np.flatnonzero(times[1:] < times[:-1])
    if len(back):
        row = int(back[0])
        got = f"{where}, row {start + row} of the file: {times[row + 1]} after {times[row]}"
        rule = f"column {schema.TIMESTAMP}: expected rows sorted by time"
        facts.faults.append(Fault(rule, len(back), "rows", (got,), f"Spark: {ORDER}"))
    return int(times[-1])


def _sound(table: pa.Table, rules: Mapping[str, np.ndarray]) -> pa.Table:
    """The rows without a fault."""
    if not rules:
        return table
    return table.filter(pa.array(~np.logical_or.reduce(list(rules.values())))).combine_chunks()


# Counts.


def _count(table: pa.Table, reading: Reading, facts: GroupFacts, task: GroupTask) -> tuple[np.ndarray, np.ndarray]:
    """Adds the rows of a batch. Returns its items, and how many rows each has."""
    if not table.num_rows:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    columns, numbers = reading.columns, facts.numbers
    times, label = table[schema.TIMESTAMP].to_numpy(), table[schema.LABEL].to_numpy()
    facts.first, facts.last = min(facts.first, int(times.min())), max(facts.last, int(times.max()))
    numbers["rows"] += table.num_rows
    numbers["positives"] += int((label > 0).sum())
    for name in columns.labels:
        numbers[f"{name} positives"] += int((table[name].to_numpy() > 0).sum())
    for name in (*columns.ids, schema.HISTORY):
        ids = pc.list_flatten(table[name]) if name in (*columns.lists, schema.HISTORY) else table[name]
        facts.largest[name] = max(facts.largest.get(name, 0), pc.max(ids).as_py() or 0)
    for name in (*columns.lists, schema.HISTORY):
        lengths = pc.fill_null(pc.list_value_length(table[name]), 0)
        numbers[f"{name} ids"] += pc.sum(lengths).as_py()
        facts.longest[name] = max(facts.longest.get(name, 0), pc.max(lengths).as_py())
    numbers.update(history_ends(table))
    if task.steps:
        numbers.update(stat_steps(table, columns.stats))
    return np.unique(table[schema.ITEM_ID].to_numpy(), return_counts=True)


SAMPLED = (schema.USER_ID, schema.TIMESTAMP, schema.ITEM_ID, schema.LABEL, schema.HISTORY)


def _sampled(table: pa.Table, users: float) -> pa.Table:
    """Rows of the sampled users. A user is sampled in all files or in none."""
    drawn_N = uniforms(0, table[schema.USER_ID].to_numpy(), USER_KEY) < users
    drawn_N &= table[schema.USER_ID].to_numpy() > schema.UNKNOWN_ID
    rows = table.select(list(SAMPLED)).filter(pa.array(drawn_N))
    return rows.set_column(4, schema.HISTORY, rows[schema.HISTORY].cast(pa.list_(pa.int64())))


def empty_sample() -> pa.Table:
    """A sample without rows."""
    kinds = [pa.int64(), pa.int64(), pa.int64(), pa.float32(), pa.list_(pa.int64())]
    return pa.schema(list(zip(SAMPLED, kinds, strict=True))).empty_table()


# Processes.


Task = tuple[Callable[..., object], tuple[object, ...]]
"""A function of a module, which processes import, and its arguments."""


def in_order(jobs: int, tasks: Sequence[Task]) -> Iterator[object]:
    """The tasks' results in the order of the tasks. With one job they run in this process.

    Raises ContractError if a process is killed.
    """
    if jobs == 1 or not tasks:
        for function, arguments in tasks:
            yield function(*arguments)
        return
    # A fork of this process could inherit locks that threads of arrow hold.
    context = multiprocessing.get_context("forkserver")
    pool = ProcessPoolExecutor(min(jobs, len(tasks)), mp_context=context, initializer=_quiet)
    try:
        waiting: deque[Future[object]] = deque()
        for function, arguments in tasks:
            waiting.append(pool.submit(function, *arguments))
            if len(waiting) > AHEAD * jobs:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        got = "one that was killed; less memory: smaller --jobs"
        raise ContractError("--jobs", "processes that live as long as the command", got) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _quiet() -> None:
    """Ctrl-C reaches all processes; the first one ends the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pa.set_cpu_count(1)


def checksum(path: Path) -> int:
    """CRC-32 of a file. Raises OSError."""
    return crc32_of(path)
