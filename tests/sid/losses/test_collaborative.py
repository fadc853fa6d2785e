"""LETTER's collaborative term against a slow loop."""

import math

import pytest
import torch

from sidrec.config.sid_losses import Collaborative
from sidrec.sid.losses.attraction import CollaborativeLoss
from sidrec.sid.networks.network import ItemBatch
from tests.sid.losses.tiny_network import TinyNetwork, coded, random_batch

NETWORK = TinyNetwork()
ONE = Collaborative(weight=1.0)


def test_two_items_by_hand() -> None:
    """Inner products [[2, 0], [1, 3]]: (log(1 + e^-2) + log(1 + e^-2)) / 2."""
    batch = ItemBatch(torch.arange(2), torch.zeros(2, 4), behavior_BE=torch.eye(2))
    latent_BD, quantized_BD = torch.zeros(2, 2), torch.tensor([[2.0, 0.0], [1.0, 3.0]])
    loss = CollaborativeLoss(ONE, 2, 2)(coded(latent_BD, [[0], [0]], quantized_BD), batch, NETWORK)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-2)))


@pytest.mark.parametrize("behavior", [3, 5])
def test_equals_the_slow_loop(behavior: int) -> None:
    """Item 0 has no behaviour; rows 4 and 7 are one item. Width 3 is the latents' own."""
    batch = random_batch(behavior=behavior)
    batch.rows_B[7] = 4
    assert batch.behavior_BE is not None
    found = NETWORK(batch)
    torch.manual_seed(2)
    module = CollaborativeLoss(Collaborative(weight=0.2), 3, behavior)
    mapped_BD = batch.behavior_BE if behavior == 3 else batch.behavior_BE @ module.map.weight.T
    losses = []
    for m in range(1, 12):
        others = [n for n in range(1, 12) if n == m or batch.rows_B[n] != batch.rows_B[m]]
        scores = {n: float((found.quantized_BD[m] @ mapped_BD[n]).detach()) for n in others}
        losses.append(math.log(sum(math.exp(score) for score in scores.values())) - scores[m])
    assert module(found, batch, NETWORK).item() == pytest.approx(0.2 * sum(losses) / 11, rel=1e-5)


def test_gradient_passes_straight_to_the_encoder() -> None:
    network, batch = TinyNetwork(), random_batch(behavior=3)
    found = network(batch)
    found.latent_BD.retain_grad()
    CollaborativeLoss(ONE, 3, 3)(found, batch, network).backward()
    assert batch.behavior_BE is not None
    probability_AA = torch.softmax(found.quantized_BD[1:] @ batch.behavior_BE[1:].T, dim=1)
    expected_AD = (probability_AA - torch.eye(11)) @ batch.behavior_BE[1:] / 11
    assert found.latent_BD.grad is not None
    torch.testing.assert_close(found.latent_BD.grad[1:], expected_AD.detach())
    assert found.latent_BD.grad[0].tolist() == [0, 0, 0]
    assert all(words.grad is None for words in network.codewords)


def test_nobody_has_behaviour() -> None:
    batch = ItemBatch(torch.arange(3), torch.randn(3, 4), behavior_BE=torch.zeros(3, 5))
    module = CollaborativeLoss(ONE, 3, 5)
    loss = module(NETWORK(batch), batch, NETWORK)
    loss.backward()
    assert loss.item() == 0
    assert module.map.weight.grad is not None
