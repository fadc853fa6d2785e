"""The artifact of a fitted tokenizer: a folder with `tokenizer.json` (config, sha256) and `arrays.safetensors`.

No pickle: an artifact is data and runs no code. Loading gives a tokenizer that encodes exactly as the saved one.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from sidrec.config.learners import OpqConfig, RandomCodesConfig, ResidualKMeansConfig, TokenizerConfig
from sidrec.io.output_folders import replaced_folder
from sidrec.schema import ContractError, read_json
from sidrec.sid.catalog import CATALOG, JOURNAL, PICTURES, REPORT, TOKENIZER, Catalog, write_catalog
from sidrec.sid.learners.gradient import NETWORKS, GradientTokenizer
from sidrec.sid.learners.kmeans import ResidualKMeans
from sidrec.sid.learners.opq import Opq
from sidrec.sid.learners.random_codes import RandomCodes
from sidrec.sid.pictures import draw_pictures, draw_training
from sidrec.sid.tokenizer import SideInformation, Tokenizer

CARD = "tokenizer.json"
ARRAYS = "arrays.safetensors"
ARTIFACT_VERSION = 1


LEARNERS: dict[type, type[Tokenizer]] = {
    ResidualKMeansConfig: ResidualKMeans,
    RandomCodesConfig: RandomCodes,
    OpqConfig: Opq,
    **dict.fromkeys(NETWORKS, GradientTokenizer),
}


_CONFIG: TypeAdapter[TokenizerConfig] = TypeAdapter(TokenizerConfig)


def fit_tokenizer(
    vectors_NV: np.ndarray, config: TokenizerConfig, side: SideInformation, work: Path | None = None
) -> Tokenizer:
    """Fits the learner that the config names. Raises ContractError when the vectors cannot support it.

    vectors_NV: float32, prepared by `read_item_vectors`; may be a memory map. work: see `Tokenizer.fit`.
    """
    return LEARNERS[type(config.learner)].fit(vectors_NV, config.learner, config.seed, side, work)


def save_tokenizer(tokenizer: Tokenizer, config: TokenizerConfig, folder: Path) -> None:
    """Writes the artifact into a new folder; part of a catalog that is being built, so the caller makes it atomic."""
    content = save_arrays(tokenizer.arrays())
    card = {
        "version": ARTIFACT_VERSION,
        "config": asdict(config),
        "codebook_sizes": list(tokenizer.codebook_sizes),
        "width": tokenizer.width,
        "arrays_sha256": hashlib.sha256(content).hexdigest(),
    }
    folder.mkdir()
    (folder / ARRAYS).write_bytes(content)
    (folder / CARD).write_text(json.dumps(card, indent=1) + "\n")


def load_tokenizer(folder: Path) -> tuple[Tokenizer, TokenizerConfig]:
    """The tokenizer, and the config that says which vectors it wants. Raises ContractError for a damaged artifact."""
    path = folder / CARD
    card = read_json(path, "a tokenizer artifact, as `sidrec fit` makes it")
    try:
        config = _CONFIG.validate_python(card["config"])
        version, expected = card["version"], card["arrays_sha256"]
    except (ValueError, TypeError, KeyError, ValidationError) as error:
        raise ContractError(path, "JSON with version, config and arrays_sha256", " ".join(str(error).split())) from None
    if version != ARTIFACT_VERSION:
        raise ContractError(f"{path}, version", str(ARTIFACT_VERSION), version)
    arrays = _read_arrays(folder / ARRAYS, expected)
    try:
        return LEARNERS[type(config.learner)].from_arrays(arrays, config.learner, config.seed), config
    except (KeyError, ValueError, RuntimeError) as error:
        raise ContractError(folder / ARRAYS, f"the arrays of the config that {CARD} holds", error) from None


def _read_arrays(path: Path, expected: str) -> dict[str, np.ndarray]:
    try:
        content = path.read_bytes()
        arrays = load_arrays(content)
    except (OSError, SafetensorError) as error:
        raise ContractError(path, "a readable safetensors file", error) from None
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise ContractError(f"{path}, sha256", f"{expected} as {CARD} says", found)
    return arrays


# Everything that `sidrec fit` keeps of a fit, in the catalog's folder: see `sidrec.sid.catalog`.


def write_catalog_folder(
    target: Path,
    catalog: Catalog,
    tokenizer: Tokenizer,
    config: TokenizerConfig,
    name: str,
    report: Mapping[str, object],
) -> None:
    """Writes the folder in one step; replaces a catalog that exists. Raises ContractError as `atomic_folder` does.

    name: of the recipe, for the pictures' titles. report: what report.json says beside the tokenizer's config.
    """
    sizes = " x ".join(map(str, catalog.codebook_sizes))
    what = f"{config.learner.kind} {sizes} on {'+'.join(config.vectors)}, seed {config.seed}"
    conditions = f"{name}: {len(catalog):,} items, {what}"
    with replaced_folder(target, CATALOG) as partial:
        write_catalog(catalog, partial)
        save_tokenizer(tokenizer, config, partial / TOKENIZER)
        (partial / REPORT).write_text(json.dumps({"tokenizer": asdict(config), **report}, indent=1) + "\n")
        draw_pictures(catalog, conditions, partial / PICTURES)
        if tokenizer.journal:
            (partial / JOURNAL).write_text("".join(f"{json.dumps(entry)}\n" for entry in tokenizer.journal))
            draw_training(tokenizer.journal, conditions, partial / PICTURES)
