"""What a report on codes is: a YAML file with rows (learners) and settings (codebook sizes and lengths).

data: data/beauty-90-behavior
dataset: beauty
seeds: [0, 1, 2]
settings:
  256x3: {codebook_size: 256, levels: 3}
rows:
  rqvae: {label: RQ-VAE, reconstructs: text, tokenizer: {learner: {kind: rqvae}}}
  adc_sid:
    label: ADC-SID
    reconstructs: text and behaviour
    tokenizer: {vectors: [text, behavior], learner: {kind: adc_sid}}
    sizes: {256x3: {codebook_size: 256, shared: 1, content: 1, behavior: 1}}
"""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import Field

from benchmarks.study.definition import Overrides, checked
from benchmarks.study.runs import merge
from sidrec.config import ConfigError, load_mapping
from sidrec.config.learners import TokenizerConfig
from sidrec.config.section import section

TEXT = "text"  # the column that all rows see and whose reconstruction is compared


@section
class Row:
    """One learner."""

    label: str
    """As the tables call it."""
    reconstructs: str
    """What the training reconstructs, in words."""
    tokenizer: Overrides
    """The recipe's section `tokenizer`, without sizes."""
    sizes: dict[str, Overrides] = field(default_factory=dict)
    """Setting -> what replaces it in this learner's section, for learners that count levels otherwise."""


@section
class SidStudy:
    """The definition, as its YAML file spells it; `name` is the file's stem."""

    name: str
    data: Path
    """Folder with items.parquet and pairs.parquet, as `python -m data_prep.behavior` completes it."""
    dataset: str
    """First word of the catalogs' names."""
    settings: Annotated[dict[str, Overrides], Field(min_length=1)]
    """Name -> codebook_size and levels."""
    rows: Annotated[dict[str, Row], Field(min_length=1)]
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0, 1, 2)
    """One fit for each setting, row and seed. The first seed's catalogs are kept."""
    catalogs: Path = Path("data/catalogs")
    """Where catalogs go: DATASET-ROW-SETTING."""


@dataclass(frozen=True)
class Fit:
    """One fit. section: the tokenizer's section, merged; config: the same, checked."""

    study: SidStudy
    setting: str
    row: str
    seed: int
    section: Overrides
    config: TokenizerConfig

    def __str__(self) -> str:
        return f"{self.setting}/{self.row}/seed{self.seed}"

    @property
    def section_hash(self) -> str:
        """Names the section and the data folder."""
        canonical = json.dumps([str(self.study.data), self.section], sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    @property
    def catalog(self) -> Path | None:
        """Where this fit's catalog goes; None for all but the first seed."""
        if self.seed != self.study.seeds[0]:
            return None
        return self.study.catalogs / f"{self.study.dataset}-{self.row}-{self.setting}"


def load_sid_study(path: Path) -> SidStudy:
    """Raises ConfigError that lists the study's mistakes; those of its learners come from `study_fits`."""
    raw = load_mapping(path, "YAML file")
    study = checked(SidStudy, {"name": path.stem, **raw}, str(path), "the study")
    unknown = [f"{row}, {name}" for row, of in study.rows.items() for name in of.sizes if name not in study.settings]
    if unknown:
        raise ConfigError(f"{path}, sizes: expected settings {list(study.settings)}, got {'; '.join(unknown)}")
    return study


def study_fits(study: SidStudy) -> list[Fit]:
    """All fits, seed by seed, so that an unfinished report still compares every row. Raises ConfigError."""
    return [
        _fit(study, setting, name, seed) for seed in study.seeds for setting in study.settings for name in study.rows
    ]


def _fit(study: SidStudy, setting: str, name: str, seed: int) -> Fit:
    row = study.rows[name]
    size = row.sizes.get(setting, study.settings[setting])
    section = merge(row.tokenizer, {"learner": size, "seed": seed})
    config = checked(TokenizerConfig, section, f"row {name}, setting {setting}", "the tokenizer")
    if config.vectors[0] != TEXT:
        raise ConfigError(f"row {name}, vectors: expected {TEXT!r} first, got {list(config.vectors)}")
    return Fit(study, setting, name, seed, section, config)
