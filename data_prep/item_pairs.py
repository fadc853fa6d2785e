"""Items that belong together, from sequences: Swing (Yang et al. 2020, arXiv 2010.05525), or plain co-occurrence.

M items, E events, N neighbours of an item, R events of the users at hand, C columns (other items) at a time.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.as_of import gather_ranges
from data_prep.command import refuse_flags
from data_prep.progress import rows_bar
from data_prep.sequences import Sequences
from sidrec.schema import ITEM_ID, OTHER_ID

COLUMNS = 4096  # other items in memory at a time, beside one item's users
ROW_GROUP = 65_536
PAIR_SCHEMA = pa.schema([(ITEM_ID, pa.int64()), (OTHER_ID, pa.int64()), ("weight", pa.float32())])


@dataclass(frozen=True)
class PairSettings:
    """Which items are pairs."""

    pairs: Literal["swing", "co_occurrence"] = "swing"
    """swing: users who share few items and yet both took these two. co_occurrence: near each other in sequences."""
    neighbours: int = 20
    """Heaviest neighbours kept per item."""
    swing_alpha: float = 1.0
    """alpha of Swing: a pair of users weighs 1 / (alpha + number of items that both took)."""
    users_per_item: int = 500
    """Users per item that Swing compares; of more, a seeded sample."""
    window: int = 1
    """Events between two co-occurring items, plus one; 1: adjacent ones."""

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
class Neighbours:
    """An item and those beside it, heaviest first; equal weights by item. All are row numbers of `item_ids_M`."""

    item: int
    others_N: np.ndarray
    weights_N: np.ndarray

    @classmethod
    def heaviest(cls, item: int, others: np.ndarray, weights: np.ndarray, most: int) -> "Neighbours":
        weights = weights.astype(np.float32)
        first = np.lexsort((others, -weights))[:most]
        return cls(item, others[first], weights[first])


class Groups:
    """Values by key, for many keys at once: of(keys) gives the values of all, and how many belong to each."""

    def __init__(self, keys_E: np.ndarray, values_E: np.ndarray, number_of_keys: int) -> None:
        self.values_E = values_E[np.argsort(keys_E, kind="stable")]
        self.counts = np.bincount(keys_E, minlength=number_of_keys)
        self.starts = np.cumsum(self.counts) - self.counts

    def of(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return gather_ranges(self.values_E, self.starts[keys], self.counts[keys]), self.counts[keys]


def item_pairs(sequences: Sequences, settings: PairSettings, seed: int) -> Iterator[Neighbours]:
    """Neighbours of every item that has any, in the order of items."""
    if settings.pairs == "swing":
        return swing(sequences, settings.neighbours, settings.swing_alpha, settings.users_per_item, seed)
    return co_occurrence(sequences, settings.neighbours, settings.window)


def swing(sequences: Sequences, neighbours: int, alpha: float, users_per_item: int, seed: int) -> Iterator[Neighbours]:
    """Weight of items i and j: the sum of 1 / (alpha + |I_u & I_v|) over the pairs of users u, v who took both.

    Repeated events count once. Every unordered pair of users counts once. An item with more than `users_per_item` users
    looks at a sample of them, so the weights of popular items are those among that sample, and (i, j) may weigh
    something else than (j, i).
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
            others, weights = _swing_of(item, users, items_of, alpha)
            bar.update(int(count))
            if len(others):
                yield Neighbours.heaviest(item, others, weights, neighbours)


def _swing_of(item: int, users: np.ndarray, items_of: Groups, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    item_R, counts = items_of.of(users)
    row_R = np.repeat(np.arange(len(users)), counts)
    others, column_R, takers = np.unique(item_R, return_inverse=True, return_counts=True)
    shared = np.flatnonzero((takers > 1) & (others != item))
    place = np.full(len(others), -1)
    place[shared] = np.arange(len(shared))
    column_R = place[column_R]
    parts = [slice(begin, begin + COLUMNS) for begin in range(0, len(shared), COLUMNS)]
    common = np.ones((len(users), len(users)))  # all have the item itself
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
    """Weight of items i and j: how often one is at most `window` events from the other in a user's sequence."""
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


def write_pairs(path: Path, pairs: Iterator[Neighbours], item_ids_M: np.ndarray) -> int:
    """Writes item_id, other_id (the log's ids) and weight, item by item, heaviest first. Returns the rows written."""
    rows, block = 0, 0
    waiting: list[Neighbours] = []
    with pq.ParquetWriter(path, PAIR_SCHEMA) as writer:
        for neighbours in pairs:
            waiting.append(neighbours)
            block += len(neighbours.others_N)
            if block >= ROW_GROUP:
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
