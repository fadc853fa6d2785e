"""HaMR: the paper's cases by hand, a slow double loop, gradients through the distance alone."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sidrec.config.sid_losses import HammingRepulsion
from sidrec.sid.losses.repulsion import HammingRepulsionLoss, valid_pairs
from sidrec.sid.networks.network import ItemBatch
from tests.sid.losses.tiny_network import TinyNetwork, coded, items, on_angle, random_batch

NETWORK = TinyNetwork()
PAPER = HammingRepulsion()


def repel(config: HammingRepulsion, latent_BD: Tensor, codes: list[list[int]] | Tensor, batch: ItemBatch) -> Tensor:
    loss: Tensor = HammingRepulsionLoss(config)(coded(latent_BD, codes), batch, NETWORK)
    return loss


def slow_repulsion(config: HammingRepulsion, latent_BD: Tensor, codes_BL: Tensor, valid_BB: Tensor) -> float:
    full, part = [], []
    for i in range(len(latent_BD)):
        for j in range(len(latent_BD)):
            differing = int((codes_BL[i] != codes_BL[j]).sum())
            distance = 1 - float(torch.cosine_similarity(latent_BD[i], latent_BD[j], dim=0))
            if valid_BB[i, j] and differing == 0:
                full.append(max(0.0, config.margin_full - distance))
            elif valid_BB[i, j] and differing <= config.radius:
                part.append(max(0.0, config.margin_part - distance))
    return config.weight_full * sum(full) / (len(full) + 1e-8) + config.weight_part * sum(part) / (len(part) + 1e-8)


def test_nothing_valid_is_exactly_zero() -> None:
    """Oracle: M = 0 everywhere. One item at every place, all codes equal."""
    latent_BD = torch.randn(4, 3, requires_grad=True)
    loss = repel(PAPER, latent_BD, [[1, 2, 3]] * 4, items([5, 5, 5, 5], partners=2))
    loss.backward()
    assert loss.item() == 0
    assert latent_BD.grad is not None
    assert latent_BD.grad.abs().sum() == 0


def test_two_items_alike_in_everything() -> None:
    """Oracle: D = 0, so each of the two full conflicts costs the margin .8, and their mean too."""
    loss = repel(PAPER, on_angle(30, 30), [[1, 2, 3]] * 2, items([0, 1]))
    assert loss.item() == pytest.approx(0.2 * 0.8)


def test_two_levels_agree_is_partial_one_is_ignored() -> None:
    """Oracle for R = 1, L = 3: the first two items share two codes, the last shares one with each of them."""
    module = HammingRepulsionLoss(PAPER)
    loss = module(coded(on_angle(0, 0, 0), [[1, 2, 3], [1, 2, 4], [1, 5, 6]]), items([0, 1, 2]), NETWORK)
    assert module.diagnostics() == {"full_conflicts": 0, "partial_conflicts": 1}
    assert loss.item() == pytest.approx(0.1 * 0.5)


def test_margins_by_hand() -> None:
    """60 degrees are a distance of .5: hinge .3 in full conflict, 0 in a partial one; 90 degrees are beyond both."""
    codes = [[1, 1, 1], [1, 1, 1], [1, 1, 2], [1, 1, 2]]
    loss = repel(PAPER, on_angle(0, 60, 150, 240), codes, items([0, 1, 2, 3]))
    assert loss.item() == pytest.approx(0.2 * (0.3 + 0) / 2)


@pytest.mark.parametrize("radius", [0, 1, 2, 5])
@pytest.mark.parametrize("partners", [None, 12])
def test_equals_the_slow_loop(radius: int, partners: int | None) -> None:
    torch.manual_seed(radius)
    latent_BD, codes_BL = torch.randn(24, 3, dtype=torch.float64), torch.randint(2, (24, 3))
    rows_B = torch.randint(15, (24,))
    config = replace(PAPER, radius=radius)
    expected = slow_repulsion(config, latent_BD, codes_BL, valid_pairs(rows_B, partners))
    assert expected > 0
    assert repel(config, latent_BD, codes_BL, items(rows_B, partners)).item() == pytest.approx(expected)


def test_without_masking_partners_are_repelled() -> None:
    """The ablation: 0 and 1 are partners with the same SID, and item 0 stands twice."""
    latent_BD, codes = on_angle(0, 120, 0, 120), [[1, 1, 1], [2, 2, 2], [1, 1, 1], [3, 3, 3]]
    batch = items([0, 1, 4, 0], partners=2)
    assert repel(PAPER, latent_BD, codes, batch).item() == 0
    assert repel(replace(PAPER, mask_valid=False), latent_BD, codes, batch).item() == pytest.approx(0.2 * 0.8)


def test_gradient_of_the_distance_alone() -> None:
    torch.manual_seed(3)
    latent_BD = torch.randn(8, 3, dtype=torch.float64, requires_grad=True)
    codes_BL = torch.randint(2, (8, 3))
    assert repel(PAPER, latent_BD, codes_BL, items(range(8))).item() > 0
    assert torch.autograd.gradcheck(lambda z: repel(PAPER, z, codes_BL, items(range(8))), latent_BD)


def test_gradient_reaches_the_encoder_and_no_codeword() -> None:
    network = TinyNetwork(size=2)
    batch = replace(random_batch(40), partners=None)
    HammingRepulsionLoss(PAPER)(network(batch), batch, network).backward()
    assert network.encoder.weight.grad is not None
    assert network.encoder.weight.grad.abs().sum() > 0
    assert all(words.grad is None for words in network.codewords)


def test_a_step_drives_a_conflict_apart() -> None:
    latent_BD = on_angle(0, 10).requires_grad_()
    repel(PAPER, latent_BD, [[1, 1, 1]] * 2, items([0, 1])).backward()
    assert latent_BD.grad is not None
    moved_BD = latent_BD.detach() - 0.1 * latent_BD.grad
    assert torch.cosine_similarity(*moved_BD, dim=0) < torch.cosine_similarity(*latent_BD.detach(), dim=0)


def test_zero_latents_give_no_nan() -> None:
    latent_BD = torch.zeros(3, 2, requires_grad=True)
    loss = repel(replace(PAPER, margin_full=1.5), latent_BD, [[1, 1, 1]] * 3, items([0, 1, 2]))
    loss.backward()
    assert loss.item() == pytest.approx(0.2 * 0.5)
    assert latent_BD.grad is not None
    assert latent_BD.grad.abs().sum() == 0


def test_the_margin_of_full_conflicts_is_the_larger() -> None:
    with pytest.raises(ValueError, match=r"margin_full of at least margin_part 0\.5, got 0\.4"):
        HammingRepulsion(margin_full=0.4)
