"""Files as Spark, polars, DuckDB, pandas, Hive and spreadsheets write them: the same events from all of them."""

import bz2
import datetime as dt
import gzip
import uuid
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from data_prep.build import LogSettings
from data_prep.interactions import Columns, InteractionsCommand
from data_prep.source_columns import Lines, numbers, seconds, texts
from data_prep.source_files import blocks, files_of, whole
from sidrec.schema import ContractError
from tests.data_prep.event_lists import read_rows

LINES = Lines(Path("log"), 1)
NOON = 1_700_000_000
DAY = NOON // 86400 * 86400


def chunked(values: object, kind: pa.DataType | None = None) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(values, kind)])


def read(path: Path, columns: tuple[str, ...] = ("a",), **options: object) -> list[object]:
    """The first of these columns, as text."""
    found = blocks(path, columns, **options)  # type: ignore[arg-type]
    return [value for block in found for value in texts(block.table[columns[0]]).to_pylist()]


TIMES = {
    "seconds": (chunked([NOON]), 1, NOON),
    "milliseconds": (chunked([NOON * 1000 + 999]), 1000, NOON),
    "nanoseconds": (chunked([NOON * 10**9 - 1]), 10**9, NOON - 1),
    "unsigned": (chunked([NOON], pa.uint32()), 1, NOON),
    "float": (chunked([NOON + 0.9]), 1, NOON),
    "float milliseconds": (chunked([NOON * 1000.0]), 1000, NOON),
    "decimal": (chunked([Decimal(NOON)], pa.decimal128(12, 0)), 1, NOON),
    "decimal with a fraction": (chunked([Decimal(f"{NOON}.75")], pa.decimal128(14, 2)), 1, NOON),
    "timestamp s": (chunked([NOON], pa.timestamp("s")), 1000, NOON),
    "timestamp ms": (chunked([NOON * 1000 + 1], pa.timestamp("ms")), 1, NOON),
    "timestamp us": (chunked([NOON * 10**6 + 1], pa.timestamp("us")), 1, NOON),
    "timestamp ns": (chunked([NOON * 10**9 + 1], pa.timestamp("ns")), 1, NOON),
    "timestamp UTC": (chunked([NOON * 10**6], pa.timestamp("us", tz="UTC")), 1, NOON),
    "timestamp of a zone": (chunked([NOON * 1000], pa.timestamp("ms", tz="Asia/Tokyo")), 1, NOON),
    "timestamp before a whole second": (chunked([-1], pa.timestamp("ms")), 1, -1),
    "date32": (chunked([NOON // 86400], pa.date32()), 1000, DAY),
    "date64": (chunked([DAY * 1000], pa.date64()), 1, DAY),
    "text": (chunked([str(NOON)]), 1, NOON),
    "text with a point": (chunked(["978300760.0"]), 1, 978300760),
    "text with an exponent": (chunked(["1.7e9"]), 1, NOON),
    "ISO date": (chunked(["2023-11-14"]), 1, DAY),
    "ISO time": (chunked(["2023-11-14T22:13:20"]), 1000, NOON),
    "ISO UTC": (chunked(["2023-11-14T22:13:20Z"]), 1, NOON),
    "ISO fraction": (chunked(["2023-11-14 22:13:20.999999"]), 1, NOON),
    "ISO zone": (chunked(["2023-11-15T07:13:20+09:00"]), 1, NOON),
}


@pytest.mark.parametrize("name", TIMES)
def test_times_of_every_kind(name: str) -> None:
    column, per_second, expected = TIMES[name]
    assert seconds(column, per_second, "t", LINES).to_pylist() == [expected]


@pytest.mark.parametrize(
    ("values", "line"),
    [
        (["2023-11-14", "14.11.2023"], 2),
        (["2023-11-14", str(NOON), "2023-11-15"], 2),
        ([str(NOON), "2023-11-14", str(NOON)], 2),
        ([str(NOON), None], 2),
        (["noon"], 1),
        (["2023-02-30"], 1),
        (["2023-11-14T25:00:00"], 1),
        (["nan"], 1),
        (["1e400"], 1),
        ([""], 1),
    ],
)
def test_times_that_are_none(values: list[str | None], line: int) -> None:
    with pytest.raises(ContractError, match=rf"log, column t, line {line}: expected a (time|finite number)"):
        seconds(chunked(values, pa.string()), 1, "t", LINES)


@pytest.mark.parametrize("values", [[1.0, float("nan")], [float("inf")]])
def test_floats_that_are_no_times(values: list[float]) -> None:
    with pytest.raises(ContractError, match=rf"log, column t, line {len(values)}: expected a finite number"):
        seconds(chunked(values), 1, "t", LINES)


LABELS = {
    "booleans": chunked([True, False]),
    "integers": chunked([1, 0], pa.int8()),
    "floats": chunked([1.0, 0.0], pa.float32()),
    "decimals": chunked([Decimal("1.0"), Decimal("0.0")]),
    "pandas": chunked(["True", "False"]),
    "spark": chunked(["true", "false"]),
    "shouted": chunked(["TRUE", "FALSE"]),
    "text": chunked(["1", "0.0"]),
}


@pytest.mark.parametrize("name", LABELS)
def test_labels_of_every_kind(name: str) -> None:
    assert numbers(LABELS[name], pa.float64(), "label", LINES).to_pylist() == [1.0, 0.0]


UUID = uuid.UUID(int=10**38)
IDS: dict[str, tuple[pa.Array, list[str | None]]] = {
    "text": (pa.array(["i1", None]), ["i1", None]),
    "large text": (pa.array(["i1", ""], pa.large_string()), ["i1", None]),
    "text view": (pa.array(["i1", "i2"], pa.string_view()), ["i1", "i2"]),
    "bytes": (pa.array([b"i1", b"\xc3\xbc"]), ["i1", "ü"]),
    "large bytes": (pa.array([b"i1", None], pa.large_binary()), ["i1", None]),
    "bytes of one width": (pa.array([b"i1", b"i2"], pa.binary(2)), ["i1", "i2"]),
    "dictionary": (pa.array(["i1", "i2"]).dictionary_encode(), ["i1", "i2"]),
    "dictionary of numbers": (pa.array([7, 8]).dictionary_encode(), ["7", "8"]),
    "integers": (pa.array([5, None], pa.int32()), ["5", None]),
    "unsigned": (pa.array([2**64 - 1, 0], pa.uint64()), [str(2**64 - 1), "0"]),
    "floats, as pandas makes of integers with gaps": (pa.array([5863.0, None]), ["5863", None]),
    "NaN for a gap": (pa.array([5863.0, float("nan")]), ["5863", None]),
    "decimals": (pa.array([Decimal("12"), None], pa.decimal128(10, 0)), ["12", None]),
    "decimals with zeros": (pa.array([Decimal("12.00"), None], pa.decimal128(10, 2)), ["12", None]),
    "booleans": (pa.array([True, False]), ["true", "false"]),
    "dates": (pa.array([dt.date(2024, 5, 1), None]), ["2024-05-01", None]),
    "UUIDs": (
        pa.ExtensionArray.from_storage(pa.uuid(), pa.array([UUID.bytes, None], pa.binary(16))),
        [str(UUID), None],
    ),
    "nothing": (pa.nulls(2), [None, None]),
    "blanks": (pa.array(["  i1\t", " "]), ["i1", None]),
}


@pytest.mark.parametrize("name", IDS)
def test_ids_of_every_kind(name: str, tmp_path: Path) -> None:
    column, expected = IDS[name]
    pq.write_table(pa.table({"a": column, "b": [1, 2]}), tmp_path / "log.parquet")
    assert read(tmp_path / "log.parquet") == expected


@pytest.mark.parametrize(
    "column", [pa.array([[1], [2]]), pa.array([{"x": 1}, {"x": 2}]), pa.array([dt.timedelta(1), dt.timedelta(2)])]
)
def test_columns_that_are_no_values(column: pa.Array, tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": column}), tmp_path / "log.parquet")
    with pytest.raises(ContractError, match="column a: expected text, numbers, dates or times, got the type"):
        read(tmp_path / "log.parquet")


TEXT = "a,b\ni1,1\n\ni2,2\n"
FILES: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "plain": ("log.csv", bytes),
    "capitals": ("LOG.CSV", bytes),
    "no suffix": ("log", bytes),
    "byte order mark": ("log.csv", lambda text: b"\xef\xbb\xbf" + text),
    "Windows": ("log.csv", lambda text: text.replace(b"\n", b"\r\n")),
    "tabs": ("log.tsv", lambda text: text.replace(b",", b"\t")),
    "semicolons": ("log.csv", lambda text: text.replace(b",", b";")),
    "bars": ("log.txt", lambda text: text.replace(b",", b"|")),
    "RecBole": ("log.inter", lambda text: text.replace(b"a,b", b"a:token,b:float").replace(b",", b"\t")),
    "gzip": ("log.csv.gz", gzip.compress),
    "gzip in capitals": ("LOG.CSV.GZ", gzip.compress),
    "gzip without its suffix": ("log.csv", gzip.compress),
    "bzip2": ("log.csv.bz2", bz2.compress),
    "zstd": ("log.csv.zst", lambda text: pa.compress(text, "zstd", asbytes=True)),
    "plain with the suffix of gzip": ("log.csv.gz", bytes),
    "quotes": ("log.csv", lambda text: b'"a","b"\n"i1","1"\n"i2","2"\n'),
    "blanks": ("log.csv", lambda text: b"a, b\n i1, 1\ni2 ,2\n"),
}


@pytest.mark.parametrize("name", FILES)
def test_text_of_every_kind(name: str, tmp_path: Path) -> None:
    file, pack = FILES[name]
    (tmp_path / file).write_bytes(pack(TEXT.encode()))
    assert read(tmp_path / file, ("a", "b")) == ["i1", "i2"]


@pytest.mark.parametrize("file", ["log.pq", "LOG.PARQUET", "log", "log.csv"])
def test_parquet_under_any_name(file: str, tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": ["i1"]}), tmp_path / file)
    assert read(tmp_path / file) == ["i1"]


FOREIGN = {
    "log.zip": (b"PK\x03\x04....", "a zip archive; unpack it first"),
    "log.csv": ("a,b\n1,2\n".encode("utf-16"), "UTF-16 text; write UTF-8"),
    "log.feather": (b"ARROW1....", "an Arrow or Feather file; write Parquet"),
    "log.orc": (b"ORC....", "an ORC file; write Parquet"),
    "log.h5": (b"\x89HDF....", "an HDF5 file; write Parquet"),
    "log.parquet": (b"a,b\n1,2\n", "a file that does not begin as one"),
    "cut.parquet": (b"PAR1....", "expected a readable Parquet file"),
    "cut.csv.gz": (gzip.compress(TEXT.encode() * 99)[:-9], "expected a complete gzip file"),
    "cut.csv.bz2": (bz2.compress(TEXT.encode() * 99)[:-9], "expected a complete bzip2 file"),
    "twice.csv": (b"a,b,a\n1,2,3\n", "expected one column 'a', got 2 of them"),
    "absent.csv": (b"b,aa\n1,2\n", "expected a column 'a', got columns"),
    "latin.csv": ("a,b\nx,1\nü,2\n".encode("latin-1"), "column a, line 3: expected UTF-8 text"),
    "ragged.csv": (b"a,b\n1,2\n1,2,3\n", "Expected 2 columns, got 3"),
}


@pytest.mark.parametrize("file", FOREIGN)
def test_what_cannot_be_read_is_one_sentence(file: str, tmp_path: Path) -> None:
    content, words = FOREIGN[file]
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ContractError) as refused:
        read(tmp_path / file)
    assert words in str(refused.value)
    assert str(tmp_path / file) in str(refused.value)


def test_broken_bytes_of_prose_become_replacement_characters(tmp_path: Path) -> None:
    """Bytes that are no UTF-8, and halves of a pair of surrogates."""
    (tmp_path / "items.csv").write_bytes(b"a,b\nTh\xfcr,1\n\xed\xa0\x80x,2\nwhole,3\n")
    assert read(tmp_path / "items.csv", ("a", "b"), free_text=("a",)) == ["Th�r", "���x", "whole"]
    assert read(tmp_path / "items.csv", ("b", "a"), free_text=("a",)) == ["1", "2", "3"]


def test_folders_and_patterns_of_parts(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    for day, name in (
        ("2024-05-01", "p-0"),
        ("2024-05-01", "p-1"),
        ("2024%2F05", "p-0"),
        ("__HIVE_DEFAULT_PARTITION__", "p"),
    ):
        part = folder / f"day={day}"
        part.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"a": [f"{day[-1]}{name}"]}), part / f"{name}.parquet")
    for ignored in ("_SUCCESS", ".p-0.parquet.crc", "_delta_log/0.json"):
        (folder / ignored).parent.mkdir(exist_ok=True)
        (folder / ignored).write_text("x")
    assert read(folder) == ["5p-0", "1p-0", "1p-1", "_p"]
    assert read(folder, ("day", "a")) == ["2024/05", "2024-05-01", "2024-05-01", None]
    assert read(tmp_path / "log" / "*" / "p-0.*") == ["5p-0", "1p-0"]
    assert len(files_of(folder)) == 4
    for missing in (tmp_path / "log" / "*.csv", tmp_path / "logs", tmp_path / "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(ContractError, match="expected a file to read, a folder of files, or a pattern"):
            files_of(missing)


def test_a_part_that_differs_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), tmp_path / "0.parquet")
    pq.write_table(pa.table({"b": [1]}), tmp_path / "1.parquet")
    with pytest.raises(ContractError, match=r"1.parquet: expected a column 'a'"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("id,x\na,1\na,2\n", 3),
        ("id,x\na,1\n\n\na,2\n", 5),
        ('id,x\na,"1\n2\n3"\na,2\n', 5),
        ('id,x\r\na,"1\r\n2"\r\n\r\na,2\r\n', 5),
        ("id,x\n\n,1\n", 3),
    ],
)
def test_the_line_is_the_one_that_an_editor_shows(text: str, line: int, tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_bytes(text.encode())
    with pytest.raises(ContractError, match=rf"items.csv, column id, line {line}: expected an id of its own"):
        whole(blocks(tmp_path / "items.csv", ("id", "x")), tmp_path / "items.csv", "id")


@pytest.mark.parametrize(
    ("text", "separator", "line"),
    [
        ('"id,a,b,c";x\na;"1\n2"\na;2\n', ";", 4),  # the header has more commas than semicolons
        ('id;x,y,z\n"a";"1,""2\n3\n"\n"a";2\n', ";", 5),
        ("id|x\ty\tz\na|'\na|2\n", "|", 3),
    ],
)
def test_the_line_is_that_of_the_separator_which_was_given(
    text: str, separator: str, line: int, tmp_path: Path
) -> None:
    (tmp_path / "items.csv").write_text(text)
    name = "id,a,b,c" if "a,b" in text else "id"
    with pytest.raises(ContractError, match=rf"items.csv, column {name}, line {line}: expected an id of its own"):
        whole(blocks(tmp_path / "items.csv", (name,), separator=separator), tmp_path / "items.csv", name)


# Logs and files of items that do not fit each other.


def write_log(folder: Path, item: str = "10{}") -> Path:
    table = {
        "user_id": [f"u{n % 20}" for n in range(400)],
        "item_id": [item.format(n * 7 % 30) for n in range(400)],
        "timestamp": [NOON + 3600 * n for n in range(400)],
        "label": [n % 2 for n in range(400)],
    }
    pa_csv.write_csv(pa.table(table), folder / "log.csv")
    return folder / "log.csv"


def prepare(folder: Path, item: str, items: int = 30, log_item: str = "10{}") -> None:
    (folder / "items.csv").write_text("item_id,brand\n" + "".join(f"{item.format(n)},b{n % 4}\n" for n in range(items)))
    columns = Columns(label_column="label", items_file=folder / "items.csv", item_cat_columns=("brand",))
    InteractionsCommand(write_log(folder, log_item), folder / "out", columns, LogSettings()).run()


@pytest.mark.parametrize("form", ["10{}.0", "00010{}", "I10{}", "10{}-x", "x{}"])
def test_files_that_share_no_item_are_refused(form: str, tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=r"got none of its 30; the log has ids such as \['10"):
        prepare(tmp_path, form)
    assert not (tmp_path / "out").exists()


def test_few_matches_are_said_with_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(tmp_path, "10{}", items=10)
    assert "warning: " in (said := capsys.readouterr().err)
    assert "lists only 10 of the 30 items of the log; the log has ids such as ['10" in said


@pytest.mark.parametrize("form", ["10{}", " 10{}", "10{} "])
def test_blanks_are_no_difference(form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(tmp_path, form)
    said = capsys.readouterr().err
    assert ("column item_id: blanks around 30 values left out" in said) == (form != "10{}")
    assert all(row["cat_brand"] for row in read_rows(tmp_path / "out"))


def test_times_of_another_unit_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    InteractionsCommand(write_log(tmp_path), tmp_path / "out", Columns(timestamp_unit="ms", label_column="label")).run()
    assert "all times are from 1970-01-20 to 1970-01-20: check their unit" in capsys.readouterr().err
