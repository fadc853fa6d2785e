"""LETTER's diversity: groups of equal size, targets of the own group, the cross-entropy."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch

from sidrec.config.sid_losses import Diversity
from sidrec.schema import ContractError
from sidrec.sid.losses.attraction import DiversityLoss, balanced_groups, diversity, draw_other
from tests.sid.losses.tiny_network import TinyNetwork, coded, items


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


def test_equals_the_slow_loop() -> None:
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


def test_targets_are_the_others_of_the_group_alike() -> None:
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
    module(coded(latent_BD, [[0], [3]]), items([0, 1]), network).backward()
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
