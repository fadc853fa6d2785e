"""What every training checks before it allocates anything, in about a second: rank 0 says what is not fine."""

import time
from collections.abc import Callable, Sequence

from torch import distributed as dist

from sidrec.config import ConfigError, Recipe
from sidrec.data.train_impressions import impressions_by_id
from sidrec.parallel.process_group import Ranks, together
from sidrec.preflight.data_findings import check_values, footer_findings, semantic_ids
from sidrec.preflight.finding import Finding, lines, problems
from sidrec.preflight.fit import fit
from sidrec.preflight.footers import FILES, SplitFooters, read_footers
from sidrec.preflight.needs import disk_needs, rank_needs
from sidrec.preflight.planned_run import PlannedRun
from sidrec.preflight.room import Room, bytes_in, room_here
from sidrec.schema import ITEM_ID, ITEMS, LOG


class PreflightError(ConfigError):
    """What was found before anything was allocated, and would end badly."""


def check_start(recipe: Recipe, planned: Callable[[], PlannedRun], ranks: Ranks) -> None:
    """All ranks call this; rank 0 alone is asked what is planned.

    Prints what is not fine, and a line for all that is. Raises PreflightError for a problem, unless the recipe's
    train.preflight says warn, and ContractError for a broken row that training would refuse; on all ranks together.
    """
    rooms: list[Room | None] = [None] * ranks.world
    own = together(ranks, lambda: room_here(recipe.run, ranks.device))
    dist.all_gather_object(rooms, own, group=ranks.control)
    together(ranks, lambda: _judge(planned(), [room for room in rooms if room]) if ranks.first else None)


def _judge(run: PlannedRun, rooms: Sequence[Room]) -> None:
    started = time.monotonic()
    footers = read_splits(run, FILES)
    check_values(run, footers)
    findings = start_findings(run, rooms, footers)
    bad, seconds = problems(findings), time.monotonic() - started
    if bad and run.recipe.train.preflight == "refuse":
        said = "; ".join(f"{each.name}: {each.found}{f' ({each.repair})' if each.repair else ''}" for each in bad)
        raise PreflightError(f"preflight: {said}; train.preflight: warn trains all the same")
    for line in lines([finding for finding in findings if finding.state != "ok"]):
        print(f"preflight: {line}")
    fine = ", ".join(finding.name for finding in findings if finding.state == "ok")
    print(f"preflight: fine: {fine} ({seconds:.1f} s)", flush=True)


def read_splits(run: PlannedRun, most: int | None) -> dict[str, SplitFooters]:
    """Footers of the splits that are trained on or scored, of at most so many files each; None for all."""
    log = run.recipe.data.path / LOG
    splits = dict.fromkeys(("train", *run.evaluated))
    return {split: read_footers(log, run.manifest.files(split), most) for split in splits}


def start_findings(
    run: PlannedRun, rooms: Sequence[Room], footers: dict[str, SplitFooters], starting: int = 0
) -> list[Finding]:
    """Whether the run fits and its data is sane, by what is known without reading rows.

    rooms: of every rank. starting: bytes that each rank will take before it allocates anything, 0 where it has.
    Raises ContractError for files that cannot be read.
    """
    largest = max(split.largest_group for split in footers.values())
    needs = rank_needs(run, largest, starting)
    held = bytes_in(run.recipe.run / "checkpoints")
    findings = fit(needs, rooms, run.hardware.local_world, disk_needs(run, needs), held)
    findings += footer_findings(run, footers)
    impressions_I = impressions_by_id(run.recipe.data.path / ITEMS, run.manifest.ids[ITEM_ID])
    ids = semantic_ids(run, impressions_I)
    return [*findings, *([ids] if ids else [])]
