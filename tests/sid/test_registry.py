"""The registry knows every learner, and artifacts give the same codes in a fresh process."""

import json
import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from sidrec.config.learner_parts import SidLossConfig
from sidrec.config.learners import Learner, RandomCodesConfig, ResidualKMeansConfig, TokenizerConfig
from sidrec.schema import ContractError
from sidrec.sid.learners import registry
from sidrec.sid.learners.registry import fit_tokenizer, load_tokenizer, save_tokenizer
from sidrec.sid.tokenizer import SideInformation
from sidrec.sid.training.objectives import LOSSES

VECTORS = np.random.default_rng(0).standard_normal((200, 6)).astype(np.float32)
LEARNERS: list[Learner] = [
    ResidualKMeansConfig(levels=2, codebook_size=7),
    ResidualKMeansConfig(levels=2, codebook_size=7, beam=3),
    RandomCodesConfig(levels=4, codebook_size=7),
]
ENCODE = """
import sys, numpy as np
from pathlib import Path
from sidrec.sid.learners.registry import load_tokenizer
for folder in sys.argv[2:]:
    tokenizer, config = load_tokenizer(Path(folder))
    print(config.seed, tokenizer.encode(np.load(sys.argv[1])).codes_NL.tolist())
"""


def test_every_section_has_its_learner_and_every_loss_section_its_loss() -> None:
    assert set(get_args(get_args(Learner)[0])) == set(registry.LEARNERS)
    assert set(get_args(get_args(SidLossConfig)[0])) == set(LOSSES)


def saved(folder: Path, learner: Learner = LEARNERS[0]) -> TokenizerConfig:
    config = TokenizerConfig(vectors=("text", "visual"), normalize=False, learner=learner, seed=11)
    save_tokenizer(fit_tokenizer(VECTORS, config, SideInformation()), config, folder)
    return config


def test_a_fresh_process_gives_the_same_codes(tmp_path: Path) -> None:
    new_items = np.random.default_rng(9).standard_normal((50, 6)).astype(np.float32)
    np.save(tmp_path / "new.npy", new_items)
    folders = [str(tmp_path / f"tokenizer{number}") for number in range(len(LEARNERS))]
    expected = ""
    for learner, folder in zip(LEARNERS, folders, strict=True):
        config = saved(Path(folder), learner)
        codes = fit_tokenizer(VECTORS, config, SideInformation()).encode(new_items).codes_NL
        expected += f"11 {codes.tolist()}\n"
    command = [sys.executable, "-c", ENCODE, str(tmp_path / "new.npy"), *folders]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == expected


@pytest.mark.parametrize("learner", LEARNERS)
def test_the_config_and_the_shape_come_back(learner: Learner, tmp_path: Path) -> None:
    config = saved(tmp_path / "tokenizer", learner)
    tokenizer, loaded = load_tokenizer(tmp_path / "tokenizer")
    assert loaded == config
    assert tokenizer.codebook_sizes == (7,) * (4 if isinstance(learner, RandomCodesConfig) else 2)
    assert tokenizer.width == 6
    assert sorted(path.name for path in (tmp_path / "tokenizer").iterdir()) == ["arrays.safetensors", "tokenizer.json"]


def test_damage_is_refused_by_file(tmp_path: Path) -> None:
    folder = tmp_path / "tokenizer"
    with pytest.raises(ContractError, match=r"tokenizer\.json: expected a tokenizer artifact"):
        load_tokenizer(folder)
    saved(folder)
    arrays = folder / "arrays.safetensors"
    content = bytearray(arrays.read_bytes())
    content[-1] ^= 1  # one bit of one centroid
    arrays.write_bytes(content)
    with pytest.raises(ContractError, match=r"sha256: expected [0-9a-f]{64} as tokenizer\.json says, got [0-9a-f]{64}"):
        load_tokenizer(folder)
    arrays.write_bytes(content[:20])
    with pytest.raises(ContractError, match=r"arrays\.safetensors: expected a readable safetensors file"):
        load_tokenizer(folder)
    card = json.loads((folder / "tokenizer.json").read_text())
    card["config"]["learner"]["kind"] = "vq_diffusion"
    (folder / "tokenizer.json").write_text(json.dumps(card))
    with pytest.raises(ContractError, match=r"tokenizer\.json: expected JSON with version, config .* 'vq_diffusion'"):
        load_tokenizer(folder)


def test_a_config_of_another_network_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "tokenizer"
    saved(folder)
    card = json.loads((folder / "tokenizer.json").read_text())
    card["config"]["learner"] = {"kind": "opq"}
    (folder / "tokenizer.json").write_text(json.dumps(card))
    with pytest.raises(
        ContractError, match=r"arrays\.safetensors: expected the arrays of the config that tokenizer\.json"
    ):
        load_tokenizer(folder)
