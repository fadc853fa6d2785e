"""What a check found, and findings as a table. Imports no torch: the doctor works where torch cannot be imported."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """One line of the table. Only a problem changes the exit status; a note may name a command too."""

    name: str
    state: Literal["ok", "note", "problem"]
    found: str
    repair: str = ""


def problems(findings: Iterable[Finding]) -> list[Finding]:
    """Those that must be repaired first."""
    return [finding for finding in findings if finding.state == "problem"]


def table(findings: Sequence[Finding], last: str) -> str:
    """The findings as lines of text, each repair under its finding; then their number of problems, or `last`."""
    count = len(problems(findings))
    return "\n".join([*lines(findings), "", f"{count} problem(s)" if count else last])


def lines(findings: Sequence[Finding]) -> list[str]:
    """Name, state and what was found, in columns; the repair below."""
    width = max((len(finding.name) for finding in findings), default=0)
    shown = []
    for finding in findings:
        shown.append(f"{finding.name:<{width}}  {finding.state:<7}  {finding.found}")
        if finding.repair:
            shown.append(f"{'':<{width}}  {'':<7}  -> {finding.repair}")
    return shown
