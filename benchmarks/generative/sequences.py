"""What each user liked, in time order, from all splits of a log.

E events (rows with label 1), U users with any.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data_prep.item_pairs import positives
from sidrec import schema
from sidrec.schema import ContractError, Manifest

TRAIN, TEST = "train", "test"


@dataclass(frozen=True)
class Sequences:
    """Events user by user, oldest first.

    item_E: int64 item ids. time_E: int64 seconds. train_E, test_E: bool, whether the event lies in the log's train or
    test split. user_U: int64 user ids, ascending. offsets: int64 [U + 1]; the events of user_U[u] are those from
    offsets[u] to offsets[u + 1].
    overlap: whether some split that is not test reaches into the time of the test split.
    """

    item_E: np.ndarray
    time_E: np.ndarray
    train_E: np.ndarray
    test_E: np.ndarray
    user_U: np.ndarray
    offsets: np.ndarray
    overlap: bool

    @property
    def users(self) -> int:
        return len(self.offsets) - 1

    def user_of_event(self) -> np.ndarray:
        """int64 [E]: number of each event's user, from 0."""
        return np.repeat(np.arange(self.users), np.diff(self.offsets))


def read_sequences(data: Path) -> Sequences:
    """Reads the positives of DATA/log; events of a user at the same time keep the order of the log's rows.

    Rows of an unknown user or item (id 0) are left out. Raises ContractError for a missing or damaged log, one without
    a train or test split, and where nothing is positive.
    """
    log = data / schema.LOG
    manifest = schema.load_manifest(log)
    for split in (TRAIN, TEST):
        manifest.files(split)
    splits = sorted(manifest.splits, key=lambda split: (split == TEST, split != TRAIN))
    parts, origin = [], []
    with tqdm(
        total=sum(map(manifest.rows, splits)), desc="read log", unit=" rows", unit_scale=True, disable=None
    ) as bar:
        for split in splits:
            for user, item, time in positives(log, manifest, split, bar):
                parts.append((user, item, time))
                origin.append(np.full(len(user), splits.index(split)))
    if not sum(map(len, origin)):
        raise ContractError(log, "rows with label 1 of known users and items", "none")
    user_E, item_E, time_E = (np.concatenate(column) for column in zip(*parts, strict=True))
    order_E = np.lexsort((time_E, user_E))
    origin_E = np.concatenate(origin)[order_E]
    user_U, first_U = np.unique(user_E[order_E], return_index=True)
    return Sequences(
        item_E[order_E],
        time_E[order_E],
        origin_E == splits.index(TRAIN),
        origin_E == splits.index(TEST),
        user_U,
        np.append(first_U, len(order_E)),
        _overlap(manifest),
    )


def _overlap(manifest: Manifest) -> bool:
    before = [file.last_timestamp for split in manifest.splits if split != TEST for file in manifest.files(split)]
    return max(before) >= min(file.first_timestamp for file in manifest.files(TEST))
