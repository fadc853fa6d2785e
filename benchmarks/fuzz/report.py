"""A campaign as JSON, and as a report for people: cases by kind and by mutation, and every failure."""

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from benchmarks.fuzz.campaign import Campaign, Ran
from benchmarks.fuzz.judge import SOUND
from sidrec.io.files import write_json, write_text
from sidrec.study.report import markdown_table
from sidrec.study.results import conditions

FAILURES = 100  # listed
CUT = 300  # characters of what a failure said


def write_report(campaign: Campaign, out: Path) -> None:
    """Writes out/fuzz.json and out/report.md."""
    out.mkdir(parents=True, exist_ok=True)
    failed = [ran for ran in campaign.ran if not ran.outcome.fine]
    result = {
        "cases": len(campaign.ran),
        "wanted": campaign.cases,
        "seed": campaign.seed,
        "seconds": round(campaign.seconds, 1),
        "slowest_seconds": round(max((ran.outcome.seconds for ran in campaign.ran), default=0.0), 2),
        "kinds": _counted(campaign.ran, lambda ran: ran.kind),
        "mutations": _counted(campaign.ran, lambda ran: ran.mutation),
        "failures": [
            {"number": ran.number, "kind": ran.kind, "mutation": ran.mutation, "verdict": ran.outcome.verdict}
            | {"said": ran.outcome.said}
            for ran in failed
        ],
        "conditions": conditions(),
    }
    write_json(out / "fuzz.json", result)
    write_text(out / "report.md", _text(campaign, failed))


def _counted(rans: Iterable[Ran], of: Callable[[Ran], str]) -> dict[str, dict[str, int]]:
    counted: dict[str, Counter[str]] = {}
    for ran in rans:
        counted.setdefault(of(ran), Counter())[ran.outcome.verdict] += 1
    return {name: dict(counts) for name, counts in sorted(counted.items())}


def _text(campaign: Campaign, failed: list[Ran]) -> str:
    cases, refused = len(campaign.ran), sum(ran.outcome.verdict == "refused" for ran in campaign.ran)
    lines = [
        "# Broken files, and what the product says of them",
        "",
        f"{cases:,} cases of {campaign.cases:,}, seed {campaign.seed}, {campaign.seconds:.0f} s: {refused:,} refused "
        f"by a sentence of ours, nothing written; {cases - refused - len(failed):,} accepted; {len(failed)} failures.",
        "Accepted: the damage is of no consequence, or cannot be told (a bit of a number that stays a number).",
        "",
        "## By kind of file",
        "",
        _table("kind", _counted(campaign.ran, lambda ran: ran.kind)),
        "",
        "## By mutation",
        "",
        _table("mutation", _counted(campaign.ran, lambda ran: ran.mutation)),
    ]
    if failed:
        lines += ["", "## Failures", "", "`python -m benchmarks.fuzz_campaign --replay DIR/failures/case-N.json`", ""]
        lines += [f"* case {ran.number}, {ran.kind}, {ran.mutation}: {_said(ran)}" for ran in failed[:FAILURES]]
    return "\n".join(lines) + "\n"


def _said(ran: Ran) -> str:
    return f"{ran.outcome.verdict}, {ascii(ran.outcome.said)[:CUT]}"


def _table(name: str, counted: dict[str, dict[str, int]]) -> str:
    verdicts = [*SOUND, *sorted({verdict for counts in counted.values() for verdict in counts} - set(SOUND))]
    rows = [
        [of, str(sum(counts.values())), *(str(counts.get(verdict, 0)) for verdict in verdicts)]
        for of, counts in counted.items()
    ]
    return markdown_table([name, "cases", *verdicts], rows)
