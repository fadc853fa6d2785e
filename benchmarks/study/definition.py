"""What a study is: a YAML file that says which recipes to train, in which variants, with which seeds.

datasets: {beauty: launch/recipes/amazon-beauty.yaml}
seeds: [0, 1, 2, 3, 4]
references: [hid_only]
variants:
  hid_only: {model: {item: {kind: hid}}}
  sid_coord: {}
"""

from collections.abc import Collection
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, PositiveInt, TypeAdapter, ValidationError

from sidrec.config import ConfigError, load_mapping
from sidrec.config.section import section

T = TypeVar("T")

Column = Literal["AUC", "GAUC", "UAUC", "tail AUC", "tail GAUC", "tail UAUC", "cold AUC"]

Overrides = dict[str, Any]
"""A nested mapping with the keys of a recipe."""


@section
class Study:
    """The definition, as its YAML file spells it; `name` is the file's stem."""

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
    """Variant -> its seeds, where they are others: more for those that are close."""
    tuned: dict[str, dict[str, Overrides]] = field(default_factory=dict)
    """Data set -> variant -> what tuning found; merged last."""
    trials: dict[str, dict[str, Overrides]] = field(default_factory=dict)
    """Makes this a tuning study: variant -> trial -> overrides, equally many trials for each variant."""
    select: Literal["auc", "gauc", "uauc"] = "gauc"
    """The metric on all items that chooses a variant's best trial."""
    columns: Annotated[tuple[Column, ...], Field(min_length=1)] = ("AUC", "GAUC", "tail AUC", "cold AUC")
    """What the report shows."""
    split: str = "test"
    """The split that is evaluated; tuning must not look at `test`."""
    ranks: PositiveInt = 2
    """Processes per run."""
    command: tuple[str, ...] = (
        *("torchx", "run", "-s", "local_cwd", "launch/components.py:train"),
        *("--recipe", "{recipe}", "--ranks", "{ranks}"),
    )
    """Trains one recipe; {recipe} and {ranks} are filled in."""
    runs: Path = Path("runs/studies")
    """Where run directories go: RUNS/STUDY/DATASET/VARIANT/seedN."""


def load_study(path: Path) -> Study:
    """Reads and checks a study. Raises ConfigError that lists every mistake, also those in the recipes it leads to."""
    raw = load_mapping(path, "YAML file")
    study = checked(Study, {"name": path.stem, **raw}, str(path), "the study")
    mistakes = _wrong_names(study)
    if mistakes:
        raise ConfigError("\n".join([f"{path}: {len(mistakes)} mistake(s) in the study", *mistakes]))
    return study


def checked(kind: type[T], raw: Overrides, where: str, what: str) -> T:
    """A section of that kind. Raises ConfigError, saying where and in what, with one line per mistake."""
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
