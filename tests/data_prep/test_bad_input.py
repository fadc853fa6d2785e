"""Bad input is one sentence with the file and the line or column, and leaves nothing behind."""

import gzip
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.amazon import AmazonCommand
from data_prep.build import LogSettings
from data_prep.interactions import Columns, InteractionsCommand
from data_prep.movielens import MovieLensCommand
from sidrec.schema import ContractError
from tests.data_prep.test_amazon import folder_2018, folder_csv, write
from tests.data_prep.test_movielens import csv_folder, dat_folder

HEADER = "userId,movieId,rating,timestamp\n"


def complaint(source: Path, out: Path) -> str:
    with pytest.raises(ContractError) as error:
        MovieLensCommand(source, out, vectors="none").run()
    assert not out.exists()
    assert not out.with_name(out.name + ".partial").exists()
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("ratings", "words"),
    [
        ("userId,movieId,stars,timestamp\n1,3,4,1000\n", "'rating'"),
        (
            HEADER + "1,3,4,1000\n1,3,four,1000\n",
            "ratings.csv, column rating, line 3: expected a finite number, got 'four'",
        ),
        (HEADER + "1,3,NaN,1000\n", "ratings.csv, column rating, line 2: expected a finite number, got 'NaN'"),
        (HEADER + "1,3,,1000\n", "ratings.csv, column rating, line 2: expected a finite number, got None"),
        (HEADER + "1,3,4,-5\n", "line 2, column timestamp: expected seconds since 1970"),
        (HEADER + "1,3,4,1700000000000\n", "before the year 2100 (milliseconds?), got 1700000000000"),
        (
            HEADER + "1,3,4,01/02/2018\n",
            "column timestamp, line 2: expected a time: a number of units since 1970",
        ),
        (HEADER + ",3,4,1000\n", "line 2, column user: expected a user id, got None"),
        (HEADER + "1,3,4\n", "ratings.csv"),
        (HEADER, "ratings.csv: expected events, got none"),
        ("", "ratings.csv"),
        (HEADER + "1,3,1,1000\n2,3,2,2000\n", "expected at least one positive event, got 2 events, all negative"),
        (HEADER + "1,3,5,1000\n2,3,2,1000\n", "expected"),
    ],
)
def test_ratings(tmp_path: Path, ratings: str, words: str) -> None:
    source = csv_folder(tmp_path / "ml")
    (source / "ratings.csv").write_text(ratings)
    assert words in complaint(source, tmp_path / "out")


def test_movies_given_twice(tmp_path: Path) -> None:
    source = csv_folder(tmp_path / "ml")
    with (source / "movies.csv").open("a") as file:
        file.write("3,Again,Drama\n")
    assert "movies.csv, column movieId, line 5: expected an id of its own, got '3'" in complaint(
        source, tmp_path / "out"
    )


def test_missing_file_and_short_dat_row(tmp_path: Path) -> None:
    source = dat_folder(tmp_path / "dat")
    (source / "ratings.dat").write_text("1::3::4.0::1000\n1::3::4.0\n")
    assert "ratings.dat" in complaint(source, tmp_path / "out")
    (source / "movies.dat").unlink()
    assert "movies.dat: expected a file to read, got none" in complaint(source, tmp_path / "out")


@pytest.mark.parametrize("layout", [folder_csv, folder_2018])
def test_truncated_gzip(tmp_path: Path, layout: object) -> None:
    source = tmp_path / "src"
    source.mkdir()
    layout(source)  # type: ignore[operator]
    reviews = next(path for path in source.iterdir() if path.name in ("interactions.csv.gz", "Toys_5.json.gz"))
    reviews.write_bytes(reviews.read_bytes()[:-12])
    with pytest.raises(ContractError, match=rf"{reviews.name}: expected a complete gzip file"):
        AmazonCommand(tmp_path / "src", tmp_path / "out", vectors="none").run()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"reviewerID": "A", "asin": "p1"}', "line 2, key unixReviewTime: expected a whole number, got None"),
        ('{"reviewerID": "A", "unixReviewTime": 5}', "line 2, key asin: expected an id, got None"),
        ("{broken", "line 2: expected a JSON object"),
        ("[1]", "line 2: expected a JSON object"),
        ('{"reviewerID": "A", "asin": "p1", "unixReviewTime": -5}', "line 2, column timestamp: expected seconds"),
    ],
)
def test_broken_review(tmp_path: Path, line: str, words: str) -> None:
    (tmp_path / "src").mkdir()
    folder_2018(tmp_path / "src")
    write(tmp_path / "src" / "Toys_5.json.gz", ['{"reviewerID": "A", "asin": "p1", "unixReviewTime": 100}', line])
    with pytest.raises(ContractError) as error:
        AmazonCommand(tmp_path / "src", tmp_path / "out", vectors="none").run()
    assert "Toys_5.json.gz" in str(error.value)
    assert words in str(error.value)


def test_folder_without_a_known_layout(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ContractError, match=r"one review file and one meta_\* file.*got \['notes.txt'\]"):
        AmazonCommand(tmp_path, tmp_path / "out").run()


def test_not_gzip_and_not_parquet(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    folder_csv(tmp_path / "src")
    (tmp_path / "src" / "interactions.csv.gz").write_bytes(b"user_id,item_id,timestamp\n")
    with pytest.raises(ContractError, match=r"interactions.csv.gz: expected events, got none"):  # plain text is read
        AmazonCommand(tmp_path / "src", tmp_path / "out", vectors="none").run()
    (tmp_path / "log.parquet").write_bytes(gzip.compress(b"no"))
    with pytest.raises(ContractError, match=r"log.parquet: expected a readable Parquet file"):
        InteractionsCommand(tmp_path / "log.parquet", tmp_path / "out", Columns()).run()


@pytest.mark.parametrize(
    ("flag", "value"),
    [("history", -1), ("recent_days", 0), ("test_share", 1.0), ("validation_share", 0.95), ("partition_rows", 0)],
)
def test_flags_out_of_range(tmp_path: Path, flag: str, value: float) -> None:
    source = csv_folder(tmp_path / "ml")
    with pytest.raises(ContractError, match=rf"^--{flag.replace('_', '-')}: expected"):
        MovieLensCommand(source, tmp_path / "out", LogSettings(**{flag: value}), vectors="none").run()  # type: ignore[arg-type]


def test_the_command_prints_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "data_prep.movielens", str(tmp_path / "absent"), str(tmp_path / "out")]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    ratings = tmp_path / "absent" / "ratings.csv"
    assert done.stderr.strip() == f"sidrec: error: {ratings}: expected a file to read, got none"
