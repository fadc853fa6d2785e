"""What every training checks before it allocates anything, in about a second: rank 0 says what is not fine."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

from torch import distributed as dist

import sidrec
from sidrec.config import Recipe
from sidrec.data.item_tables import impressions_by_id
from sidrec.errors import DisagreementError, PreflightError
from sidrec.parallel.process_group import Ranks, raise_on_all_ranks, run_on_all_ranks
from sidrec.preflight.capacity_check import Room, bytes_in, fit, room_here
from sidrec.preflight.data_checks import FILES, SplitFooters, check_values, footer_findings, read_footers, semantic_ids
from sidrec.preflight.findings import Finding, lines, problems
from sidrec.preflight.planned_run import PlannedRun
from sidrec.preflight.resource_estimate import disk_needs, rank_needs
from sidrec.schema import ITEM_ID, ITEMS, LOG, MANIFEST
from sidrec.stack import find_stack


def check_start(recipe: Recipe, planned: Callable[[], PlannedRun], ranks: Ranks) -> None:
    """All ranks call this; rank 0 alone is asked what is planned.

    Prints what is not fine, and a line for all that is. Raises PreflightError for a problem, unless the recipe's
    train.preflight says warn, and ContractError for a broken row that training would refuse; on all ranks together.
    """
    rooms: list[Room | None] = [None] * ranks.world
    own = run_on_all_ranks(ranks, lambda: room_here(recipe.run, ranks.device))
    dist.all_gather_object(rooms, own, group=ranks.control)
    run_on_all_ranks(ranks, lambda: _judge(planned(), [room for room in rooms if room]) if ranks.first else None)


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


def agree_on(ranks: Ranks, facts: Mapping[str, str]) -> None:
    """Every rank calls this with its own facts, name -> value.

    Raises, for the first fact of the first rank that has another value than rank 0: DisagreementError on rank 0, which
    says so, and RankError on all others.
    """
    every: list[Mapping[str, str]] = [{}] * ranks.world
    dist.all_gather_object(every, dict(facts), group=ranks.control)
    sentence = next(_differences(every), None)
    raise_on_all_ranks(ranks, None if sentence is None else DisagreementError(sentence))


def _differences(every: Sequence[Mapping[str, str]]) -> Iterator[str]:
    for rank, found in enumerate(every):
        for name in dict.fromkeys((*every[0], *found)):
            first, other = every[0].get(name, "none"), found.get(name, "none")
            if first != other:
                yield f"{name}: expected the same on all ranks, got {first} on rank 0 and {other} on rank {rank}"


def code_facts() -> dict[str, str]:
    """Versions, and a digest of sidrec's own files: a machine may have a checkout that was not updated."""
    stack = find_stack()
    return {
        "sidrec": sidrec.__version__,
        "torch": f"{stack.torch} ({stack.torch_build})",
        "torchrec": str(stack.torchrec),
        "FBGEMM": f"{stack.fbgemm} ({stack.fbgemm_build})",
        "files of sidrec": digest_of_files(Path(sidrec.__file__).parent),
    }


def digest_of_files(package: Path) -> str:
    """Of all Python files of a package: their names and contents."""
    digest = sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(str(path.relative_to(package)).encode() + b"\0" + path.read_bytes() + b"\0")
    return f"digest {digest.hexdigest()[:12]}"


def recipe_facts(recipe: Recipe) -> dict[str, str]:
    """Every value of the recipe by its dotted path."""
    return dict(_leaves("", asdict(recipe)))


def data_facts(recipe: Recipe, fingerprint: str | None) -> dict[str, str]:
    """The manifest's digest and the catalog's fingerprint. The manifest was read before, so it is there."""
    manifest = recipe.data.path / LOG / MANIFEST
    digest = sha256(manifest.read_bytes()).hexdigest()[:12]
    return {str(manifest): f"digest {digest}", str(recipe.data.catalog): f"fingerprint {fingerprint}"}


def _leaves(path: str, value: Any) -> list[tuple[str, str]]:
    if isinstance(value, Mapping):
        return [leaf for key, item in value.items() for leaf in _leaves(f"{path}.{key}" if path else str(key), item)]
    return [(path, str(value))]
