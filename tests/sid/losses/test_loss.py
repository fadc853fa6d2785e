"""The contract of losses: InfoNCE, schedules, and every loss in every network."""

import math
from typing import get_args

import pytest
import torch
from torch import Tensor

from sidrec.config.learner_parts import (
    BehaviorAlignment,
    Collaborative,
    Contrast,
    Diversity,
    OverlapRepulsion,
    SidLossConfig,
    WeightSchedule,
)
from sidrec.config.learners import (
    AdaSidConfig,
    AdcSidConfig,
    GradientLearnerConfig,
    MmRqVaeConfig,
    MultiVqConfig,
    RqVaeConfig,
)
from sidrec.schema import ContractError
from sidrec.sid.learners.gradient import build_network
from sidrec.sid.losses.loss import info_nce, mean_or_zero, schedule_factor, unit
from sidrec.sid.training.objectives import build_loss
from tests.sid.losses.tiny_network import TinyNetwork, on_angle, random_batch

# InfoNCE against values by hand and a slow double loop.


def slow_info_nce(anchor_AD: Tensor, target_AD: Tensor, temperature: float, excluded_AA: Tensor) -> list[float]:
    losses = []
    for m, anchor in enumerate(anchor_AD):
        exponents = [
            math.exp(float(torch.cosine_similarity(anchor, target, dim=0)) / temperature) for target in target_AD
        ]
        kept = [e for n, e in enumerate(exponents) if n == m or not excluded_AA[m, n]]
        losses.append(-math.log(exponents[m] / sum(kept)))
    return losses


def test_two_right_angles_by_hand() -> None:
    """Own cosine 1, the other 0: log(e^2 + e^0) - 2 at temperature .5; lengths do not matter."""
    anchor = on_angle(0, 90) * torch.tensor([[3.0], [0.1]])
    expected = math.log(math.e**2 + 1) - 2
    assert info_nce(anchor, on_angle(0, 90), 0.5).tolist() == pytest.approx([expected] * 2)


def test_equals_the_slow_loop() -> None:
    torch.manual_seed(0)
    anchor, target = torch.randn(7, 5, dtype=torch.float64), torch.randn(7, 5, dtype=torch.float64)
    excluded = torch.rand(7, 7) < 0.3
    found = info_nce(anchor, target, 0.3, excluded)
    assert found.tolist() == pytest.approx(slow_info_nce(anchor, target, 0.3, excluded))


def test_without_negatives_the_contrastive_loss_is_zero() -> None:
    excluded = torch.ones(2, 2, dtype=torch.bool)
    assert info_nce(on_angle(0, 40), on_angle(70, 10), 0.1, excluded).tolist() == pytest.approx([0, 0])


def test_gradient() -> None:
    torch.manual_seed(1)
    anchor = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    target = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    excluded = torch.zeros(4, 4, dtype=torch.bool)
    excluded[0, 2] = excluded[3, 3] = True
    assert torch.autograd.gradcheck(lambda a, t: info_nce(a, t, 0.5, excluded), (anchor, target))


def test_nothing_takes_part() -> None:
    latent = torch.ones(2, 3, requires_grad=True)
    loss = mean_or_zero(info_nce(latent[:0], latent[:0], 0.1, torch.ones(0, 0, dtype=torch.bool)))
    torch.autograd.backward(loss)
    assert loss.item() == 0
    assert latent.grad is not None
    assert latent.grad.tolist() == [[0, 0, 0]] * 2


def test_a_zero_vector_has_no_direction() -> None:
    latent = torch.tensor([[0.0, 0.0], [3.0, 4.0]], requires_grad=True)
    torch.autograd.backward(unit(latent).sum())
    assert unit(latent).tolist() == [[0, 0], [pytest.approx(0.6), pytest.approx(0.8)]]
    assert latent.grad is not None
    assert latent.grad[0].tolist() == [0, 0]
    assert latent.grad[1].tolist() == pytest.approx([(1 - 0.6 * 1.4) / 5, (1 - 0.8 * 1.4) / 5])


# Progress-adaptive rebalancing (AdaSID): how weights change in training.


def adasid_factors(progress: float) -> tuple[float, float]:
    """(lambda_col, lambda_cf) as a share of its maximum."""
    repulsion, contrast = AdaSidConfig().losses
    assert isinstance(repulsion, OverlapRepulsion)
    assert isinstance(contrast, Contrast)
    return schedule_factor(repulsion.schedule, progress), schedule_factor(contrast.schedule, progress)


def test_repulsion_goes_and_contrast_comes() -> None:
    """Oracle: lambda_col = 1, lambda_cf = 0 at tau_p = 0; at 1, from .6 of the training on, floor and maximum."""
    assert adasid_factors(0) == (1, 0)
    assert adasid_factors(0.3) == pytest.approx((1 - 0.9 * 0.5, 0.5))
    assert adasid_factors(0.6) == pytest.approx((0.1, 1))
    assert adasid_factors(1) == pytest.approx((0.1, 1))


def test_a_later_beginning() -> None:
    schedule = WeightSchedule(first=2, last=4, begin=0.25, end=0.75)
    assert [schedule_factor(schedule, progress) for progress in (0, 0.25, 0.375, 0.5, 0.75, 1)] == [2, 2, 2.5, 3, 4, 4]


def test_a_step() -> None:
    schedule = WeightSchedule(first=0, last=1, begin=0.5, end=0.5)
    assert [schedule_factor(schedule, progress) for progress in (0, 0.49, 0.5, 1)] == [0, 0, 1, 1]


def test_none_is_constant() -> None:
    assert schedule_factor(None, 0.3) == 1


def test_an_end_before_the_beginning_is_refused() -> None:
    with pytest.raises(ValueError, match=r"end of at least begin 0\.8, got 0\.6"):
        WeightSchedule(first=0, last=1, begin=0.8)


# Every section has its loss, and every loss plugs into a network it has never seen.


COLUMNS = (("text", 4), ("behavior", 5))
LEARNERS = [
    RqVaeConfig(codebook_size=4, width=6, hidden=(8,)),
    MultiVqConfig(codebook_size=4, width=6, hidden=(8,)),
    MmRqVaeConfig(codebook_size=4, width=6, hidden=(8,)),
    AdcSidConfig(codebook_size=4, width=6, hidden=8),
]
SECTIONS = get_args(get_args(SidLossConfig)[0])
PAIRS, BEHAVIOR = frozenset({"pairs"}), frozenset({"behavior"})
INPUTS = {"contrast": PAIRS, "collaborative": BEHAVIOR, "behavior_alignment": BEHAVIOR}


@pytest.mark.parametrize("section", SECTIONS)
@pytest.mark.parametrize("learner", LEARNERS, ids=lambda learner: learner.kind)
def test_plugs_into_every_network(section: type, learner: GradientLearnerConfig) -> None:
    """The term is finite, and so are its gradients, which reach the network."""
    torch.manual_seed(0)
    config = Diversity(groups=2) if section is Diversity else section()
    network, batch = build_network(learner, COLUMNS), random_batch(16, width=9)
    network.measure(batch.vectors_BV.numpy())
    loss = build_loss(config, network, 5)
    assert loss.inputs == INPUTS.get(config.kind, frozenset())
    loss.begin_epoch(network)
    term = loss(network(batch), batch, network)
    assert term.shape == ()
    assert term.isfinite()
    torch.autograd.backward(term)
    assert any(part.grad is not None for part in network.parameters())
    assert all(part.grad is not None for part in loss.parameters())
    parts = [*network.parameters(), *loss.parameters()]
    assert all(part.grad.isfinite().all() for part in parts if part.grad is not None)
    assert all(isinstance(value, float | int) for value in loss.diagnostics().values())


@pytest.mark.parametrize("config", [Collaborative(), BehaviorAlignment()])
def test_behaviour_that_is_not_there(config: Collaborative | BehaviorAlignment) -> None:
    with pytest.raises(ContractError, match=f"losses, {config.kind}: expected behaviour vectors"):
        build_loss(config, TinyNetwork(), None)


def test_the_map_is_as_wide_as_the_networks_latents() -> None:
    loss = build_loss(BehaviorAlignment(), TinyNetwork(latent=6), 5)
    assert [tuple(part.shape) for part in loss.parameters()] == [(6, 5)]
    assert not list(build_loss(Collaborative(), TinyNetwork(latent=5), 5).parameters())
    assert all(part.dtype == torch.float32 for part in loss.parameters())
