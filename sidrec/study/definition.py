"""A study's YAML file.

datasets: {beauty: launch/recipes/amazon-beauty.yaml}
runs: 10
references: [hid_only]
variants:
  hid_only: {model: {item: {kind: hid}}}
  sid_coord: {model: {item: {kind: sid_coord}}}

Every data set's recipe is trained once for each variant and run number; `sidrec.study.jobs` lists these runs.
"""

from collections.abc import Collection
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveInt, TypeAdapter, ValidationError

from sidrec.config import ConfigError, load_mapping
from sidrec.config.section import section, uris_below
from sidrec.study.tuning import Tuning

T = TypeVar("T")

Column = Literal[
    "AUC",
    "GAUC",
    "UAUC",
    "NE",
    "tail AUC",
    "tail GAUC",
    "tail UAUC",
    "warm-tail AUC",
    "warm-tail GAUC",
    "cold AUC",
    "cold GAUC",
    "cold NE",
]

Overrides = dict[str, Any]
"""A nested mapping with the keys of a recipe."""


def _run_numbers(value: object) -> object:
    """A number of runs as the run numbers 0, 1, ..; a list stays. Raises ValueError for anything else."""
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 1:
            raise ValueError("expected at least one run")
        return tuple(range(value))
    if isinstance(value, list | tuple):
        if len(set(map(repr, value))) < len(value):
            raise ValueError("expected every run number once")
        return value
    raise ValueError("expected a number of runs or a list of run numbers (the folder of run directories is `work`)")


RunNumbers = Annotated[tuple[NonNegativeInt, ...], Field(min_length=1), BeforeValidator(_run_numbers)]


@section
class Study:
    """The keys of a study's YAML file; `name` is the file's stem."""

    name: str
    datasets: Annotated[dict[str, Path], Field(min_length=1)]
    """Name of a data set -> its recipe."""
    variants: Annotated[dict[str, Overrides], Field(min_length=1)]
    """Name of a variant -> what it changes in each recipe. A variant's `model.item` replaces the recipe's whole."""
    references: tuple[str, ...] = ()
    """Variants that all others are compared with."""
    runs: RunNumbers = tuple(range(10))
    """Runs of each data set and variant: how many, or a list of run numbers. Run r trains with seed r and the catalog
    of fit r, so runs of two variants are paired by their number."""
    runs_of: dict[str, RunNumbers] = field(default_factory=dict)
    """Variant -> its own runs, instead of `runs`: for more runs of variants that are close."""
    fits: NonNegativeInt | None = None
    """Fits of each catalog; run r uses fit r % fits. Left out, each run has a fit of its own. Catalogs are fitted for
    recipes with a section `tokenizer`; 0: never, every run reads the recipe's `data.catalog`."""
    jobs: PositiveInt = 1
    """Runs at a time."""
    tuning: Tuning | None = None
    """Search for each variant's best values of the same keys, on the same budget; left out, none."""
    tuned: dict[str, dict[str, Overrides]] = field(default_factory=dict)
    """Data set -> variant -> overrides that an earlier search found. They change single keys, also of `model.item`."""
    columns: Annotated[tuple[Column, ...], Field(min_length=1)] = ("AUC", "GAUC", "tail AUC", "cold AUC")
    """Metrics that the report shows."""
    split: str = "test"
    """The split that the final runs are measured on; `tuning` has its own."""
    ranks: PositiveInt = 1
    """Processes per run."""
    command: tuple[str, ...] | None = None
    """Trains one recipe; {recipe} and {ranks} are filled in. Left out, `sidrec train`, under torchrun for more than one
    rank."""
    keep: bool = False
    """Keep the predictions and checkpoints of recorded runs."""
    work: Path = Path("runs/studies")
    """Folder of run directories and catalogs: WORK/STUDY/DATASET/VARIANT/seedN, WORK/catalogs/DATASET."""
    results: Path = Path("results/studies")
    """Folder of recorded results, tables and pictures: RESULTS/STUDY."""

    def numbers(self, variant: str) -> tuple[int, ...]:
        """The run numbers of a variant."""
        return self.runs_of.get(variant, self.runs)

    def fit_of(self, number: int) -> int | None:
        """The catalog fit of a run; None if the study fits no catalogs."""
        if self.fits is None:
            return number
        return number % self.fits if self.fits else None


FORMER_KEYS = {"seeds": "runs", "seeds_of": "runs_of"}
"""Former names of keys, which older files have."""


def load_study(path: Path) -> Study:
    """Reads and checks a study. Raises ConfigError that lists every mistake."""
    raw = load_mapping(path, "YAML file")
    twice = [f"  {former} is the former name of {now}: expected one of them" for former, now in FORMER_KEYS.items()]
    mistakes = [line for line, keys in zip(twice, FORMER_KEYS.items(), strict=True) if set(keys) <= set(raw)]
    if not mistakes:
        renamed = {FORMER_KEYS.get(key, key): value for key, value in raw.items()}
        study = checked(Study, {"name": path.stem, **renamed}, str(path), "the study")
        mistakes = _wrong_names(study)
    if mistakes:
        raise ConfigError("\n".join([f"{path}: {len(mistakes)} mistake(s) in the study", *mistakes]))
    return study


def checked(kind: type[T], raw: Overrides, where: str, what: str) -> T:
    """A section of type `kind` from its mapping. Raises ConfigError with one line per mistake.

    where, what: the file and the section's name in the message.
    """
    try:
        found = TypeAdapter(kind).validate_python(raw)
    except ValidationError as error:
        lines = [f"{where}: {len(error.errors())} mistake(s) in {what}"]
        lines += [f"  {'.'.join(map(str, m['loc']))}: {m['msg']}, got {m['input']!r}" for m in error.errors()]
        raise ConfigError("\n".join(lines)) from None
    for refusal in uris_below(found, texts=False):
        raise ConfigError(f"{where}: {refusal}")
    return found


def _wrong_names(study: Study) -> list[str]:
    used: list[tuple[str, str, Collection[str]]]
    used = [("references", name, study.variants) for name in study.references]
    used += [("runs_of", name, study.variants) for name in study.runs_of]
    used += [("tuned", name, study.datasets) for name in study.tuned]
    used += [(f"tuned.{name}", variant, study.variants) for name, tuned in study.tuned.items() for variant in tuned]
    mistakes = [
        f"  {where}: expected one of {list(known)}, got {name!r}" for where, name, known in used if name not in known
    ]
    mistakes += [
        f"  {where}: expected letters, digits, '_', '-' or '.', got {name!r}"
        for where, names in (("name", [study.name]), ("datasets", study.datasets), ("variants", study.variants))
        for name in names
        if not all(letter.isalnum() or letter in "_-." for letter in name)
    ]
    return mistakes
