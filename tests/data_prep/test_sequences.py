"""Positives of the train split as sequences."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from data_prep.item_pairs import Sequences, read_sequences
from sidrec.schema import ContractError
from tests.data_prep.event_lists import DAY, Event, make_log

EVENTS = [
    Event(user, item, day * DAY, label)
    for day, user, item, label in [
        (1, 2, 5, 1),
        (2, 1, 3, 1),
        (2, 1, 1, 0),
        (3, 2, 1, 1),
        (3, 2, 3, 1),
        (4, 3, 2, 0),
        (5, 1, 5, 1),
        (6, 2, 5, 1),
        (7, 1, 4, 1),
        (8, 2, 4, 1),
    ]
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    make_log(EVENTS, tmp_path / "data", test_share=0.1, validation_share=0.1)
    return tmp_path / "data"


def test_positives_of_train_by_user_and_time(data: Path) -> None:
    sequences = read_sequences(data)
    assert sequences.item_ids_M.tolist() == [1, 3, 5]  # 2 was never liked, 4 only later than train
    assert sequences.item_ids_M[sequences.items_E].tolist() == [5, 1, 3, 5, 3, 5]
    assert sequences.offsets.tolist() == [0, 4, 6]  # one user liked nothing
    assert sequences.lengths().tolist() == [4, 2]
    assert sequences.frequencies().tolist() == [1, 2, 3]


def test_the_earliest_share_with_all_events_of_its_last_moment(data: Path) -> None:
    half = read_sequences(data, 0.5)  # the third of six is one of two on day 3
    assert half.item_ids_M[half.items_E].tolist() == [5, 1, 3, 3]
    assert half.lengths().tolist() == [3, 1]
    assert read_sequences(data, 0.01).items_E.tolist() == [0]
    for share in (0.0, 1.5, float("nan")):
        with pytest.raises(ContractError, match=r"earliest share: expected a share above 0 and at most 1, got"):
            read_sequences(data, share)


def test_equal_times_keep_their_order() -> None:
    sequences = Sequences.of(np.array([7, 7, 4, 7]), np.array([30, 20, 30, 10]), np.array([5, 5, 9, 1]))
    assert sequences.item_ids_M[sequences.items_E].tolist() == [30, 10, 30, 20]


def test_without_last_event() -> None:
    sequences = Sequences(np.array([10, 20]), np.array([0, 1, 1, 0, 1]), np.array([0, 3, 4, 5]))
    shorter = sequences.without_last()
    assert shorter.items_E.tolist() == [0, 1]
    assert shorter.offsets.tolist() == [0, 2, 2, 2]
    assert shorter.item_ids_M.tolist() == [10, 20]


def test_unknown_users_and_items_are_left_out(data: Path) -> None:
    path = next((data / "log" / "train").iterdir())
    table = pq.read_table(path)
    known = read_sequences(data)
    for column in ("user_id", "item_id"):
        ids = table[column].to_numpy().copy()
        ids[0] = 0  # user 2's first event
        pq.write_table(table.set_column(table.column_names.index(column), column, [ids]), path)
        without = read_sequences(data)
        assert len(without.items_E) == len(known.items_E) - 1
        assert without.item_ids_M[without.items_E].tolist() == [1, 3, 5, 3, 5]


def test_only_files_of_train_are_opened(data: Path) -> None:
    for split in ("validation", "test"):
        for path in (data / "log" / split).iterdir():
            path.write_bytes(b"not parquet")
    assert read_sequences(data).users == 2


def test_log_that_cannot_be_used(data: Path) -> None:
    path = next((data / "log" / "train").iterdir())
    table = pq.read_table(path)
    place = table.column_names.index("label")
    pq.write_table(table.set_column(place, table.field("label"), [np.zeros(len(table), np.float32)]), path)
    with pytest.raises(ContractError, match=r"log: expected rows with label 1 .* split train, got none in 8 rows"):
        read_sequences(data)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ContractError, match=r"part-00000.parquet: expected a readable parquet file"):
        read_sequences(data)
    path.unlink()
    with pytest.raises(ContractError, match="a file of the split train, as the manifest says, got no such file"):
        read_sequences(data)
    with pytest.raises(ContractError, match=r"manifest.json: expected a log manifest"):
        read_sequences(data / "log")
