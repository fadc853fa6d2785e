"""Alignment with behaviour vectors: who takes part, how strongly, where the gradient goes."""

import pytest
import torch
from torch import Tensor

from sidrec.config.sid_losses import AlignmentController, BehaviorAlignment
from sidrec.sid.losses.attraction import BehaviorAlignmentLoss, alignment_strength
from sidrec.sid.losses.loss import info_nce
from sidrec.sid.networks.network import Coded, ItemBatch
from tests.sid.losses.tiny_network import TinyNetwork, random_batch

NETWORK = TinyNetwork()


def loss_of(config: BehaviorAlignment, found: Coded, batch: ItemBatch) -> tuple[BehaviorAlignmentLoss, Tensor]:
    torch.manual_seed(4)
    module = BehaviorAlignmentLoss(config, 3, 5)
    return module, module(found, batch, NETWORK)


def test_mean_over_items_that_have_behaviour() -> None:
    """Item 0 of the batch has none: as if it were not there."""
    batch, config = random_batch(), BehaviorAlignment(weight=0.3, temperature=0.5)
    assert batch.behavior_BE is not None
    found = NETWORK(batch)
    module, loss = loss_of(config, found, batch)
    expected = info_nce(found.latent_BD[1:], batch.behavior_BE[1:] @ module.map.weight.T, 0.5).mean()
    assert loss.item() == pytest.approx(0.3 * expected.item())


def test_controller_weighs_every_item() -> None:
    controller = AlignmentController(alpha=4.0, beta=2.0)
    batch = random_batch()
    assert batch.behavior_BE is not None
    assert batch.scaled_norm_B is not None
    found = NETWORK(batch)
    module, loss = loss_of(BehaviorAlignment(weight=1.0, controller=controller), found, batch)
    each = info_nce(found.latent_BD[1:], batch.behavior_BE[1:] @ module.map.weight.T, 0.07)
    expected = (each * alignment_strength(batch.scaled_norm_B, controller)[1:]).sum() / 11
    assert loss.item() == pytest.approx(expected.item())


def test_the_same_item_is_no_negative() -> None:
    """Two places of one item: nothing is left to tell apart."""
    behavior_BE = torch.tensor([[1.0, 2, 3, 4, 5]] * 2)
    batch = ItemBatch(torch.tensor([7, 7]), torch.ones(2, 4), behavior_BE=behavior_BE)
    assert loss_of(BehaviorAlignment(), NETWORK(batch), batch)[1].item() == pytest.approx(0, abs=1e-6)


def test_nobody_has_behaviour() -> None:
    batch = ItemBatch(torch.arange(3), torch.randn(3, 4), behavior_BE=torch.zeros(3, 5), scaled_norm_B=torch.zeros(3))
    module, loss = loss_of(BehaviorAlignment(controller=AlignmentController()), NETWORK(batch), batch)
    loss.backward()
    assert loss.item() == 0
    assert module.map.weight.grad is not None
    assert module.map.weight.grad.abs().sum() == 0


def test_on_quantized_the_gradient_reaches_encoder_and_map_but_no_codeword() -> None:
    network, batch = TinyNetwork(), random_batch()
    module, loss = loss_of(BehaviorAlignment(on="quantized"), network(batch), batch)
    loss.backward()
    for parameter in (network.encoder.weight, module.map.weight):
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0
    assert all(words.grad is None for words in network.codewords)
    assert loss.item() != loss_of(BehaviorAlignment(), network(batch), batch)[1].item()
