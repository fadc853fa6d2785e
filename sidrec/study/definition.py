"""A study's YAML file, and the runs that it asks for.

datasets: {beauty: launch/recipes/amazon-beauty.yaml}
seeds: [0, 1, 2, 3, 4]
references: [hid_only]
variants:
  hid_only: {model: {item: {kind: hid}}}
  sid_coord: {}

Every data set's recipe is trained once for each variant and seed. Run: one of these trainings.
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, PositiveInt, TypeAdapter, ValidationError

from sidrec.config import ConfigError, Recipe, load_mapping
from sidrec.config.load import parse
from sidrec.config.section import section

T = TypeVar("T")

Column = Literal["AUC", "GAUC", "UAUC", "tail AUC", "tail GAUC", "tail UAUC", "cold AUC"]

Overrides = dict[str, Any]
"""A nested mapping with the keys of a recipe."""


@section
class Study:
    """The keys of a study's YAML file; `name` is the file's stem."""

    name: str
    datasets: Annotated[dict[str, Path], Field(min_length=1)]
    """Name of a data set -> its recipe."""
    variants: Annotated[dict[str, Overrides], Field(min_length=1)]
    """Name of a variant -> what it changes in each recipe."""
    references: tuple[str, ...] = ()
    """Variants that all others are compared with."""
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0, 1, 2, 3, 4)
    """One run for each data set, variant and seed."""
    seeds_of: dict[str, Annotated[tuple[int, ...], Field(min_length=1)]] = field(default_factory=dict)
    """Variant -> its own seeds, instead of `seeds`: for more seeds of variants that are close."""
    tuned: dict[str, dict[str, Overrides]] = field(default_factory=dict)
    """Data set -> variant -> overrides that a tuning study found; merged last."""
    trials: dict[str, dict[str, Overrides]] = field(default_factory=dict)
    """Makes this a tuning study: variant -> trial -> overrides, the same number of trials for every variant."""
    select: Literal["auc", "gauc", "uauc"] = "gauc"
    """The metric on all items that chooses a variant's best trial."""
    columns: Annotated[tuple[Column, ...], Field(min_length=1)] = ("AUC", "GAUC", "tail AUC", "cold AUC")
    """Metrics that the report shows."""
    split: str = "test"
    """The split that is evaluated; tuning must not look at `test`."""
    ranks: PositiveInt = 2
    """Processes per run."""
    command: tuple[str, ...] = (
        *("torchrun", "--standalone", "--nproc-per-node", "{ranks}"),
        *("-m", "sidrec.train", "{recipe}"),
    )
    """Trains one recipe; {recipe} and {ranks} are filled in."""
    runs: Path = Path("runs/studies")
    """Folder of run directories: RUNS/STUDY/DATASET/VARIANT/seedN."""
    results: Path = Path("results/studies")
    """Folder of recorded results, tables and pictures: RESULTS/STUDY."""


def load_study(path: Path) -> Study:
    """Reads and checks a study. Raises ConfigError that lists every mistake."""
    raw = load_mapping(path, "YAML file")
    study = checked(Study, {"name": path.stem, **raw}, str(path), "the study")
    mistakes = _wrong_names(study)
    if mistakes:
        raise ConfigError("\n".join([f"{path}: {len(mistakes)} mistake(s) in the study", *mistakes]))
    return study


def checked(kind: type[T], raw: Overrides, where: str, what: str) -> T:
    """A section of type `kind` from its mapping. Raises ConfigError with one line per mistake.

    where, what: the file and the section's name in the message.
    """
    try:
        return TypeAdapter(kind).validate_python(raw)
    except ValidationError as error:
        lines = [f"{where}: {len(error.errors())} mistake(s) in {what}"]
        lines += [f"  {'.'.join(map(str, m['loc']))}: {m['msg']}, got {m['input']!r}" for m in error.errors()]
        raise ConfigError("\n".join(lines)) from None


def _wrong_names(study: Study) -> list[str]:
    used: list[tuple[str, str, Collection[str]]]
    used = [("references", name, study.variants) for name in study.references]
    used += [("seeds_of", name, study.variants) for name in study.seeds_of]
    used += [("tuned", name, study.datasets) for name in study.tuned]
    used += [(f"tuned.{name}", variant, study.variants) for name, tuned in study.tuned.items() for variant in tuned]
    used += [("trials", name, study.variants) for name in study.trials]
    mistakes = [
        f"  {where}: expected one of {list(known)}, got {name!r}" for where, name, known in used if name not in known
    ]
    mistakes += [
        f"  {where}: expected letters, digits, '_', '-' or '.', got {name!r}"
        for where, names in (("name", [study.name]), ("datasets", study.datasets), ("variants", study.variants))
        for name in names
        if not all(letter.isalnum() or letter in "_-." for letter in name)
    ]
    if study.trials and len({len(study.trials.get(name, {})) for name in study.variants}) > 1:
        got = {name: len(study.trials.get(name, {})) for name in study.variants}
        mistakes.append(f"  trials: expected equally many for each variant, got {got}")
    return mistakes


TRIAL = "@"  # separates variant and trial in the name of a run


@dataclass(frozen=True)
class Run:
    """One training. recipe: the merged YAML mapping. recipe_hash: of the recipe without the place of the runs."""

    study: str
    dataset: str
    variant: str
    seed: int
    recipe: Overrides

    def __str__(self) -> str:
        return f"{self.dataset}/{self.variant}/seed{self.seed}"

    def checked(self) -> Recipe:
        """The recipe as the trainer reads it. Raises ConfigError that lists every mistake."""
        return parse(self.recipe, f"recipe of {self}")

    @property
    def key(self) -> tuple[object, ...]:
        """The run among recorded results of its study."""
        return self.dataset, self.variant, self.seed

    @property
    def directory(self) -> Path:
        """The run directory, RUNS/VARIANT/seedN."""
        return Path(self.recipe["train"]["runs"]) / self.variant / f"seed{self.seed}"

    @property
    def recipe_hash(self) -> str:
        train = {key: value for key, value in self.recipe["train"].items() if key != "runs"}
        canonical = json.dumps({**self.recipe, "train": train}, sort_keys=True, default=str)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def study_runs(study: Study) -> list[Run]:
    """All runs, seed by seed, so that an unfinished study still compares every variant.

    Raises ConfigError for a recipe file that cannot be read.
    """
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
    """Variant of a run -> the study's variant and the overrides; a trial is a variant VARIANT@TRIAL."""
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
    """`base` changed by `overrides`. A section whose override has another `kind` is replaced, not merged."""
    merged = dict(base)
    for key, value in overrides.items():
        before = base.get(key)
        if isinstance(before, dict) and isinstance(value, dict) and value.get("kind") in (None, before.get("kind")):
            merged[key] = merge(before, value)
        else:
            merged[key] = value
    return merged
