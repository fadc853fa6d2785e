"""Fits what is missing, and measures it."""

import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

from benchmarks.sid_report.definition import TEXT, Fit, SidStudy, study_fits
from benchmarks.sid_report.result import FitResult, load_result, save_result
from benchmarks.sid_report.text_reconstruction import additive_decoder, own_decoder
from benchmarks.study.conditions import conditions
from benchmarks.study.missing import do_missing
from sidrec.config import ConfigError
from sidrec.errors import TrainingError
from sidrec.io.output_folders import replaced_folder
from sidrec.schema import ITEMS, ContractError
from sidrec.sid.catalog import CATALOG, TOKENIZER, Catalog, write_catalog
from sidrec.sid.item_vectors import ItemVectors, read_item_vectors
from sidrec.sid.learners.registry import fit_tokenizer, learner_inputs, save_tokenizer
from sidrec.sid.quality import code_quality
from sidrec.sid.tokenizer import Encoded, Tokenizer

ENCODES = 3


def run_study(study: SidStudy, results: Path, setting: str | None = None) -> list[Fit]:
    """Returns the fits that failed. Raises ConfigError before the first fit when any section has a mistake.

    setting: the only one to run; left out, all.
    """
    if setting is not None and setting not in study.settings:
        raise ConfigError(f"--setting: expected one of {list(study.settings)}, got {setting!r}")
    fits = [fit for fit in study_fits(study) if setting in (None, fit.setting)]
    torch.set_num_threads(1)

    def run(fit: Fit) -> None:
        save_result(results, fit, run_fit(fit))

    failures = (OSError, TrainingError, ContractError)
    return do_missing(study.name, fits, lambda fit: load_result(results, fit) is not None, run, failures)


def run_fit(fit: Fit) -> FitResult:
    """Fits, encodes, measures, and writes the catalog where the study keeps it."""
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
    """Of every epoch: the loss, the reconstruction's term, and perplexity as a mean over levels."""
    curves: dict[str, list[float]] = {}
    for epoch in tokenizer.journal:
        for name in ("loss", "reconstruction", "perplexity"):
            mean = float(np.mean(np.asarray(epoch[name], dtype=np.float64)))
            curves.setdefault(name, []).append(float(f"{mean:.5g}"))
    return curves
