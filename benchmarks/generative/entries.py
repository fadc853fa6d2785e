"""Results of several catalogs in one folder: read, and refused unless they are comparable."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from benchmarks.generative.result import Ranks, Result, load_ranks, read_result
from benchmarks.tables import Spread, spread
from sidrec.schema import ContractError

OWN = {"seed", "token_weights"}  # settings in which results of one folder may differ
LOG_FACTS = ("users", "users_without_history", "targets_never_liked_before", "other_splits_reach_into_test_time")
LEAST_BEAM = 10  # catalogs are ordered by recall@10


@dataclass(frozen=True)
class Entry:
    """One catalog. results: by seed. ranks: each user's, of every seed; None where a seed has none."""

    name: str
    results: tuple[Result, ...]
    ranks: tuple[Ranks, ...] | None

    @property
    def label(self) -> str:
        """As tables and pictures call it."""
        weighted = self.results[0]["settings"]["token_weights"]
        return f"{self.name}, token weights" if weighted else self.name

    def metric(self, level: str, name: str) -> Spread:
        """Over seeds. level: item or sid."""
        found = spread([result["metrics"][level][name] for result in self.results])
        assert found is not None, "a result has all of its metrics"
        return found


def read_entries(folder: Path) -> list[Entry]:
    """Every JSON of the folder, the catalog with the highest item-level recall@10 first.

    NAME.json and NAME-seedN.json are seeds of one catalog, whose name is NAME. Raises ContractError, naming the file,
    where there is no result, one is damaged, or they are not comparable: other settings than seed and token weights,
    another log, catalogs or seeds that do not go together under one name; and for a beam below 10.
    """
    paths = sorted(folder.glob("*.json"))
    if not paths:
        raise ContractError(folder, "results of `python -m benchmarks.generative`, as NAME.json", "none")
    found = {path: result for path in paths if (result := read_result(path)) is not None}
    _check_comparable(found)
    groups: dict[str, list[Path]] = {}
    for path in sorted(found, key=lambda path: int(found[path]["settings"]["seed"])):
        groups.setdefault(re.sub(r"-seed\d+$", "", path.stem), []).append(path)
    entries = [_entry(name, {path: found[path] for path in group}) for name, group in sorted(groups.items())]
    return sorted(entries, key=lambda entry: -entry.metric("item", "recall@10")["mean"])


def _check_comparable(found: Mapping[Path, Result]) -> None:
    (first_path, first), *others = found.items()
    if first["settings"]["beam"] < LEAST_BEAM:
        raise ContractError(first_path, f"settings.beam of at least {LEAST_BEAM}", first["settings"]["beam"])
    for path, result in others:
        for name in sorted((set(first["settings"]) | set(result["settings"])) - OWN):
            expected, got = first["settings"].get(name), result["settings"].get(name)
            if expected != got:
                raise ContractError(path, f"settings.{name} {expected!r} as in {first_path.name}", repr(got))
        if _log_facts(first) != _log_facts(result):
            raise ContractError(path, f"the log of {first_path.name}", "other users or targets")
    _check_named_logs({path: result["log_sha256"] for path, result in found.items() if "log_sha256" in result})


def _check_named_logs(logs: Mapping[Path, str]) -> None:
    for (before, expected), (path, got) in pairwise(logs.items()):
        if got != expected:
            raise ContractError(path, f"the log of {before.name}", "another one")


def _log_facts(result: Result) -> list[object]:
    """What follows from log and settings alone, also in results that do not name the log."""
    tests = [result["test"][name] for name in LOG_FACTS]
    return [*tests, result["training"]["sequences"], result["metrics"]["popularity_item"]]


def _entry(name: str, group: Mapping[Path, Result]) -> Entry:
    (first_path, first), *others = group.items()
    for path, result in others:
        if result["catalog"]["fingerprint"] != first["catalog"]["fingerprint"]:
            raise ContractError(path, f"the catalog of {first_path.name}, as its name says", "another catalog")
        if result["settings"]["token_weights"] != first["settings"]["token_weights"]:
            raise ContractError(path, f"token weights as in {first_path.name}, as its name says", "others")
    seeds = [result["settings"]["seed"] for result in group.values()]
    if len(set(seeds)) < len(seeds):
        raise ContractError(", ".join(path.name for path in group), "a seed of its own each", f"seeds {seeds}")
    ranks = [load_ranks(path, result["settings_hash"]) for path, result in group.items()]
    there = tuple(of for of in ranks if of is not None)
    return Entry(name, tuple(group.values()), there if len(there) == len(ranks) else None)
