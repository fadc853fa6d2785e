"""The runs that a study asks for, and the recipe of each: the data set's, changed by its variant."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sidrec.config import Recipe, load_mapping
from sidrec.config.load import parse
from sidrec.study.definition import Overrides, Study

TRIAL = "@"  # separates variant and trial in the name of a run
CATALOGS = "catalogs"  # folder of the catalogs that studies fit


@dataclass(frozen=True)
class Run:
    """One training.

    variant: its name, VARIANT@TRIAL for a trial. number: pairs runs of several variants; the recipe's seed.
    fit: of the catalog that the study fits for this run; None if the run reads no catalog, or one that exists.
    recipe: the merged YAML mapping.
    """

    study: str
    dataset: str
    variant: str
    number: int
    recipe: Overrides
    fit: int | None = None

    def __str__(self) -> str:
        return f"{self.dataset}/{self.variant}/run{self.number}"

    def checked(self) -> Recipe:
        """The recipe as the trainer reads it. Raises ConfigError that lists every mistake."""
        return parse(self.recipe, f"recipe of {self}")

    @property
    def key(self) -> tuple[object, ...]:
        """The run among recorded results of its study."""
        return self.dataset, self.variant, self.number

    @property
    def directory(self) -> Path:
        """The run directory."""
        return Path(self.recipe["train"]["runs"]) / self.variant / f"seed{self.number}"

    @property
    def recipe_hash(self) -> str:
        """Of the recipe without the places of runs and of catalogs that the study fits."""
        recipe = {**self.recipe, "train": {k: v for k, v in self.recipe["train"].items() if k != "runs"}}
        if self.fit is not None:
            recipe["data"] = {**recipe["data"], "catalog": None}  # decided by the tokenizer section and its seed
        canonical = json.dumps(recipe, sort_keys=True, default=str)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def study_runs(study: Study) -> list[Run]:
    """All runs, number by number, so that an unfinished study still compares every variant on every data set.

    Raises ConfigError for a recipe file that cannot be read, or a recipe with a tokenizer and a mistake.
    """
    recipes = {
        (dataset, variant): variant_recipe(study, dataset, variant)
        for dataset in study.datasets
        for variant in study.variants
    }
    return [
        run_of(study, dataset, variant, number, recipe)
        for number in sorted({number for name in study.variants for number in study.numbers(name)})
        for (dataset, variant), recipe in recipes.items()
        if number in study.numbers(variant)
    ]


def variant_recipe(study: Study, dataset: str, variant: str) -> Overrides:
    """The recipe of a data set, changed by a variant, and by what `tuned` has for it."""
    recipe, overrides = load_mapping(study.datasets[dataset], "YAML file"), study.variants[variant]
    changed = merge(_without_replaced_item(recipe, overrides), overrides)
    return merge(changed, study.tuned.get(dataset, {}).get(variant, {}))


def _without_replaced_item(recipe: Overrides, overrides: Overrides) -> Overrides:
    """The recipe without its section `model.item` if the overrides have one, which is whole."""
    model, changes = recipe.get("model"), overrides.get("model")
    if not isinstance(model, dict) or not isinstance(changes, dict) or "item" not in changes:
        return recipe
    return {**recipe, "model": {key: value for key, value in model.items() if key != "item"}}


def run_of(
    study: Study,
    dataset: str,
    name: str,
    number: int,
    recipe: Overrides,
    split: str | None = None,
    folder: Path | None = None,
) -> Run:
    """Run `number` of a merged recipe: with its seed, its catalog and its run directory, FOLDER/NAME/seedN.

    name: of the variant, or VARIANT@TRIAL. split: evaluated instead of the study's. folder: WORK/STUDY/DATASET if left
    out.
    """
    placed = {
        "name": name,
        "seed": number,
        "train": {"runs": str(folder or study.work / study.name / dataset)},
        "evaluate": {"splits": [split or study.split], "save_predictions": True},
    }
    run = Run(study.name, dataset, name, number, merge(recipe, placed))
    fit = study.fit_of(number)
    return run if fit is None or "tokenizer" not in recipe else _with_catalog(study, run, fit)


def _with_catalog(study: Study, run: Run, fit: int) -> Run:
    """The run with the catalog that the study fits for it; without the tokenizer where it reads no catalog."""
    recipe, tokenizer = run.recipe, run.recipe["tokenizer"] or {}
    if run.checked().model.item.sids is None:
        unfitted = {key: value for key, value in recipe.items() if key != "tokenizer"}
        return Run(run.study, run.dataset, run.variant, run.number, unfitted)
    described = json.dumps([{**tokenizer, "seed": None}, recipe["data"]["path"]], sort_keys=True, default=str)
    digest = hashlib.sha256(described.encode()).hexdigest()[:12]
    catalog = study.work / CATALOGS / run.dataset / digest / f"fit{fit}"
    fitted = merge(recipe, {"tokenizer": {"seed": fit}, "data": {"catalog": str(catalog)}})
    return Run(run.study, run.dataset, run.variant, run.number, fitted, fit)


def merge(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> Overrides:
    """`base` changed by `overrides`. A section whose override has another `kind` is replaced, not merged."""
    merged = dict(base)
    for key, value in overrides.items():
        before = base.get(key)
        if isinstance(before, dict) and isinstance(value, dict) and value.get("kind") in (None, before.get("kind")):
            merged[key] = merge(before, value)
        else:
            merged[key] = value
    return merged
