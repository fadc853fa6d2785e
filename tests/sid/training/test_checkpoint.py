"""Checkpoints: a killed training goes on to the same bits; one of something else is not used, and it says why."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sidrec.config.learner_parts import Diversity, OverlapRepulsion, Router, Training
from sidrec.config.learners import AdaSidConfig, GradientLearnerConfig, RqVaeConfig
from sidrec.sid.learners.gradient import GradientTokenizer
from sidrec.sid.tokenizer import SideInformation
from sidrec.sid.training.trainer import CHECKPOINT, Checkpoint, identity_of
from tests.killed import killed_when
from tests.sid.item_files import clustered_vectors

VECTORS = clustered_vectors(300)
SIDE = SideInformation(pairs_P2=np.random.default_rng(0).integers(0, 300, (200, 2)))
CONFIG = AdaSidConfig(
    codebook_size=8,
    width=4,
    hidden=(16,),
    router=Router(),
    further_losses=(Diversity(groups=2), OverlapRepulsion(load="bucket")),
    training=Training(epochs=10, batch_size=64, save_every=1),
)
PLAIN = RqVaeConfig(codebook_size=8, width=4, hidden=(16,), training=Training(epochs=4, batch_size=64, save_every=2))


def fit(work: Path | None, config: GradientLearnerConfig = CONFIG, seed: int = 3) -> GradientTokenizer:
    return GradientTokenizer.fit(VECTORS, config, seed, SIDE, work)


def same(one: GradientTokenizer, other: GradientTokenizer) -> bool:
    ours, theirs = one.arrays(), other.arrays()
    return ours.keys() == theirs.keys() and all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_killed_and_resumed_equals_uninterrupted_to_the_bit(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    program = f"from pathlib import Path; from {__name__} import fit; fit(Path({str(tmp_path)!r}))"
    killed_when(tmp_path / CHECKPOINT, ["-c", program])
    done = len(torch.load(tmp_path / CHECKPOINT, weights_only=True)["state"]["journal"])
    assert done == 1
    resumed, whole = fit(tmp_path), fit(None)
    assert same(resumed, whole)
    assert resumed.journal == whole.journal


def test_a_finished_training_is_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = fit(tmp_path, PLAIN)
    monkeypatch.setattr("sidrec.sid.training.trainer.Trainer._epoch", lambda *_: pytest.fail("trains again"))
    assert same(fit(tmp_path, PLAIN), first)


@pytest.mark.parametrize("other", ["config", "seed"])
def test_a_checkpoint_of_another_training_is_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, other: str
) -> None:
    fit(tmp_path, PLAIN)
    config, seed = (replace(PLAIN, commitment=0.5), 3) if other == "config" else (PLAIN, 4)
    with caplog.at_level(logging.WARNING):
        found = fit(tmp_path, config, seed)
    assert "of another config, seed or data, so the training starts anew" in caplog.text
    assert same(found, fit(None, config, seed))


def test_a_damaged_checkpoint_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = fit(tmp_path, PLAIN)
    content = (tmp_path / CHECKPOINT).read_bytes()
    for damage in (b"", content[: len(content) // 2], b"no checkpoint at all"):
        (tmp_path / CHECKPOINT).write_bytes(damage)
        caplog.clear()
        assert Checkpoint(tmp_path, "any").load() is None
        assert "not readable" in caplog.text
    assert same(fit(tmp_path, PLAIN), whole)


def test_a_checkpoint_of_another_version_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save({"version": 99, "identity": "x", "state": {}}, tmp_path / CHECKPOINT)
    assert Checkpoint(tmp_path, "x").load() is None
    assert "of version 99, not 1" in caplog.text


def test_identity_sees_every_byte_that_is_learned_from() -> None:
    changed = VECTORS.copy()
    changed[299, 7] += 1e-6
    other_pairs = SideInformation(pairs_P2=SIDE.pairs_P2[::-1].copy())  # type: ignore[index]
    identities = {
        identity_of(CONFIG, 0, 1, VECTORS, SIDE),
        identity_of(replace(CONFIG, commitment=0.3), 0, 1, VECTORS, SIDE),
        identity_of(CONFIG, 1, 1, VECTORS, SIDE),
        identity_of(CONFIG, 0, 2, VECTORS, SIDE),
        identity_of(CONFIG, 0, 1, changed, SIDE),
        identity_of(CONFIG, 0, 1, VECTORS, other_pairs),
        identity_of(CONFIG, 0, 1, VECTORS, SideInformation()),
    }
    assert len(identities) == 7
    assert identity_of(CONFIG, 0, 1, VECTORS.copy(), SIDE) in identities
