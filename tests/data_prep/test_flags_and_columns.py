"""Flags out of range and columns that cannot be used: one sentence that names them, and nothing is left."""

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.build import LogSettings
from data_prep.interactions import Columns, InteractionsCommand
from sidrec.schema import ContractError

COLUMNS = Columns("who", "what", "when", label_column="seen", other_label_columns=("liked",))
SETTINGS = LogSettings(validation_share=0.2, test_share=0.2)
ROWS = 30


def write(folder: Path, **changed: object) -> Path:
    own = {
        "who": [f"u{row % 5}" for row in range(ROWS)],
        "what": [f"i{row % 4}" for row in range(ROWS)],
        "when": [1_700_000_000 + 1000 * row for row in range(ROWS)],
        "seen": [row % 3 % 2 for row in range(ROWS)],
        "liked": [row % 2 for row in range(ROWS)],
        "tags": ["a|b", "c"] * (ROWS // 2),
        "price": [row % 7 for row in range(ROWS)],
    }
    pq.write_table(pa.table({**own, **changed}), folder / "log.parquet")
    items = {"item_id": ["i0", "i1", "i2", "i3"], "cost": ["1", "2", "3", "4"]}
    pq.write_table(pa.table(items), folder / "items.parquet")
    return folder / "log.parquet"


def prepare(log: Path, columns: Columns, settings: LogSettings = SETTINGS, vectors: str | None = "none") -> None:
    InteractionsCommand(log, log.parent / "out", columns, settings, vectors).run()


def refused(log: Path, words: str, columns: Columns, settings: LogSettings = SETTINGS, vectors: str = "none") -> None:
    with pytest.raises(ContractError, match=words):
        prepare(log, columns, settings, vectors)
    assert {path.name for path in log.parent.iterdir()} == {"log.parquet", "items.parquet"}


@pytest.mark.parametrize("length", [0, -1, 2**31, 10**30])
def test_lengths_of_lists_that_cannot_be(tmp_path: Path, length: int) -> None:
    columns = replace(COLUMNS, cat_list_columns=("tags",), list_length=length)
    refused(write(tmp_path), f"--list-length: expected .* at most 2,147,483,647, got '.', {length}$", columns)


@pytest.mark.parametrize("flag", ["floor_weight", "launch_draws"])
@pytest.mark.parametrize(
    ("value", "expected"), [(-0.1, "at least 0"), (1.1e9, "at most 1,000,000,000"), (1e308, "at most 1,000,000,000")]
)
def test_weights_of_negatives_beyond_what_numbers_hold(tmp_path: Path, flag: str, value: float, expected: str) -> None:
    settings = replace(SETTINGS, **{flag: value})  # type: ignore[arg-type]  # of the fields of numbers
    refused(write(tmp_path), f"^--{flag.replace('_', '-')}: expected {expected}, got", COLUMNS, settings)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"who": ["u"] * 7 + [None] + ["v"] * 22}, "line 8, column who: expected a user id, got None"),
        ({"what": [None] + ["i0"] * 29}, "line 1, column what: expected an item id, got None"),
        ({"when": [*range(29), 10**13]}, "line 30, column when: expected seconds since 1970"),
        ({"seen": [0, 1, 0.5] * 10}, "line 3, column seen: expected 0 or 1, got 0.5"),
        ({"liked": [0, 2, 1] * 10}, "line 2, column liked: expected 0 or 1, got 2.0"),
        ({"tags": [["a", "b"], ["c", b"\xff"]] * 15}, "column tags, line 2: expected UTF-8 text"),
    ],
    ids=lambda value: "".join(value) if isinstance(value, dict) else "",
)
def test_errors_name_the_column_and_row_of_the_file(tmp_path: Path, changed: dict[str, object], words: str) -> None:
    columns = replace(COLUMNS, cat_list_columns=("tags",))
    refused(write(tmp_path, **changed), f"log.parquet, {words}", columns)


@pytest.mark.parametrize("source", ["wordllama", "sentence-transformers"])
def test_text_vectors_without_text(tmp_path: Path, source: str) -> None:
    refused(write(tmp_path), f"^--vectors {source}: expected --text-columns, .* got none$", COLUMNS, vectors=source)


@pytest.mark.parametrize(
    ("tags", "warned"),
    [
        (["a;b", "c;a", "b"], True),
        (["a, b"], True),
        (["a,b,c"], True),
        ([["a|b"]], True),
        (["a|b", "a,b", "a,c"], False),
        (["a", "b"], False),
        (["a;", "b;"], False),
        (["a;b", "c", "d"], False),
        ([None], False),
    ],
    ids=str,
)
def test_lists_that_another_character_parts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tags: list[object], warned: bool
) -> None:
    log = write(tmp_path, tags=(tags * ROWS)[:ROWS])
    prepare(log, replace(COLUMNS, cat_list_columns=("tags",)))
    assert ("column tags: no row has several values" in capsys.readouterr().err) == warned


def test_positives_that_leave_no_negatives(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    implicit = replace(COLUMNS, label_column=None, other_label_columns=())
    words = "expected items that users have not taken, as negatives, got 30 of 30 negatives found no item"
    refused(write(tmp_path, what=["i0"] * ROWS), words, implicit)
    prepare(write(tmp_path, who=["u"] * ROWS), implicit)
    assert " of 30 negatives found no item that their user had not taken" in capsys.readouterr().err
