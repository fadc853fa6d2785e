"""The report of a fault campaign counts what was dealt and says what it cost."""

import json
from pathlib import Path

import pytest

from tests.soak.faults.campaign import report_text
from tests.soak.faults.faults import Kind, Moment, Strike
from tests.soak.faults.killed_run import EXACT, Difference, Outcome, across_worlds

RESULT = {
    "conditions": {"commit": "abc"},
    "settings": {"kills": 4, "seed": 3, "minutes": 60},
    "across_worlds": {"losses": 4e-6, "metrics": 1e-4},
    "references": {1: {"steps": 300, "seconds_to_first_step": 5.0}},
}


def strike(
    kind: Kind, moment: Moment, step: int | None, resumed: int | None, seconds: float, **facts: object
) -> Strike:
    return Strike(kind, moment, moment, 2, step, resumed=resumed, seconds=seconds, **facts)  # type: ignore[arg-type]


def test_kills_are_counted_and_costs_are_medians() -> None:
    sound = Outcome("run-1", (2,), differs=EXACT)
    sound.strikes = [
        strike(Kind.KILL_RANK, Moment.TRAINING, 47, 40, 8.0),
        strike(Kind.KILL_RANK, Moment.SAVING, 61, 60, 6.0),
        strike(
            Kind.TERM_RANK, Moment.TRAINING, 99, 100, 7.0, gone=2.5
        ),  # its last step was saved before it was printed
    ]
    mixed = Outcome("run-2", (1, 2), complaints=["metrics.json differs"], differs=Difference(2e-6, 3e-5))
    mixed.strikes = [strike(Kind.KILL_ALL, Moment.STARTING, None, 20, 9.0, damage="newest: cut")]
    lines = report_text(RESULT, [sound, mixed]).splitlines()
    assert lines[2].startswith("4 kills in 2 runs of 300 steps; 1 of them ended as the uninterrupted one")
    assert "by 4.0e-06 (found: 2.0e-06) and metrics by 1.0e-04 (found: 3.0e-05), 2 times what" in lines[4]
    assert "* run-2: metrics.json differs" in lines
    for row in (
        "| SIGKILL of one rank | 2 |",
        "| training | 2 |",
        "| starting | 1 |",
        "| newest: cut | 1 |",
        "| 2 | hand | 7.5, 9.0 | 1, 7 |",
        "After SIGTERM while training, all ranks had left after 2.5 s (most: 2.5 s).",
    ):
        assert row in lines


def test_ranks_that_change_may_go_as_far_as_uninterrupted_runs_are_apart(tmp_path: Path) -> None:
    for name, loss, auc in (("one", 0.5, 0.7), ("two", 0.5 + 3e-6, 0.7), ("four", 0.5 - 1e-6, 0.7 + 1e-6)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": loss}) + "\n")
        (tmp_path / name / "metrics.json").write_text(json.dumps({"test": {"auc": auc}}))
    allowed = across_worlds([tmp_path / name for name in ("one", "two", "four")])
    assert allowed.losses == pytest.approx(8e-6)
    assert allowed.metrics == 1e-4
    assert across_worlds([tmp_path / "one"]) == Difference(1e-6, 1e-4)
