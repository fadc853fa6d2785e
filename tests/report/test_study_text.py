"""The report of a study as text: verdict sentences, what would tell, tables, and widths."""

from dataclasses import replace

import numpy as np
import pytest

from sidrec.report.study_text import (
    Line,
    agreement,
    chance,
    cost_table,
    headline,
    markdown,
    metrics_table,
    on_screen,
    primary,
    sentence,
    short,
    signed,
    slice_table,
    spread_text,
    tuning_table,
    verdict_lines,
    verdict_text,
)
from sidrec.study.comparison import Comparison, PairedDifference
from sidrec.study.verdicts import MARGINS
from tests.report.made_up_study import COUNTS, LEADS, difference, made_up_searches, made_up_study

FOUND = made_up_study()
BEAUTY = FOUND.datasets["beauty"]


def _difference(moved: list[float], column: str = "GAUC", **keys: str) -> PairedDifference:
    return difference(column, 0.75 + np.asarray(moved), np.full(len(moved), 0.75), **keys)  # type: ignore[arg-type]


def _said(found: PairedDifference, column: str = "GAUC") -> str:
    return sentence("ours", "theirs", column, found, COUNTS, MARGINS)


def test_a_sentence_has_the_difference_its_interval_its_basis_and_the_verdict() -> None:
    # Mean .02, standard deviation .01 over four runs: t(3) = 3.1824 times .005 is .0159.
    found = _difference([0.01, 0.03, 0.01, 0.03], "GAUC")
    half = 3.1824 * float(np.std([1, 3, 1, 3], ddof=1)) * 0.01 / 2
    ends = f"[{signed(0.02 - half)}, {signed(0.02 + half)}]"
    assert _said(found) == f"ours is ahead of theirs on GAUC by +.0200 {ends}, 4 runs, 6,188 users: won."
    assert _said(_difference([-0.01, -0.03, -0.01, -0.03])).startswith("ours is behind theirs on GAUC by -.0200 [")


def test_lower_ne_is_ahead() -> None:
    assert _said(_difference([-0.02, -0.021, -0.019], "NE"), "NE").startswith("ours is ahead of theirs on NE by -.0200")
    open_verdict = _said(_difference([-0.03, 0.01, -0.02], "NE"), "NE")
    assert open_verdict.startswith("ours may be ahead of theirs on NE by -.0133")


def test_a_tie_names_its_margin() -> None:
    assert _said(_difference([0.0001, -0.0001, 0.0002])).endswith("6,188 users: tied within 0.002.")


def test_what_cannot_be_told_says_what_would_tell() -> None:
    few = _difference([0.02, -0.01, 0.03])
    assert few.power is not None
    assert few.power.runs is not None
    assert _said(few).endswith(f": cannot tell; {few.power.runs - 3} more runs would tell.")
    assert verdict_text(few).endswith(f" cannot tell, {few.power.runs - 3} more")
    crowd = difference("GAUC", np.array([0.7501, 0.7541, 0.7501]), np.full(3, 0.75), users=0.01)
    assert crowd.power is not None
    assert crowd.power.users_factor is not None
    assert verdict_text(crowd).endswith(f"cannot tell, {crowd.power.users_factor:.1f}x users")
    why = _difference([0.02, -0.01, 0.03], why="12 users are too few")
    assert _said(why).endswith(": cannot tell; 12 users are too few.")
    assert verdict_text(why).endswith(" cannot tell")


def test_users_of_gauc_and_items_of_cold_slices_are_counted() -> None:
    found = _difference([0.01, 0.03, 0.01, 0.03])
    assert ", 5,201 users: " in _said(found, "tail AUC")
    assert ", 3,950 users: " in _said(found, "tail GAUC")
    assert ", 611 users, 1,040 items: " in _said(found, "cold GAUC")


def test_the_headline_gets_sentences_and_the_others_are_counted() -> None:
    assert (headline(FOUND), primary(FOUND)) == ("recommended", "GAUC")
    lines = verdict_lines(FOUND, BEAUTY)
    assert [line.verdict for line in lines] == ["won", None, "won", None, "lost", "lost"]
    assert lines[0].text.startswith("recommended is ahead of hid_only on GAUC by +.04")
    assert lines[1] == Line(
        "3 other variants against hid_only on GAUC: 3 won (sid_only, published, mean_with_dropout).", None
    )
    # What was said of recommended against both is not said again the other way round.
    assert [line.text.split(" is ")[0] for line in lines[-2:]] == ["published", "mean_with_dropout"]


def test_without_a_headline_few_variants_get_sentences_and_many_are_counted() -> None:
    few = made_up_study(("shop",), {"hid": 0.0, "a": 0.02, "b": 0.03}, references=("hid",))
    assert headline(few) is None
    assert [line.text.split(" is ")[0] for line in verdict_lines(few, few.datasets["shop"])] == ["a", "b"]
    many = made_up_study(("shop",), {"hid": 0.0, **{f"v{n}": 0.03 for n in range(6)}}, references=("hid",))
    (line,) = verdict_lines(many, many.datasets["shop"])
    assert line.text == "6 variants against hid on GAUC: 6 won (v0, v1, v2, v3 and 2 more)."
    one = made_up_study(("shop",), {"hid": 0.0, "sids": 0.02}, references=("hid",), columns=("AUC",))
    assert (headline(one), primary(one)) == ("sids", "AUC")


def test_a_reason_that_all_share_is_said_once() -> None:
    names = {name: BEAUTY.variants[name] for name in ("sid_only", "published", "mean_with_dropout", "recommended")}
    why: dict[str, dict[str, PairedDifference | None]]
    why = {"hid_only": {"GAUC": _difference([0.01, 0.02], why="no draws are recorded")}}
    shop = replace(BEAUTY, variants={name: replace(of, against=why) for name, of in names.items()})
    (line,) = verdict_lines(replace(FOUND, references=("hid_only",), columns=("GAUC",)), shop)[1:]
    listed = "sid_only, published, mean_with_dropout"
    assert (
        line.text == f"3 other variants against hid_only on GAUC: 3 cannot be told ({listed}): no draws are recorded."
    )


def test_chance_counts_what_was_judged() -> None:
    assert chance(FOUND).startswith("Of 168 intervals at 95%, about 8.4 leave out 0 by chance alone.")  # 2 x 12 x 7
    assert chance(made_up_study(runs=1)).startswith("No difference can be judged yet")


def test_tables_have_every_variant_and_column() -> None:
    table = metrics_table(FOUND, BEAUTY)
    assert table.rows[0] == ["variant", "runs", "catalogs", *FOUND.columns]
    assert [row[:3] for row in table.rows[1:3]] == [["hid_only", "10", "–"], ["sid_only", "10", "10"]]  # noqa: RUF001
    assert table.rows[1][3] == spread_text(BEAUTY.variants["hid_only"].metrics["AUC"])
    assert slice_table(FOUND, BEAUTY).rows[-1] == ["cold", "3,793", "69.0%", "2,010", "611", "2,121", "1,040"]
    cost = BEAUTY.variants["hid_only"].cost
    assert cost.step_seconds is not None
    step = f"{1000 * cost.step_seconds.mean:.1f}"
    assert cost_table(FOUND, BEAUTY).rows[1][2:] == [
        step,
        *cost_table(FOUND, BEAUTY).rows[1][3:4],
        "774,464",
        "16,384",
        "26,113",
    ]


def test_what_was_not_measured_is_a_dash() -> None:
    hid = BEAUTY.variants["hid_only"]
    bare = replace(hid, cost=replace(hid.cost, step_seconds=None, item_parameters=None))
    row = cost_table(FOUND, replace(BEAUTY, variants={"hid_only": bare})).rows[1]
    assert row[2] == row[4] == "–"  # noqa: RUF001


def test_tuning_shows_budget_settings_edges_and_what_was_left_out() -> None:
    table = tuning_table(made_up_searches()["beauty"])
    rows = {row[0]: row for row in table.rows}
    assert rows["published"][-2:] == ["optimizer.tables.lr low", "none"]
    assert rows["hid_only"][-2:] == ["none", "model.item.hid_dropout"]
    assert rows["recommended"][1:4] == ["12", "12", "4"]
    assert rows["recommended"][6] == "optimizer.tables.lr 0.03123, model.hid_init null"
    assert "GAUC on split validation, mean over run 0 of each trial" in table.note


@pytest.mark.parametrize(
    ("ranks", "expected"),
    [
        ((0.9,), "one run"),
        ((0.9, -0.2), "no: UNSTABLE, the direction differs by run"),
        ((0.9, None), "no: constant in some runs"),
        ((0.0, 0.5), "no: constant in some runs"),
        ((0.1, -0.1, None), "no: UNSTABLE, the direction differs by run"),
        ((None, None), "yes: constant"),
        ((0.9, 0.1), "yes: rises"),
        ((-0.9, -0.1), "yes: falls"),
    ],
)
def test_gates_agree_or_not(ranks: tuple[float | None, ...], expected: str) -> None:
    assert agreement(ranks) == expected


def test_a_terminal_gets_verdicts_first_in_at_most_100_columns() -> None:
    text = on_screen(FOUND, 100)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[0].startswith("beauty: recommended is ahead of hid_only on GAUC by +.04")
    assert text.index("Of 168 intervals") < text.index("beauty: Metrics") < text.index("beauty: Against hid_only")
    sids = BEAUTY.variants["sid_only"].against["hid_only"]["GAUC"]
    assert sids is not None
    assert f"{signed(sids.difference)} won" in text


def test_markdown_has_the_intervals_and_how_to_read_them() -> None:
    text = markdown(FOUND, made_up_searches())
    cell = verdict_text(BEAUTY.variants["recommended"].against["sid_only"]["GAUC"])  # type: ignore[arg-type]
    assert f"| {cell} |" in text
    assert text.count("### Tuning") == len(FOUND.datasets)
    assert "10 catalog fits; commit 0123456789ab" in text
    assert text.index("**beauty**: recommended is ahead") < text.index("## beauty") < text.index("## How to read it")


def test_one_catalog_is_said_and_nothing_finished_too() -> None:
    one = made_up_study(runs=1, leads={name: LEADS[name] for name in ("hid_only", "published")})
    assert "one catalog for all runs" in markdown(one, {})
    assert "No run has finished." in markdown(Comparison("claim", "test", ("AUC",), (), {}), {})


def test_numbers() -> None:
    assert [short(0.71234), short(-0.5), short(1.25), signed(0.01234), signed(-0.00456), signed(1.5)] == [
        ".7123",
        "-.5000",
        "1.2500",
        "+.0123",
        "-.0046",
        "+1.5000",
    ]
