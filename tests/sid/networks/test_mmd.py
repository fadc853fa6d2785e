"""Multi-kernel MMD against a slow loop."""

import math

import pytest
import torch
from torch import Tensor

from sidrec.sid.networks.mm_rqvae import gaussian_mmd, mmd


def slow_mmd(x_BD: Tensor, y_CD: Tensor) -> float:
    points = [*x_BD.tolist(), *y_CD.tolist()]
    squared = [[sum((a - b) ** 2 for a, b in zip(p, q, strict=True)) for q in points] for p in points]
    size, rows = len(points), len(x_BD)
    mean = sum(map(sum, squared)) / (size * (size - 1))

    def mean_kernel(left: range, right: range) -> float:
        kernels = [
            math.exp(-squared[i][j] / (mean * factor)) for i in left for j in right for factor in (0.25, 0.5, 1, 2, 4)
        ]
        return sum(kernels) / (len(left) * len(right))

    first, second = range(rows), range(rows, size)
    return mean_kernel(first, first) + mean_kernel(second, second) - 2 * mean_kernel(first, second)


@pytest.mark.parametrize("others", [6, 9])
def test_equals_the_slow_loop(others: int) -> None:
    torch.manual_seed(0)
    x_BD, y_CD = torch.randn(6, 4, dtype=torch.float64), torch.randn(others, 4, dtype=torch.float64) + 0.5
    assert mmd(x_BD, y_CD).item() == pytest.approx(slow_mmd(x_BD, y_CD))
    assert mmd(x_BD, y_CD).item() == pytest.approx(mmd(y_CD, x_BD).item())


def test_equal_batches_in_any_order_are_at_zero() -> None:
    torch.manual_seed(1)
    x_BD = torch.randn(50, 8)
    assert mmd(x_BD, x_BD.flip(0)).item() == pytest.approx(0, abs=1e-6)
    assert mmd(torch.ones(4, 3), torch.ones(4, 3)).item() == 0


def test_grows_with_the_distance() -> None:
    torch.manual_seed(2)
    x_BD, y_BD = torch.randn(200, 8), torch.randn(200, 8)
    near, far, farther = (mmd(x_BD, y_BD + shift).item() for shift in (0, 0.5, 1))
    assert 0 < near < 0.1 < far < farther


def test_far_from_the_origin_nothing_changes() -> None:
    torch.manual_seed(3)
    x_BD, y_BD = torch.randn(20, 8), torch.randn(20, 8) + 1
    assert mmd(x_BD + 1000, y_BD + 1000).item() == pytest.approx(mmd(x_BD, y_BD).item(), rel=1e-3)


def test_gradient_at_a_fixed_bandwidth() -> None:
    torch.manual_seed(4)
    x_BD = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    y_CD = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    bandwidth = torch.tensor(2.5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x, y: gaussian_mmd(x, y, bandwidth), (x_BD, y_CD))


def test_blocks_of_rows_equal_all_rows_at_once() -> None:
    torch.manual_seed(6)
    x_BD, y_CD = torch.randn(5, 3, requires_grad=True), torch.randn(6, 3, requires_grad=True)
    whole = mmd(x_BD, y_CD)
    expected = torch.autograd.grad(whole, (x_BD, y_CD))
    blocks = mmd(x_BD, y_CD, rows=4)
    assert blocks.item() == pytest.approx(whole.item(), abs=1e-6)
    for found, gradient in zip(torch.autograd.grad(blocks, (x_BD, y_CD)), expected, strict=True):
        torch.testing.assert_close(found, gradient)


def test_a_step_draws_the_batches_together() -> None:
    torch.manual_seed(5)
    x_BD, y_BD = torch.randn(30, 3, requires_grad=True), torch.randn(30, 3) + 2
    before = mmd(x_BD, y_BD)
    torch.autograd.backward(before)
    assert x_BD.grad is not None
    assert mmd(x_BD.detach() - x_BD.grad, y_BD) < before
