"""The report of a run: whole, closed to the network, right in its figures, and honest about what is missing."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sidrec import cli
from sidrec.errors import ContractError
from sidrec.metrics.predictions import Predictions
from sidrec.report.charts import MOST_POINTS, Series, line_chart, spanning, thinned
from sidrec.report.run_files import RunFiles, reliability, resamples_for, scored_split, wilson
from sidrec.report.run_page import write_report
from tests.bench.test_page import OUTSIDE, Page
from tests.report.made_up_run import made_up_run, predictions
from tests.small_log import write_small_log


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_log(tmp_path_factory.mktemp("reports"))


CASES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "whole": ({}, ["Spearman 1.00", "entropy 0.56 of 0.69 nats", "mean 0.750", "auc on test", "1 warnings, below"]),
    "hid": ({"kind": "hid"}, ["Items of kind hid have no SIDs", "the model has no fusion", "gate_test.json: it takes"]),
    "started": ({"evaluated": False}, ["Not evaluated yet", "None was recorded.", "checkpoint.best"]),
    "unsaved": ({"saved": False}, ["there are no predictions", "No predictions of test"]),
    "skipping": ({"skipped": (3, 4, 9)}, ["3 steps of this training were left out", "step 9: a loss that is nan"]),
    "two_rows": ({"scored": predictions(1.0, rows=2)}, ["2 rows"]),
    "all_positive": (
        {"scored": Predictions("test", *np.ones((3, 4), dtype=np.int64), *np.ones((2, 4), dtype=np.float32))},
        ["4 rows"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_report_is_whole_and_asks_for_nothing(name: str, folder: Path, tmp_path: Path) -> None:
    settings, expected = CASES[name]
    page = Page(write_report(made_up_run(folder, name, **settings), tmp_path / "report.html"))
    for text in expected:
        assert text in page.text, text
    assert page.scripts == []
    assert not [key for key, _ in page.attributes if key in OUTSIDE]
    assert "http" not in page.source.replace("http-equiv", "")
    assert "nan" not in page.source.replace("a loss that is nan", "")
    assert "<b>the gate</b>" not in page.source  # text is never markup


def test_figures_of_the_slice_table(folder: Path, tmp_path: Path) -> None:
    run = made_up_run(folder, "figures")
    found = scored_split(RunFiles(run), "test")
    scored = predictions(1.0)
    assert found.items["all"] == len(np.unique(scored.item_N))
    for (name, metric), interval in found.intervals.items():
        assert interval.found == pytest.approx(found.metrics[name][metric], nan_ok=True), (name, metric)
        if interval.low is not None and interval.high is not None and name == "all":
            assert interval.low < interval.found < interval.high
    rows = {row[0]: row for row in Page(write_report(run, tmp_path / "r.html")).rows if row}
    assert rows["all"][1] == "300"
    assert rows["all"][5].startswith(f"{found.metrics['all']['auc']:.4f}")


def test_a_report_replaces_reports_only(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = made_up_run(folder, "replaced", evaluated=False)
    out = tmp_path / "notes.html"
    for _ in range(2):
        assert cli.main(["report", str(run), "--out", str(out)]) == 0
    out.write_text("my notes")
    assert cli.main(["report", str(run), "--out", str(out)]) == 2
    assert out.read_text() == "my notes"
    assert cli.main(["report", str(run)]) == 0
    assert (run / "report.html").is_file()
    assert cli.main(["report", str(run.parent)]) == 2
    assert "there are" in capsys.readouterr().err


def test_reliability_against_rows_counted_by_hand() -> None:
    probability = np.array([0.1, 0.1, 0.4, 0.8, 0.8])
    label = np.array([0, 1, 0, 1, 1], dtype=np.float32)
    ids = np.arange(5)
    score = np.log(probability / (1 - probability)).astype(np.float32)
    bins = reliability(Predictions("test", ids, ids, ids, label, score))
    assert [(round(each.predicted, 6), each.observed, each.rows) for each in bins] == [
        (0.1, 0.5, 2),
        (0.4, 0.0, 1),
        (0.8, 1.0, 2),
    ]


@pytest.mark.parametrize(
    ("share", "rows", "low", "high"),
    [(0.5, 10, 0.2366, 0.7634), (0.0, 10, 0.0, 0.2775), (1.0, 10, 0.7225, 1.0), (0.1, 100, 0.0552, 0.1744)],
)
def test_wilson_intervals(share: float, rows: int, low: float, high: float) -> None:
    """Values of Wilson's formula, as tables of binomial intervals have them."""
    assert wilson(share, rows) == pytest.approx((low, high), abs=1e-4)


@pytest.mark.parametrize(("rows", "expected"), [(0, 1000), (10, 1000), (40_000, 1000), (80_000, 500), (10**9, 100)])
def test_resamples_shrink_with_rows(rows: int, expected: int) -> None:
    assert resamples_for(rows) == expected


def test_long_lines_are_averaged() -> None:
    points = [(float(step), 1.0 if step % 2 else 3.0) for step in range(10 * MOST_POINTS)]
    thin = thinned(points)
    assert len(thin) == MOST_POINTS
    assert {y for _, y in thin} == {2.0}
    assert thinned([(1.0, None)]) == [(1.0, None)]


@pytest.mark.parametrize("values", [[None], [], [float("nan")]])
def test_a_chart_without_values_is_left_out(values: list[float | None]) -> None:
    assert line_chart("loss", [Series("loss", list(enumerate(values)))], "loss") is None


@pytest.mark.parametrize("values", [[0.0], [1.0], [-1.0, -1.0], [0.5, 0.5], [1e-9, 2e9]])
def test_axes_hold_their_values(values: list[float]) -> None:
    axis = spanning(values)
    assert axis.low < min(values) <= max(values) < axis.high
    assert 0 <= axis.at(values[0]) <= 1


@pytest.mark.parametrize("content", [b"[]", b"3", b"\xff\xfe\x00", b'{"step": 1}\n[1]\n{"st', b'"a"\n'])
@pytest.mark.parametrize("name", ["metrics.jsonl", "warnings.txt", "gate_test.json"])
def test_damaged_files_of_a_run(folder: Path, tmp_path: Path, name: str, content: bytes) -> None:
    run = made_up_run(folder, tmp_path.name)
    (run / name).write_bytes(content)
    if name == "gate_test.json":
        with pytest.raises(ContractError, match=f"{name}: expected"):
            write_report(run, tmp_path / "report.html")
    else:
        write_report(run, tmp_path / "report.html")
