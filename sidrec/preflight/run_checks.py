"""Checks at the beginning of every training, before anything is allocated: one folder, equal ranks, capacity, data.

They take about a second.
"""

import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import sidrec
from sidrec.config import Recipe
from sidrec.data.item_tables import impressions_by_id
from sidrec.errors import ConfigError, DisagreementError, PreflightError
from sidrec.io.files import write_text
from sidrec.io.output_lock import make_parents, remove_empty
from sidrec.parallel.process_group import (
    Ranks,
    broadcast_object,
    gather_objects,
    raise_on_all_ranks,
    run_on_all_ranks,
)
from sidrec.preflight import Finding, lines, problems
from sidrec.preflight.capacity_check import AvailableResources, available_resources, check_capacity, folder_bytes
from sidrec.preflight.data_checks import (
    FILES,
    SplitFooters,
    check_values,
    footer_findings,
    read_footers,
    semantic_id_finding,
)
from sidrec.preflight.resource_estimate import PlannedRun, estimate_disk, estimate_ranks
from sidrec.schema import ITEM_ID, ITEMS, LOG, MANIFEST
from sidrec.stack import find_stack


def check_run(recipe: Recipe, planned: Callable[[], PlannedRun], ranks: Ranks) -> None:
    """Checks on rank 0 that the run fits and that its data is sound. All ranks call this.

    planned: called on rank 0 only. Prints every finding that is not "ok", and one line that lists the others.

    Raises on all ranks together: PreflightError for a problem, unless train.preflight is "warn"; ContractError for a
    broken row that training would refuse.
    """
    own = run_on_all_ranks(ranks, lambda: available_resources(recipe.run, ranks.device))
    available = gather_objects(ranks, own)
    run_on_all_ranks(ranks, lambda: _check_on_first_rank(planned(), available) if ranks.first else None)


def _check_on_first_rank(run: PlannedRun, available: Sequence[AvailableResources]) -> None:
    started = time.monotonic()
    footers = read_split_footers(run, FILES)
    check_values(run, footers)
    findings = run_findings(run, available, footers)
    bad, seconds = problems(findings), time.monotonic() - started
    if bad and run.recipe.train.preflight == "refuse":
        message = "; ".join(f"{each.name}: {each.found}{f' ({each.repair})' if each.repair else ''}" for each in bad)
        raise PreflightError(f"preflight: {message}; train.preflight: warn trains all the same")
    for line in lines([finding for finding in findings if finding.state != "ok"]):
        print(f"preflight: {line}")
    fine = ", ".join(finding.name for finding in findings if finding.state == "ok")
    print(f"preflight: fine: {fine} ({seconds:.1f} s)", flush=True)


def read_split_footers(run: PlannedRun, most: int | None) -> dict[str, SplitFooters]:
    """Footers of the trained and evaluated splits. most: files read of each split; None for all."""
    log = run.recipe.data.path / LOG
    splits = dict.fromkeys((*run.recipe.data.train_on, *run.evaluated))
    return {split: read_footers(log, run.manifest.files(split), most) for split in splits}


def run_findings(
    run: PlannedRun, available: Sequence[AvailableResources], footers: dict[str, SplitFooters], starting: int = 0
) -> list[Finding]:
    """Findings on capacity and data that need no row of the log.

    available: one entry for each rank. starting: bytes of a rank's process before it allocates anything; 0 where the
    ranks already run. Raises ContractError for files that cannot be read.
    """
    largest = max(split.largest_group for split in footers.values())
    estimates = estimate_ranks(run, largest, starting)
    held = folder_bytes(run.recipe.run / "checkpoints")
    disk = estimate_disk(run, estimates)
    findings = check_capacity(estimates, available, run.hardware.local_world, disk, held)
    findings += footer_findings(run, footers)
    impressions_I = impressions_by_id(run.recipe.data.path / ITEMS, run.manifest.ids[ITEM_ID])
    ids = semantic_id_finding(run, impressions_I)
    return [*findings, *([ids] if ids else [])]


NONCE = "nonce-{}.partial"
"""A run directory's name for unfinished files: the next start removes the nonce of a process that was killed."""
LOOKS, PAUSE = 20, 0.1
"""Looks at a folder in which a rank does not find the nonce, and seconds between two of them."""


def check_shared_folder(folder: Path, ranks: Ranks) -> None:
    """Checks that all machines share the run directory `folder`: rank 0 writes a nonce there, and every rank reads it.

    Without it, each machine would train, and the first checkpoint would fail. Rank 0 alone makes the folder if it is
    missing; the nonce, and what was made for it, is removed again. All ranks call this.

    Raises on all ranks together: ConfigError, which names the ranks that do not see the nonce, and their hosts; OSError
    if rank 0 cannot write.
    """
    if ranks.world == 1:
        return
    nonce = broadcast_object(ranks, secrets.token_hex(8))
    path = folder / NONCE.format(nonce)
    with ExitStack() as left:
        run_on_all_ranks(ranks, lambda: left.enter_context(_written(path, nonce)) if ranks.first else None)
        views = gather_objects(ranks, _View(socket.gethostname(), str(folder.absolute()), _reads(path, nonce)))
    missing = _without_nonce(views)
    raise_on_all_ranks(ranks, ConfigError(missing) if missing else None)


@contextmanager
def _written(path: Path, nonce: str) -> Iterator[None]:
    made = make_parents(path)
    try:
        write_text(path, nonce)
        yield
    finally:
        with suppress(OSError):  # the next start removes it
            path.unlink(missing_ok=True)
        remove_empty(made)


def _reads(path: Path, nonce: str) -> bool:
    """Whether this rank reads the nonce at `path`.

    An NFS client remembers for seconds that a file was not there; opening the folders around it makes it ask again.
    """
    for look in range(LOOKS):
        if look:
            time.sleep(PAUSE)
            for folder in reversed(path.parents):
                with suppress(OSError):
                    os.scandir(folder).close()
        with suppress(OSError, UnicodeDecodeError):
            if path.read_text(encoding="utf-8") == nonce:
                return True
    return False


@dataclass(frozen=True)
class _View:
    """A rank's host, the absolute path of its run directory, and whether it reads the nonce there."""

    host: str
    folder: str
    reads: bool


def _without_nonce(views: Sequence[_View]) -> str:
    """The sentence about ranks that do not read what rank 0 wrote; "" if all do. views: of every rank."""
    blind: dict[tuple[str, str], list[str]] = {}
    for rank, view in enumerate(views):
        if not view.reads:
            blind.setdefault((view.host, view.folder), []).append(f"{rank}")
    if not blind:
        return ""
    first = views[0]
    got = "; ".join(
        f"rank(s) {', '.join(ranks)} on {host}{f' at {folder}' if folder != first.folder else ''}"
        for (host, folder), ranks in blind.items()
    )
    return (
        f"train.runs: expected one folder that all machines share, but what rank 0 on {first.host} writes into "
        f"{first.folder} is not seen by {got}; mount one folder on all machines and name it by --train.runs"
    )


def check_same_on_all_ranks(ranks: Ranks, facts: Mapping[str, str]) -> None:
    """Compares the facts of all ranks, name -> value. All ranks call this, each with its own facts.

    Raises for the first difference from rank 0: DisagreementError, which describes it, on rank 0, and RankError on all
    others.
    """
    difference = next(_differences(gather_objects(ranks, facts)), None)
    raise_on_all_ranks(ranks, None if difference is None else DisagreementError(difference))


def _differences(facts: Sequence[Mapping[str, str]]) -> Iterator[str]:
    """facts: of every rank."""
    for rank, found in enumerate(facts):
        for name in dict.fromkeys((*facts[0], *found)):
            first, other = facts[0].get(name, "none"), found.get(name, "none")
            if first != other:
                yield f"{name}: expected the same on all ranks, got {first} on rank 0 and {other} on rank {rank}"


def code_facts() -> dict[str, str]:
    """Versions, and a digest of sidrec's source files: the checkout of one machine may be outdated."""
    stack = find_stack()
    return {
        "sidrec": sidrec.__version__,
        "torch": f"{stack.torch} ({stack.torch_build})",
        "torchrec": str(stack.torchrec),
        "FBGEMM": f"{stack.fbgemm} ({stack.fbgemm_build})",
        "files of sidrec": digest_of_files(Path(sidrec.__file__).parent),
    }


def digest_of_files(package: Path) -> str:
    """Digest of the names and contents of all Python files of a package."""
    digest = sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(str(path.relative_to(package)).encode() + b"\0" + path.read_bytes() + b"\0")
    return f"digest {digest.hexdigest()[:12]}"


def recipe_facts(recipe: Recipe) -> dict[str, str]:
    """Every value of the recipe by its dotted path."""
    return dict(_leaves("", asdict(recipe)))


def _leaves(path: str, value: Any) -> list[tuple[str, str]]:
    if isinstance(value, Mapping):
        return [leaf for key, item in value.items() for leaf in _leaves(f"{path}.{key}" if path else str(key), item)]
    return [(path, str(value))]


def data_facts(recipe: Recipe, fingerprint: str | None) -> dict[str, str]:
    """The manifest's digest and the catalog's fingerprint. The manifest must exist."""
    manifest = recipe.data.path / LOG / MANIFEST
    digest = sha256(manifest.read_bytes()).hexdigest()[:12]
    return {str(manifest): f"digest {digest}", str(recipe.data.catalog): f"fingerprint {fingerprint}"}
