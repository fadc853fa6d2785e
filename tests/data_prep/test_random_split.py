"""Splits by a random draw, and logs without times."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.build import LogSettings
from data_prep.interactions import Columns, InteractionsCommand
from data_prep.item_pairs import read_sequences
from data_prep.splits import RandomSplit
from sidrec import schema
from sidrec.preflight.data_checks import _times
from sidrec.schema import ContractError
from sidrec.train.warnings_of_metrics import split_warnings
from tests.data_prep.event_lists import DAY, oracle, read_rows

ROWS = 200
NUMBER = np.arange(ROWS)
COLUMNS = Columns(label_column="label", dense_columns=("number",))
SETTINGS = LogSettings(split="random", test_share=0.25, validation_share=0.25, partition_rows=30)
OTHER = {"user_id": NUMBER % 7, "item_id": NUMBER % 11, "label": NUMBER % 3 % 2, "number": NUMBER}


def write_log(folder: Path, **columns: Any) -> Path:
    path = folder / "log.parquet"
    pq.write_table(pa.table({**OTHER, **columns}), path)
    return path


def prepare(log: Path, columns: Columns = COLUMNS, settings: LogSettings = SETTINGS) -> list[dict[str, Any]]:
    InteractionsCommand(log, log.parent / "out", columns, settings).run()
    return read_rows(log.parent / "out")


def number_of(folder: Path, row: dict[str, Any]) -> int:
    """The row's number in the source, from its dense column."""
    transform = schema.load_manifest(folder / "out" / "log").transforms["int_number"]
    return round(float(np.expm1(row["int_number"] * transform.deviation + transform.mean)))


def test_without_times_no_row_knows_of_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = prepare(write_log(tmp_path))
    assert "no column 'timestamp': rows are split at random" in capsys.readouterr().err
    assert sorted(number_of(tmp_path, row) for row in rows) == NUMBER.tolist()
    alike = {"timestamp": 0, "history": [], "stat_exposures": 0, "stat_clicks_recent": 0, "int_user_events": 0}
    assert all(row[name] == value for row in rows for name, value in alike.items())
    assert len({(row["stat_clicks"], row["int_user_click_rate"], row["int_days_since_last"]) for row in rows}) == 1
    for row in rows:
        assert row["label"] == OTHER["label"][number_of(tmp_path, row)]
    shares = Counter(row["split"] for row in rows)
    assert all(abs(shares[split] / ROWS - share) < 0.1 for split, share in (("train", 0.5), ("test", 0.25)))
    protocol: Any = schema.load_manifest(tmp_path / "out" / "log").protocol
    assert protocol["split"]["timed"] is False
    assert "the log has no times" in protocol["split"]["words"]
    assert "the log has no times" in protocol["as_of"]


def test_constants_and_impressions_come_from_train_alone(tmp_path: Path) -> None:
    rows = prepare(write_log(tmp_path))
    train = [row for row in rows if row["split"] == "train"]
    logs = np.log1p([number_of(tmp_path, row) for row in train])
    transform = schema.load_manifest(tmp_path / "out" / "log").transforms["int_number"]
    assert (transform.mean, transform.deviation) == pytest.approx((logs.mean(), logs.std()))
    items = pq.read_table(tmp_path / "out" / "items.parquet")
    shown = Counter(row["item_id"] for row in train)
    assert items["train_impressions"].to_pylist() == [shown[item] for item in items["item_id"].to_pylist()]


def test_the_draw_depends_on_the_seed_alone(tmp_path: Path) -> None:
    def test_rows(name: str, **settings: Any) -> set[int]:
        (tmp_path / name).mkdir()
        rows = prepare(write_log(tmp_path / name), settings=replace(SETTINGS, **settings))
        return {number_of(tmp_path / name, row) for row in rows if row["split"] == "test"}

    once = test_rows("once")
    assert test_rows("other_partitions", partition_rows=1_000) == once
    assert test_rows("other_seed", seed=1) != once


def test_with_times_features_stay_as_of(tmp_path: Path) -> None:
    rows = prepare(write_log(tmp_path, timestamp=DAY * (1 + NUMBER // 3)))
    rows.sort(key=lambda row: (row["timestamp"], number_of(tmp_path, row)))
    assert any(row["history"] for row in rows)
    for row in rows[::7]:
        for name, value in oracle(rows, row, 50, 30).items():
            assert row[name] == pytest.approx(value, rel=1e-6), name
    by_split = {split: [row["timestamp"] for row in rows if row["split"] == split] for split in ("train", "test")}
    assert min(by_split["test"]) < max(by_split["train"])


def test_shares_of_a_large_draw() -> None:
    event_N = np.arange(100_000)
    split_N = RandomSplit(3, 0.2, 0.1, timed=False).assign(event_N)
    assert np.bincount(split_N) / 100_000 == pytest.approx([0.7, 0.2, 0.1], abs=0.01)


@pytest.mark.parametrize(
    ("columns", "settings", "words"),
    [
        (COLUMNS, replace(SETTINGS, split="global"), "a column 'timestamp' .*for a log without times, --split random"),
        (COLUMNS, replace(SETTINGS, split="per-user-last"), "--split random, got columns"),
        (replace(COLUMNS, timestamp_column="time"), SETTINGS, "a column 'time', as --timestamp-column says"),
        (Columns(), SETTINGS, "without times, no negatives can be sampled, got neither"),
        (Columns(user_column="who", label_column="label"), SETTINGS, "a column 'who'"),
        (
            COLUMNS,
            replace(SETTINGS, test_from="2024-01-01", test_share=None, validation_share=None),
            "split global alone",
        ),
        (COLUMNS, replace(SETTINGS, test_share=1.0), "--test-share"),
        (COLUMNS, replace(SETTINGS, test_share=0.6, validation_share=0.4), "something to train on"),
        (COLUMNS, replace(SETTINGS, test_share=1e-9), "rows in the split test"),
        (COLUMNS, replace(SETTINGS, seed=-1), "--seed"),
    ],
)
def test_what_cannot_be_meant(tmp_path: Path, columns: Columns, settings: LogSettings, words: str) -> None:
    with pytest.raises(ContractError, match=words):
        prepare(write_log(tmp_path), columns, settings)
    assert not (tmp_path / "out").exists()


def test_readers_of_the_log_say_so(tmp_path: Path) -> None:
    prepare(write_log(tmp_path))
    manifest = schema.load_manifest(tmp_path / "out" / "log")
    assert split_warnings(manifest) == [
        "warning: rows were split at random: metrics tell nothing of later days; the log has no times, so no row has a "
        "history or statistics"
    ]
    assert split_warnings(replace(manifest, protocol={})) == []
    assert _times(manifest).state == "note"
    with pytest.raises(ContractError, match="a log with times"):
        read_sequences(tmp_path / "out")
