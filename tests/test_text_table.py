"""Tables of text fitted to a screen: lines within its width, words and numbers whole, every cell still there."""

import re
from pathlib import Path

import pytest

from benchmarks import RESULTS
from sidrec.text import SHORTEST, markdown_on_screen, screen_width, shortened, text_table, wrapped

PATH = "runs/bench/criteo_kaggle_on_two_ranks/second_attempt_with_replicas/bench.json"
NAME = "plans_beauty_sid_coord_calibrated_second_attempt_with_hot_items_replicated.json"
HEADS = ("plan", "step", "p10", "p90", "by rounds", "CPU", "GiB", "uneven", "default", "calibrated")
FIGURES = ("6543.21", "6012.34", "7012.99", "112.41 [108.21, 131.77]", "4012.33", "12.345", "1.98", "0.02", "6411.08")
LAYOUT = ("table", "rows x width", "layout", "ranks", "weights", "state", "ms", "lookups", "comms", "input_dist")
TABLE = (
    "t_cat_advertiser_id",
    "40000000x128",
    "table_column_wise",
    "16 ranks",
    "20.5 GB",
    "20.5 GB",
    "1234.5",
    "0.123",
)
ACCURACY = ("workload", "bench", "cost model", "plans", "Spearman", "error", "regret")
SCORES = ("criteo-kaggle", PATH, "calibrated on the other workloads", "19", "-0.95", "100%", "69.9%")
KINDS = [
    *(("bench", [HEADS, (name, *FIGURES)], 1) for name in ("auto", NAME, PATH, "auto = torchrec = column_wise")),
    ("plan", [LAYOUT, (*TABLE, "unknown", "0.004+")], 4),
    ("plan, short", [LAYOUT, ("a", "8x4", "row_wise", "0", "1 B", "1 B", "1", "1", "1", "1")], 4),
    ("calibrate", [ACCURACY, SCORES], 3),
    ("numbers alone", [("rank", "ms", "used", "available"), ("0", "6543.210", "20.5 GB", "137 GB")], 0),
    ("many numbers", [("rank", *map(str, range(40))), ("memory, MiB", *(f"{n * 1234.5:.1f}" for n in range(40)))], 1),
    ("text alone", [("name", "summary"), ("amazon_beauty", "items of a shop " * 12)], 2),
    ("a column without text", [("", "name", "ms"), ("", "x" * 130, "7")], 2),
    ("names like hexadecimal numbers", [("plan", "ms"), ("x" * 70, "1"), ("xlarge/" * 20, "2")], 1),
    ("one row", [("a" * 70, "b" * 70, "3.5")], 2),
    ("empty cells", [("a", "b", "c"), ("", "", ""), ("two words " * 20, "", "7")], 1),
]


@pytest.mark.parametrize("width", [100, 80, 60])
@pytest.mark.parametrize(("kind", "rows", "left"), KINDS)
def test_a_table_fits_and_loses_nothing(kind: str, rows: list[tuple[str, ...]], left: int, width: int) -> None:
    text = text_table(rows, left=left, width=width)
    assert max(map(len, text.splitlines())) <= width, text
    words = text.split()
    for row in rows:
        for column, cell in enumerate(row):
            for word in cell.split():
                if column >= left or len(word) <= SHORTEST or word[0].isdigit():
                    assert word in words
                else:
                    cut = [f"{each[0]}(.*){each[1]}" for each in (part.split("…") for part in words if "…" in part)]
                    assert word in words or any(re.fullmatch(pattern, word) for pattern in cut), (word, text)


def test_different_names_stay_different_and_blocks_tell_rows_apart() -> None:
    names = [f"learning_rate_{rate}_of_the_tables_{end}" for rate in ("0.1", "0.2") for end in ("one", "two")]
    rows = [("variant", "trial", "a" * 20, "b" * 20), *(("hid_only", name, "1" * 20, "2" * 20) for name in names)]
    text = text_table(rows, left=2, width=60)
    shown = [line.split()[:2] for line in text.splitlines() if line.startswith("hid_only")]
    assert len(shown) == 8
    assert len({tuple(words) for words in shown}) == 4


@pytest.mark.parametrize("width", [100, 80, 60])
@pytest.mark.parametrize("report", sorted(RESULTS.glob("*/report.md")), ids=lambda path: path.parent.name)
def test_the_widest_real_tables_fit(report: Path, width: int) -> None:
    """Every committed report: studies, learners, faults; 250 to 416 columns in their files."""
    text = report.read_text(encoding="utf-8")
    shown = markdown_on_screen(text, width)
    assert all(len(line) <= width for line in shown.splitlines())
    for figure in (r"(?<![\w.])[-+]?\d+\.\d{4}\b", "±", r"\[[-+]\d"):
        assert sorted(re.findall(figure, shown)) == sorted(re.findall(figure, text))


def test_markdown_by_hand() -> None:
    text = "# title\n\n| a | b |\n| --- | --- |\n| one \\| two | 3.5 |\n| x | |\n\nmany words in a line of text"
    assert markdown_on_screen(text, 20).splitlines() == [
        *("# title", "", "a             b", "one \\| two  3.5", "x", "", "many words in a line", "of text")
    ]


def test_a_table_that_fits_is_left_as_it_is() -> None:
    rows = [("plan", "step"), ("auto", "1.25")]
    assert text_table(rows, width=60) == text_table(rows) == "plan  step\nauto  1.25"


def test_by_hand() -> None:
    rows = [("name", "of", "ms"), ("one two three", "a/long/path/of/a/file.json", "12.5")]
    assert text_table(rows, left=2, width=40).splitlines() == [
        "name           of                     ms",
        "one two three  a/long…/a/file.json  12.5",
    ]
    assert text_table([("plan", "ms", "GiB"), ("a", "1234567890" * 3, "0" * 20)], width=40).splitlines() == [
        *(f"plan  {'ms':>30}", f"a     {'1234567890' * 3}", "", f"plan  {'GiB':>20}", f"a     {'0' * 20}")
    ]


@pytest.mark.parametrize(
    ("word", "limit", "short"),
    [
        *(("plan.json", 12, "plan.json"), ("runs/shop/plan.json", 12, "run…lan.json"), ("abcdef", 1, "…")),
        *(("abcdef", 4, "a…ef"), ("abcdef", 6, "abcdef"), ("", 3, "")),
    ],
)
def test_long_names_keep_begin_and_end(word: str, limit: int, short: str) -> None:
    assert shortened(word, limit) == short


def test_sentences_break_between_words(monkeypatch: pytest.MonkeyPatch) -> None:
    assert wrapped("a/very-long/path-of-many-parts is one word", 12).splitlines() == ["a/v…ny-parts", "is one word"]
    assert wrapped("1234567890 rows", 5).splitlines() == ["1234567890", "rows"]
    for columns, width in (("60", 60), ("500", 100), ("7", 40), ("0", 100)):
        monkeypatch.setenv("COLUMNS", columns)
        assert screen_width() == width
