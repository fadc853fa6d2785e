"""Which events train, which stop the training, which are predicted; and whether the catalog may know the last ones.

E events, U users.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.generative.sequences import Sequences
from sidrec.schema import BEHAVIOR, ContractError
from sidrec.sid.catalog import TOKENIZER
from sidrec.sid.learners.registry import learner_inputs, load_tokenizer

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
