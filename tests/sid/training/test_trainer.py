"""Training: terms and schedules add up, dead codes come back, divergence stops at once, codebooks do not decay."""

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from sidrec.config.learner_parts import Router, Training, WeightSchedule
from sidrec.config.learners import MultiVqConfig, RqVaeConfig
from sidrec.errors import DivergedError
from sidrec.sid.learners.gradient import build_network
from sidrec.sid.losses.loss import LossInput, SidLoss
from sidrec.sid.networks.network import Coded, ItemBatch, Network
from sidrec.sid.replicas import SINGLE
from sidrec.sid.training.batches import Batches
from sidrec.sid.training.objectives import ScheduledLoss
from sidrec.sid.training.trainer import Checkpoint, Trainer
from tests.sid.item_files import clustered_vectors

VECTORS = clustered_vectors(400)
SHORT = Training(epochs=4, batch_size=100)
SMALL = RqVaeConfig(levels=2, codebook_size=8, width=4, hidden=(16,), training=SHORT)


class Constant(SidLoss):
    """Always `value`; counts the epochs."""

    inputs: ClassVar[frozenset[LossInput]] = frozenset()

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value, self.epochs = value, 0

    def forward(self, coded: Coded, batch: ItemBatch, network: Network) -> Tensor:
        return coded.latent_BD.sum() * 0 + self.value

    def begin_epoch(self, network: Network) -> None:
        self.epochs += 1

    def diagnostics(self) -> dict[str, float]:
        return {"epochs": float(self.epochs)}


def trained(config: RqVaeConfig | MultiVqConfig = SMALL, *losses: ScheduledLoss, run: bool = True) -> Trainer:
    torch.manual_seed(0)
    network = build_network(config, (("text", VECTORS.shape[1]),))
    network.measure(VECTORS)
    batches = Batches(VECTORS, config.training.batch_size, 0, SINGLE)
    trainer = Trainer(network, losses, batches, config.training, 0, SINGLE, Checkpoint(None, ""))
    if run:
        trainer.run()
    return trainer


def adam(value: float, gradients: list[float], lr: float, decay: float, decoupled: bool) -> float:
    """Adam (arXiv 1412.6980, algorithm 1), with L2 decay in the gradient or decoupled (arXiv 1711.05101), float64."""
    first = second = 0.0
    for step, gradient in enumerate(gradients, start=1):
        if decoupled:
            value -= lr * decay * value
        whole = gradient if decoupled else gradient + decay * value
        first, second = 0.9 * first + 0.1 * whole, 0.999 * second + 0.001 * whole**2
        value -= lr * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)) ** 0.5 + 1e-8)
    return value


@pytest.mark.parametrize("kind", ["adam", "adamw"])
def test_the_optimizer_is_the_one_asked_for_and_spares_codebooks(kind: Any) -> None:
    config = replace(SMALL, training=replace(SHORT, optimizer=kind, lr=3e-4, weight_decay=0.05))
    trainer = trained(config, run=False)
    spared = trainer.network.codewords[0]
    decayed = next(parameter for parameter in trainer.network.parameters() if parameter is not spared)
    start = [float(parameter.detach().flatten()[0]) for parameter in (decayed, spared)]
    gradients = [0.02, -0.01, 0.03]
    for gradient in gradients:
        for parameter in trainer.network.parameters():
            parameter.grad = torch.full_like(parameter, gradient)
        trainer._optimizer.step()
    for found, first, decay in zip((decayed, spared), start, (0.05, 0.0), strict=True):
        expected = adam(first, gradients, 3e-4, decay, kind == "adamw")
        assert float(found.detach().flatten()[0]) == pytest.approx(expected, rel=1e-6, abs=1e-8)


def test_losses_enter_with_their_schedule_and_begin_epochs() -> None:
    """16 steps; from 0 to 1 over the first half: steps 0..7 have factors 0, 1/8, .., 7/8, the others 1."""
    loss = ScheduledLoss("constant", Constant(2.0), WeightSchedule(first=0, last=1, begin=0, end=0.5))
    journal = trained(SMALL, loss).journal
    assert [entry["constant"] for entry in journal] == pytest.approx([2 * 1.5 / 8, 2 * 5.5 / 8, 2, 2])
    assert [entry["constant/epochs"] for entry in journal] == [1, 2, 3, 4]
    for entry in journal:
        parts = ("reconstruction", "codebook", "commitment", "constant")
        assert entry["loss"] == pytest.approx(sum(entry[name] for name in parts), rel=1e-5)


def test_training_learns_and_reports_health() -> None:
    journal = trained(replace(SMALL, training=Training(epochs=30, batch_size=100, lr=1e-2))).journal
    assert journal[-1]["reconstruction"] < 0.5 * journal[0]["reconstruction"]
    assert [entry["epoch"] for entry in journal] == list(range(1, 31))
    for name in ("utilisation", "perplexity", "dead_codes"):
        assert len(journal[0][name]) == 2


def test_dead_codes_are_revived_until_the_training_settles() -> None:
    """Codewords far away are never taken, and come back after the first epoch."""
    config = replace(SMALL, training=replace(SHORT, revive_until=0.5))
    trainer = trained(config, run=False)
    place = trainer.network.place_codebooks

    def displaced(vectors_BV: Tensor) -> None:
        place(vectors_BV)
        with torch.no_grad():
            trainer.network.codewords[0][2:6] = 1000.0

    trainer.network.place_codebooks = displaced  # type: ignore[method-assign]
    trainer.run()
    assert trainer.journal[0]["dead_codes"][0] == 4
    assert trainer.journal[0]["revived_codes"] >= 4
    assert trainer.journal[-1]["dead_codes"][0] == 0
    assert [entry["revived_codes"] for entry in trainer.journal[2:]] == [0, 0]
    assert all(codewords.abs().max() < 1000 for codewords in trainer.network.codewords)


def test_revival_can_be_off() -> None:
    config = replace(SMALL, codebook_size=64, training=replace(SHORT, revive_every=0))
    journal = trained(config).journal
    assert sum(sum(entry["dead_codes"]) for entry in journal) > 0
    assert all(entry["revived_codes"] == 0 for entry in journal)


def test_a_loss_that_is_no_number_stops_at_once() -> None:
    with pytest.raises(DivergedError, match=r"the loss is nan in epoch 1, step 1 \(.*broken nan\); try a lower"):
        trained(SMALL, ScheduledLoss("broken", Constant(float("nan")), None))


def test_weight_decay_spares_codewords() -> None:
    trainer = trained(replace(SMALL, training=replace(SHORT, weight_decay=0.5)), run=False)
    decay = {id(p): group["weight_decay"] for group in trainer._optimizer.param_groups for p in group["params"]}
    for name, parameter in trainer.network.named_parameters():
        assert decay[id(parameter)] == (0.0 if name.startswith("codebooks") else 0.5), name


def test_the_router_s_controller_moves_with_every_step() -> None:
    """All weights are active at first: 4 steps of factor 1.2 per epoch."""
    config = replace(SMALL, router=Router(sparsity=0.99), training=replace(SHORT, lr=1e-9))
    strengths = [entry["router/strength"] for entry in trained(config).journal]
    assert strengths == pytest.approx([1e-8 * 1.2 ** (4 * epoch) for epoch in (1, 2, 3, 4)])


def test_codes_separate_known_clusters() -> None:
    """Eight far clusters, one level of sixteen codes: after training no code mixes two clusters."""
    centres = 10 * np.eye(8, dtype=np.float32)
    noise = 0.1 * np.random.default_rng(0).standard_normal((400, 8))
    vectors = (np.repeat(centres, 50, axis=0) + noise).astype(np.float32)
    config = replace(SMALL, levels=1, codebook_size=16, hidden=(64,), training=Training(epochs=20, batch_size=100))
    torch.manual_seed(0)
    network = build_network(config, (("text", 8),))
    Trainer(network, (), Batches(vectors, 100, 0, SINGLE), config.training, 0, SINGLE, Checkpoint(None, "")).run()
    codes = network.encode(torch.from_numpy(vectors))[0][:, 0].reshape(8, 50)
    clusters_of_code = torch.stack([torch.bincount(cluster, minlength=16) > 0 for cluster in codes]).sum(dim=0)
    assert clusters_of_code.max() == 1
