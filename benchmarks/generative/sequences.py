"""What each user liked, in time order; which events train and which are predicted; and windows of them for the model.

E events (rows with label 1), U users with any, W windows, B windows of a batch, T items of a history, L levels.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.item_pairs import positives
from sidrec import schema
from sidrec.io.progress import Bar
from sidrec.schema import BEHAVIOR, ContractError, Manifest
from sidrec.sid.catalog import TOKENIZER
from sidrec.sid.learners.registry import learner_inputs, load_tokenizer

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
    with Bar(total=sum(map(manifest.rows, splits)), desc="read log", unit=" rows", unit_scale=True) as bar:
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


# Protocols: events that train, that stop the training, and that are predicted.

NO_EVENT = -1


@dataclass(frozen=True)
class Protocol:
    """Numbers of events; a user's history are his events before the one in hand.

    train_end_U: a user's training events are those from offsets[u] to train_end_U[u].
    validation_U, test_U: the event to predict, or NO_EVENT. A validation event has a history.
    known_E: bool, events that count for popularity: all that no test predicts or follows.
    """

    train_end_U: np.ndarray
    validation_U: np.ndarray
    test_U: np.ndarray
    known_E: np.ndarray


def log_split(sequences: Sequences, validation_share: float) -> Protocol:
    """Predicts each user's first event of the test split, from his events of the other splits.

    The latest `validation_share` of those others, by time over all users, is kept from training; each user's first
    event therein is the one to validate on. Raises ContractError for a log in which a user's test events are not his
    last ones.
    """
    user_E, test_E = sequences.user_of_event(), sequences.test_E
    back = np.flatnonzero((user_E[1:] == user_E[:-1]) & test_E[:-1] & ~test_E[1:])
    if len(back):
        item = sequences.item_E[back[0] + 1]
        raise ContractError("log", "test events as every user's last", f"an event of item {item} after one of them")
    if not (~test_E).any():
        raise ContractError("log", "rows with label 1 outside the split test", "none")
    cut = np.quantile(sequences.time_E[~test_E], 1 - validation_share, method="lower")
    train_end_U = sequences.offsets[:-1] + _count(sequences, ~test_E & (sequences.time_E < cut))
    test_begin_U = sequences.offsets[:-1] + _count(sequences, ~test_E)
    usable_U = (train_end_U > sequences.offsets[:-1]) & (train_end_U < test_begin_U)
    validation_U = np.where(usable_U, train_end_U, NO_EVENT)
    test_U = np.where(test_begin_U < sequences.offsets[1:], test_begin_U, NO_EVENT)
    return Protocol(train_end_U, validation_U, test_U, ~test_E)


def leave_one_out(sequences: Sequences) -> Protocol:
    """Predicts each user's last event; the one before it validates where it has a history, all others train."""
    begin_U, end_U = sequences.offsets[:-1], sequences.offsets[1:]
    test_U = end_U - 1
    validation_U = np.where(end_U - begin_U > 2, end_U - 2, NO_EVENT)
    known_E = np.ones(len(sequences.item_E), dtype=bool)
    known_E[test_U] = False
    return Protocol(np.maximum(end_U - 2, begin_U), validation_U, test_U, known_E)


def check_leave_one_out(catalog: Path, sequences: Sequences, protocol: Protocol) -> None:
    """Refuses a catalog that may know the events to predict: `sidrec fit` learns from behaviour of the train split.

    Content alone is safe. Behaviour vectors and item pairs are, where no event to predict lies in the train split.
    Raises ContractError otherwise, and where the catalog does not say how it came to be.
    """
    folder = catalog / TOKENIZER
    if not folder.is_dir():
        expected = "the tokenizer's artifact for --protocol leave-one-out, as it says whether SIDs know behaviour"
        raise ContractError(folder, expected, "no such folder")
    _, config = load_tokenizer(folder)
    inputs = learner_inputs(config.learner)
    seen = int(sequences.train_E[protocol.test_U].sum())
    if (inputs.pairs or inputs.behavior or BEHAVIOR in config.vectors) and seen:
        expected = "for --protocol leave-one-out a tokenizer without behaviour vectors and item pairs"
        got = f"one with them, and {seen} of {len(protocol.test_U)} events to predict are in the train split it saw"
        raise ContractError(folder, expected, got)


def _count(sequences: Sequences, chosen_E: np.ndarray) -> np.ndarray:
    """int64 [U]: chosen events of each user."""
    return np.add.reduceat(chosen_E, sequences.offsets[:-1], dtype=np.int64)


# Windows: a history of bounded length, and the next item as the target of each of its items.


@dataclass(frozen=True)
class Windows:
    """Window w has events begin_W[w] to begin_W[w] + length_W[w], the last of which is only a target.

    every_target: whether all but the first event are targets, or the last one alone.
    """

    begin_W: np.ndarray
    length_W: np.ndarray
    every_target: bool

    @classmethod
    def over(cls, begin_U: np.ndarray, end_U: np.ndarray, history: int) -> "Windows":
        """Cuts events begin_U[u] to end_U[u], so that each but a user's first is a target once."""
        targets_U = np.maximum(end_U - begin_U - 1, 0)
        pieces_U = -(-targets_U // history)
        user_W = np.repeat(np.arange(len(begin_U)), pieces_U)
        place_W = np.arange(len(user_W)) - np.repeat(np.cumsum(pieces_U) - pieces_U, pieces_U)
        begin_W = begin_U[user_W] + place_W * history
        return cls(begin_W, np.minimum(end_U[user_W] - begin_W, history + 1), True)

    @classmethod
    def before(cls, begin_U: np.ndarray, event_U: np.ndarray, history: int) -> "Windows":
        """One window for each user with an event to predict and a history, which lasts up to that event."""
        usable_U = (event_U != NO_EVENT) & (event_U > begin_U)
        begin_W = np.maximum(begin_U[usable_U], event_U[usable_U] - history)
        return cls(begin_W, event_U[usable_U] - begin_W + 1, False)

    def __len__(self) -> int:
        return len(self.begin_W)

    def batches(self, items: int, random: np.random.Generator) -> Iterator[np.ndarray]:
        """All windows in random batches of like lengths, at most `items` long with padding; yields window numbers."""
        by_length_W = np.lexsort((random.random(len(self)), -self.length_W))
        cuts = [0]
        while cuts[-1] < len(by_length_W):
            cuts.append(cuts[-1] + max(1, items // (int(self.length_W[by_length_W[cuts[-1]]]) - 1)))
        for number in random.permutation(len(cuts) - 1):
            yield by_length_W[cuts[number] : cuts[number + 1]]

    def events(self, window_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Events int64 [B, T + 1], padded at the end with the window's first, and which of the T targets are wanted."""
        length_B = self.length_W[window_B][:, None]
        place_T = np.arange(int(length_B.max()))
        event_BT = self.begin_W[window_B][:, None] + np.where(place_T < length_B, place_T, 0)
        target_T = place_T[1:]
        return event_BT, target_T < length_B if self.every_target else target_T == length_B - 1
