"""Data folders of the claim's studies: the log cut earlier in time, and the sets by name."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from benchmarks.claim_data import BEAUTY, BEAUTY_VECTORS, MOVIELENS, SETS, X1, early_source, prepare_sets
from data_prep.negatives import Pool
from sidrec import schema
from sidrec.errors import ContractError


def test_an_early_log_ends_before_its_last_events_and_knows_only_its_own_items(tmp_path: Path) -> None:
    """Ten events; the 9th in time order is at second 40, as the 8th is: both are left out, and item c with them."""
    times, items = [90, 10, 20, 30, 5, 15, 25, 40, 40, 35], list("cabaabbcca")
    pl.DataFrame({"user_id": range(10), "item_id": items, "timestamp": times}).write_csv(
        tmp_path / "interactions.csv.gz", compression="gzip"
    )
    pl.DataFrame({"item_id": list("bca"), "title": list("BCA")}).write_csv(
        tmp_path / "items.csv.gz", compression="gzip"
    )
    np.save(tmp_path / BEAUTY_VECTORS, np.arange(6.0).reshape(3, 2))
    folder = early_source(BEAUTY, tmp_path, tmp_path / "early")
    assert sorted(pl.read_csv(folder / "interactions.csv.gz")["timestamp"]) == [5, 10, 15, 20, 25, 30, 35]
    assert pl.read_csv(folder / "items.csv.gz").rows() == [("b", "B"), ("a", "A")]
    assert np.load(folder / BEAUTY_VECTORS).tolist() == [[0.0, 1.0], [4.0, 5.0]]


def test_sets_are_prepared_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("wordllama")
    raw = tmp_path / "raw" / MOVIELENS.folder
    raw.mkdir(parents=True)
    ratings = {"userId": [1, 2] * 30, "movieId": [1, 2, 3] * 20, "rating": [5.0, 2.0, 3.0] * 20}
    pl.DataFrame({**ratings, "timestamp": range(60)}).write_csv(raw / "ratings.csv")
    pl.DataFrame({"movieId": [1, 2, 3], "title": list("ABC"), "genres": ["Drama"] * 3}).write_csv(raw / "movies.csv")
    prepare_sets(tmp_path / "raw", tmp_path / "out", ["movielens", "movielens_early"])
    rows = {
        name: {split: schema.load_manifest(tmp_path / "out" / name / "log").rows(split) for split in ("train", "test")}
        for name in ("movielens", "movielens_early")
    }
    assert rows == {"movielens": {"train": 48, "test": 6}, "movielens_early": {"train": 38, "test": 5}}
    before = (tmp_path / "out" / "movielens" / "items.parquet").stat().st_mtime_ns
    prepare_sets(tmp_path / "raw", tmp_path / "out", ["movielens"])
    assert (tmp_path / "out" / "movielens" / "items.parquet").stat().st_mtime_ns == before
    with pytest.raises(ContractError, match=f"some of {', '.join(SETS)}"):
        prepare_sets(tmp_path / "raw", tmp_path / "out", ["movielense"])


def test_negatives_of_x1_are_uniform_over_launched_items() -> None:
    """Item 7 has all positives of the window and is its only launch; each of the four items gets a quarter."""
    pool = Pool(np.array([7]), np.full(100, 7), np.array([3, 5, 7, 9]), X1.floor_weight, X1.launch_draws)
    items, drawn = np.unique(pool.pick((np.arange(1000) + 0.5) / 1000), return_counts=True)
    assert items.tolist() == [3, 5, 7, 9]
    assert drawn.tolist() == [250] * 4
