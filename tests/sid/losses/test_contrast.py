"""The contrast of partners: who is an anchor, who a negative, where the gradient goes."""

from dataclasses import replace

import pytest
import torch

from sidrec.config.sid_losses import Contrast
from sidrec.sid.losses.attraction import ContrastLoss
from sidrec.sid.losses.loss import info_nce
from sidrec.sid.networks.network import ItemBatch
from tests.sid.losses.tiny_network import TinyNetwork, coded, items, on_angle, random_batch

NETWORK = TinyNetwork()
PLAIN = Contrast(weight=1.0, temperature=0.5)


def contrast(config: Contrast, angles: tuple[float, ...], batch: ItemBatch) -> float:
    latent_BD = on_angle(*angles)
    return ContrastLoss(config)(coded(latent_BD, [[0]] * len(angles)), batch, NETWORK).item()


def test_draws_anchors_to_partners_and_not_back() -> None:
    """Items 0 and 1 are anchors of 2 and 3; the mean over anchors is weighted."""
    expected = info_nce(on_angle(0, 50), on_angle(20, 100), 0.5).mean().item()
    found = contrast(replace(PLAIN, weight=0.3), (0, 50, 20, 100), items([0, 1, 2, 3], partners=2))
    assert found == pytest.approx(0.3 * expected)
    assert found != pytest.approx(0.3 * info_nce(on_angle(20, 100), on_angle(0, 50), 0.5).mean().item())


def test_partners_of_the_same_anchor_are_no_negatives() -> None:
    """Item 5 stands twice as anchor: nothing is left to tell its partners from."""
    assert contrast(PLAIN, (0, 0, 20, 100), items([5, 5, 2, 3], partners=2)) == pytest.approx(0)


def test_the_same_target_is_a_negative_unless_masked() -> None:
    batch = items([5, 6, 2, 2], partners=2)
    assert contrast(PLAIN, (0, 50, 20, 20), batch) > 0.5
    assert contrast(replace(PLAIN, mask_targets=True), (0, 50, 20, 20), batch) == pytest.approx(0)


def test_an_anchor_without_partner_is_as_if_it_were_not_there() -> None:
    batch = items([0, 1, 2, 3, 1, 5], partners=3, has_partner=[True, False, True])
    expected = contrast(PLAIN, (0, 50, 20, 100), items([0, 2, 3, 5], partners=2))
    assert contrast(PLAIN, (0, 77, 50, 20, 77, 100), batch) == pytest.approx(expected)


def test_no_partner_at_all_is_exactly_zero() -> None:
    latent_BD = torch.randn(4, 3, requires_grad=True)
    batch = items([0, 1, 0, 1], partners=2, has_partner=[False, False])
    loss = ContrastLoss(PLAIN)(coded(latent_BD, [[0]] * 4), batch, NETWORK)
    loss.backward()
    assert loss.item() == 0
    assert latent_BD.grad is not None
    assert latent_BD.grad.abs().sum() == 0


def test_on_quantized_the_gradient_passes_straight_to_the_latents() -> None:
    network, batch = TinyNetwork(), random_batch()
    found = network(batch)
    found.latent_BD.retain_grad()
    ContrastLoss(replace(PLAIN, on="quantized"))(found, batch, network).backward()
    quantized_BD = found.quantized_BD.detach().requires_grad_()
    info_nce(quantized_BD[:6], quantized_BD[6:], 0.5).mean().backward()
    torch.testing.assert_close(found.latent_BD.grad, quantized_BD.grad)
    assert all(words.grad is None for words in network.codewords)
    assert network.encoder.weight.grad is not None
