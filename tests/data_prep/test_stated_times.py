"""Splits at stated times: where each event goes, what earlier events still feed, and times that are refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from data_prep.build import LogSettings, build, summary
from data_prep.log_settings import instant
from sidrec import schema
from sidrec.errors import ContractError
from tests.data_prep.event_lists import DAY, Event, EventList, make_log, read_rows

random = np.random.default_rng(3)
TIMES = np.sort(random.integers(0, 9 * DAY, 120))
LOG = [
    Event(int(user), int(item), int(time), int(label))
    for user, item, time, label in zip(
        random.integers(1, 8, 120), random.integers(1, 15, 120), TIMES, random.integers(0, 2, 120), strict=True
    )
]
CUTS: list[dict[str, str]] = [
    {"test_from": "1970-01-07"},
    {"validation_from": "1970-01-05", "test_from": "1970-01-07"},
    {"train_from": "1970-01-03", "validation_from": "1970-01-05", "test_from": "1970-01-07"},
    {"train_from": "1970-01-07", "test_from": "1970-01-07"},
    {"train_from": "1970-01-04"},
    {"train_from": "1970-01-04", "validation_from": "1970-01-08T12:00"},
    {"test_from": "0"},
    {"validation_from": "0", "test_from": "1970-01-02T00:00:00+00:00"},
    {"train_from": "0", "test_from": str(int(TIMES[60]))},
]


def split_of(time: int, cuts: dict[str, str]) -> str | None:
    """The slow truth: the latest split whose begin is not after `time`; None before train."""
    begins = {
        split: instant(cuts[f"{split}_from"], "")
        for split in ("train", "validation", "test")
        if f"{split}_from" in cuts
    }
    reached = [split for split, begin in begins.items() if begin <= time]
    return reached[-1] if reached else (None if "train" in begins else "train")


@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize("implicit", [False, True])
def test_events_go_to_their_split_and_earlier_ones_feed_the_rest(
    tmp_path: Path, cuts: dict[str, str], implicit: bool
) -> None:
    log = [event for event in LOG if event.label] if implicit else LOG
    whole = make_log(log, tmp_path / "whole", implicit, test_from="0")
    rows = make_log(log, tmp_path / "cut", implicit, partition_rows=30, **cuts)
    expected = [{**row, "split": split_of(row["timestamp"], cuts)} for row in whole]
    assert sorted(map(repr, rows)) == sorted(repr(row) for row in expected if row["split"] is not None)
    impressions = pq.read_table(tmp_path / "cut" / schema.ITEMS)[schema.TRAIN_IMPRESSIONS].to_numpy()
    fed = [row["item_id"] for row in expected if row["split"] in (None, "train")]
    assert impressions.tolist() == np.bincount(fed, minlength=len(impressions) + 1)[1:].tolist()


def test_the_manifest_states_times_and_rows_before_train(tmp_path: Path) -> None:
    make_log(LOG, tmp_path / "out", train_from="1970-01-03", test_from="1970-01-07")
    protocol: Any = schema.load_manifest(tmp_path / "out" / "log").protocol
    before = sum(event.timestamp < 2 * DAY for event in LOG)
    assert protocol["rows_before_train"] == before
    assert protocol["events"] == len(LOG)
    assert protocol["rows"] == len(LOG) - before
    stated = {key: protocol["split"][key] for key in protocol["split"] if key != "words"}
    assert stated == {"kind": "stated", "train_from": 2 * DAY, "test_from": 6 * DAY}
    found = summary(tmp_path / "out")
    assert f"{before:,} rows before train_from only feed histories" in found


@pytest.mark.parametrize(("cuts", "splits"), [({"test_from": "0"}, {"test"}), ({"train_from": "0"}, {"train"})])
def test_a_folder_of_one_split(tmp_path: Path, cuts: dict[str, str], splits: set[str]) -> None:
    rows = make_log(LOG, tmp_path / "out", implicit=False, **cuts)
    assert {row["split"] for row in rows} == set(schema.load_manifest(tmp_path / "out" / "log").splits) == splits
    assert len(rows) == len(LOG)
    assert "cold items" not in summary(tmp_path / "out")  # nothing says which items training knows


REFUSED: list[tuple[dict[str, object], str]] = [
    ({"test_from": "1970-01-05", "test_share": 0.1}, "times or shares"),
    ({"train_from": "1970-01-05", "validation_share": 0.0}, "times or shares"),
    ({"test_from": "1970-01-05", "split": "per-user-last"}, "--split global"),
    ({"validation_from": "1970-01-07", "test_from": "1970-01-05"}, "times in this order"),
    ({"train_from": "1970-01-07", "test_from": "1970-01-05"}, "times in this order, got train from 1970-01-07, test"),
    ({"train_from": "1970-01-07", "validation_from": "1970-01-05"}, "times in this order"),
    ({"test_from": "1970-01-30"}, "split test.*from 1970-01-01T.* to 1970-01-09T"),
    ({"validation_from": "1970-01-30"}, "split validation"),
    ({"train_from": "1970-01-30"}, "split train"),
    ({"train_from": "0", "validation_from": "1", "test_from": "2"}, "split train"),
    ({"validation_from": "1970-01-05", "test_from": "1970-01-05T00:00:01"}, "split validation"),
    ({"test_from": "soon"}, "--test-from"),
]


@pytest.mark.parametrize(("flags", "message"), REFUSED)
def test_times_that_cannot_be_meant_are_refused(tmp_path: Path, flags: dict[str, object], message: str) -> None:
    with pytest.raises(ContractError, match=message):
        build(EventList(tuple(LOG)), tmp_path / "out", LogSettings(**flags), implicit=False)  # type: ignore[arg-type]
    assert not (tmp_path / "out.partial").exists()


INSTANTS = {
    "0": 0,
    "1714608000": 1714608000,
    "1714608000.9": 1714608000,
    " 1714608000 ": 1714608000,
    "2024-05-02": 1714608000,
    "2024-05-02T00:00": 1714608000,
    "2024-05-02 00:00:00": 1714608000,
    "2024-05-02T00:00:00Z": 1714608000,
    "2024-05-02T02:00:00+02:00": 1714608000,
    "2024-05-01T18:30:00-05:30": 1714608000,
    "2024-05-02T00:00:00.999": 1714608000,
    "20240502T000000Z": 1714608000,
    "2024-05": 1714521600,
}


@pytest.mark.parametrize("text", INSTANTS)
def test_times_are_read(text: str) -> None:
    assert instant(text, "--test-from") == INSTANTS[text]


NO_INSTANTS = [
    "",
    " ",
    "soon",
    "now",
    "today",
    "20240502",
    "202405",
    "2024",
    "1999",
    "1714608000000",
    "-1",
    "1e9",
    "2024-13-01",
    "2024-02-30",
    "02.05.2024",
    "05/02/2024",
    "2100-01-01",
    "1969-12-31",
    "nan",
    "9" * 400,
    "2024-05-02T25:00",
    "\u0662\u0660\u0662\u0664",
]


@pytest.mark.parametrize("text", NO_INSTANTS)
def test_text_that_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ContractError, match="--test-from: expected a time"):
        instant(text, "--test-from")


def test_a_folder_to_be_scored_takes_the_impressions_of_the_folder_before(tmp_path: Path) -> None:
    make_log(LOG[:80], tmp_path / "one", test_share=0.2, validation_share=0)
    make_log(LOG[60:], tmp_path / "two", ids=tmp_path / "one", test_from="0")
    one, two = (
        pq.read_table(tmp_path / day / schema.ITEMS)[schema.TRAIN_IMPRESSIONS].to_pylist() for day in ("one", "two")
    )
    assert two == [*one, *[0] * (len(two) - len(one))]
    assert sum(one) == 64
    protocol: Any = schema.load_manifest(tmp_path / "two" / "log").protocol
    assert "this log has no rows of train" in protocol["train_impressions"]
    cold = [row for row in read_rows(tmp_path / "two") if not two[row["item_id"] - 1]]
    assert protocol["cold_share_of_test_rows"] == pytest.approx(len(cold) / 60, abs=1e-6)


def test_a_split_that_stated_times_leave_empty_is_named_when_it_is_read(tmp_path: Path) -> None:
    make_log(LOG, tmp_path / "out", test_from="0")
    with pytest.raises(ContractError, match=r"the splits \['test'\], got 'train': the log was cut at stated times"):
        schema.load_manifest(tmp_path / "out" / "log").files("train")


def test_a_stated_day_may_follow_an_earlier_folder(tmp_path: Path) -> None:
    make_log(LOG[:60], tmp_path / "one", test_share=0.2, validation_share=0)
    day = str(LOG[60].timestamp)
    rows = make_log(LOG, tmp_path / "two", train_from=day, test_from=day, ids=tmp_path / "one")
    whole = make_log(LOG, tmp_path / "whole", test_from="0")
    assert rows == [row for row in whole if row["timestamp"] >= LOG[60].timestamp]
    assert read_rows(tmp_path / "two") == rows
