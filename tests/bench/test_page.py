"""The bench's page: whole, closed to the network, safe against names, and right in its figures."""

import dataclasses
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from sidrec.bench.page import write_page
from sidrec.bench.result import BenchResult, Prediction
from tests.bench.bench_results import CASES, plan, prediction, result_of

VOID = {"meta", "br", "wbr", "input", "img", "link", "hr"}
OUTSIDE = ("src", "href", "srcset", "xlink:href", "action", "poster", "data", "style")


class Page(HTMLParser):
    """What a page holds; fails where a tag is not closed in its turn."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self.rows: list[list[str]] = []
        self._open: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1:] == ["script"]:
            self.scripts.append(data)
        elif self._open[-1:] != ["style"]:
            self.texts.append(data)
            if "tr" in self._open:
                self.rows[-1][-1] += data

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def row(self, *begins: str) -> list[str]:
        (found,) = [row for row in self.rows if row[: len(begins)] == list(begins)]
        return found


def page_of(result: BenchResult, folder: Path) -> Page:
    write_page(result, folder / "bench.html")
    assert [path.name for path in folder.iterdir()] == ["bench.html"]
    return Page(folder / "bench.html")


@pytest.mark.parametrize("name", CASES)
def test_a_page_is_whole_and_asks_for_nothing(name: str, tmp_path: Path) -> None:
    result = CASES[name]
    page = page_of(result, tmp_path)
    assert not [(key, value) for key, value in page.attributes if key in OUTSIDE or (key or "").startswith("on")]
    assert not {"img", "link", "iframe", "object", "embed"} & set(page.tags)
    assert not [word for word in ("http:", "https:", "url(", "@import", "//cdn") if word in page.source]
    assert "default-src 'none'" in page.source
    ids = [value for key, value in page.attributes if key == "id"]
    assert len(ids) == len(set(ids))
    assert "nan" not in page.text.lower().split()
    for one in result.plans:
        assert one.name in page.text
        assert one.failed is None or one.failed in page.text


def test_the_script_is_the_packages_and_one_that_parses(tmp_path: Path) -> None:
    page = page_of(CASES["twelve, some failed"], tmp_path)
    script = tmp_path / "page.js"
    script.write_text("".join(page.scripts))
    assert page.tags.count("script") == 1
    assert "alert" not in script.read_text()
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node to parse it")
    subprocess.run([node, "--check", str(script)], check=True, timeout=600)


def test_figures_of_the_table(tmp_path: Path) -> None:
    """Fastest first whatever the order in the result; by hand: 20 / 8 is 2.50, memory's 3 MiB of 2 on average 1.50."""
    slow = plan("row_wise", 20.0, memory=[2 * 2**20, 2 * 2**20], lookups=[30.0, 10.0], default=prediction(0.0125))
    page = page_of(result_of(slow, plan("auto", 8.0, calibrated=prediction(1234.5))), tmp_path)
    assert "×\N{NO-BREAK SPACE}fastest, by rounds" in page.text  # noqa: RUF001
    heads = ["p50", "p10", "p90", "CPU", "median", "from", "to", "lookup", "backward"]
    heads += ["least rank", "most", "memory", "lookups", "TorchRec", "calibrated"]
    assert page.row("p50") == heads
    assert page.row("1", "auto")[2:] == [
        *("8.00", "7.00", "10.0", "4.00", "1.00", "1.00", "1.00", "2.50", "5.00"),
        *("1.00", "3.00", "1.50", "1.00", "–", "1,234"),  # noqa: RUF001
    ]
    assert page.row("2", "row_wise")[2:] == [
        *("20.0", "19.0", "22.0", "4.00", "2.50", "2.50", "2.50", "2.50", "5.00"),
        *("2.00", "2.00", "1.00", "1.50", "0.0125", "–"),  # noqa: RUF001
    ]


def test_what_the_cost_models_are_worth(tmp_path: Path) -> None:
    """By hand. Measured 10, 20, 40, 50. Default 40, 10, 20, 25: ranks 4, 1, 2, 3 against 1, 2, 3, 4, squares of the
    differences 9 + 1 + 1 + 1, Spearman 1 - 6 * 12 / (4 * 15) = -0.20; errors 300%, thrice 50%; it likes `b`, twice `a`.
    """
    measured = {"a": (10.0, 40.0), "b": (20.0, 10.0), "c": (40.0, 20.0), "d": (50.0, 25.0)}
    plans = [plan(name, step, default=prediction(rated)) for name, (step, rated) in measured.items()]
    plans[0] = dataclasses.replace(plans[0], rounds=[10.0, 11.0, 12.0])
    plans[1] = dataclasses.replace(plans[1], rounds=[20.0, 21.0])
    text = page_of(result_of(*plans), tmp_path).text
    verdict = "Spearman -0.20 over 4 plans; median error 50%; it chooses b, which took 100% "
    assert text.count(verdict + "longer than a.") == 2
    assert "Fastest: a, 10.0 ms a step (p10 9.00, p90 12.0). Next: b, 100% longer, slower in 2 of 2 rounds." in text
    assert "Calibrated cost model:" not in text


def test_ties_and_identical_plans(tmp_path: Path) -> None:
    """b is slower in every round, by 0.1% to 20%; c in one of three only; d is the same plan as a."""
    rounds = {"a": [10.0, 10.0, 10.0], "b": [10.01, 11.0, 12.0], "c": [9.0, 9.9, 12.0], "d": [11.0, 11.0, 11.0]}
    same: dict[str, Any] = {"tables": {"sparse": {}}}
    plans = [
        plan(name, 10 + number, rounds=each, plan=same if name in "ad" else {"tables": {name: {}}})
        for number, (name, each) in enumerate(rounds.items())
    ]
    page = page_of(result_of(*plans), tmp_path)
    assert "Tie of 3 plans: a, 10.0 ms a step (p10 9.00, p90 12.0), and c (12.0), d (13.0); round by round" in page.text
    assert "Next: b, 10% longer, slower in 3 of 3 rounds." in page.text
    assert "Same plan under several names: a = d; their steps differ by 30%, which is noise of this bench." in page.text
    notes = [value for key, value in page.attributes if key == "data-note"]
    assert notes == ["same plan as d", "tie with the first", "same plan as a, tie with the first"]


def test_costs_of_tables(tmp_path: Path) -> None:
    """Of 42 tables the 40 costliest are lines of their own; the calibrated model says which."""
    cost = {f"t{table}": [float(table), 1.0] for table in range(42)}
    layout = {"rows": 1000, "width": 16, "sharding_type": "row_wise", "compute_kernel": "fused", "ranks": [0, 1]}
    of = {"tables": {"sparse": {"t41": layout, "t0": layout}}}
    rated = plan("auto", 9.0, plan=of, default=Prediction(3.0, cost), calibrated=Prediction(9.0, cost))
    page = page_of(result_of(rated), tmp_path)
    assert page.row("t411,000 × 16: row_wise, fused, 2 ranks")[1:] == ["41.0 of 42.0 ms"] * 2  # noqa: RUF001
    assert page.row("t2layout unknown")[1:] == ["2.00 of 3.00 ms"] * 2
    assert page.row("2 otherstogether")[1:] == ["2.00 of 3.00 ms"] * 2
    assert page.row("allslowest rank's step")[1:] == ["3.00 ms", "9.00 ms"]


def test_conditions_are_shown_in_their_units(tmp_path: Path) -> None:
    result = dataclasses.replace(CASES["seven types"], complete=False, rounds_wanted=7)
    text = page_of(result, tmp_path).text
    for shown in ("ddr12.0 GiB", "ddr bandwidth8.20 GB/s", "held fixedbatches, first weights, SGD 0.1", "rounds5 of 7"):
        assert shown in text
    assert "This bench was interrupted" in text


def test_text_that_utf_8_cannot_hold_does_not_lose_the_page(tmp_path: Path) -> None:
    assert "half ? pair" in page_of(result_of(plan("half \ud800 pair", 3.0)), tmp_path).text


def test_a_page_that_cannot_be_made_leaves_the_last_one(tmp_path: Path) -> None:
    page_of(CASES["seven types"], tmp_path)
    before = (tmp_path / "bench.html").read_bytes()
    ragged = Prediction(1.0, {f"t{table}": [[2.0], [1.0, 1.0]][table % 2] for table in range(50)})
    with pytest.raises(ValueError, match="zip"):
        write_page(result_of(plan("auto", 3.0, default=ragged)), tmp_path / "bench.html")
    assert [path.name for path in tmp_path.iterdir()] == ["bench.html"]
    assert (tmp_path / "bench.html").read_bytes() == before
