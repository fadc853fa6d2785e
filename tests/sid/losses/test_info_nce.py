"""InfoNCE against values by hand and a slow double loop."""

import math

import pytest
import torch
from torch import Tensor

from sidrec.sid.losses.loss import info_nce, mean_or_zero, unit
from tests.sid.losses.tiny_network import on_angle


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


def test_all_others_excluded_leaves_nothing_to_tell_apart() -> None:
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
    loss.backward()
    assert loss.item() == 0
    assert latent.grad is not None
    assert latent.grad.tolist() == [[0, 0, 0]] * 2


def test_a_zero_vector_has_no_direction() -> None:
    latent = torch.tensor([[0.0, 0.0], [3.0, 4.0]], requires_grad=True)
    unit(latent).sum().backward()
    assert unit(latent).tolist() == [[0, 0], [pytest.approx(0.6), pytest.approx(0.8)]]
    assert latent.grad is not None
    assert latent.grad[0].tolist() == [0, 0]
    assert latent.grad[1].tolist() == pytest.approx([(1 - 0.6 * 1.4) / 5, (1 - 0.8 * 1.4) / 5])
