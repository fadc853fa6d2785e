"""Sequences of what each user liked, and pairs of items from them, from the train split alone.

`read_sequences` reads the rows with label 1. `item_pairs` finds neighbours by Swing (Yang et al. 2020, arXiv
2010.05525) or by co-occurrence; `write_pairs` writes them.

Shapes: U users and M items with an event (row with label 1), E events, N neighbours of an item, R events of the users
of an item, C other items at a time.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sidrec import schema
from sidrec.errors import ContractError
from sidrec.io.progress import Bar
from sidrec.schema import ITEM_ID, OTHER_ID, Manifest

from .command import refuse_flags, rows_bar
from .histories import gather_ranges
from .source_files import open_stream

PAIR_COLUMNS = 4096  # other items in memory at a time, for all users of one item
ROW_GROUP = 65_536
ROWS = 65_536  # rows in memory at a time
TRAIN = "train"
COLUMNS = [schema.LABEL, schema.USER_ID, schema.ITEM_ID, schema.TIMESTAMP]
PAIR_SCHEMA = pa.schema([(ITEM_ID, pa.int64()), (OTHER_ID, pa.int64()), ("weight", pa.float32())])


@dataclass(frozen=True)
class PairSettings:
    """Which items become pairs."""

    pairs: Literal["swing", "co_occurrence"] = "swing"
    """swing: both taken by users who share few items. co_occurrence: near each other in sequences."""
    neighbours: int = 20
    """Neighbours kept per item, those of the largest weight."""
    swing_alpha: float = 1.0
    """alpha of Swing: a pair of users weighs 1 / (alpha + number of items that both took)."""
    users_per_item: int = 500
    """Users per item that Swing compares; a seeded sample if there are more."""
    window: int = 1
    """Largest distance of co-occurring items in a sequence; 1: adjacent events."""

    def check(self) -> None:
        """Raises ContractError naming the flag whose value makes no sense."""
        rules = {
            "--neighbours": (self.neighbours >= 1, "at least 1", self.neighbours),
            "--swing-alpha": (0 <= self.swing_alpha < float("inf"), "a number of at least 0", self.swing_alpha),
            "--users-per-item": (self.users_per_item >= 2, "at least 2", self.users_per_item),
            "--window": (self.window >= 1, "at least 1", self.window),
        }
        refuse_flags(rules)


@dataclass(frozen=True)
class Sequences:
    """Sequences of items, laid end to end. Sizes do not depend on the log's number of ids.

    item_ids_M: int64, ascending: the log's ids. items_E: int64 row numbers in item_ids_M, user by user, oldest first.
    offsets: int64 [U + 1]; user u's events are items_E[offsets[u] : offsets[u + 1]].
    """

    item_ids_M: np.ndarray
    items_E: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(cls, user_E: np.ndarray, item_E: np.ndarray, timestamp_E: np.ndarray) -> "Sequences":
        """Sorts events by user and time; events of equal times keep their order."""
        order_E = np.lexsort((timestamp_E, user_E))
        item_ids_M, items_E = np.unique(item_E[order_E], return_inverse=True)
        _, first_U = np.unique(user_E[order_E], return_index=True)
        return cls(item_ids_M, items_E, np.append(first_U, len(items_E)))

    @property
    def users(self) -> int:
        return len(self.offsets) - 1

    def lengths(self) -> np.ndarray:
        """int64 [U]: events of each user."""
        return np.diff(self.offsets)

    def frequencies(self) -> np.ndarray:
        """int64 [M]: events of each item."""
        return np.bincount(self.items_E, minlength=len(self.item_ids_M))

    def without_last(self) -> "Sequences":
        """Without the last event of each user; users and items stay, so some have no event."""
        last_U = self.offsets[1:] - 1
        return Sequences(self.item_ids_M, np.delete(self.items_E, last_U), self.offsets - np.arange(self.users + 1))


def read_sequences(data: Path, earliest_share: float = 1.0) -> Sequences:
    """Reads the positives of DATA/log's train split. Files of other splits are not opened.

    earliest_share: share of the events to keep, the earliest ones; events of the same time stay together. Rows of an
    unknown user or item (id 0) are left out. Raises ContractError for a missing or damaged log, one without times or
    without a positive, and for a share outside (0, 1].
    """
    if not 0 < earliest_share <= 1:
        raise ContractError("earliest share", "a share above 0 and at most 1", earliest_share)
    manifest = schema.load_manifest(data / schema.LOG)
    log = data / schema.LOG
    split = manifest.protocol.get("split")
    if isinstance(split, Mapping) and split.get("timed") is False:
        raise ContractError(log, "a log with times, which put each user's items in order", "one without")
    with rows_bar("reading positives", manifest.rows(TRAIN)) as bar:
        parts = list(positives(log, manifest, TRAIN, bar))
    if not sum(len(user) for user, _, _ in parts):
        expected = f"rows with label 1 of known users and items in the split {TRAIN}"
        raise ContractError(log, expected, f"none in {manifest.rows(TRAIN)} rows")
    user_E, item_E, timestamp_E = (np.concatenate(column) for column in zip(*parts, strict=True))
    last = np.sort(timestamp_E)[math.ceil(earliest_share * len(timestamp_E)) - 1]
    kept_E = timestamp_E <= last
    return Sequences.of(user_E[kept_E], item_E[kept_E], timestamp_E[kept_E])


def positives(
    log: Path, manifest: Manifest, split: str, bar: Bar
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Users, items and timestamps of a split's rows with label 1, in the log's order.

    Files of other splits are not opened. Rows of an unknown user or item (id 0) are left out. bar: counts all rows that
    are read. Raises ContractError for files that are missing, damaged or lack values.
    """
    for entry in manifest.files(split):
        path = log / entry.path
        if not path.is_file():
            raise ContractError(path, f"a file of the split {split}, as the manifest says", "no such file")
        try:
            file = open_stream(path)
            schema.check_columns(file.schema_arrow, manifest, path)
            for batch in file.iter_batches(batch_size=ROWS, columns=COLUMNS):
                yield _liked(batch, path)
                bar.update(batch.num_rows)
        except (OSError, pa.ArrowException) as error:
            raise ContractError(path, "a readable parquet file", error) from None


def _liked(batch: pa.RecordBatch, path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    for name in COLUMNS:
        if batch.column(name).null_count:
            raise ContractError(f"{path}, column {name}", "no missing value", f"{batch.column(name).null_count}")
    label, user, item, timestamp = (batch.column(name).to_numpy() for name in COLUMNS)
    liked = (label == 1) & (user != schema.UNKNOWN_ID) & (item != schema.UNKNOWN_ID)
    return user[liked], item[liked], timestamp[liked]


# Pairs of items.


@dataclass(frozen=True)
class Neighbours:
    """Neighbours of an item by falling weight, then by item. All are row numbers of `Sequences.item_ids_M`."""

    item: int
    others_N: np.ndarray
    weights_N: np.ndarray

    @classmethod
    def heaviest(cls, item: int, others: np.ndarray, weights: np.ndarray, most: int) -> "Neighbours":
        weights = weights.astype(np.float32)
        first = np.lexsort((others, -weights))[:most]
        return cls(item, others[first], weights[first])


def item_pairs(sequences: Sequences, settings: PairSettings, seed: int) -> Iterator[Neighbours]:
    """Neighbours of each item that has some, in the order of items."""
    if settings.pairs == "swing":
        return swing(sequences, settings.neighbours, settings.swing_alpha, settings.users_per_item, seed)
    return co_occurrence(sequences, settings.neighbours, settings.window)


def swing(
    sequences: Sequences, neighbours: int, alpha: float, users_per_item: int, seed: int, columns: int = PAIR_COLUMNS
) -> Iterator[Neighbours]:
    """Weight of items i and j: the sum of 1 / (alpha + |I_u & I_v|) over the pairs of users u, v who took both.

    Repeated events and unordered pairs of users count once. For an item with more than `users_per_item` users, a sample
    of them is compared, so (i, j) and (j, i) may differ in weight. columns: other items in memory at a time.
    """
    user_E = np.repeat(np.arange(sequences.users), sequences.lengths())
    items = len(sequences.item_ids_M)
    user_E, item_E = np.divmod(np.unique(user_E * items + sequences.items_E), items)
    users_of = Groups(item_E, user_E, items)
    items_of = Groups(user_E, item_E, sequences.users)
    with rows_bar("swing", len(item_E)) as bar:
        for item in range(items):
            users, (count,) = users_of.of(np.array([item]))
            if count > users_per_item:
                users = np.sort(np.random.default_rng([seed, item]).choice(users, users_per_item, replace=False))
            others, weights = _swing_of(item, users, items_of, alpha, columns)
            bar.update(int(count))
            if len(others):
                yield Neighbours.heaviest(item, others, weights, neighbours)


def _swing_of(
    item: int, users: np.ndarray, items_of: "Groups", alpha: float, columns: int
) -> tuple[np.ndarray, np.ndarray]:
    item_R, counts = items_of.of(users)
    row_R = np.repeat(np.arange(len(users)), counts)
    others, column_R, takers = np.unique(item_R, return_inverse=True, return_counts=True)
    shared = np.flatnonzero((takers > 1) & (others != item))
    place = np.full(len(others), -1)
    place[shared] = np.arange(len(shared))
    column_R = place[column_R]
    parts = [slice(begin, begin + columns) for begin in range(0, len(shared), columns)]
    common = np.ones((len(users), len(users)))  # all users took the item itself
    for part in parts:
        taken = _taken(row_R, column_R, part, len(users), len(shared))
        common += taken @ taken.T
    pair_weight = 1 / (alpha + common)
    np.fill_diagonal(pair_weight, 0)
    weights = np.zeros(len(shared))
    for part in parts:
        taken = _taken(row_R, column_R, part, len(users), len(shared))
        weights[part] = ((pair_weight @ taken) * taken).sum(axis=0) / 2
    return others[shared], weights


def _taken(row_R: np.ndarray, column_R: np.ndarray, part: slice, users: int, columns: int) -> np.ndarray:
    """float64 [users, C], 1 where the user took the other item."""
    inside_R = (column_R >= part.start) & (column_R < part.stop)
    taken = np.zeros((users, min(part.stop, columns) - part.start))
    taken[row_R[inside_R], column_R[inside_R] - part.start] = 1
    return taken


def co_occurrence(sequences: Sequences, neighbours: int, window: int) -> Iterator[Neighbours]:
    """Weight of items i and j: how often they are at most `window` events apart in a user's sequence."""
    events = len(sequences.items_E)
    user_E = np.repeat(np.arange(sequences.users), sequences.lengths())
    places_of = Groups(sequences.items_E, np.arange(events), len(sequences.item_ids_M))
    steps = np.concatenate([np.arange(-window, 0), np.arange(1, window + 1)])
    with rows_bar("co-occurrence", events) as bar:
        for item in range(len(sequences.item_ids_M)):
            places, (count,) = places_of.of(np.array([item]))
            near = places[:, None] + steps
            inside = (near >= 0) & (near < events)
            inside &= user_E[near.clip(0, events - 1)] == user_E[places][:, None]
            others, weights = np.unique(sequences.items_E[near[inside]], return_counts=True)
            bar.update(int(count))
            if (others != item).any():
                yield Neighbours.heaviest(item, others[others != item], weights[others != item], neighbours)


class Groups:
    """Values grouped by key. of(keys): the values of these keys, concatenated, and the number of each key's values."""

    def __init__(self, keys_E: np.ndarray, values_E: np.ndarray, number_of_keys: int) -> None:
        self.values_E = values_E[np.argsort(keys_E, kind="stable")]
        self.counts = np.bincount(keys_E, minlength=number_of_keys)
        self.starts = np.cumsum(self.counts) - self.counts

    def of(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return gather_ranges(self.values_E, self.starts[keys], self.counts[keys]), self.counts[keys]


def write_pairs(path: Path, pairs: Iterator[Neighbours], item_ids_M: np.ndarray, row_group: int = ROW_GROUP) -> int:
    """Writes item_id, other_id (the log's ids) and weight, by item, then falling weight. Returns the number of rows.

    row_group: least rows of a row group; the pairs of an item share one.
    """
    rows, block = 0, 0
    waiting: list[Neighbours] = []
    with pq.ParquetWriter(path, PAIR_SCHEMA) as writer:
        for neighbours in pairs:
            waiting.append(neighbours)
            block += len(neighbours.others_N)
            if block >= row_group:
                writer.write_table(_table(waiting, item_ids_M))
                rows, block, waiting = rows + block, 0, []
        if waiting:
            writer.write_table(_table(waiting, item_ids_M))
    return rows + block


def _table(block: list[Neighbours], item_ids_M: np.ndarray) -> pa.Table:
    items = np.repeat([neighbours.item for neighbours in block], [len(neighbours.others_N) for neighbours in block])
    others = np.concatenate([neighbours.others_N for neighbours in block])
    weights = np.concatenate([neighbours.weights_N for neighbours in block])
    return pa.table([item_ids_M[items], item_ids_M[others], weights], schema=PAIR_SCHEMA)
