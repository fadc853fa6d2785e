"""The report of a fault campaign counts what was dealt and says what it cost."""

from benchmarks.fault_campaign.faults import Kind, Moment, Strike
from benchmarks.fault_campaign.report import report_text
from benchmarks.fault_campaign.verdict import EXACT, Difference
from benchmarks.fault_campaign.victim import Outcome

RESULT = {
    "conditions": {"commit": "abc"},
    "settings": {"kills": 4, "seed": 3, "minutes": 60},
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
    assert "by 1e-06 (found: 2e-06) and metrics by 1e-04 (found: 3e-05)." in lines[4]
    assert "* run-2: metrics.json differs" in lines
    for row in (
        "| SIGKILL of one rank | 2 |",
        "| training | 2 |",
        "| starting | 1 |",
        "| newest: cut | 1 |",
        "| 2 | hand | 7.5, 9.0 | 1, 7 |",
        "Told to stop while training, all ranks had left after 2.5 s (most: 2.5 s).",
    ):
        assert row in lines
