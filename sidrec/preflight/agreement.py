"""Whether all ranks run the same code on the same recipe and data: what differs would train something else, or hang."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

from torch import distributed as dist

import sidrec
from sidrec.config import ConfigError, Recipe
from sidrec.parallel.process_group import Ranks, agree
from sidrec.schema import LOG, MANIFEST
from sidrec.stack import find_stack


class DisagreementError(ConfigError):
    """Ranks differ; the message names the rank and both values."""


def agree_on(ranks: Ranks, facts: Mapping[str, str]) -> None:
    """Every rank calls this with its own facts, name -> value.

    Raises, for the first fact of the first rank that has another value than rank 0: DisagreementError on rank 0, which
    says so, and RankError on all others.
    """
    every: list[Mapping[str, str]] = [{}] * ranks.world
    dist.all_gather_object(every, dict(facts), group=ranks.control)
    sentence = next(_differences(every), None)
    agree(ranks, None if sentence is None else DisagreementError(sentence))


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
