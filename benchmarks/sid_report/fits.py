"""A report on codes: every learner of semantic IDs fitted to the same items, with its measures recorded.

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

Results are in RESULTS/STUDY/fits.parquet, one row per fit.
Shapes: N items, V vector width, T width of the text column, which comes first, L levels, C codes of all levels.
"""

import hashlib
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, TypedDict

import numpy as np
import torch
from pydantic import Field
from scipy.sparse import csr_array

from sidrec.config import ConfigError, load_mapping
from sidrec.config.learners import TokenizerConfig
from sidrec.config.section import section
from sidrec.errors import TrainingError
from sidrec.io.output_folders import replaced_folder
from sidrec.schema import ITEMS, ContractError
from sidrec.sid.catalog import CATALOG, TOKENIZER, Catalog, write_catalog
from sidrec.sid.item_vectors import ItemVectors, read_item_vectors
from sidrec.sid.learners.registry import fit_tokenizer, learner_inputs, save_tokenizer
from sidrec.sid.quality import code_quality
from sidrec.sid.tokenizer import Encoded, Tokenizer
from sidrec.study.definition import Overrides, checked
from sidrec.study.jobs import merge
from sidrec.study.results import Conditions, ResultTable, conditions

log = logging.getLogger(__name__)

TEXT = "text"  # the column that all rows see and whose reconstruction is compared


@section
class Row:
    """One learner."""

    label: str
    """Name in the tables."""
    reconstructs: str
    """Vectors that the training reconstructs, in words."""
    tokenizer: Overrides
    """The recipe's section `tokenizer`, without sizes."""
    sizes: dict[str, Overrides] = field(default_factory=dict)
    """Setting -> sizes in its place, for learners that define levels in another way."""


@section
class SidStudy:
    """The keys of a report's YAML file; `name` is the file's stem."""

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
    """Folder of the catalogs, DATASET-ROW-SETTING."""


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
    def key(self) -> tuple[object, ...]:
        """The fit among recorded results of its report."""
        return self.setting, self.row, self.seed

    @property
    def section_hash(self) -> str:
        """Hash of the section and the data folder."""
        canonical = json.dumps([str(self.study.data), self.section], sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    @property
    def catalog(self) -> Path | None:
        """Folder of the fit's catalog; None for all but the first seed."""
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


class FitResult(TypedDict):
    """One finished fit. finished: UTC.

    codes: `CodeQuality`. own, additive: `TextReconstruction`; own is null where codes and weights stand for no vectors.
    fit_cpu_seconds, fit_wall_seconds: of the fit alone, without reading vectors; CPU time of all its threads.
    encode_items_per_cpu_second: the best of three runs over all items.
    curves: name -> one value per epoch; empty for learners without epochs. fingerprint: of the catalog.
    """

    setting: str
    row: str
    seed: int
    section_hash: str
    finished: str
    tokenizer: Overrides
    conditions: Conditions
    codes: dict[str, Any]
    own: dict[str, float] | None
    additive: dict[str, float]
    fit_cpu_seconds: float
    fit_wall_seconds: float
    encode_items_per_cpu_second: float
    curves: dict[str, list[float]]
    fingerprint: str


def fit_results(results: Path, study: SidStudy) -> ResultTable[FitResult]:
    """The recorded fits of a report, by setting, row and seed."""
    return ResultTable(results / study.name / "fits.parquet", ("setting", "row", "seed"), FitResult)


def finished(results: Path, study: SidStudy, fits: Sequence[Fit]) -> dict[str, dict[str, list[FitResult]]]:
    """Setting -> row -> results in the order of `fits`, of fits whose result is of the same section."""
    recorded = fit_results(results, study).read()
    found: dict[str, dict[str, list[FitResult]]] = {}
    for fit in fits:
        result = recorded.get(fit.key)
        if result is not None and result["section_hash"] == fit.section_hash:
            found.setdefault(fit.setting, {}).setdefault(fit.row, []).append(result)
    return found


ENCODES = 3


def run_study(study: SidStudy, results: Path, setting: str | None = None) -> list[Fit]:
    """Returns the fits that failed. Raises ConfigError before the first fit when any section has a mistake.

    setting: the only one to run; left out, all.
    """
    if setting is not None and setting not in study.settings:
        raise ConfigError(f"--setting: expected one of {list(study.settings)}, got {setting!r}")
    fits = [fit for fit in study_fits(study) if setting in (None, fit.setting)]
    torch.set_num_threads(1)
    recorded = fit_results(results, study)

    def is_finished(fit: Fit) -> bool:
        result = recorded.get(*fit.key)
        return result is not None and result["section_hash"] == fit.section_hash

    waiting = [fit for fit in fits if not is_finished(fit)]
    log.info("%s: %d fits, %d of them finished", study.name, len(fits), len(fits) - len(waiting))
    failed = []
    for place, fit in enumerate(waiting, start=1):
        if is_finished(fit):  # by another process, meanwhile
            continue
        log.info("%d/%d %s", place, len(waiting), fit)
        try:
            recorded.put(run_fit(fit))
        except (OSError, TrainingError, ContractError) as error:
            failed.append(fit)
            log.error("%s failed: %s", fit, error)
    return failed


def run_fit(fit: Fit) -> FitResult:
    """Fits, encodes, measures, and writes the catalog of the first seed."""
    facts = conditions()
    config = fit.config
    items = read_item_vectors(
        fit.study.data / ITEMS, config.vectors, config.normalize, inputs=learner_inputs(config.learner)
    )
    cpu, wall = time.process_time(), time.perf_counter()
    tokenizer = fit_tokenizer(items.vectors_NV, config, items.side)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    encoded, speed = _encode(tokenizer, items.vectors_NV)
    catalog = Catalog(items.item_ids_N, encoded.codes_NL, tokenizer.codebook_sizes, encoded.weights_NL)
    text_NT = _text(items)
    own = own_decoder(tokenizer, text_NT, encoded)
    if fit.catalog is not None:
        with replaced_folder(fit.catalog, CATALOG) as partial:
            write_catalog(catalog, partial)
            save_tokenizer(tokenizer, config, partial / TOKENIZER)
    return FitResult(
        setting=fit.setting,
        row=fit.row,
        seed=fit.seed,
        section_hash=fit.section_hash,
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        tokenizer=fit.section,
        conditions=facts,
        codes=asdict(code_quality(encoded.codes_NL, tokenizer.codebook_sizes)),
        own=None if own is None else asdict(own),
        additive=asdict(additive_decoder(text_NT, encoded.codes_NL, tokenizer.codebook_sizes)),
        fit_cpu_seconds=round(cpu, 2),
        fit_wall_seconds=round(wall, 2),
        encode_items_per_cpu_second=round(speed),
        curves=_curves(tokenizer),
        fingerprint=catalog.fingerprint,
    )


def _encode(tokenizer: Tokenizer, vectors_NV: np.ndarray) -> tuple[Encoded, float]:
    seconds = []
    for _ in range(ENCODES):
        start = time.process_time()
        encoded = tokenizer.encode(vectors_NV)
        seconds.append(time.process_time() - start)
    return encoded, len(vectors_NV) / min(seconds)


def _text(items: ItemVectors) -> np.ndarray:
    (name, width), *_ = items.side.columns
    if name != TEXT:
        raise ContractError("vector columns", f"{TEXT} first", name)
    return items.vectors_NV[:, :width]


def _curves(tokenizer: Tokenizer) -> dict[str, list[float]]:
    """Per epoch: loss, reconstruction term, and perplexity as a mean over levels."""
    curves: dict[str, list[float]] = {}
    for epoch in tokenizer.journal:
        for name in ("loss", "reconstruction", "perplexity"):
            mean = float(np.mean(np.asarray(epoch[name], dtype=np.float64)))
            curves.setdefault(name, []).append(float(f"{mean:.5g}"))
    return curves


RIDGE = 1e-3  # items worth of pull to the mean; the indicators of a level sum to one, so several answers fit alike


@dataclass(frozen=True)
class TextReconstruction:
    """squared_error: mean over items of the squared L2 error, summed over dimensions. Text vectors are unit vectors.

    unexplained_variance: that, divided by the mean squared L2 distance from the mean text vector.
    """

    squared_error: float
    unexplained_variance: float


def own_decoder(tokenizer: Tokenizer, text_NT: np.ndarray, encoded: Encoded) -> TextReconstruction | None:
    """The error of the learner's own decoder on the text vectors; None where codes do not decode to vectors."""
    decoded_NV = tokenizer.decode(encoded.codes_NL, encoded.weights_NL)
    return None if decoded_NV is None else _error(text_NT, decoded_NV[:, : text_NT.shape[1]])


def additive_decoder(text_NT: np.ndarray, codes_NL: np.ndarray, codebook_sizes: tuple[int, ...]) -> TextReconstruction:
    """The error of the best sum of one vector per code, by least squares on the same items.

    Defined for all codes. The value of random codes is the share that C free vectors explain by chance.
    """
    items, levels = codes_NL.shape
    first_L = np.cumsum([0, *codebook_sizes[:-1]])
    columns = (codes_NL + first_L).ravel()
    taken_NC = csr_array(
        (np.ones(columns.size), columns, np.arange(0, columns.size + 1, levels)), shape=(items, sum(codebook_sizes))
    )
    mean_T = text_NT.mean(axis=0, dtype=np.float64)
    normal_CC = (taken_NC.T @ taken_NC).toarray() + RIDGE * np.eye(sum(codebook_sizes))
    vectors_CT = np.linalg.solve(normal_CC, taken_NC.T @ (text_NT - mean_T))
    return _error(text_NT, taken_NC @ vectors_CT + mean_T)


def _error(text_NT: np.ndarray, decoded_NT: np.ndarray) -> TextReconstruction:
    squared = float(np.square(text_NT - decoded_NT).sum(dtype=np.float64))
    variance = float(np.square(text_NT - text_NT.mean(axis=0, dtype=np.float64)).sum(dtype=np.float64))
    return TextReconstruction(squared / len(text_NT), squared / variance)
