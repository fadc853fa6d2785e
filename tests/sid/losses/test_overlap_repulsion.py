"""AdaSID's repulsion: thresholds and margins by hand, a slow double loop, what is logged."""

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from sidrec.config.sid_losses import OverlapRepulsion
from sidrec.sid.losses.repulsion import OverlapRepulsionLoss, relax, repulsion, valid_pairs
from sidrec.sid.networks.network import ItemBatch
from tests.sid.losses.tiny_network import TinyNetwork, coded, items, on_angle, random_batch

NETWORK = TinyNetwork()
PAPER = OverlapRepulsion()
UNLOADED = OverlapRepulsion(load="none")


def repel(config: OverlapRepulsion, latent_BD: Tensor, codes: list[list[int]] | Tensor, batch: ItemBatch) -> Tensor:
    loss: Tensor = OverlapRepulsionLoss(config)(coded(latent_BD, codes), batch, NETWORK)
    return loss


def at_cosine(*cosines: float) -> Tensor:
    """The first of these unit vectors has the given cosines with the others."""
    return on_angle(0, *(math.degrees(math.acos(cosine)) for cosine in cosines))


def slow_load(config: OverlapRepulsion, codes_BL: Tensor, pairs: list[tuple[int, int]]) -> list[int]:
    items_codes: list[list[int]] = codes_BL.tolist()
    patterns = [tuple(a == b for a, b in zip(items_codes[i], items_codes[j], strict=True)) for i, j in pairs]
    if config.load == "pattern":
        counts = Counter(patterns)
        return [counts[pattern] for pattern in patterns]
    loads = []
    for (i, _), pattern in zip(pairs, patterns, strict=True):
        length = (*pattern, False).index(False)
        loads.append(sum(codes[:length] == items_codes[i][:length] for codes in items_codes) if length else 0)
    return loads


def slow_repulsion(config: OverlapRepulsion, latent_BD: Tensor, codes_BL: Tensor, valid_BB: Tensor) -> float:
    """Both orders of every pair, as printed; the published thresholds and load_saturation given."""
    size, saturation = len(latent_BD), config.load_saturation or 1
    shared = (codes_BL[:, None] == codes_BL).sum(dim=2)
    pairs = [(i, j) for i in range(size) for j in range(size) if valid_BB[i, j] and shared[i, j] > 0]
    loads = [0] * len(pairs) if config.load == "none" else slow_load(config, codes_BL, pairs)
    terms = []
    for (i, j), load in zip(pairs, loads, strict=True):
        cosine = float(torch.cosine_similarity(latent_BD[i], latent_BD[j], dim=0))
        if config.relax and cosine >= (0.18, 0.24, 0.30)[int(shared[i, j]) - 1]:
            continue
        ramp = (min(load, saturation) / saturation) ** config.load_power
        strength = config.load_min + (config.load_max - config.load_min) * ramp
        terms.append(strength * max(0.0, 1.0 - (1.0 - cosine)))
    return config.weight * sum(terms) / (len(terms) + 1e-8 if config.reduction == "mean" else 1)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_similar_enough_items_contribute_exactly_nothing(depth: int) -> None:
    """Oracle: cos >= eta of the depth."""
    eta = torch.tensor([0.18, 0.24, 0.30])[depth - 1]
    cosine_N = torch.stack([eta - 1e-4, eta, eta + 0.1, torch.tensor(1.0)])
    found = relax(cosine_N, cosine_N, torch.full((4,), depth), PAPER)
    assert found.exempt_N.tolist() == [False, True, True, True]
    assert repulsion(found, torch.tensor([0.0, 9, 9, 9]), "sum").item() == 0


def test_full_overlap_at_a_cosine_of_a_quarter() -> None:
    """Oracle: m = 1, d = .75, hinge .25, times a_ij; the printed sum has the pair in both orders."""
    cosine_N, depth_N = torch.tensor([0.25]), torch.tensor([3])
    assert relax(cosine_N, cosine_N, depth_N, PAPER).hinge_N.tolist() == [0.25]
    one = replace(PAPER, load_saturation=4)  # c = 2 orders: a = 1 + 2 / 4
    codes = [[1, 2, 3], [1, 2, 3]]
    assert repel(one, at_cosine(0.25), codes, items([0, 1])).item() == pytest.approx(1.5 * 0.25)
    summed = replace(one, reduction="sum", weight=0.5)
    assert repel(summed, at_cosine(0.25), codes, items([0, 1])).item() == pytest.approx(0.5 * 2 * 1.5 * 0.25)


def test_the_same_cosine_is_exempt_at_a_lower_depth() -> None:
    """.25 is above the thresholds of one and two shared codes, below that of three."""
    losses = [repel(UNLOADED, at_cosine(0.25), [[1, 2, 3], other], items([0, 1])).item() for other in
              ([1, 8, 9], [1, 2, 9], [1, 2, 3], [7, 8, 9])]  # fmt: skip
    assert losses == [0, 0, pytest.approx(0.25), 0]


def test_the_last_threshold_and_margin_serve_deeper_overlaps() -> None:
    config = OverlapRepulsion(thresholds=(0.1, 0.4), margins=(1.0, 0.9), load="none")
    codes = [[1, 2, 3, 4], [1, 2, 3, 4]]
    assert repel(config, at_cosine(0.3), codes, items([0, 1])).item() == pytest.approx(0.2)


@pytest.mark.parametrize("load", ["pattern", "bucket", "none"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("relaxed", [True, False])
def test_equals_the_slow_loop(load: Any, reduction: Any, relaxed: bool) -> None:
    torch.manual_seed(5)
    latent_BD, codes_BL, rows_B = torch.randn(24, 4, dtype=torch.float64), torch.randint(4, (24, 3)), torch.arange(24)
    rows_B[3] = rows_B[9]
    config = OverlapRepulsion(weight=0.7, load=load, reduction=reduction, relax=relaxed, load_power=0.5,
                              load_max=3.0, load_saturation=60 if load == "pattern" else 5)  # fmt: skip
    expected = slow_repulsion(config, latent_BD, codes_BL, valid_pairs(rows_B, 12))
    assert expected > 0
    assert repel(config, latent_BD, codes_BL, items(rows_B, 12)).item() == pytest.approx(expected)


def test_similarity_of_the_inputs_may_decide() -> None:
    latent_BD, codes = at_cosine(0.25), [[1, 2, 3], [1, 2, 3]]
    config = replace(UNLOADED, space="input")
    alike, unlike = (ItemBatch(torch.arange(2), on_angle(0, angle)) for angle in (5, 85))
    assert repel(config, latent_BD, codes, alike).item() == 0
    assert repel(config, latent_BD, codes, unlike).item() == pytest.approx(0.25)


def test_without_masking_partners_are_repelled() -> None:
    latent_BD, codes, batch = at_cosine(0.25), [[1, 2, 3], [1, 2, 3]], items([0, 1], partners=1)
    assert repel(UNLOADED, latent_BD, codes, batch).item() == 0
    assert repel(replace(UNLOADED, mask_valid=False), latent_BD, codes, batch).item() == pytest.approx(0.25)


def test_no_overlap_is_exactly_zero() -> None:
    latent_BD = torch.randn(3, 2, requires_grad=True)
    loss = repel(PAPER, latent_BD, [[0, 0, 0], [1, 1, 1], [2, 2, 2]], items([0, 1, 2]))
    loss.backward()
    assert loss.item() == 0
    assert latent_BD.grad is not None
    assert latent_BD.grad.abs().sum() == 0


def test_zero_latents_give_no_nan() -> None:
    latent_BD = torch.zeros(3, 2, requires_grad=True)
    repel(replace(PAPER, margins=(1.5,)), latent_BD, [[1, 1, 1]] * 3, items([0, 1, 2])).backward()
    assert latent_BD.grad is not None
    assert latent_BD.grad.abs().sum() == 0


def test_gradient_of_the_distance_alone() -> None:
    """The threshold's decision and the load have none."""
    torch.manual_seed(7)
    latent_BD = torch.randn(10, 3, dtype=torch.float64, requires_grad=True)
    codes_BL = torch.randint(2, (10, 3))
    config = replace(PAPER, load_saturation=10)
    assert repel(config, latent_BD, codes_BL, items(range(10))).item() > 0
    assert torch.autograd.gradcheck(lambda z: repel(config, z, codes_BL, items(range(10))), latent_BD)


def test_gradient_reaches_the_encoder_and_no_codeword() -> None:
    network = TinyNetwork(size=2)
    batch = random_batch(40)
    OverlapRepulsionLoss(PAPER)(network(batch), batch, network).backward()
    assert network.encoder.weight.grad is not None
    assert network.encoder.weight.grad.abs().sum() > 0
    assert all(words.grad is None for words in network.codewords)


def test_what_is_logged() -> None:
    """Depth 1: cosines .5 (exempt) and .1 (repelled); depth 3: 0 to -1, too far apart for the margin."""
    module = OverlapRepulsionLoss(PAPER)
    assert module.diagnostics() == {}
    latent_BD = torch.cat([at_cosine(0.5, 0.1), -on_angle(0)])
    module(coded(latent_BD, [[1, 2, 3], [1, 4, 5], [6, 7, 3], [1, 2, 3]]), items(range(4)), NETWORK)
    assert module.diagnostics() == {
        "overlap_1_pairs": 4,  # 0-1, 0-2, and with the opposite vector 3-1, 3-2
        "overlap_1_exempt": 0.25,
        "overlap_1_repelled": 0.25,
        "overlap_3_pairs": 1,
        "overlap_3_exempt": 0,
        "overlap_3_repelled": 0,
    }


def test_margins_under_which_no_pair_is_repelled_are_refused() -> None:
    """Oracle: m = .5 with eta <= .3. Without stage one any margin can repel."""
    with pytest.raises(ValueError, match=r"expected a margin above 1 - 0\.18 at overlap depth 1, .*, got 0\.5"):
        OverlapRepulsion(margins=(0.5,))
    with pytest.raises(ValueError, match=r"at overlap depth 3, .*, got 0\.7"):
        OverlapRepulsion(margins=(1.0, 1.0, 0.7))
    assert OverlapRepulsion(margins=(0.5,), relax=False).margins == (0.5,)


def test_other_mistakes_are_refused() -> None:
    with pytest.raises(ValueError, match="thresholds that do not fall"):
        OverlapRepulsion(thresholds=(0.3, 0.2))
    with pytest.raises(ValueError, match="load_max of at least load_min"):
        OverlapRepulsion(load_min=2.0, load_max=1.5)
