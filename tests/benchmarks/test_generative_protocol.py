"""Which events train and which are predicted; what a catalog may know."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.generative.sequences import (
    Protocol,
    Sequences,
    Windows,
    check_leave_one_out,
    leave_one_out,
    log_split,
    read_sequences,
)
from sidrec.config.learner_parts import Training
from sidrec.config.learners import QuaSidConfig, RandomCodesConfig, TokenizerConfig
from sidrec.schema import LOG, ContractError
from sidrec.sid.learners.registry import fit_tokenizer, save_tokenizer
from sidrec.sid.tokenizer import SideInformation
from tests.benchmarks.generative_log import Event, write_events
from tests.sid.item_files import clustered_vectors

# User 1: items 1 2 3, then 4 5 in test. User 2: item 2, then 3 in test. User 3: items 4 5, no test. User 4: test alone.
TRAIN: list[Event] = [(1, 1, 10), (2, 2, 11), (3, 4, 12), (1, 2, 20), (1, 3, 30), (3, 5, 31)]
TEST: list[Event] = [(4, 1, 40), (1, 4, 41), (2, 3, 41), (1, 5, 42)]


def sequences_of(folder: Path, **splits: list[Event]) -> Sequences:
    return read_sequences(write_events(folder, splits))


def predicted(sequences: Sequences, protocol: Protocol) -> list[list[int]]:
    """Items of every test window: the history and the item to predict."""
    windows = Windows.before(sequences.offsets[:-1], protocol.test_U, 20)
    return [
        sequences.item_E[begin : begin + length].tolist()
        for begin, length in zip(windows.begin_W, windows.length_W, strict=True)
    ]


def test_sequences_are_positives_by_user_and_time(tmp_path: Path) -> None:
    data = write_events(tmp_path, {"train": TRAIN, "test": TEST}, disliked=[(1, 5, 15), (9, 5, 16)])
    sequences = read_sequences(data)
    assert sequences.item_E.tolist() == [1, 2, 3, 4, 5, 2, 3, 4, 5, 1]
    assert sequences.offsets.tolist() == [0, 5, 7, 9, 10]
    assert np.flatnonzero(sequences.test_E).tolist() == [3, 4, 6, 9]
    assert not sequences.overlap


def test_equal_times_keep_the_order_of_rows_and_test_comes_last(tmp_path: Path) -> None:
    sequences = sequences_of(tmp_path, test=[(1, 2, 10)], train=[(1, 9, 10), (1, 3, 10)], validation=[(1, 5, 10)])
    assert sequences.item_E.tolist() == [9, 3, 5, 2]
    assert sequences.train_E.tolist() == [True, True, False, False]
    assert sequences.overlap


def test_unknown_users_and_items_are_left_out(tmp_path: Path) -> None:
    sequences = sequences_of(tmp_path, train=[(0, 1, 1), (1, 0, 2), (1, 2, 3)], test=[(1, 3, 4)])
    assert sequences.item_E.tolist() == [2, 3]


def test_log_split_predicts_the_first_event_of_the_test_split(tmp_path: Path) -> None:
    sequences = sequences_of(tmp_path, train=TRAIN, test=TEST)
    protocol = log_split(sequences, 0.2)  # the 0.8 quantile of 10 11 12 20 30 31 is 30, from below
    assert predicted(sequences, protocol) == [[1, 2, 3, 4], [2, 3]]
    assert (protocol.train_end_U - sequences.offsets[:-1]).tolist() == [2, 1, 1, 0]
    assert protocol.validation_U.tolist() == [2, -1, 8, -1]
    assert protocol.test_U.tolist() == [3, 6, -1, 9]
    assert protocol.known_E.tolist() == (~sequences.test_E).tolist()


def test_leave_one_out_predicts_the_last_event(tmp_path: Path) -> None:
    sequences = sequences_of(tmp_path, train=TRAIN, test=TEST)
    protocol = leave_one_out(sequences)
    assert predicted(sequences, protocol) == [[1, 2, 3, 4, 5], [2, 3], [4, 5]]
    assert (protocol.train_end_U - sequences.offsets[:-1]).tolist() == [3, 0, 0, 0]
    assert protocol.validation_U.tolist() == [3, -1, -1, -1]
    assert np.flatnonzero(~protocol.known_E).tolist() == [4, 6, 8, 9]


def test_log_split_refuses_a_log_with_training_after_a_users_test(tmp_path: Path) -> None:
    sequences = sequences_of(tmp_path, train=[(1, 1, 1), (1, 7, 9)], test=[(1, 2, 5)])
    with pytest.raises(ContractError, match="test events as every user's last, got an event of item 7"):
        log_split(sequences, 0.5)


def test_every_event_but_the_first_is_a_target_once() -> None:
    begin_U, end_U = np.array([0, 7, 8, 10]), np.array([7, 8, 10, 10])
    windows = Windows.over(begin_U, end_U, history=3)
    assert list(zip(windows.begin_W, windows.length_W, strict=True)) == [(0, 4), (3, 4), (8, 2)]
    targets = []
    for window_B in windows.batches(6, np.random.default_rng(0)):
        event_BT, real_BT = windows.events(window_B)
        assert real_BT.size <= 6
        targets += event_BT[:, 1:][real_BT].tolist()
    assert sorted(targets) == [1, 2, 3, 4, 5, 6, 9]


def test_a_window_before_an_event_holds_the_latest_history() -> None:
    windows = Windows.before(np.array([0, 10, 20, 30]), np.array([9, 11, 20, -1]), history=4)
    assert list(zip(windows.begin_W, windows.length_W, strict=True)) == [(5, 5), (10, 2)]
    event_BT, real_BT = windows.events(np.array([0, 1]))
    assert event_BT[:, 1:][real_BT].tolist() == [9, 11]


@pytest.mark.parametrize(
    ("config", "knows"),
    [
        (TokenizerConfig(vectors=("text",), learner=RandomCodesConfig(levels=2, codebook_size=4)), False),
        (TokenizerConfig(vectors=("text", "behavior"), learner=RandomCodesConfig(levels=2, codebook_size=4)), True),
        (
            TokenizerConfig(
                learner=QuaSidConfig(levels=2, codebook_size=4, width=4, hidden=(8,), training=Training(epochs=1))
            ),
            True,
        ),
    ],
)
def test_leave_one_out_refuses_catalogs_that_know_the_answer(
    tmp_path: Path, config: TokenizerConfig, knows: bool
) -> None:
    pairs = np.stack([np.arange(40), (np.arange(40) + 1) % 40], axis=1)
    tokenizer = fit_tokenizer(clustered_vectors(40), config, SideInformation(pairs_P2=pairs))
    (tmp_path / "catalog").mkdir()
    save_tokenizer(tokenizer, config, tmp_path / "catalog" / "tokenizer")
    leaking = sequences_of(tmp_path / "a", train=TRAIN, test=TEST)  # user 3's last event is in train
    apart = sequences_of(tmp_path / "b", train=TRAIN, test=[*TEST, (3, 1, 50)])
    check_leave_one_out(tmp_path / "catalog", apart, leave_one_out(apart))
    if not knows:
        check_leave_one_out(tmp_path / "catalog", leaking, leave_one_out(leaking))
        return
    with pytest.raises(ContractError, match="1 of 4 events to predict are in the train split"):
        check_leave_one_out(tmp_path / "catalog", leaking, leave_one_out(leaking))


def test_leave_one_out_refuses_a_catalog_of_unknown_origin(tmp_path: Path) -> None:
    sequences = sequences_of(tmp_path, train=TRAIN, test=TEST)
    with pytest.raises(ContractError, match="the tokenizer's artifact"):
        check_leave_one_out(tmp_path, sequences, leave_one_out(sequences))


@pytest.mark.parametrize("missing", ["train", "test"])
def test_a_log_without_train_or_test_is_refused(tmp_path: Path, missing: str) -> None:
    data = write_events(tmp_path, {"train": TRAIN, "test": TEST})
    manifest = data / LOG / "manifest.json"
    manifest.write_text(manifest.read_text().replace(f'"{missing}": [', '"other": ['))
    with pytest.raises(ContractError, match=f"got '{missing}'"):
        read_sequences(data)
