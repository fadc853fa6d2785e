"""What each user liked, in time order, from the train split alone.

E events (rows with label 1), U users with any, M items with any.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from data_prep.parquet_stream import open_stream
from data_prep.progress import rows_bar
from sidrec import schema
from sidrec.schema import ContractError, Manifest

TRAIN = "train"
COLUMNS = [schema.LABEL, schema.USER_ID, schema.ITEM_ID, schema.TIMESTAMP]
ROWS = 65_536  # rows in memory at a time


@dataclass(frozen=True)
class Sequences:
    """Sequences of items, one after the other. Nothing in here depends on the size of the log's vocabularies.

    item_ids_M: int64, ascending: the log's ids. items_E: int64 row numbers in item_ids_M, user by user, oldest first.
    offsets: int64 [U + 1]; user u's events are items_E[offsets[u] : offsets[u + 1]].
    """

    item_ids_M: np.ndarray
    items_E: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(cls, user_E: np.ndarray, item_E: np.ndarray, timestamp_E: np.ndarray) -> "Sequences":
        """Orders events by user and time; equal times keep their order."""
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
        """The same users and items without every user's last event; users may be left with no event."""
        last_U = self.offsets[1:] - 1
        return Sequences(self.item_ids_M, np.delete(self.items_E, last_U), self.offsets - np.arange(self.users + 1))


def read_sequences(data: Path, earliest_share: float = 1.0) -> Sequences:
    """Reads the positives of DATA/log's train split, and opens no other split's files.

    earliest_share: keep the earliest events alone, this share of them; events of the same time stay together.
    Rows of an unknown user or item (id 0) are left out. Raises ContractError for a missing or damaged log, where
    nothing is positive, and for a share outside (0, 1].
    """
    if not 0 < earliest_share <= 1:
        raise ContractError("earliest share", "a share above 0 and at most 1", earliest_share)
    manifest = schema.load_manifest(data / schema.LOG)
    log = data / schema.LOG
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
    log: Path, manifest: Manifest, split: str, bar: tqdm
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Users, items and timestamps of a split's rows with label 1, in the log's order; opens no other split's files.

    Rows of an unknown user or item (id 0) are left out. bar: told of every row read. Raises ContractError for files
    that are missing, damaged or lack values.
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
