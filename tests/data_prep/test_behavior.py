"""Behaviour vectors and pairs as a whole: what is written, that no later event leaks in, bad input, kills."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from data_prep.amazon import AmazonCommand
from data_prep.behavior import SasRecSettings, add_behavior, median_norms, norm_and_frequency
from data_prep.build import LogSettings
from data_prep.item_pairs import PairSettings
from sidrec.schema import ContractError
from tests.data_prep.event_lists import DAY, Event, make_log
from tests.killed import killed_when

SASREC = SasRecSettings(width=8, length=6, epochs=2, batch_events=64, negatives=8)
PAIRS = PairSettings()
ITEMS = 30
LAST_ITEM = Event(1, ITEMS, 0, 0)  # shown, never liked: so that every log has all items


def random_events(seed: int, rows: int, first_day: int, items: range) -> list[Event]:
    random = np.random.default_rng(seed)
    days = first_day + np.sort(random.integers(0, 100, rows))
    return [
        Event(int(user), int(item), int(day) * DAY, int(label))
        for user, item, day, label in zip(
            random.integers(1, 25, rows), random.choice(items, rows), days, random.integers(0, 2, rows), strict=True
        )
    ]


EARLY = [LAST_ITEM, *random_events(0, 799, 1, range(1, 21))]
LATE = random_events(1, 200, 200, range(1, ITEMS + 1))


def make(folder: Path, late: list[Event]) -> Path:
    make_log(EARLY + late, folder, test_share=0.1, validation_share=0.1)
    return folder


def behavior_of(data: Path) -> np.ndarray:
    return np.array(pq.read_table(data / "items.parquet")["behavior"].to_pylist(), dtype=np.float32)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = make(tmp_path_factory.mktemp("behavior") / "data", LATE)
    add_behavior(data, SASREC, PAIRS)
    return data


def test_written_files(world: Path, tmp_path: Path) -> None:
    plain = pq.read_table(make(tmp_path / "data", LATE) / "items.parquet")
    table = pq.read_table(world / "items.parquet")
    assert table.drop_columns(["behavior"]).equals(plain)
    vectors = behavior_of(world)
    assert vectors.shape == (ITEMS, 8)
    assert vectors[:20].any(axis=1).all()
    assert not vectors[20:].any()  # items of later splits, and the one that nobody liked
    pairs = pq.read_table(world / "pairs.parquet")
    assert set(pairs["item_id"].to_pylist()) == set(range(1, 21))
    facts = json.loads((world / "behavior.json").read_text())
    assert facts["settings"]["seed"] == 0
    assert len(facts["loss"]) == 2
    assert facts["pairs"]["rows"] == pairs.num_rows
    assert facts["next_item"]["users"] > 0
    assert facts["norm_and_frequency"]["items"] == 20
    assert (world / "behavior.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in world.iterdir()) == [
        "behavior.json",
        "behavior.png",
        "ids",
        "items.parquet",
        "log",
        "pairs.parquet",
    ]


@pytest.mark.parametrize("change", ["labels", "items", "all"])
@pytest.mark.parametrize("pairs", ["swing", "co_occurrence"])
def test_no_bit_depends_on_later_splits(world: Path, tmp_path: Path, change: str, pairs: Any) -> None:
    settings = PairSettings(pairs=pairs)
    if pairs != "swing":
        world = make(tmp_path / "same", LATE)
        add_behavior(world, SASREC, settings, check=False)
    late = {
        "labels": [event._replace(label=1 - event.label) for event in LATE],
        "items": [event._replace(item=event.item % ITEMS + 1) for event in LATE],
        "all": random_events(2, 200, 300, range(1, 11)),
    }[change]
    other = make(tmp_path / "other", late)
    assert (other / "log" / "test" / "part-00000.parquet").read_bytes() != next(
        (world / "log" / "test").iterdir()
    ).read_bytes()
    add_behavior(other, SASREC, settings, check=False)
    assert behavior_of(other).tobytes() == behavior_of(world).tobytes()
    assert (other / "pairs.parquet").read_bytes() == (world / "pairs.parquet").read_bytes()


def test_train_events_do_change_them(world: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    disliked = [event._replace(label=0) if event.item == 3 else event for event in EARLY]
    make_log(disliked + LATE, data, test_share=0.1, validation_share=0.1)
    add_behavior(data, SASREC, PAIRS, check=False)
    assert behavior_of(data).any(axis=1).tolist() == [item <= 20 and item != 3 for item in range(1, ITEMS + 1)]
    assert (behavior_of(data)[0] != behavior_of(world)[0]).any()
    assert (data / "pairs.parquet").read_bytes() != (world / "pairs.parquet").read_bytes()


def test_second_run_replaces_the_column(tmp_path: Path) -> None:
    data = make(tmp_path / "data", LATE)
    add_behavior(data, SASREC, PAIRS, check=False)
    first = (data / "items.parquet").read_bytes()
    add_behavior(data, SASREC, PAIRS, check=False)
    assert (data / "items.parquet").read_bytes() == first
    add_behavior(data, replace(SASREC, width=4), PAIRS, check=False)
    assert behavior_of(data).shape == (ITEMS, 4)


def test_correlations_by_hand() -> None:
    vectors = np.array([[3, 4], [0, 1], [0, -2], [10, 0]], dtype=np.float32)  # lengths 5, 1, 2, 10
    found = norm_and_frequency(vectors, np.array([7, 2, 2, 30]))
    assert found["spearman"] == pytest.approx(4.5 / np.sqrt(5 * 4.5))  # ranks 3, 1, 2, 4 and 3, 1.5, 1.5, 4
    lengths, frequency = np.array([5, 1, 2, 10]), np.array([7, 2, 2, 30])
    centred = lengths - lengths.mean(), frequency - frequency.mean()
    expected = (centred[0] @ centred[1]) / np.sqrt((centred[0] @ centred[0]) * (centred[1] @ centred[1]))
    assert found["pearson"] == pytest.approx(expected)
    assert norm_and_frequency(vectors, np.full(4, 3))["spearman"] is None


def test_medians_by_frequency() -> None:
    frequency, norm = median_norms(np.array([1.0, 3.0, 2.0, 9.0]), np.array([1, 1, 1, 100]))
    assert frequency.tolist() == [1, 100]
    assert norm.tolist() == [2, 9]


def untouched(data: Path, words: str, sasrec: SasRecSettings = SASREC, pairs: PairSettings = PAIRS) -> None:
    before = {path: path.stat().st_mtime_ns for path in data.iterdir()}
    with pytest.raises(ContractError, match=words):
        add_behavior(data, sasrec, pairs)
    assert {path: path.stat().st_mtime_ns for path in data.iterdir()} == before


def test_bad_input_changes_no_file(tmp_path: Path) -> None:
    data = make(tmp_path / "data", LATE)
    untouched(data, "--width: expected at least 1, got 0", sasrec=replace(SASREC, width=0))
    untouched(data, "--window: expected at least 1, got 0", pairs=replace(PAIRS, window=0))
    items = pq.read_table(data / "items.parquet")
    pq.write_table(items.filter(np.arange(ITEMS) != 4), data / "items.parquet")
    untouched(data, "a row for every item of the train split, got none for 1 of them, item 5 first")
    gap = items.filter(np.arange(ITEMS) != 25)
    pq.write_table(gap, data / "items.parquet")
    untouched(data, "every id from 1 to the number of rows 29 once, as data_prep writes them, got ids from 1 to 30")
    pq.write_table(items.drop_columns(["item_id"]), data / "items.parquet")
    untouched(data, "items.parquet: expected a readable parquet file with a column item_id")
    (data / "items.parquet").unlink()
    untouched(data, "items.parquet: expected an items.parquet, as data_prep writes it, got no such file")


def test_killed_while_writing_leaves_old_files_and_the_next_run_finishes(tmp_path: Path) -> None:
    data = make(tmp_path / "data", LATE)
    before = (data / "items.parquet").read_bytes()
    command = ["-m", "data_prep.behavior", str(data), "--width", "8", "--epochs", "1", "--no-check"]
    killed_when(data / "behavior.json.partial", command)  # the picture is drawn next, and only then come the renames
    assert (data / "items.parquet").read_bytes() == before
    assert not any((data / name).exists() for name in ("pairs.parquet", "behavior.json", "behavior.png"))
    add_behavior(data, SASREC, PAIRS, check=False)
    assert behavior_of(data).any()
    assert not list(data.glob("*.partial"))


@pytest.mark.real_data
def test_beauty(real_data: Path, tmp_path: Path) -> None:
    AmazonCommand(
        real_data / "amazon-beauty", tmp_path / "data", LogSettings(validation_share=0.0), vectors="none"
    ).run()
    add_behavior(tmp_path / "data", replace(SASREC, epochs=1, length=50, batch_events=2048), PAIRS, check=False)
    assert (~behavior_of(tmp_path / "data").any(axis=1)).sum() == 142  # items that only later splits have
    assert pq.read_table(tmp_path / "data" / "pairs.parquet").num_rows > 60_000
