"""Swing and co-occurrence against slow loops over users."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.item_pairs import Neighbours, PairSettings, Sequences, co_occurrence, swing, write_pairs
from sidrec.schema import ContractError

EVERYBODY = 10_000


def sequences_of(*histories: list[int]) -> Sequences:
    """Users' sequences of items 0, 1, 2..., all of which occur."""
    items = np.concatenate([np.array(history, dtype=np.int64) for history in histories])
    offsets = np.cumsum([0] + [len(history) for history in histories])
    return Sequences(np.arange(items.max() + 1) * 10, items, offsets)


def random_histories(users: int = 60, items: int = 25, seed: int = 0) -> list[list[int]]:
    random = np.random.default_rng(seed)
    drawn = [(random.zipf(1.4, random.integers(1, 12)) % items).tolist() for _ in range(users)]
    return [*drawn, list(range(items))]


def weights_of(pairs: Iterator[Neighbours]) -> dict[tuple[int, int], float]:
    return {
        (neighbours.item, int(other)): float(weight)
        for neighbours in pairs
        for other, weight in zip(neighbours.others_N, neighbours.weights_N, strict=True)
    }


def slow_swing(histories: list[list[int]], alpha: float) -> dict[tuple[int, int], float]:
    weights: defaultdict[tuple[int, int], float] = defaultdict(float)
    for one, other in combinations([set(history) for history in histories], 2):
        for item in one & other:
            for partner in (one & other) - {item}:
                weights[item, partner] += 1 / (alpha + len(one & other))
    return dict(weights)


def slow_co_occurrence(histories: list[list[int]], window: int) -> dict[tuple[int, int], float]:
    weights: Counter[tuple[int, int]] = Counter()
    for history in histories:
        for place, item in enumerate(history):
            for partner in history[place + 1 : place + 1 + window]:
                if partner != item:
                    weights[item, partner] += 1
                    weights[partner, item] += 1
    return {pair: float(weight) for pair, weight in weights.items()}


def test_swing_by_hand() -> None:
    # users 0, 1 share {0, 1}: 1 / (1 + 2). Users 0, 2 share {0, 1, 2}: 1 / (1 + 3). Users 1, 2 share {0, 1}: 1 / 3.
    found = weights_of(swing(sequences_of([0, 1, 2], [1, 0, 0], [0, 2, 1], [2]), 20, 1.0, EVERYBODY, 0))
    expected = {(0, 1): 2 / 3 + 1 / 4, (0, 2): 1 / 4, (1, 2): 1 / 4}
    assert found == pytest.approx(expected | {(j, i): weight for (i, j), weight in expected.items()})


@pytest.mark.parametrize("columns", [4096, 3])
@pytest.mark.parametrize("alpha", [1.0, 0.0, 5.0])
def test_swing_equals_the_loop_over_pairs_of_users(alpha: float, columns: int) -> None:
    histories = random_histories()
    found = weights_of(swing(sequences_of(*histories), 1000, alpha, EVERYBODY, 0, columns))
    assert found == pytest.approx(slow_swing(histories, alpha), rel=1e-6)
    assert len(found) > 100


def test_popular_items_look_at_a_sample_of_their_users() -> None:
    alike = sequences_of(*[[0, 1]] * 5)
    assert weights_of(swing(alike, 20, 1.0, EVERYBODY, 0)) == pytest.approx({(0, 1): 10 / 3, (1, 0): 10 / 3})
    assert weights_of(swing(alike, 20, 1.0, 3, 0)) == pytest.approx({(0, 1): 3 / 3, (1, 0): 3 / 3})
    many = sequences_of(*random_histories(300))
    first, again, other = (weights_of(swing(many, 20, 1.0, 10, seed)) for seed in (0, 0, 1))
    assert first == again
    assert first != other


@pytest.mark.parametrize("window", [1, 3])
def test_co_occurrence_equals_the_loop(window: int) -> None:
    histories = random_histories()
    found = weights_of(co_occurrence(sequences_of(*histories), 1000, window))
    assert found == slow_co_occurrence(histories, window)


def test_heaviest_neighbours_first_and_equal_ones_by_item() -> None:
    kept = Neighbours.heaviest(7, np.array([4, 1, 3, 2]), np.array([1.0, 2.0, 1.0, 5.0]), 3)
    assert kept.others_N.tolist() == [2, 1, 3]
    assert kept.weights_N.tolist() == [5, 2, 1]


def test_file_has_the_log_s_ids_block_by_block(tmp_path: Path) -> None:
    pairs = [(0, [2, 1]), (1, [0]), (2, [0, 1, 3])]
    neighbours = [Neighbours(item, np.array(others), np.ones(len(others), np.float32)) for item, others in pairs]
    rows = write_pairs(tmp_path / "pairs.parquet", iter(neighbours), np.array([5, 6, 7, 9]), row_group=2)
    table = pq.read_table(tmp_path / "pairs.parquet")
    assert rows == 6
    assert table["item_id"].to_pylist() == [5, 5, 6, 7, 7, 7]
    assert table["other_id"].to_pylist() == [7, 6, 5, 5, 6, 9]
    assert table.schema.types == [pa.int64(), pa.int64(), pa.float32()]
    assert pq.ParquetFile(tmp_path / "pairs.parquet").num_row_groups == 2


def test_nobody_shares_two_items(tmp_path: Path) -> None:
    assert write_pairs(tmp_path / "pairs.parquet", swing(sequences_of([0, 1], [1, 2]), 5, 1.0, 9, 0), np.arange(3)) == 0
    assert pq.read_table(tmp_path / "pairs.parquet").num_rows == 0


@pytest.mark.parametrize(
    ("flag", "value"),
    [("neighbours", 0), ("swing_alpha", -1.0), ("swing_alpha", np.nan), ("users_per_item", 1), ("window", 0)],
)
def test_settings_that_make_no_sense(flag: str, value: float) -> None:
    settings: dict[str, Any] = {flag: value}
    with pytest.raises(ContractError, match=f"--{flag.replace('_', '-')}: expected"):
        PairSettings(**settings).check()
