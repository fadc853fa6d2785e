"""From a study to its runs: recipes merged with what each variant changes."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from benchmarks.study.definition import Overrides, Study
from sidrec.config import Recipe, load_mapping
from sidrec.config.load import parse

TRIAL = "@"  # separates variant and trial in the name of a run


@dataclass(frozen=True)
class Run:
    """One training: recipe is the merged YAML mapping; recipe_hash names all of it but where it is put."""

    study: str
    dataset: str
    variant: str
    seed: int
    recipe: Overrides

    def __str__(self) -> str:
        return f"{self.dataset}/{self.variant}/seed{self.seed}"

    def checked(self) -> Recipe:
        """The recipe as the trainer will read it. Raises ConfigError that lists every mistake."""
        return parse(self.recipe, f"recipe of {self}")

    @property
    def directory(self) -> Path:
        """Where the trainer puts it: RUNS/NAME/seedN."""
        return Path(self.recipe["train"]["runs"]) / self.variant / f"seed{self.seed}"

    @property
    def recipe_hash(self) -> str:
        train = {key: value for key, value in self.recipe["train"].items() if key != "runs"}
        canonical = json.dumps({**self.recipe, "train": train}, sort_keys=True, default=str)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def study_runs(study: Study) -> list[Run]:
    """All runs, seed by seed, so that an unfinished study still compares every variant. Raises ConfigError."""
    variants = _variants(study)
    runs = []
    for seed in sorted({*study.seeds, *chain.from_iterable(study.seeds_of.values())}):
        for dataset, path in study.datasets.items():
            recipe = load_mapping(path, "YAML file")
            for name, (variant, overrides) in variants.items():
                if seed not in study.seeds_of.get(variant, study.seeds):
                    continue
                merged = merge(merge(recipe, overrides), study.tuned.get(dataset, {}).get(variant, {}))
                runs.append(Run(study.name, dataset, name, seed, _placed(merged, study, dataset, name, seed)))
    return runs


def _variants(study: Study) -> dict[str, tuple[str, Overrides]]:
    """Name of a run's variant -> the variant it stems from and its overrides."""
    if not study.trials:
        return {name: (name, overrides) for name, overrides in study.variants.items()}
    return {
        f"{name}{TRIAL}{trial}": (name, merge(overrides, trial_overrides))
        for name, overrides in study.variants.items()
        for trial, trial_overrides in study.trials[name].items()
    }


def _placed(recipe: Overrides, study: Study, dataset: str, name: str, seed: int) -> Overrides:
    runs = str(study.runs / study.name / dataset)
    evaluate = {"splits": [study.split], "save_predictions": True}
    return merge(recipe, {"name": name, "seed": seed, "train": {"runs": runs}, "evaluate": evaluate})


def merge(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> Overrides:
    """The base with the overrides' values; a section whose override names another `kind` is replaced whole."""
    merged = dict(base)
    for key, value in overrides.items():
        before = base.get(key)
        if isinstance(before, dict) and isinstance(value, dict) and value.get("kind") in (None, before.get("kind")):
            merged[key] = merge(before, value)
        else:
            merged[key] = value
    return merged
