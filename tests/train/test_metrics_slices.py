"""Head, torso, tail and cold by train impressions."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from sidrec.metrics.slices import ItemSlices, load_item_slices, slice_items
from sidrec.schema import LOG, ContractError, LogFile, Manifest, save_manifest


def _slices(impressions: dict[int, int], head_share: float = 0.2, tail_share: float = 0.4) -> ItemSlices:
    items, counts = np.array(list(impressions)), np.array(list(impressions.values()))
    return slice_items(items, counts, head_share, tail_share)


def _members(slices: ItemSlices) -> dict[str, list[int]]:
    return {name: slices.item_I[member].tolist() for name, member in slices.members.items()}


def test_items_are_ranked_by_impressions_and_ties_by_id() -> None:
    # ranked: 30 (9), 20 (5), 40 (5), 10 (2), 50 (0); head round(.2 * 5) = 1, tail round(.4 * 5) = 2
    slices = _slices({10: 2, 50: 0, 40: 5, 30: 9, 20: 5})
    assert _members(slices) == {"head": [30], "torso": [20, 40], "tail": [10, 50], "cold": [50]}


def test_a_tie_at_the_cut_goes_to_the_lower_id() -> None:
    # ranked: 1, 2, 3, 4, 5, all with 3 impressions
    slices = _slices({5: 3, 4: 3, 3: 3, 2: 3, 1: 3})
    assert _members(slices) == {"head": [1], "torso": [2, 3], "tail": [4, 5], "cold": []}


def test_cold_items_are_tail_even_where_they_outnumber_its_share() -> None:
    # tail by share alone would be 4 and 5
    slices = _slices({1: 8, 2: 0, 3: 0, 4: 0, 5: 0})
    assert _members(slices) == {"head": [1], "torso": [], "tail": [2, 3, 4, 5], "cold": [2, 3, 4, 5]}


def test_no_item_seen_in_train_means_no_head() -> None:
    assert _members(_slices({1: 0, 2: 0}, head_share=0.5))["head"] == []


def test_masks_follow_the_rows_and_unknown_items_are_in_all_only() -> None:
    slices = _slices({10: 2, 50: 0, 40: 5, 30: 9, 20: 5})
    masks: dict[str, NDArray[np.bool_]] = dict(slices.masks(np.array([50, 0, 30, 10, 30, 20])))
    assert list(masks) == ["all", "head", "torso", "tail", "cold"]
    assert masks["all"].tolist() == [True] * 6
    assert masks["head"].tolist() == [False, False, True, False, True, False]
    assert masks["torso"].tolist() == [False, False, False, False, False, True]
    assert masks["tail"].tolist() == [True, False, False, True, False, False]
    assert masks["cold"].tolist() == [True, False, False, False, False, False]


@pytest.mark.parametrize("stray", [5, 60, -1])
def test_an_item_that_is_not_listed_is_named(stray: int) -> None:
    slices = _slices({10: 2, 50: 0})
    with pytest.raises(ContractError, match=rf"column item_id: expected items of items.parquet, got {stray}"):
        list(slices.masks(np.array([10, stray])))


def test_overlapping_shares_are_refused() -> None:
    with pytest.raises(ValueError, match=r"head_share \+ tail_share of at most 1, got 0.6 \+ 0.5"):
        _slices({1: 1}, head_share=0.6, tail_share=0.5)


def test_an_item_listed_twice_is_refused() -> None:
    with pytest.raises(ContractError, match="each item once, got 4 twice"):
        slice_items(np.array([4, 5, 4]), np.array([1, 2, 3]), 0.1, 0.5)


def test_slices_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "items.parquet"
    pq.write_table(pa.table({"item_id": [3, 1, 2, 4], "train_impressions": [7, 0, 5, 1]}), path)
    assert _members(load_item_slices(path, 0.25, 0.5)) == {"head": [3], "torso": [2], "tail": [1, 4], "cold": [1]}


def test_rows_of_every_split_trained_on_are_impressions(tmp_path: Path) -> None:
    path = tmp_path / "items.parquet"
    pq.write_table(pa.table({"item_id": [3, 1, 2, 4], "train_impressions": [7, 0, 5, 1]}), path)
    file = LogFile("validation/part-0.parquet", 9, 0, 0)
    (tmp_path / LOG / "validation").mkdir(parents=True)
    # Item 0 is unknown. With validation: 3 has 7, 1 has 2, 2 has 5, 4 has 6 impressions.
    pq.write_table(pa.table({"item_id": [4, 0, 1, 4, 4, 1, 4, 4, 0]}), tmp_path / LOG / file.path)
    ids = {"user_id": 2, "item_id": 5}
    save_manifest(Manifest("by hand", 0, ids, (), (), 1, {"validation": (file,)}), tmp_path / LOG)
    found = load_item_slices(path, 0.25, 0.5, ("train", "validation"))
    assert _members(found) == {"head": [3], "torso": [4], "tail": [1, 2], "cold": []}
    with pytest.raises(ContractError, match="one of the splits"):
        load_item_slices(path, 0.25, 0.5, ("train", "later"))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"item_id": [1]}, "expected a column train_impressions"),
        ({"item_id": [1], "train_impressions": [1.5]}, "column train_impressions: expected int64, got double"),
        ({"item_id": [1, 2], "train_impressions": [1, None]}, "column train_impressions: expected no missing value"),
        ({"item_id": [1, 2], "train_impressions": [1, -3]}, "column train_impressions: expected counts of at least 0"),
    ],
)
def test_a_broken_items_file_is_refused_by_column(
    tmp_path: Path, columns: dict[str, list[float]], message: str
) -> None:
    path = tmp_path / "items.parquet"
    pq.write_table(pa.table(columns), path)
    with pytest.raises(ContractError, match=message):
        load_item_slices(path, 0.1, 0.5)


def test_a_file_that_is_no_parquet_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "items.parquet"
    path.write_text("PAR1 no more")
    with pytest.raises(ContractError, match=r"items.parquet: expected a readable parquet file"):
        load_item_slices(path, 0.1, 0.5)
