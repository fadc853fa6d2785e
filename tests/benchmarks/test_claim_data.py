"""Data folders of the claim's studies: the log cut earlier in time, and the sets by name."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from benchmarks.claim_data import BEAUTY, BEAUTY_VECTORS, LATER_SETS, SETS, X1, YELP, early_source, prepare_sets
from benchmarks.claim_sets import SplitSize, set_size
from benchmarks.claim_sets import table as table_of
from data_prep.negatives import Pools, places
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


def _positives(split: Path) -> int:
    return int(pl.read_parquet(split / "*.parquet")["label"].sum())


def test_sets_are_prepared_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("wordllama")
    raw = tmp_path / "raw" / YELP.folder
    raw.mkdir(parents=True)
    visits = {"user_id": range(60), "item_id": [f"i{n % 7}" for n in range(60)], "timestamp": range(0, 6000, 100)}
    pl.DataFrame(visits).write_csv(raw / "interactions.csv.gz", compression="gzip")
    items = pl.DataFrame({"item_id": [f"i{n}" for n in range(7)], "categories": ["Food|Pizza"] * 7})
    items.write_csv(raw / "items.csv.gz", compression="gzip")
    prepare_sets(tmp_path / "raw", tmp_path / "out", ["yelp", "yelp_early"])
    visits_of = {
        name: [_positives(tmp_path / "out" / name / "log" / split) for split in ("train", "validation", "test")]
        for name in ("yelp", "yelp_early")
    }
    assert visits_of == {"yelp": [48, 6, 6], "yelp_early": [38, 5, 5]}
    before = (tmp_path / "out" / "yelp" / "items.parquet").stat().st_mtime_ns
    prepare_sets(tmp_path / "raw", tmp_path / "out", ["yelp"])
    assert (tmp_path / "out" / "yelp" / "items.parquet").stat().st_mtime_ns == before
    with pytest.raises(ContractError, match=f"some of {', '.join(SETS | LATER_SETS)}"):
        prepare_sets(tmp_path / "raw", tmp_path / "out", ["yelpp"])


def test_movielens_100k_comes_from_the_files_of_recbole(tmp_path: Path) -> None:
    """Ten films, the first with two genres; ratings from 4 stars are positive, the last tenth of them is test."""
    pytest.importorskip("wordllama")
    files = tmp_path / "raw" / "ml-100k"
    files.mkdir(parents=True)
    films = [f"{n}\tFilm {n}\t19{n + 60}\tComedy{' Crime' * (n == 1)}" for n in range(1, 11)]
    (files / "ml-100k.item").write_text("\n".join(["item_id:token\tmovie_title:token_seq\tb\tc", *films]))
    events = [f"{n % 9}\t{n % 10 + 1}\t{3 + n % 2}\t{n * 100}" for n in range(200)]
    (files / "ml-100k.inter").write_text("\n".join(["user_id:token\ta\tb\tc", *events]))
    prepare_sets(tmp_path / "raw", tmp_path / "out", ["movielens_100k"])
    movies = pl.read_csv(tmp_path / "out" / "sources" / "movielens_100k" / "movies.csv")
    assert movies.rows()[0] == (1, "Film 1 (1961)", "Comedy|Crime")
    log = tmp_path / "out" / "movielens_100k" / "log"
    assert [_positives(log / split) for split in ("train", "validation", "test")] == [80, 10, 10]


def test_sizes_of_a_set(tmp_path: Path) -> None:
    """Item 3 is in validation first, so its row of test is not cold; item 4 is. User 9 is new in test."""
    splits = {
        "train": [(1, 1, 1), (0, 1, 2), (1, 2, 1)],
        "validation": [(1, 1, 3), (0, 1, 1)],
        "test": [(1, 9, 4), (0, 9, 4), (1, 2, 3), (1, 2, 4)],
    }
    for split, rows in splits.items():
        (tmp_path / "log" / split).mkdir(parents=True)
        table = pl.DataFrame(rows, schema=["label", "user_id", "item_id"], orient="row")
        table.write_parquet(tmp_path / "log" / split / "0.parquet")
    vectors = pl.Series("text", [[0.0, 0.0], [0.6, 0.8], [1.0, 0.0], [0.0, 0.0]], dtype=pl.Array(pl.Float32, 2))
    pl.DataFrame({"item_id": [1, 2, 3, 4]}).with_columns(vectors).write_parquet(tmp_path / "items.parquet")
    size = set_size(tmp_path)
    assert (size.train, size.items, size.with_text) == (3, 4, 2)
    assert size.evaluated["validation"][1] == SplitSize(rows=1, positives=1, users=1, known_users=1, covered=0, items=1)
    all_rows, cold = size.evaluated["test"]
    assert all_rows == SplitSize(rows=4, positives=3, users=2, known_users=1, covered=1, items=2)
    assert cold == SplitSize(rows=3, positives=2, users=2, known_users=1, covered=1, items=1)
    assert "| validation | 2 | 50.0% | 1 | 1 | 1 | 2 | 1 (50.0%) | 100.0% | 0 | 1 |" in table_of({"small": size})


def test_negatives_of_x1_are_uniform_over_launched_items() -> None:
    """100 positives are in the window, and one launch; each of the four launched items gets a quarter."""
    ranges = {"fresh_from": 2, "fresh": 1, "popular_from": 0, "popular": 100, "launched": 4}
    repeated = {name: np.full(1000, value) for name, value in ranges.items()}
    pools = Pools(**repeated, floor_weight=X1.floor_weight, launch_draws=X1.launch_draws)
    events, launches = places((np.arange(1000) + 0.5) / 1000, pools)
    assert (events == -1).all()
    assert np.bincount(launches).tolist() == [250] * 4
