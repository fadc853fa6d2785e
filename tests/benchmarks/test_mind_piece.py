"""A piece of MIND: real impressions, and items of which few have text."""

import gzip
import json
from pathlib import Path

import polars as pl
import pytest

from benchmarks.mind_piece import SECONDS, mind_log
from sidrec import cli, schema

ROOT = Path(__file__).parents[2]


def test_earlier_clicks_come_before_the_first_row_in_their_order(tmp_path: Path) -> None:
    shown = "user_id,item_id,timestamp,clicked,impression\na,x,1000,0,1\na,y,1001,1,1\nb,x,1002,0,2\n"
    (tmp_path / "interactions.csv.gz").write_bytes(gzip.compress(shown.encode()))
    earlier = "user_id,earlier_clicks\na,p q r\nb,q\nc,\n"
    (tmp_path / "histories.csv.gz").write_bytes(gzip.compress(earlier.encode()))
    rows = mind_log(tmp_path).rows()
    assert rows[:4] == [
        ("a", "p", 999 - 2 * SECONDS, 1),
        ("a", "q", 999 - SECONDS, 1),
        ("a", "r", 999, 1),
        ("b", "q", 999, 1),
    ]
    assert rows[4:] == [("a", "x", 1000, 0), ("a", "y", 1001, 1), ("b", "x", 1002, 0)]
    assert {row[0] for row in mind_log(tmp_path, users=1).rows()} == {"a"}


@pytest.mark.real_data
def test_prepared_fitted_trained_and_evaluated(
    real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = real_data / "mind-piece"
    if not source.is_dir():
        pytest.skip(f"{source} is not there")
    log = mind_log(source, users=300)
    first = log.filter(pl.col("clicked") == 0)["timestamp"].to_numpy().min()
    log.write_csv(tmp_path / "log.csv")
    monkeypatch.chdir(tmp_path)
    options = ["--label-column", "clicked", "--items-file", str(source / "items.csv.gz"), "--text-columns", "title"]
    options += ["--history", "10", "--train-from", str(first), "--test-from", "2019-11-13"]
    assert cli.main(["prep", "interactions", "log.csv", "data/mind", *options]) == 0
    assert "lists only" in capsys.readouterr().err
    manifest = schema.load_manifest(Path("data/mind/log"))
    assert sum(manifest.rows(split) for split in manifest.splits) == (log["timestamp"] >= first).sum()
    recipe = str(ROOT / "benchmarks" / "recipes" / "mind_piece.yaml")
    flags = ["--data.workers", "0", "--data.batch-size", "256"]
    assert cli.main(["fit", recipe, *flags]) == 0
    assert "have no content in text and get no semantic ID" in capsys.readouterr().out
    assert cli.main(["train", recipe, *flags]) == 0
    shown = capsys.readouterr().out
    assert "users in gauc, uauc" in shown
    metrics = json.loads(Path("runs/mind-text/seed0/metrics.json").read_text())["test"]
    assert metrics["cold"]["rows"] > metrics["all"]["rows"] / 2
    assert 0 < metrics["all"]["positives"] < metrics["all"]["rows"] / 10
