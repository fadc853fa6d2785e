"""Losses that push items apart: by hand, by slow loops, and their gradients."""

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from sidrec.config.learner_parts import HammingRepulsion, OverlapRepulsion
from sidrec.sid.losses.repulsion import (
    STEPS,
    HammingRepulsionLoss,
    LoadStrength,
    OverlapRepulsionLoss,
    bucket_load,
    pattern_load,
    relax,
    repelled_once,
    repulsion,
    shared_levels,
    valid_pairs,
)
from sidrec.sid.networks.network import ItemBatch
from tests.sid.losses.tiny_network import TinyNetwork, coded, items, on_angle, random_batch

# HaMR: the paper's cases by hand, a slow double loop, gradients through the distance alone.


HAMMING_NETWORK = TinyNetwork()
HAMMING_PAPER = HammingRepulsion()


def hamming_repel(
    config: HammingRepulsion, latent_BD: Tensor, codes: list[list[int]] | Tensor, batch: ItemBatch
) -> Tensor:
    loss: Tensor = HammingRepulsionLoss(config)(coded(latent_BD, codes), batch, HAMMING_NETWORK)
    return loss


def hamming_slow_repulsion(config: HammingRepulsion, latent_BD: Tensor, codes_BL: Tensor, valid_BB: Tensor) -> float:
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
    loss = hamming_repel(HAMMING_PAPER, latent_BD, [[1, 2, 3]] * 4, items([5, 5, 5, 5], partners=2))
    torch.autograd.backward(loss)
    assert loss.item() == 0
    assert latent_BD.grad is not None
    assert latent_BD.grad.abs().sum() == 0


def test_two_equal_items() -> None:
    """Oracle: D = 0, so each of the two full conflicts costs the margin .8, and their mean too."""
    loss = hamming_repel(HAMMING_PAPER, on_angle(30, 30), [[1, 2, 3]] * 2, items([0, 1]))
    assert loss.item() == pytest.approx(0.2 * 0.8)


def test_two_levels_agree_is_partial_one_is_ignored() -> None:
    """Oracle for R = 1, L = 3: the first two items share two codes, the last shares one with each of them."""
    module = HammingRepulsionLoss(HAMMING_PAPER)
    loss = module(coded(on_angle(0, 0, 0), [[1, 2, 3], [1, 2, 4], [1, 5, 6]]), items([0, 1, 2]), HAMMING_NETWORK)
    assert module.diagnostics() == {"full_conflicts": 0, "partial_conflicts": 1}
    assert loss.item() == pytest.approx(0.1 * 0.5)


def test_margins_by_hand() -> None:
    """60 degrees are a distance of .5: hinge .3 in full conflict, 0 in a partial one; 90 degrees are beyond both."""
    codes = [[1, 1, 1], [1, 1, 1], [1, 1, 2], [1, 1, 2]]
    loss = hamming_repel(HAMMING_PAPER, on_angle(0, 60, 150, 240), codes, items([0, 1, 2, 3]))
    assert loss.item() == pytest.approx(0.2 * (0.3 + 0) / 2)


@pytest.mark.parametrize("radius", [0, 1, 2, 5])
@pytest.mark.parametrize("partners", [None, 12])
def test_hamming_equals_the_slow_loop(radius: int, partners: int | None) -> None:
    torch.manual_seed(radius)
    latent_BD, codes_BL = torch.randn(24, 3, dtype=torch.float64), torch.randint(2, (24, 3))
    rows_B = torch.randint(15, (24,))
    config = replace(HAMMING_PAPER, radius=radius)
    expected = hamming_slow_repulsion(config, latent_BD, codes_BL, valid_pairs(rows_B, partners))
    assert expected > 0
    assert hamming_repel(config, latent_BD, codes_BL, items(rows_B, partners)).item() == pytest.approx(expected)


def test_hamming_without_masking_partners_are_repelled() -> None:
    """The ablation: 0 and 1 are partners with the same SID, and item 0 stands twice."""
    latent_BD, codes = on_angle(0, 120, 0, 120), [[1, 1, 1], [2, 2, 2], [1, 1, 1], [3, 3, 3]]
    batch = items([0, 1, 4, 0], partners=2)
    assert hamming_repel(HAMMING_PAPER, latent_BD, codes, batch).item() == 0
    assert hamming_repel(replace(HAMMING_PAPER, mask_valid=False), latent_BD, codes, batch).item() == pytest.approx(
        0.2 * 0.8
    )


def test_hamming_gradient_of_the_distance_alone() -> None:
    torch.manual_seed(3)
    latent_BD = torch.randn(8, 3, dtype=torch.float64, requires_grad=True)
    codes_BL = torch.randint(2, (8, 3))
    assert hamming_repel(HAMMING_PAPER, latent_BD, codes_BL, items(range(8))).item() > 0
    assert torch.autograd.gradcheck(lambda z: hamming_repel(HAMMING_PAPER, z, codes_BL, items(range(8))), latent_BD)


def test_hamming_gradient_reaches_the_encoder_and_no_codeword() -> None:
    network = TinyNetwork(size=2)
    batch = replace(random_batch(40), partners=None)
    torch.autograd.backward(HammingRepulsionLoss(HAMMING_PAPER)(network(batch), batch, network))
    assert network.encoder.weight.grad is not None
    assert network.encoder.weight.grad.abs().sum() > 0
    assert all(words.grad is None for words in network.codewords)


def test_a_step_drives_a_conflict_apart() -> None:
    latent_BD = on_angle(0, 10).requires_grad_()
    torch.autograd.backward(hamming_repel(HAMMING_PAPER, latent_BD, [[1, 1, 1]] * 2, items([0, 1])))
    assert latent_BD.grad is not None
    moved_BD = latent_BD.detach() - 0.1 * latent_BD.grad
    first_D, second_D = latent_BD.detach()
    assert torch.cosine_similarity(moved_BD[0], moved_BD[1], dim=0) < torch.cosine_similarity(first_D, second_D, dim=0)


def test_hamming_zero_latents_give_no_nan() -> None:
    latent_BD = torch.zeros(3, 2, requires_grad=True)
    loss = hamming_repel(replace(HAMMING_PAPER, margin_full=1.5), latent_BD, [[1, 1, 1]] * 3, items([0, 1, 2]))
    torch.autograd.backward(loss)
    assert loss.item() == pytest.approx(0.2 * 0.5)
    assert latent_BD.grad is not None
    assert latent_BD.grad.abs().sum() == 0


def test_the_margin_of_full_conflicts_is_the_larger() -> None:
    with pytest.raises(ValueError, match=r"margin_full of at least margin_part 0\.5, got 0\.4"):
        HammingRepulsion(margin_full=0.4)


# AdaSID's repulsion: thresholds and margins by hand, a slow double loop, what is logged.


OVERLAP_NETWORK = TinyNetwork()
OVERLAP_PAPER = OverlapRepulsion()
UNLOADED = OverlapRepulsion(load="none")


def overlap_repel(
    config: OverlapRepulsion, latent_BD: Tensor, codes: list[list[int]] | Tensor, batch: ItemBatch
) -> Tensor:
    loss: Tensor = OverlapRepulsionLoss(config)(coded(latent_BD, codes), batch, OVERLAP_NETWORK)
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


def overlap_slow_repulsion(config: OverlapRepulsion, latent_BD: Tensor, codes_BL: Tensor, valid_BB: Tensor) -> float:
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
    found = relax(cosine_N, cosine_N, torch.full((4,), depth), OVERLAP_PAPER)
    assert found.exempt_N.tolist() == [False, True, True, True]
    assert repulsion(found, torch.tensor([0.0, 9, 9, 9]), "sum").item() == 0


def test_full_overlap_at_a_cosine_of_a_quarter() -> None:
    """Oracle: m = 1, d = .75, hinge .25, times a_ij; the printed sum has the pair in both orders."""
    cosine_N, depth_N = torch.tensor([0.25]), torch.tensor([3])
    assert relax(cosine_N, cosine_N, depth_N, OVERLAP_PAPER).hinge_N.tolist() == [0.25]
    one = replace(OVERLAP_PAPER, load_saturation=4)  # c = 2 orders: a = 1 + 2 / 4
    codes = [[1, 2, 3], [1, 2, 3]]
    assert overlap_repel(one, at_cosine(0.25), codes, items([0, 1])).item() == pytest.approx(1.5 * 0.25)
    summed = replace(one, reduction="sum", weight=0.5)
    assert overlap_repel(summed, at_cosine(0.25), codes, items([0, 1])).item() == pytest.approx(0.5 * 2 * 1.5 * 0.25)


def test_the_same_cosine_is_exempt_at_a_lower_depth() -> None:
    """.25 is above the thresholds of one and two shared codes, below that of three."""
    losses = [overlap_repel(UNLOADED, at_cosine(0.25), [[1, 2, 3], other], items([0, 1])).item() for other in
              ([1, 8, 9], [1, 2, 9], [1, 2, 3], [7, 8, 9])]  # fmt: skip
    assert losses == [0, 0, pytest.approx(0.25), 0]


def test_the_last_threshold_and_margin_serve_deeper_overlaps() -> None:
    config = OverlapRepulsion(thresholds=(0.1, 0.4), margins=(1.0, 0.9), load="none")
    codes = [[1, 2, 3, 4], [1, 2, 3, 4]]
    assert overlap_repel(config, at_cosine(0.3), codes, items([0, 1])).item() == pytest.approx(0.2)


@pytest.mark.parametrize("load", ["pattern", "bucket", "none"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("relaxed", [True, False])
def test_overlap_equals_the_slow_loop(load: Any, reduction: Any, relaxed: bool) -> None:
    torch.manual_seed(5)
    latent_BD, codes_BL, rows_B = torch.randn(24, 4, dtype=torch.float64), torch.randint(4, (24, 3)), torch.arange(24)
    rows_B[3] = rows_B[9]
    config = OverlapRepulsion(weight=0.7, load=load, reduction=reduction, relax=relaxed, load_power=0.5,
                              load_max=3.0, load_saturation=60 if load == "pattern" else 5)  # fmt: skip
    expected = overlap_slow_repulsion(config, latent_BD, codes_BL, valid_pairs(rows_B, 12))
    assert expected > 0
    assert overlap_repel(config, latent_BD, codes_BL, items(rows_B, 12)).item() == pytest.approx(expected)


def test_similarity_of_the_inputs_may_decide() -> None:
    latent_BD, codes = at_cosine(0.25), [[1, 2, 3], [1, 2, 3]]
    config = replace(UNLOADED, space="input")
    alike, unlike = (ItemBatch(torch.arange(2), on_angle(0, angle)) for angle in (5, 85))
    assert overlap_repel(config, latent_BD, codes, alike).item() == 0
    assert overlap_repel(config, latent_BD, codes, unlike).item() == pytest.approx(0.25)


def test_overlap_without_masking_partners_are_repelled() -> None:
    latent_BD, codes, batch = at_cosine(0.25), [[1, 2, 3], [1, 2, 3]], items([0, 1], partners=1)
    assert overlap_repel(UNLOADED, latent_BD, codes, batch).item() == 0
    assert overlap_repel(replace(UNLOADED, mask_valid=False), latent_BD, codes, batch).item() == pytest.approx(0.25)


def test_no_overlap_is_exactly_zero() -> None:
    latent_BD = torch.randn(3, 2, requires_grad=True)
    loss = overlap_repel(OVERLAP_PAPER, latent_BD, [[0, 0, 0], [1, 1, 1], [2, 2, 2]], items([0, 1, 2]))
    torch.autograd.backward(loss)
    assert loss.item() == 0
    assert latent_BD.grad is not None
    assert latent_BD.grad.abs().sum() == 0


def test_overlap_zero_latents_give_no_nan() -> None:
    latent_BD = torch.zeros(3, 2, requires_grad=True)
    torch.autograd.backward(
        overlap_repel(replace(OVERLAP_PAPER, margins=(1.5,)), latent_BD, [[1, 1, 1]] * 3, items([0, 1, 2]))
    )
    assert latent_BD.grad is not None
    assert latent_BD.grad.abs().sum() == 0


def test_overlap_gradient_of_the_distance_alone() -> None:
    """The threshold's decision and the load have none."""
    torch.manual_seed(7)
    latent_BD = torch.randn(10, 3, dtype=torch.float64, requires_grad=True)
    codes_BL = torch.randint(2, (10, 3))
    config = replace(OVERLAP_PAPER, load_saturation=10)
    assert overlap_repel(config, latent_BD, codes_BL, items(range(10))).item() > 0
    assert torch.autograd.gradcheck(lambda z: overlap_repel(config, z, codes_BL, items(range(10))), latent_BD)


def test_overlap_gradient_reaches_the_encoder_and_no_codeword() -> None:
    network = TinyNetwork(size=2)
    batch = random_batch(40)
    torch.autograd.backward(OverlapRepulsionLoss(OVERLAP_PAPER)(network(batch), batch, network))
    assert network.encoder.weight.grad is not None
    assert network.encoder.weight.grad.abs().sum() > 0
    assert all(words.grad is None for words in network.codewords)


def test_what_is_logged() -> None:
    """Depth 1: cosines .5 (exempt) and .1 (repelled); depth 3: 0 to -1, too far apart for the margin."""
    module = OverlapRepulsionLoss(OVERLAP_PAPER)
    assert module.diagnostics() == {}
    latent_BD = torch.cat([at_cosine(0.5, 0.1), -on_angle(0)])
    module(coded(latent_BD, [[1, 2, 3], [1, 4, 5], [6, 7, 3], [1, 2, 3]]), items(range(4)), OVERLAP_NETWORK)
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


# AdaSID's loads and the strength that follows from them.


CODES = torch.tensor([[1, 2, 3], [1, 2, 4], [1, 5, 3], [6, 2, 3]])
FIRST, SECOND = torch.tensor([0, 0, 0, 1, 1, 2]), torch.tensor([1, 2, 3, 2, 3, 3])


def test_pattern_load_by_hand() -> None:
    """Agreement 110, 101, 011, 100, 010, 001: each its own pattern, in both orders."""
    assert pattern_load(CODES, FIRST, SECOND).tolist() == [2] * 6
    again = CODES[[0, 1, 2, 3, 0]]  # with 4 = 0: 4-1 is 110 as 0-1
    first, second = torch.tensor([0, 1, 0]), torch.tensor([1, 4, 4])
    assert pattern_load(again, first, second).tolist() == [4, 4, 2]


def test_bucket_load_by_hand() -> None:
    """Two items begin with 1 2, three with 1; the others share no first code, hence no bucket."""
    assert bucket_load(CODES, FIRST, SECOND).tolist() == [2, 3, 0, 3, 0, 0]


def test_ramp_by_hand() -> None:
    strength = LoadStrength(OverlapRepulsion(load_min=1.0, load_max=3.0, load_saturation=8, load_power=0.5))
    assert strength(torch.tensor([0, 2, 8, 80])).tolist() == [1, 2, 3, 3]


def test_saturation_is_a_percentile_over_the_first_steps() -> None:
    """The 19th of 20 loads is the 95th percentile; steps 20 and 40 average to 30."""
    strength = LoadStrength(OverlapRepulsion())
    strength(torch.tensor([1] * 18 + [20, 1000]))
    assert strength.saturation.item() == 20
    assert strength(torch.full((20,), 40)).tolist() == [2] * 20
    assert strength.saturation.item() == 30


def test_after_a_hundred_steps_the_saturation_stays() -> None:
    strength = LoadStrength(OverlapRepulsion())
    for _ in range(STEPS):
        strength(torch.tensor([4]))
    strength(torch.tensor([4000]))
    assert (STEPS, strength.saturation.item()) == (100, 4)


def test_evaluation_observes_nothing() -> None:
    strength = LoadStrength(OverlapRepulsion()).eval()
    strength(torch.tensor([4]))
    assert strength.steps.item() == 0


def test_a_checkpoint_knows_the_saturation() -> None:
    seen, other = LoadStrength(OverlapRepulsion()), LoadStrength(OverlapRepulsion())
    seen(torch.tensor([10, 10]))
    other.load_state_dict(seen.state_dict())
    load = torch.tensor([30])
    assert (seen(load).item(), seen.saturation.item()) == (other(load).item(), other.saturation.item()) == (2, 20)


def test_a_given_saturation_does_not_move() -> None:
    strength = LoadStrength(OverlapRepulsion(load_saturation=10))
    assert strength(torch.tensor([5])).item() == pytest.approx(1.5)
    assert strength.saturation.item() == 10


# Masks and overlaps by hand and by double loop.


def test_mask_by_hand() -> None:
    """Item 7 stands at 0, 2 and 4; 0-3, 1-4 and 2-5 are partners."""
    assert valid_pairs(torch.tensor([7, 8, 7, 9, 7, 6]), partners=3).int().tolist() == [
        [0, 1, 0, 0, 0, 1],
        [1, 0, 1, 1, 0, 1],
        [0, 1, 0, 1, 0, 0],
        [0, 1, 1, 0, 1, 1],
        [0, 0, 0, 1, 0, 1],
        [1, 1, 0, 1, 1, 0],
    ]


def test_without_pairs_only_the_same_item_is_masked() -> None:
    assert valid_pairs(torch.tensor([7, 8, 7]), None).int().tolist() == [[0, 1, 0], [1, 0, 1], [0, 1, 0]]


def test_an_item_in_the_place_of_its_unknown_partner_is_masked() -> None:
    batch = items([7, 8, 7, 8], partners=2, has_partner=[False, False])
    assert repelled_once(batch, True).nonzero().tolist() == [[0, 1], [0, 3], [1, 2], [2, 3]]


def test_without_the_mask_every_two_places_are_a_pair() -> None:
    assert repelled_once(items([7, 7, 8], None), False).nonzero().tolist() == [[0, 1], [0, 2], [1, 2]]


def test_shared_levels_equals_the_slow_loop() -> None:
    codes_BL = torch.randint(3, (20, 5), generator=torch.Generator().manual_seed(0))
    expected = [[sum(a == b for a, b in zip(x, y, strict=True)) for y in codes_BL] for x in codes_BL]
    assert shared_levels(codes_BL).tolist() == expected


def test_codes_of_large_codebooks_do_not_overflow() -> None:
    assert shared_levels(torch.tensor([[0], [256], [65_536]])).tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
