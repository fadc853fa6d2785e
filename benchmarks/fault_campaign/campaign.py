"""A hundred kills: runs are struck, one after the other, until enough were dealt or the time is up."""

import logging
import random
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from benchmarks.fault_campaign.faults import Fault, Kind, Moment
from benchmarks.fault_campaign.report import report_text
from benchmarks.fault_campaign.verdict import across_worlds
from benchmarks.fault_campaign.victim import Outcome, Reference, Victim, make_reference
from sidrec.config import Recipe
from sidrec.io.files import write_json, write_text
from sidrec.study.results import conditions

WORLDS = ((2,), (1,), (1, 2, 4), (2,), (4,), (1, 2))
"""Ranks of the runs, in turn; of several, each start draws one."""
FAULTS = 8  # per run
MOMENTS = {Moment.STARTING: 2, Moment.TRAINING: 5, Moment.SAVING: 5}
"""Weights of what faults are aimed at; evaluation comes once at the end of every second run."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """kills: at which the campaign is over. minutes: after which nobody is struck any more."""

    kills: int
    seed: int
    minutes: float


def run_campaign(recipe: Recipe, settings: Settings, out: Path) -> list[Outcome]:
    """Strikes runs of the recipe; writes result.json and report.md into `out`, anew after each run, and keeps the runs
    with a complaint in out/failures. Raises FailedError where a run fails that nobody has struck."""
    began = time.monotonic()
    facts = conditions()
    worlds = sorted({world for several in WORLDS for world in several})
    references = {world: make_reference(recipe, world) for world in worlds}
    across = across_worlds([reference.run for reference in references.values()])
    references = {world: replace(reference, across=across) for world, reference in references.items()}
    log.info("uninterrupted runs on %s ranks done in %.0f s", ", ".join(map(str, worlds)), time.monotonic() - began)
    outcomes: list[Outcome] = []
    for victim in _victims(recipe, settings, references, time.monotonic() + 60 * settings.minutes):
        outcome = victim.run()
        outcomes.append(outcome)
        _keep(outcome, recipe, out)
        _write(out, facts, settings, references, outcomes)
        _say(outcomes, settings, began)
        if sum(len(done.strikes) for done in outcomes) >= settings.kills:
            break
    return outcomes


def _victims(recipe: Recipe, settings: Settings, references: dict[int, Reference], deadline: float) -> Iterator[Victim]:
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
        yield Victim(named, worlds, faults, reference, draw.randrange(1 << 30), deadline)


def _kinds(draw: random.Random) -> Iterator[Kind]:
    """All kinds equally often, in any order."""
    while True:
        yield from draw.sample(list(Kind), len(Kind))


def _fault(kind: Kind, reference: Reference, draw: random.Random) -> Fault:
    moment = draw.choices(list(MOMENTS), list(MOMENTS.values()))[0]
    if kind is Kind.KILL_WORKER and moment is Moment.STARTING:
        moment = Moment.TRAINING  # there is none before
    most = reference.seconds if moment is Moment.STARTING else 1.5 * reference.steps / FAULTS
    return Fault(kind, moment, draw.uniform(0, most))


def _keep(outcome: Outcome, recipe: Recipe, out: Path) -> None:
    """Moves a run that went wrong, with its log, to where it stays; removes any other."""
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


def _say(outcomes: list[Outcome], settings: Settings, began: float) -> None:
    kills = sum(len(outcome.strikes) for outcome in outcomes)
    spent = time.monotonic() - began
    eta = timedelta(seconds=round(spent / max(kills, 1) * max(settings.kills - kills, 0)))
    last = outcomes[-1]
    verdict = "; ".join(last.complaints) or "as the uninterrupted run"
    log.info("%s: %d kills, %s", last.name, len(last.strikes), verdict)
    log.info(
        "%d of %d kills, %.1f of at most %.0f min, ETA %s", kills, settings.kills, spent / 60, settings.minutes, eta
    )
