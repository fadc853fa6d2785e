"""The run directory: everything a run leaves behind, each file written in one step.

config.yaml            the resolved recipe          catalog_fingerprint    the catalog the SIDs come from
plan.json              who holds which table        checkpoints/step-N/    model, optimizer, position
metrics.jsonl          training, a line per log     metrics.json           split -> slice -> metric
run.json               what it ran on               tensorboard/           the same curves as metrics.jsonl
"""

import json
import os
from pathlib import Path
from typing import Any

from sidrec.config import ConfigError, Recipe, load_file, save


def write_json(path: Path, value: Any) -> None:
    """Writes JSON in one step: a reader sees the old file or the new one."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a small file in one step."""
    partial = path.with_name(f"{path.name}.partial{os.getpid()}")
    partial.write_text(text)
    partial.replace(path)


class RunDirectory:
    """Names of the files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.plan = path / "plan.json"
        self.log = path / "metrics.jsonl"
        self.metrics = path / "metrics.json"
        self.facts = path / "run.json"
        self.fingerprint = path / "catalog_fingerprint"
        self.checkpoints = path / "checkpoints"
        self.tensorboard = path / "tensorboard"

    def predictions(self, split: str) -> Path:
        return self.path / f"predictions_{split}.parquet"

    def begin(self, recipe: Recipe) -> None:
        """Makes the directory, or checks that the one there belongs to this recipe.

        Raises ConfigError when it holds a run of another recipe, naming the first sections that differ.
        """
        if self.config.exists():
            before = load_file(self.config)
            if before != recipe:
                differing = [s for s in Recipe.__dataclass_fields__ if getattr(before, s) != getattr(recipe, s)]
                raise ConfigError(
                    f"{self.path}: expected a run of this recipe, got one that differs in {', '.join(differing)}; "
                    "give this one another name or seed, or remove that directory"
                )
            return
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        partial = self.config.with_suffix(".partial")
        save(recipe, partial)
        partial.replace(self.config)

    def recipe(self) -> Recipe:
        """The recipe of a run that was begun. Raises ConfigError when there is none."""
        if not self.config.is_file():
            raise ConfigError(f"{self.path}: expected a run directory with config.yaml, got none")
        return load_file(self.config)
