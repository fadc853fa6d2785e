"""Learners by their section of the recipe: fit a tokenizer, save it, load it.

To add a learner: its section in `sidrec.config.learners`, its `Tokenizer` in a file here, and a line in LEARNERS. A
learner with a network of its own gets a `Network` in `sidrec.sid.networks` and a line in NETWORKS of
`sidrec.sid.learners.gradient` instead.

An artifact is a folder with `tokenizer.json` (config, sha256) and `arrays.safetensors`. It holds data, never code: no
pickle. A loaded tokenizer encodes exactly as the saved one.
"""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from sidrec.config.learners import Learner, OpqConfig, RandomCodesConfig, ResidualKMeansConfig, TokenizerConfig
from sidrec.schema import ContractError, read_json
from sidrec.sid.learners.gradient import NETWORKS, GradientTokenizer
from sidrec.sid.learners.kmeans import ResidualKMeans
from sidrec.sid.learners.opq import Opq
from sidrec.sid.learners.random_codes import RandomCodes
from sidrec.sid.tokenizer import LearnerInputs, SideInformation, Tokenizer

LEARNERS: dict[type, type[Tokenizer]] = {
    ResidualKMeansConfig: ResidualKMeans,
    RandomCodesConfig: RandomCodes,
    OpqConfig: Opq,
    **dict.fromkeys(NETWORKS, GradientTokenizer),
}

CARD = "tokenizer.json"
ARRAYS = "arrays.safetensors"
ARTIFACT_VERSION = 1
_CONFIG: TypeAdapter[TokenizerConfig] = TypeAdapter(TokenizerConfig)


def learner_inputs(learner: Learner) -> LearnerInputs:
    """What the learner of this section needs besides the vector columns."""
    return LEARNERS[type(learner)].inputs(learner)


def shares_fit(learner: Learner) -> bool:
    """Whether several processes can share one fit of the learner of this section."""
    return LEARNERS[type(learner)].several_processes


def fit_tokenizer(
    vectors_NV: np.ndarray, config: TokenizerConfig, side: SideInformation, work: Path | None = None
) -> Tokenizer:
    """Fits the learner that `config.learner` configures. Raises what `Tokenizer.fit` raises.

    vectors_NV: float32 [items, width], prepared by `read_item_vectors`; may be a memory map. work: see `Tokenizer.fit`.
    """
    return LEARNERS[type(config.learner)].fit(vectors_NV, config.learner, config.seed, side, work)


def save_tokenizer(tokenizer: Tokenizer, config: TokenizerConfig, folder: Path) -> None:
    """Writes the artifact into the new folder `folder`. The caller replaces the catalog around it in one step."""
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
    (folder / CARD).write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")


def load_tokenizer(folder: Path) -> tuple[Tokenizer, TokenizerConfig]:
    """The tokenizer, and the config that says which vectors it encodes. Raises ContractError for a damaged artifact."""
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


def _read_arrays(path: Path, expected_sha256: str) -> dict[str, np.ndarray]:
    try:
        content = path.read_bytes()
        arrays = load_arrays(content)
    except (OSError, SafetensorError) as error:
        raise ContractError(path, "a readable safetensors file", error) from None
    found = hashlib.sha256(content).hexdigest()
    if found != expected_sha256:
        raise ContractError(f"{path}, sha256", f"{expected_sha256} as {CARD} says", found)
    return arrays
