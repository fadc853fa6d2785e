"""The run directory: everything a run leaves behind, each file written in one step.

config.yaml            the resolved recipe          catalog_fingerprint    the catalog the SIDs come from
plan.json              who holds which table        checkpoints/step-N/    model, optimizer, position
metrics.jsonl          training, a line per log     metrics.json           split -> slice -> metric
ledger/                which rows each step had, where train.row_ledger is on
skipped.jsonl          steps left out, where train.non_finite=skip and there were any
run.json               what ran, and on what        tensorboard/           the same curves as metrics.jsonl
"""

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from sidrec.config import ConfigError, Recipe, load_file, save
from sidrec.machine import unwritable
from sidrec.output import FolderKind, Written
from sidrec.schema import ContractError, read_json
from sidrec.train.run_lock import RunLock

_FILE = (
    r"(config\.yaml|(run|plan|metrics)\.json|(metrics|skipped)\.jsonl|catalog_fingerprint|hang-rank-\d+\.txt"
    r"|predictions_[^/]+\.parquet|(attention|gate)_[^/]+\.json|gate_[^/]+\.png)"
)
_PARTIAL = rf"(config|{_FILE})\.partial\d*"
_FOLDERS = (
    r"tensorboard/events\.out\.tfevents\.[^/]+|ledger/steps-[^/]+\.(parquet|partial)|checkpoints/best\.(json|partial)"
    r"|checkpoints/step-\d+(\.partial|\.damaged(-\d+)?)?/"
    r"(rank-\d+\.safetensors|(index|position|plan)\.json|config\.yaml)"
)
"""Names of the files that training and evaluation write."""

PRECAUTIONS = ("preflight", "non_finite", "skip_at_most", "hang_minutes")
"""Keys of `train` that a run may be continued with other values of."""


def write_json(path: Path, value: Any) -> None:
    """Writes JSON in one step: a reader sees the old file or the new one."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a small file in one step."""
    partial = path.with_name(f"{path.name}.partial{os.getpid()}")
    partial.write_text(text)
    partial.replace(path)


def _written(folder: Path) -> Written | None:
    begun = (folder / "config.yaml").is_file() and (folder / "checkpoints").is_dir()
    written = re.compile(rf"{_FILE}|{_PARTIAL}|{_FOLDERS}")
    return (lambda name: bool(written.fullmatch(name))) if begun or _are_facts(folder / "run.json") else None


RUN = FolderKind("a run directory", _written)


def _are_facts(path: Path) -> bool:
    """Whether a file says what ran, and on what."""
    try:
        facts = read_json(path, "the facts of a run")
    except ContractError:
        return False
    return isinstance(facts, dict) and {"torch", "torchrec", "ranks"} <= set(facts)


class RunDirectory:
    """Names of the files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.plan = path / "plan.json"
        self.log = path / "metrics.jsonl"
        self.skipped = path / "skipped.jsonl"
        self.metrics = path / "metrics.json"
        self.facts = path / "run.json"
        self.fingerprint = path / "catalog_fingerprint"
        self.checkpoints = path / "checkpoints"
        self.tensorboard = path / "tensorboard"
        self.ledger = path / "ledger"
        self.lock = RunLock(path)

    def predictions(self, split: str) -> Path:
        return self.path / f"predictions_{split}.parquet"

    def check(self, recipe: Recipe) -> None:
        """Whether this recipe may run here; writes nothing. How tables lie over ranks, what is kept of the run and the
        PRECAUTIONS may change from start to start.

        Raises ConfigError when the directory holds a run of another recipe, naming the sections that differ, files
        that no run wrote and this one would replace, or when it cannot be written.
        """
        taken = [] if self.config.exists() or _are_facts(self.facts) else self._taken()
        if taken:
            raise ConfigError(
                f"{self.path}: expected a folder without files of a run's names, or a run of this recipe, got "
                f"{', '.join(taken[:3])} that no run wrote; give this run another name or move them away"
            )
        if self.config.exists():
            before = replace(load_file(self.config), parallel=recipe.parallel, checkpoint=recipe.checkpoint)
            precautions = {name: getattr(recipe.train, name) for name in PRECAUTIONS}
            before = replace(before, train=replace(before.train, **precautions))
            if before != recipe:
                differing = [s for s in Recipe.__dataclass_fields__ if getattr(before, s) != getattr(recipe, s)]
                raise ConfigError(
                    f"{self.path}: expected a run of this recipe, got one that differs in {', '.join(differing)}; "
                    "give this one another name or seed, or remove that directory"
                )
        obstacle = unwritable(self.path)
        if obstacle:
            raise ConfigError(f"train.runs: expected a folder that can be written, got {obstacle}")

    def _taken(self) -> list[str]:
        """Files that a run would replace. A run that failed at its start may leave the catalog's fingerprint."""
        names = sorted(path.name for path in self.path.iterdir()) if self.path.is_dir() else []
        return [name for name in names if re.fullmatch(_FILE, name) and name != self.fingerprint.name]

    def attention(self, split: str) -> Path:
        return self.path / f"attention_{split}.json"

    def begin(self, recipe: Recipe) -> None:
        """Makes the directory, claims it for this recipe and removes what a killed process left half-written.

        Raises ConfigError as `check` and `RunLock.take` do.
        """
        self.check(recipe)
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        self.lock.take()
        for partial in self.path.glob("*.partial*"):
            if re.fullmatch(_PARTIAL, partial.name):
                partial.unlink()
        if not self.config.exists() or load_file(self.config) != recipe:
            partial = self.config.with_suffix(".partial")
            save(recipe, partial)
            partial.replace(self.config)

    def give_up(self) -> None:
        """Takes the claim back where no checkpoint is lost by it, so that a corrected recipe can run here."""
        if not any(self.checkpoints.glob("step-*")):
            self.config.unlink(missing_ok=True)

    def recipe(self) -> Recipe:
        """The recipe of a run that was begun. Raises ConfigError when there is none."""
        if not self.config.is_file():
            raise ConfigError(f"{self.path}: expected a run directory with config.yaml, got none")
        return load_file(self.config)
