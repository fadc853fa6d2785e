"""Losses that draw items together: by hand, by slow loops, and their gradients."""

import math
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from torch import Tensor

from sidrec.config.learner_parts import AlignmentController, BehaviorAlignment, Collaborative, Contrast, Diversity
from sidrec.schema import ContractError
from sidrec.sid.losses.attraction import (
    BehaviorAlignmentLoss,
    CollaborativeLoss,
    ContrastLoss,
    DiversityLoss,
    alignment_strength,
    balanced_groups,
    diversity,
    draw_other,
)
from sidrec.sid.losses.loss import info_nce
from sidrec.sid.networks.network import Coded, ItemBatch
from tests.sid.losses.tiny_network import TinyNetwork, coded, items, on_angle, random_batch

# The contrast of partners: who is an anchor, who a negative, where the gradient goes.


CONTRAST_NETWORK = TinyNetwork()
PLAIN = Contrast(weight=1.0, temperature=0.5)


def contrast(config: Contrast, angles: tuple[float, ...], batch: ItemBatch) -> float:
    latent_BD = on_angle(*angles)
    return ContrastLoss(config)(coded(latent_BD, [[0]] * len(angles)), batch, CONTRAST_NETWORK).item()


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
    loss = ContrastLoss(PLAIN)(coded(latent_BD, [[0]] * 4), batch, CONTRAST_NETWORK)
    torch.autograd.backward(loss)
    assert loss.item() == 0
    assert latent_BD.grad is not None
    assert latent_BD.grad.abs().sum() == 0


def test_on_quantized_the_gradient_passes_straight_to_the_latents() -> None:
    network, batch = TinyNetwork(), random_batch()
    found = network(batch)
    found.latent_BD.retain_grad()
    torch.autograd.backward(ContrastLoss(replace(PLAIN, on="quantized"))(found, batch, network))
    quantized_BD = found.quantized_BD.detach().requires_grad_()
    torch.autograd.backward(info_nce(quantized_BD[:6], quantized_BD[6:], 0.5).mean())
    torch.testing.assert_close(found.latent_BD.grad, quantized_BD.grad)
    assert all(words.grad is None for words in network.codewords)
    assert network.encoder.weight.grad is not None


# LETTER's collaborative term against a slow loop.


COLLABORATIVE_NETWORK = TinyNetwork()
ONE = Collaborative(weight=1.0)


def test_two_items_by_hand() -> None:
    """Inner products [[2, 0], [1, 3]]: (log(1 + e^-2) + log(1 + e^-2)) / 2."""
    batch = ItemBatch(torch.arange(2), torch.zeros(2, 4), behavior_BE=torch.eye(2))
    latent_BD, quantized_BD = torch.zeros(2, 2), torch.tensor([[2.0, 0.0], [1.0, 3.0]])
    loss = CollaborativeLoss(ONE, 2, 2)(coded(latent_BD, [[0], [0]], quantized_BD), batch, COLLABORATIVE_NETWORK)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-2)))


@pytest.mark.parametrize("behavior", [3, 5])
def test_collaborative_equals_the_slow_loop(behavior: int) -> None:
    """Item 0 has no behaviour; rows 4 and 7 are one item. Width 3 is the latents' own."""
    batch = random_batch(behavior=behavior)
    batch.rows_B[7] = 4
    assert batch.behavior_BE is not None
    found = COLLABORATIVE_NETWORK(batch)
    torch.manual_seed(2)
    module = CollaborativeLoss(Collaborative(weight=0.2), 3, behavior)
    mapped_BD = batch.behavior_BE if behavior == 3 else batch.behavior_BE @ module.map.get_parameter("weight").T
    losses = []
    for m in range(1, 12):
        others = [n for n in range(1, 12) if n == m or batch.rows_B[n] != batch.rows_B[m]]
        scores = {n: float((found.quantized_BD[m] @ mapped_BD[n]).detach()) for n in others}
        losses.append(math.log(sum(math.exp(score) for score in scores.values())) - scores[m])
    assert module(found, batch, COLLABORATIVE_NETWORK).item() == pytest.approx(0.2 * sum(losses) / 11, rel=1e-5)


def test_gradient_passes_straight_to_the_encoder() -> None:
    network, batch = TinyNetwork(), random_batch(behavior=3)
    found = network(batch)
    found.latent_BD.retain_grad()
    torch.autograd.backward(CollaborativeLoss(ONE, 3, 3)(found, batch, network))
    assert batch.behavior_BE is not None
    probability_AA = torch.softmax(found.quantized_BD[1:] @ batch.behavior_BE[1:].T, dim=1)
    expected_AD = (probability_AA - torch.eye(11)) @ batch.behavior_BE[1:] / 11
    assert found.latent_BD.grad is not None
    torch.testing.assert_close(found.latent_BD.grad[1:], expected_AD.detach())
    assert found.latent_BD.grad[0].tolist() == [0, 0, 0]
    assert all(words.grad is None for words in network.codewords)


def test_collaborative_nobody_has_behaviour() -> None:
    batch = ItemBatch(torch.arange(3), torch.randn(3, 4), behavior_BE=torch.zeros(3, 5))
    module = CollaborativeLoss(ONE, 3, 5)
    loss = module(COLLABORATIVE_NETWORK(batch), batch, COLLABORATIVE_NETWORK)
    torch.autograd.backward(loss)
    assert loss.item() == 0
    assert module.map.weight.grad is not None


# Alignment with behaviour vectors: who takes part, how strongly, where the gradient goes.


ALIGNMENT_NETWORK = TinyNetwork()


def loss_of(config: BehaviorAlignment, found: Coded, batch: ItemBatch) -> tuple[BehaviorAlignmentLoss, Tensor]:
    torch.manual_seed(4)
    module = BehaviorAlignmentLoss(config, 3, 5)
    return module, module(found, batch, ALIGNMENT_NETWORK)


def test_mean_over_items_that_have_behaviour() -> None:
    """Item 0 of the batch has none: as if it were not there."""
    batch, config = random_batch(), BehaviorAlignment(weight=0.3, temperature=0.5)
    assert batch.behavior_BE is not None
    found = ALIGNMENT_NETWORK(batch)
    module, loss = loss_of(config, found, batch)
    expected = info_nce(found.latent_BD[1:], batch.behavior_BE[1:] @ module.map.weight.T, 0.5).mean()
    assert loss.item() == pytest.approx(0.3 * expected.item())


def test_controller_weighs_every_item() -> None:
    controller = AlignmentController(alpha=4.0, beta=2.0)
    batch = random_batch()
    assert batch.behavior_BE is not None
    assert batch.scaled_norm_B is not None
    found = ALIGNMENT_NETWORK(batch)
    module, loss = loss_of(BehaviorAlignment(weight=1.0, controller=controller), found, batch)
    each = info_nce(found.latent_BD[1:], batch.behavior_BE[1:] @ module.map.weight.T, 0.07)
    expected = (each * alignment_strength(batch.scaled_norm_B, controller)[1:]).sum() / 11
    assert loss.item() == pytest.approx(expected.item())


def test_the_same_item_is_no_negative() -> None:
    """Two places of one item: nothing is left to tell apart."""
    behavior_BE = torch.tensor([[1.0, 2, 3, 4, 5]] * 2)
    batch = ItemBatch(torch.tensor([7, 7]), torch.ones(2, 4), behavior_BE=behavior_BE)
    assert loss_of(BehaviorAlignment(), ALIGNMENT_NETWORK(batch), batch)[1].item() == pytest.approx(0, abs=1e-6)


def test_alignment_nobody_has_behaviour() -> None:
    batch = ItemBatch(torch.arange(3), torch.randn(3, 4), behavior_BE=torch.zeros(3, 5), scaled_norm_B=torch.zeros(3))
    module, loss = loss_of(BehaviorAlignment(controller=AlignmentController()), ALIGNMENT_NETWORK(batch), batch)
    torch.autograd.backward(loss)
    assert loss.item() == 0
    assert module.map.weight.grad is not None
    assert module.map.weight.grad.abs().sum() == 0


def test_on_quantized_the_gradient_reaches_encoder_and_map_but_no_codeword() -> None:
    network, batch = TinyNetwork(), random_batch()
    module, loss = loss_of(BehaviorAlignment(on="quantized"), network(batch), batch)
    torch.autograd.backward(loss)
    for parameter in (network.encoder.weight, module.map.weight):
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0
    assert all(words.grad is None for words in network.codewords)
    assert loss.item() != loss_of(BehaviorAlignment(), network(batch), batch)[1].item()


# ADC-SID's alignment controller: the published formula's values.


NORMS = torch.tensor([0, 0.25, 0.5, 0.75, 0.9, 1], dtype=torch.float64)


@pytest.mark.parametrize(
    ("alpha", "beta", "expected"),
    [
        (10, 9, [1.69e-4, 2.05e-3, 0.0246, 0.250, 0.684, 1]),
        (20, 14, [8.3e-7, 1.24e-4, 0.018, 0.733, 0.984, 1]),
    ],
)
def test_strength_by_norm(alpha: float, beta: float, expected: list[float]) -> None:
    found = alignment_strength(NORMS, AlignmentController(alpha=alpha, beta=beta))
    assert found.tolist() == pytest.approx(expected, rel=5e-3)
    assert found[-1].item() == 1


# LETTER's diversity: groups of equal size, targets of the own group, the cross-entropy.


def first_members(size: int, groups: int) -> np.ndarray:
    return np.where(np.arange(size) < groups, np.arange(size), -1)


def squared_error(points_KD: np.ndarray, group_K: np.ndarray) -> float:
    parts = [points_KD[group_K == group] for group in np.unique(group_K)]
    return float(sum(np.square(part - part.mean(axis=0)).sum() for part in parts))


def test_groups_are_of_equal_size() -> None:
    points = np.random.default_rng(0).standard_normal((23, 4))
    points[:20] *= 0.01  # plain k-means would make one group of these
    group_K = balanced_groups(points, first_members(23, 5), 5)
    assert sorted(np.bincount(group_K).tolist()) == [4, 4, 5, 5, 5]


def test_groups_of_well_separated_points_are_the_best_possible() -> None:
    rng = np.random.default_rng(1)
    points = np.repeat([[0.0, 0.0], [10.0, 0.0]], 4, axis=0) + rng.standard_normal((8, 2))
    points = points[rng.permutation(8)]
    best = min(squared_error(points, np.isin(np.arange(8), chosen).astype(int)) for chosen in combinations(range(8), 4))
    assert squared_error(points, balanced_groups(points, first_members(8, 2), 2)) == pytest.approx(best)


def test_groups_that_fit_stay() -> None:
    points = np.array([[0.0], [0.1], [5.0], [5.1]])
    assert balanced_groups(points, np.array([1, 1, 0, 0]), 2).tolist() == [1, 1, 0, 0]


def test_diversity_equals_the_slow_loop() -> None:
    torch.manual_seed(0)
    codewords_KD, codes_B, target_B = torch.randn(5, 3), torch.tensor([0, 4, 2, 2]), torch.tensor([1, 3, 0, 4])
    losses = []
    for code, target in zip(codes_B.tolist(), target_B.tolist(), strict=True):
        scores = {other: float(codewords_KD[code] @ codewords_KD[other]) for other in range(5) if other != code}
        losses.append(math.log(sum(math.exp(score) for score in scores.values())) - scores[target])
    assert diversity(codes_B, target_B, codewords_KD).item() == pytest.approx(sum(losses) / 4)


def test_gradient() -> None:
    torch.manual_seed(1)
    codewords_KD = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    codes_B, target_B = torch.tensor([0, 4, 2, 2]), torch.tensor([1, 3, 0, 4])
    assert torch.autograd.gradcheck(lambda words: diversity(codes_B, target_B, words), codewords_KD)


def test_targets_are_the_others_of_the_group_with_equal_weight() -> None:
    """Groups {0, 3, 4}, {1, 5} and {2, 6}: 0 draws 3 and 4 equally often, 5 draws 1."""
    group_K = torch.tensor([0, 1, 2, 0, 0, 1, 2])
    torch.manual_seed(0)
    drawn = draw_other(torch.tensor([0] * 4000 + [5] * 100), group_K)
    assert set(drawn[4000:].tolist()) == {1}
    assert set(drawn[:4000].tolist()) == {3, 4}
    assert abs(int((drawn[:4000] == 3).sum()) - 2000) < 5 * math.sqrt(1000)  # five standard deviations


def test_mean_over_levels_follows_torchs_seed() -> None:
    network = TinyNetwork(levels=2, size=4)
    module = DiversityLoss(Diversity(weight=0.5, groups=1), network)
    module.begin_epoch(network)
    codes_BL = torch.randint(4, (30, 2), generator=torch.Generator().manual_seed(3))
    found = coded(torch.zeros(30, 3), codes_BL)
    losses = []
    for seed in (8, 8, 9):
        torch.manual_seed(seed)
        losses.append(module(found, items(range(30)), network).item())
    torch.manual_seed(8)
    levels = [
        diversity(codes_BL[:, level], draw_other(codes_BL[:, level], module.get_buffer(f"group_{level}")), words)
        for level, words in enumerate(network.codewords)
    ]
    assert losses[0] == losses[1] == pytest.approx(0.5 * (levels[0] + levels[1]).item() / 2)
    assert losses[2] != losses[0]


def test_groups_follow_the_codewords_and_survive_a_checkpoint() -> None:
    network = TinyNetwork(levels=1, size=4)
    (words,) = network.codewords
    module, other = (DiversityLoss(Diversity(groups=2), network) for _ in range(2))
    for order in ([0, 1, 2, 3], [0, 2, 1, 3]):
        with torch.no_grad():
            words[order] = torch.tensor([[0.0, 0, 0], [1, 0, 0], [9, 0, 0], [10, 0, 0]])
        module.begin_epoch(network)
        group_K = module.get_buffer("group_0")[order]
        assert group_K[0] == group_K[1] != group_K[2] == group_K[3]
    other.load_state_dict(module.state_dict())
    assert other.get_buffer("group_0").tolist() == module.get_buffer("group_0").tolist()


def test_only_codewords_get_a_gradient() -> None:
    network = TinyNetwork(levels=1, size=4)
    module = DiversityLoss(Diversity(groups=2), network)
    module.begin_epoch(network)
    latent_BD = torch.zeros(2, 3, requires_grad=True)
    torch.autograd.backward(module(coded(latent_BD, [[0], [3]]), items([0, 1]), network))
    assert network.codewords[0].grad is not None
    assert latent_BD.grad is None


def test_a_group_needs_two_codes() -> None:
    with pytest.raises(ContractError, match="at most 2, two codes in every group of the 4 of level 1, got 3"):
        DiversityLoss(Diversity(groups=3), TinyNetwork(size=4))


def test_codewords_without_gradient_are_refused() -> None:
    network = TinyNetwork(size=4)
    network.requires_grad_(False)
    with pytest.raises(ContractError, match="diversity: expected codewords that learn by gradient"):
        DiversityLoss(Diversity(groups=2), network)
