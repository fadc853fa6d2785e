"""Any log: column mapping, labels, ratings or neither, CSV and Parquet."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.build import LogSettings
from data_prep.interactions import Columns, InteractionsCommand
from sidrec import schema
from sidrec.schema import ContractError
from tests.data_prep.event_lists import DAY, read_rows

LOG = {
    "who": ["ann", "bob", "ann", "bob", "ann"],
    "what": ["tea", "tea", "milk", "rye", "rye"],
    "when": [DAY * 1000 * day + 999 for day in (1, 2, 3, 4, 5)],
    "stars": [5.0, 1.0, 2.5, 3.0, 4.5],
    "bought": [1, 0, 0, 1, 1],
    "device": ["phone", None, "desk", "phone", "phone"],
}
NAMES = {"user_column": "who", "item_column": "what", "timestamp_column": "when", "timestamp_unit": "ms"}
SETTINGS = LogSettings(validation_share=0.0, test_share=0.2)


@pytest.fixture(params=["csv", "parquet"])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / f"log.{request.param}"
    if request.param == "parquet":
        pq.write_table(pa.table(LOG), path)
    else:
        rows = zip(*LOG.values(), strict=True)
        lines = [",".join(LOG), *(",".join("" if value is None else str(value) for value in row) for row in rows)]
        path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize(
    ("target", "labels"),
    [({"label_column": "bought"}, [1, 0, 0, 1, 1]), ({"rating_column": "stars", "threshold": 3.0}, [1, 0, 0, 1, 1])],
)
def test_labels_and_ratings(log: Path, tmp_path: Path, target: dict, labels: list[int]) -> None:
    columns = Columns(**NAMES, **target, cat_columns=("device",))  # type: ignore[arg-type]
    InteractionsCommand(log, tmp_path / "out", columns, SETTINGS).run()
    rows = read_rows(tmp_path / "out")
    assert [row["label"] for row in rows] == labels
    assert [row["timestamp"] for row in rows] == [DAY * day for day in (1, 2, 3, 4, 5)]
    assert [row["cat_device"] for row in rows] == [1, 0, 2, 1, 1]
    assert schema.load_manifest(tmp_path / "out" / "log").ids == {"user_id": 3, "item_id": 4, "cat_device": 3}


def test_without_labels_negatives_are_sampled(log: Path, tmp_path: Path) -> None:
    InteractionsCommand(log, tmp_path / "out", Columns(**NAMES), SETTINGS).run()  # type: ignore[arg-type]
    rows = read_rows(tmp_path / "out")
    assert sum(row["label"] for row in rows) == 5
    assert {row["label"] for row in rows} == {0, 1}


def test_items_file(log: Path, tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text('id,name,shelf\nrye,"Rye, dark",bread\ntea,,drink\n')
    columns = Columns(
        **NAMES,  # type: ignore[arg-type]
        label_column="bought",
        items_file=tmp_path / "items.csv",
        items_id_column="id",
        text_columns=("name",),
        item_cat_columns=("shelf",),
    )
    InteractionsCommand(log, tmp_path / "out", columns, SETTINGS, vectors="none").run()
    assert [row["cat_shelf"] for row in read_rows(tmp_path / "out")] == [2, 2, 0, 1, 1]
    items = pq.read_table(tmp_path / "out" / "items.parquet")
    assert items["source_id"].to_pylist() == ["rye", "tea", "milk"]
    assert items["title"].to_pylist() == ["Rye, dark", "", ""]


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (Columns(label_column="a", rating_column="b"), "at most one of them"),
        (Columns(text_columns=("title",)), "an --items-file"),
        (Columns(cat_columns=("a",), item_cat_columns=("a",), items_file=Path("x")), "different names"),
    ],
)
def test_contradicting_flags(tmp_path: Path, columns: Columns, words: str) -> None:
    with pytest.raises(ContractError, match=words):
        InteractionsCommand(tmp_path / "log.csv", tmp_path / "out", columns).run()


def test_text_that_is_no_utf8(tmp_path: Path) -> None:
    """Parquet writers do not look at what they are given as text."""
    named = pa.array([b"ann", b"b\xf5b", *[b"ann"] * 3], pa.binary()).view(pa.string())
    pq.write_table(pa.table({**LOG, "who": named}), tmp_path / "log.parquet")
    with pytest.raises(ContractError, match=r"log.parquet, column who, line 2: expected UTF-8 text, got b'b"):
        InteractionsCommand(tmp_path / "log.parquet", tmp_path / "out", Columns(**NAMES), SETTINGS).run()  # type: ignore[arg-type]
