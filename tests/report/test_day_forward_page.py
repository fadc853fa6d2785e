"""The page of a day-forward study agrees with its typed result."""

import re
from pathlib import Path

import pytest

from sidrec.report.day_forward_page import day_forward_page, write_day_forward_page
from sidrec.report.study_text import signed
from sidrec.schema import ContractError
from sidrec.study.day_comparison import SIDS, TWIN, ArmCost, DayForward, SizeComparison, SliceDifference
from sidrec.study.day_log import DayFacts
from sidrec.study.intervals import Interval
from sidrec.study.verdicts import Verdict


def made_up_day_forward(complete: bool = True) -> DayForward:
    """Two sizes, four days; SIDs win on GAUC."""
    days = tuple(
        DayFacts(f"day {n}", f"2024-05-0{n}", f"2024-05-0{n + 1}", 9000, 450, 800, 700, n > 1) for n in range(1, 6)
    )
    costs = {TWIN: ArmCost(4_000_000, 1_000_000, 30_000, 0.02), SIDS: ArmCost(4_000_000, 1_100_000, 50_000, None)}
    against = {"all": {"gauc": _difference(-0.004, "lost"), "ne": None}}
    sizes = (SizeComparison(1, (0, 1), costs, _differences()), SizeComparison(4, (0,), costs, _differences(), against))
    item = "{kind: sid_coord, preset: recommended}"
    conditions: dict[str, object] = {"cpu": "a CPU", "commit": "0123456789ab"}
    notes = ("some negatives are sampled",)
    return DayForward("shop", "runs/shop/seed0", 1200, days, item, 2, 2, sizes if complete else (), notes, conditions)


def _differences() -> dict[str, dict[str, SliceDifference | None]]:
    names = ("all", "new today", "1 day", "2-7 days", "older", "0 updates", "1-10 updates")
    return {
        name: {"gauc": _difference(0.01 - place / 1000, "won"), "ne": _difference(0.001, "cannot tell", "3 more runs")}
        for place, name in enumerate(names)
    }


def _difference(found: float, verdict: Verdict, advice: str = "") -> SliceDifference:
    ends = Interval(found - 0.003, found + 0.003)
    by_day = (found, None, found / 2, found)
    return SliceDifference(
        9000,
        800,
        700,
        0.7,
        0.7 + found,
        found,
        by_day,
        (found - 0.001, found + 0.001),
        ends,
        ends,
        ends,
        verdict,
        "",
        advice,
    )


TEXT = day_forward_page(made_up_day_forward()).decode()


def test_verdicts_come_first_and_nothing_is_loaded() -> None:
    sentence = "At the whole HID table, GAUC moves by +.0100 [+.0070, +.0130], 2 runs, 800 users: won."
    assert sentence in TEXT
    assert "NE moves by +.0010 [-.0020, +.0040], 2 runs, 800 users: cannot tell; 3 more runs." in TEXT
    assert "with SIDs, against the twin with the whole table, GAUC moves by -.0040" in TEXT
    assert TEXT.index(sentence) < TEXT.index("Whole HID table")
    assert re.findall(r"(?:src|href)=\"|url\(|<script", TEXT) == []


def test_every_slice_has_a_row_in_the_chart_and_the_table() -> None:
    for name in ("new today", "2-7 days", "1-10 updates"):
        # GAUC and NE, in charts and tables, at two sizes.
        assert TEXT.replace("<wbr>", "").count(f"<span>{name}</span>") == 4
        assert TEXT.count(f'<th scope="row">{name}</th>') == 4
    assert f"<td>{signed(0.01 - 0.003)}</td><td>{signed(0.01 + 0.003)}</td><td>won</td>" in TEXT


def test_what_was_not_measured_is_a_dash_and_a_day_without_value_a_gap() -> None:
    assert TEXT.count("<td>–</td><td>–</td></tr>") == 2  # noqa: RUF001  # step of the model with SIDs, at two sizes
    assert TEXT.count("<polyline") == 4  # GAUC and NE, each in two parts around the missing day


def test_a_study_without_a_complete_run(tmp_path: Path) -> None:
    path = write_day_forward_page(made_up_day_forward(complete=False), tmp_path / "report.html")
    assert "No run is complete yet." in path.read_text(encoding="utf-8")
    write_day_forward_page(made_up_day_forward(), path)
    path.write_text("mine")
    with pytest.raises(ContractError, match="the page of a day-forward study"):
        write_day_forward_page(made_up_day_forward(), path)
