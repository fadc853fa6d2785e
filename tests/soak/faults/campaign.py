"""Kills runs one after the other until the number of kills or the time is reached, and reports."""

import logging
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any

from sidrec.config import Recipe
from sidrec.io.files import write_json, write_text
from sidrec.study.results import conditions
from tests.soak.faults.faults import SIGTERM_KINDS, Fault, Kind, Moment, Strike
from tests.soak.faults.killed_run import TOLERANCE_FACTOR, KilledRun, Outcome, Reference, across_worlds, make_reference

WORLDS = ((2,), (1,), (1, 2, 4), (2,), (4,), (1, 2))
"""Ranks of the runs, in turn. Of several numbers, each start draws one."""
FAULTS = 8  # per run
MOMENTS = {Moment.STARTING: 2, Moment.TRAINING: 5, Moment.SAVING: 5}
"""Weights of the moments that faults are aimed at. Every second run gets one more, at its evaluation."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """kills: the campaign ends after so many. minutes: after which no fault is dealt."""

    kills: int
    seed: int
    minutes: float


def run_campaign(recipe: Recipe, settings: Settings, out: Path) -> list[Outcome]:
    """Kills runs of the recipe. Rewrites out/result.json and out/report.md after each run, and keeps the runs with a
    complaint in out/failures. Raises FailedError if a run fails without a fault."""
    began = time.monotonic()
    facts = conditions()
    worlds = sorted({world for several in WORLDS for world in several})
    references = {world: make_reference(recipe, world) for world in worlds}
    across = across_worlds([reference.run for reference in references.values()])
    references = {world: replace(reference, across=across) for world, reference in references.items()}
    log.info("uninterrupted runs on %s ranks done in %.0f s", ", ".join(map(str, worlds)), time.monotonic() - began)
    outcomes: list[Outcome] = []
    for killed_run in _killed_runs(recipe, settings, references, time.monotonic() + 60 * settings.minutes):
        outcome = killed_run.run()
        outcomes.append(outcome)
        _keep(outcome, recipe, out)
        _write(out, facts, settings, references, outcomes)
        _log_progress(outcomes, settings, began)
        if sum(len(done.strikes) for done in outcomes) >= settings.kills:
            break
    return outcomes


def _killed_runs(
    recipe: Recipe, settings: Settings, references: dict[int, Reference], deadline: float
) -> Iterator[KilledRun]:
    draw = random.Random(settings.seed)
    kinds = _kinds(draw)
    number = 0
    while time.monotonic() < deadline:
        worlds = WORLDS[number % len(WORLDS)]
        reference = references[max(worlds)]
        faults = [_fault(next(kinds), reference, draw) for _ in range(FAULTS)]
        if number % 2:
            faults.append(Fault(next(kinds), Moment.EVALUATING, 0))
        number += 1
        named = replace(recipe, name=f"run-{number}")
        yield KilledRun(named, worlds, faults, reference, draw.randrange(1 << 30), deadline)


def _kinds(draw: random.Random) -> Iterator[Kind]:
    """All kinds equally often, in random order."""
    while True:
        yield from draw.sample(list(Kind), len(Kind))


def _fault(kind: Kind, reference: Reference, draw: random.Random) -> Fault:
    moment = draw.choices(list(MOMENTS), list(MOMENTS.values()))[0]
    if kind is Kind.KILL_WORKER and moment is Moment.STARTING:
        moment = Moment.TRAINING  # workers start later
    most = reference.seconds if moment is Moment.STARTING else 1.5 * reference.steps / FAULTS
    return Fault(kind, moment, draw.uniform(0, most))


def _keep(outcome: Outcome, recipe: Recipe, out: Path) -> None:
    """Moves a run with complaints to out/failures, with its log; removes any other."""
    left = recipe.run.parent.parent / outcome.name
    if outcome.complaints:
        kept = out / "failures" / outcome.name
        shutil.rmtree(kept, ignore_errors=True)
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(left, kept)
    else:
        shutil.rmtree(left)


def _write(
    out: Path, facts: Any, settings: Settings, references: dict[int, Reference], outcomes: list[Outcome]
) -> None:
    result = {
        "conditions": facts,
        "settings": asdict(settings),
        "references": {
            world: {"steps": found.steps, "seconds_to_first_step": round(found.seconds, 2)}
            for world, found in references.items()
        },
        "across_worlds": asdict(next(iter(references.values())).across),
        "runs": [asdict(outcome) for outcome in outcomes],
    }
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "result.json", result)
    write_text(out / "report.md", report_text(result, outcomes))


def _log_progress(outcomes: list[Outcome], settings: Settings, began: float) -> None:
    kills = sum(len(outcome.strikes) for outcome in outcomes)
    spent = time.monotonic() - began
    eta = timedelta(seconds=round(spent / max(kills, 1) * max(settings.kills - kills, 0)))
    last = outcomes[-1]
    verdict = "; ".join(last.complaints) or "as the uninterrupted run"
    log.info("%s: %d kills, %s", last.name, len(last.strikes), verdict)
    log.info(
        "%d of %d kills, %.1f of at most %.0f min, ETA %s", kills, settings.kills, spent / 60, settings.minutes, eta
    )


# The report: kills, outcomes and costs.


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
        f"(found: {metrics:.1e}), {TOLERANCE_FACTOR} times what uninterrupted runs on these numbers differ by, "
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
    """Time to resume and steps trained again, by the number of ranks that were killed."""
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
    """Time from SIGTERM until all ranks had saved and left."""
    found = [dealt for dealt in strikes if dealt.kind in SIGTERM_KINDS and dealt.moment is Moment.TRAINING]
    gone = [dealt.gone for dealt in found if dealt.gone is not None]
    if not gone:
        return []
    return [
        f"After SIGTERM while training, all ranks had left after {median(gone):.1f} s (most: {max(gone):.1f} s).",
        "",
    ]
