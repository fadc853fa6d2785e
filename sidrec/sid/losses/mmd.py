"""Maximum mean discrepancy of two batches with several Gaussian kernels (MME-SID's MM-RQ-VAE).

A plain chain of operators would keep a dozen [N, N] tensors for the way back. Here some rows at a time go through all
of them while they are in the cache, and leave behind their part of the gradient.

Shapes: B rows of one batch, C of the other, N = B + C, R rows of a piece, D width.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

DOUBLINGS = 4  # five kernels, each with twice the bandwidth of the one before; the mean distance is the middle one's
ROWS = 128  # rows of a piece


def mmd(x_BD: Tensor, y_CD: Tensor) -> Tensor:
    """How far two distributions are apart, a scalar: `gaussian_mmd` at the mean squared distance of all rows.

    The bandwidth follows the data and gets no gradient.
    """
    points_ND = torch.cat([x_BD, y_CD]).detach()
    mean_distance = 2 * (points_ND - points_ND.mean(dim=0)).square().sum() / (len(points_ND) - 1)
    return gaussian_mmd(x_BD, y_CD, mean_distance)


def gaussian_mmd(x_BD: Tensor, y_CD: Tensor, bandwidth: Tensor) -> Tensor:
    """mean k(x, x') + mean k(y, y') - 2 mean k(x, y), the biased V-statistic: no pair is left out.

    k(a, b) = sum_i exp(-|a - b|^2 / (2^i bandwidth)), i = -2 .. 2. It is 0 for equal batches, and never negative.
    """
    points_ND = torch.cat([x_BD, y_CD])
    points_ND = points_ND - points_ND.detach().mean(dim=0)  # rounding errors grow with the distance from the origin
    share_N = torch.cat([x_BD.new_full((len(x_BD),), 1 / len(x_BD)), y_CD.new_full((len(y_CD),), -1 / len(y_CD))])
    widest = bandwidth.clamp_min(torch.finfo(bandwidth.dtype).tiny) * 2 ** (DOUBLINGS // 2)
    discrepancy: Tensor = _KernelSum.apply(points_ND, share_N, widest)  # type: ignore[no-untyped-call]
    return discrepancy


class _KernelSum(torch.autograd.Function):
    """sum_mn share_m share_n k(point_m, point_n), of which the MMD is the case of shares 1/B and -1/C."""

    @staticmethod
    def forward(ctx: Any, points_ND: Tensor, share_N: Tensor, widest: Tensor) -> Tensor:
        length_N = points_ND.square().sum(dim=1)
        shared_ND = share_N[:, None] * points_ND
        total, gradient_ND = points_ND.new_zeros(()), torch.empty_like(points_ND)
        for first in range(0, len(points_ND), ROWS):
            rows = slice(first, first + ROWS)
            distance_RN = torch.addmm(length_N, points_ND[rows], points_ND.T, alpha=-2).add_(length_N[rows, None])
            kernel_RN, slope_RN = _kernels(distance_RN.clamp_min_(0).div_(-widest))
            total += share_N[rows] @ (kernel_RN @ share_N)
            toward_RD = points_ND[rows] * (slope_RN @ share_N)[:, None] - slope_RN @ shared_ND
            gradient_ND[rows] = toward_RD * (-4 / widest * share_N[rows, None])
        ctx.save_for_backward(gradient_ND)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (gradient_ND,) = ctx.saved_tensors
        return gradient * gradient_ND, None, None


def _kernels(exponent_RN: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of all kernels, and its derivative by the exponent of the widest, which is overwritten."""
    power_RN = exponent_RN.exp_()
    total_RN, slope_RN = power_RN.clone(), power_RN.clone()
    for doubling in range(1, DOUBLINGS + 1):
        power_RN.square_()  # half the bandwidth, without another exp
        total_RN.add_(power_RN)
        slope_RN.add_(power_RN, alpha=2**doubling)
    return total_RN, slope_RN
