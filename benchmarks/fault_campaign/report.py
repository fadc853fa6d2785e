"""The campaign's report: what was dealt, what came of it, what it cost."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

from benchmarks.fault_campaign.faults import TOLD, Moment, Strike
from benchmarks.fault_campaign.verdict import APART
from benchmarks.fault_campaign.victim import Outcome


def report_text(result: Mapping[str, Any], outcomes: Sequence[Outcome]) -> str:
    """report.md. result: what result.json holds."""
    strikes = [dealt for outcome in outcomes for dealt in outcome.strikes]
    bad = [outcome for outcome in outcomes if outcome.complaints]
    mixed = [found.differs for found in outcomes if len(found.worlds) > 1 and found.differs]
    losses, metrics = (max((getattr(found, of) for found in mixed), default=0.0) for of in ("losses", "metrics"))
    across = result["across_worlds"]
    lines = [
        "# Fault campaign",
        "",
        f"{len(strikes)} kills in {len(outcomes)} runs of {_steps(result)} steps; {len(outcomes) - len(bad)} of them "
        "ended as the uninterrupted one: metrics and losses equal, each training row seen exactly once per epoch, the "
        "same rows in the same steps, no process and no half-written file left.",
        "",
        "Equal means every bit where all starts had as many ranks. Where ranks changed, losses may differ "
        f"by {across['losses']:.1e} (found: {losses:.1e}) and metrics by {across['metrics']:.1e} "
        f"(found: {metrics:.1e}), {APART} times what uninterrupted runs on these numbers of ranks differ by, "
        "at least 1e-06 and 1e-04.",
        "",
        *_complaints(bad),
        *_counts("kind", strikes, lambda dealt: dealt.kind),
        *_counts("moment", strikes, lambda dealt: dealt.moment),
        *_counts("ranks", strikes, lambda dealt: str(dealt.world)),
        *_counts("damage before the next start", strikes, lambda dealt: dealt.damage or "none"),
        *_cost(strikes),
        *_leaving(strikes),
        *_runs(outcomes),
        f"Conditions: {_words(result['conditions'])}; seed {result['settings']['seed']}.",
        "",
    ]
    return "\n".join(lines)


def _steps(result: Mapping[str, Any]) -> int:
    return max(found["steps"] for found in result["references"].values())


def _words(conditions: Mapping[str, Any]) -> str:
    """Conditions in a line; those that are groups without the group's name."""
    words = [_words(value) if isinstance(value, Mapping) else f"{name} {value}" for name, value in conditions.items()]
    return ", ".join(words)


def _runs(outcomes: Sequence[Outcome]) -> list[str]:
    lines = [
        "| run | ranks | kills | commands | minutes | ended as the uninterrupted one |",
        "|---|---|---|---|---|---|",
    ]
    for found in outcomes:
        worlds, verdict = "/".join(map(str, found.worlds)), "no" if found.complaints else "yes"
        minutes = f"{found.seconds / 60:.1f}"
        lines.append(f"| {found.name} | {worlds} | {len(found.strikes)} | {found.jobs} | {minutes} | {verdict} |")
    return [*lines, ""]


def _complaints(bad: Sequence[Outcome]) -> list[str]:
    if not bad:
        return []
    return ["Not as it should be:", "", *(f"* {found.name}: {'; '.join(found.complaints)}" for found in bad), ""]


def _counts(what: str, strikes: Sequence[Strike], key: Callable[[Strike], str]) -> list[str]:
    counted = sorted(Counter(map(key, strikes)).items())
    return [f"| {what} | kills |", "|---|---|", *(f"| {name} | {count} |" for name, count in counted), ""]


def _cost(strikes: Sequence[Strike]) -> list[str]:
    """Time to resume and steps trained again, by ranks of the start that was struck."""
    lines = ["| ranks | restarted by | seconds to the first new step: median, most | steps lost: median, most |"]
    lines += ["|---|---|---|---|"]
    for world in sorted({dealt.world for dealt in strikes}):
        for restarted in (False, True):
            found = [dealt for dealt in strikes if dealt.world == world and dealt.restarted == restarted]
            seconds = [dealt.seconds for dealt in found if dealt.seconds is not None]
            lost = [
                max(0, dealt.step - dealt.resumed)
                for dealt in found
                if dealt.step is not None and dealt.resumed is not None and not dealt.damage
            ]
            if seconds and lost:
                by = "torchrun" if restarted else "hand"
                spent = f"{median(seconds):.1f}, {max(seconds):.1f}"
                lines.append(f"| {world} | {by} | {spent} | {median(lost):.0f}, {max(lost)} |")
    return [*lines, ""]


def _leaving(strikes: Sequence[Strike]) -> list[str]:
    """How long trainings took to save and leave when they were told to."""
    found = [dealt for dealt in strikes if dealt.kind in TOLD and dealt.moment is Moment.TRAINING]
    gone = [dealt.gone for dealt in found if dealt.gone is not None]
    if not gone:
        return []
    return [
        f"Told to stop while training, all ranks had left after {median(gone):.1f} s (most: {max(gone):.1f} s).",
        "",
    ]
