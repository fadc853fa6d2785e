"""Checks before anything is allocated, and their findings. This file imports no torch: the doctor works without it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """One check's result. Only a problem changes the exit status.

    found: what the check found. repair: a shell command, or a change of the recipe; "" if there is none.
    """

    name: str
    state: Literal["ok", "note", "problem"]
    found: str
    repair: str = ""


def problems(findings: Iterable[Finding]) -> list[Finding]:
    """The findings that must be repaired first."""
    return [finding for finding in findings if finding.state == "problem"]


def table(findings: Sequence[Finding], last: str) -> str:
    """`lines`, then the number of problems, or `last` if there is none."""
    count = len(problems(findings))
    return "\n".join([*lines(findings), "", f"{count} problem(s)" if count else last])


def lines(findings: Sequence[Finding]) -> list[str]:
    """One line for each finding, in columns; its repair on the next line."""
    width = max((len(finding.name) for finding in findings), default=0)
    shown = []
    for finding in findings:
        shown.append(f"{finding.name:<{width}}  {finding.state:<7}  {finding.found}")
        if finding.repair:
            shown.append(f"{'':<{width}}  {'':<7}  -> {finding.repair}")
    return shown
