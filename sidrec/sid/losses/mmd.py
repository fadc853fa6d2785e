"""Maximum mean discrepancy of two batches with several Gaussian kernels (MME-SID's MM-RQ-VAE).

Shapes: B rows of one batch, C of the other, N = B + C, D width.
"""

import torch
from torch import Tensor

DOUBLINGS = 4  # five kernels, each with twice the bandwidth of the one before; the mean distance is the middle one's


def mmd(x_BD: Tensor, y_CD: Tensor) -> Tensor:
    """How far two distributions are apart, a scalar: `gaussian_mmd` at the mean squared distance of all rows.

    The bandwidth follows the data and gets no gradient.
    """
    with torch.no_grad():
        distance_NN = _squared_distances(torch.cat([x_BD, y_CD]))
        bandwidth = distance_NN.sum() / (len(distance_NN) * (len(distance_NN) - 1))
    return gaussian_mmd(x_BD, y_CD, bandwidth)


def gaussian_mmd(x_BD: Tensor, y_CD: Tensor, bandwidth: Tensor) -> Tensor:
    """mean k(x, x') + mean k(y, y') - 2 mean k(x, y), the biased V-statistic: no pair is left out.

    k(a, b) = sum_i exp(-|a - b|^2 / (2^i bandwidth)), i = -2 .. 2. It is 0 for equal batches, and never negative.
    """
    widest = bandwidth.clamp_min(torch.finfo(bandwidth.dtype).tiny) * 2 ** (DOUBLINGS // 2)
    kernel_NN = torch.exp(-_squared_distances(torch.cat([x_BD, y_CD])) / widest)
    total_NN = kernel_NN
    for _ in range(DOUBLINGS):
        kernel_NN = kernel_NN.square()  # half the bandwidth, without another exp
        total_NN = total_NN + kernel_NN
    rows = len(x_BD)
    within = total_NN[:rows, :rows].mean() + total_NN[rows:, rows:].mean()
    return within - 2 * total_NN[:rows, rows:].mean()


def _squared_distances(points_ND: Tensor) -> Tensor:
    points_ND = points_ND - points_ND.detach().mean(dim=0)  # rounding errors grow with the distance from the origin
    length_N = points_ND.square().sum(dim=1)
    return (length_N[:, None] + length_N - 2 * points_ND @ points_ND.T).clamp_min(0)
