"""MovieLens in both layouts, as files the tests write, and the published latest-small."""

from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pyarrow.parquet as pq
import pytest

from data_prep.build import LogSettings
from data_prep.movielens import FLAGS, MovieLensCommand
from sidrec import cli, schema
from tests.data_prep.event_lists import read_rows

MOVIES = [
    ("7", "Toy Story (1995)", "Adventure|Animation"),
    ("3", "American President, The (1995)", "Comedy"),
    ("50", "Untitled", "(no genres listed)"),
]
RATINGS = [
    (user, movie, rating, 1000 + 100 * n)
    for n, (user, movie, rating) in enumerate(
        [
            ("1", "3", "4.0"),
            ("1", "7", "3.5"),
            ("2", "3", "5.0"),
            ("2", "50", "0.5"),
            ("1", "50", "4.5"),
            ("2", "7", "4.0"),
        ]
    )
]


def csv_folder(folder: Path) -> Path:
    folder.mkdir()
    movies = "".join(f'{movie},"{title}",{genres}\n' for movie, title, genres in MOVIES)
    (folder / "movies.csv").write_text("movieId,title,genres\n" + movies)
    ratings = "".join(",".join(map(str, row)) + "\n" for row in RATINGS)
    (folder / "ratings.csv").write_text("userId,movieId,rating,timestamp\n" + ratings)
    return folder


def dat_folder(folder: Path) -> Path:
    folder.mkdir()
    (folder / "movies.dat").write_bytes("".join("::".join(row) + "\n" for row in MOVIES).encode("latin-1"))
    (folder / "ratings.dat").write_text("".join("::".join(map(str, row)) + "\n" for row in RATINGS))
    return folder


def prepared(source: Path, out: Path, vectors: str = "none", **flags: Any) -> list[dict[str, Any]]:
    flags = {"validation_share": 0.0, "test_share": 0.2, **flags}
    MovieLensCommand(source, out, LogSettings(**flags), vectors=vectors).run()
    return read_rows(out)


def test_csv_layout(tmp_path: Path) -> None:
    rows = prepared(csv_folder(tmp_path / "ml"), tmp_path / "out")
    assert [row["item_id"] for row in rows] == [2, 1, 2, 3, 3, 1]  # movies 7, 3, 50 are items 1, 2, 3
    assert [row["label"] for row in rows] == [1, 0, 1, 0, 1, 1]
    assert [row["timestamp"] for row in rows] == [1000, 1100, 1200, 1300, 1400, 1500]
    assert [row["history"] for row in rows] == [[], [2], [], [2], [2], [2]]
    assert [row["cat_genre"] for row in rows] == [2, 1, 2, 0, 0, 1]  # Adventure 1, Comedy 2, none 0
    assert [row["cat_decade"] for row in rows] == [1, 1, 1, 0, 0, 1]


def test_dat_layout_gives_the_same_log(tmp_path: Path) -> None:
    assert prepared(dat_folder(tmp_path / "dat"), tmp_path / "a") == prepared(
        csv_folder(tmp_path / "csv"), tmp_path / "b"
    )


def hundred_k_folder(folder: Path) -> Path:
    """As MovieLens 100K: tabs, `|` and flags; genres in the order of its columns."""
    folder.mkdir()
    items = ""
    for movie, title, genres in MOVIES:
        flags = "|".join("1" if name in genres.split("|") else "0" for name in FLAGS)
        items += f"{movie}|{title}|01-Jan-1995||http://x/{movie}|{flags}\n"
    (folder / "u.item").write_bytes(items.replace("Untitled", "Untitl\u00e9d").encode("latin-1"))
    ratings = [(user, movie, rating[0], time) for user, movie, rating, time in RATINGS]
    (folder / "u.data").write_text("".join("\t".join(map(str, row)) + "\n" for row in ratings))
    return folder


def test_100k_layout_gives_the_same_log(tmp_path: Path) -> None:
    rows = prepared(csv_folder(tmp_path / "csv"), tmp_path / "b")
    assert prepared(hundred_k_folder(tmp_path / "100k"), tmp_path / "a") == rows
    items = pq.read_table(tmp_path / "a" / "items.parquet")
    assert items["content"].to_pylist()[::2] == ["Toy Story (1995) Adventure Animation", "Untitl\u00e9d"]


def test_archives_and_folders_around_are_refused_with_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archives, outer, photos = tmp_path / "archives", tmp_path / "outer", tmp_path / "photos"
    for folder in (archives, outer, photos):
        folder.mkdir()
    with ZipFile(archives / "ml-latest-small.zip", "w") as archive:
        archive.writestr("ml-latest-small/ratings.csv", "")
    hundred_k_folder(outer / "ml-100k")
    (photos / "a.jpg").write_text("")
    expected = "expected a folder with ratings.csv, ratings.dat or u.data, got"
    for source, got in (
        (archives / "ml-latest-small.zip", "an archive; unzip it and name the folder"),
        (outer / "ml-100k" / "u.data", "a file; name the folder it is in"),
        (archives, f"none in it; unzip {archives / 'ml-latest-small.zip'} and name its folder"),
        (outer, f"none in it; name {outer / 'ml-100k'}"),
        (photos, "none in it"),
    ):
        assert cli.main(["prep", "movielens", str(source), str(tmp_path / "out")]) == 2
        assert capsys.readouterr().err == f"sidrec: error: {source}: {expected} {got}\n"


def test_items(tmp_path: Path) -> None:
    prepared(csv_folder(tmp_path / "ml"), tmp_path / "out", vectors="wordllama")
    items = pq.read_table(tmp_path / "out" / "items.parquet")
    assert items["item_id"].to_pylist() == [1, 2, 3]
    assert items["source_id"].to_pylist() == ["7", "3", "50"]
    assert items["content"].to_pylist() == [
        "Toy Story (1995) Adventure Animation",
        "American President, The (1995) Comedy",
        "Untitled",
    ]
    assert items.schema.field("text").type.list_size == 256


def test_threshold_is_a_flag(tmp_path: Path) -> None:
    MovieLensCommand(csv_folder(tmp_path / "ml"), tmp_path / "out", LogSettings(validation_share=0), 0.5, "none").run()
    assert {row["label"] for row in read_rows(tmp_path / "out")} == {1}


@pytest.mark.real_data
@pytest.mark.parametrize("split", ["global", "per-user-last"])
def test_latest_small(real_data: Path, tmp_path: Path, split: str) -> None:
    out = tmp_path / "out"
    MovieLensCommand(real_data / "ml-latest-small", out, LogSettings(split=split), vectors="none").run()  # type: ignore[arg-type]
    manifest = schema.load_manifest(out / "log")
    files = {name: [out / "log" / file.path for file in files] for name, files in manifest.splits.items()}
    labels = [pq.read_table(path)["label"].to_numpy() for paths in files.values() for path in paths]
    assert sum(map(len, labels)) == 100_836
    assert sum(label.sum() for label in labels) == 48_580  # ratings of at least 4
    assert manifest.ids["user_id"] == 611
    assert manifest.rows("test") == pytest.approx(10_084, rel=0.06)
    users = set(pq.read_table(files["test"][0])["user_id"].to_pylist())
    if split == "per-user-last":
        assert len(users) > 570  # a few users gave all their last ratings in one second: those stay in train
    else:
        assert len(users) < 120
