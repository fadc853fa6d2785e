"""A codebook: K codewords; a point is replaced by the nearest. Learned by gradient or by moving averages.

Also `sinkhorn_codes`, which spreads a batch over a codebook.

Shapes: B points, D width, K codes, P points to learn from.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from sidrec.sid.networks.network import nearest
from sidrec.sid.replicas import SINGLE, Replicas

ITERATIONS = 20  # of Lloyd's algorithm when k-means places the codewords
DECAY = 0.99  # of the moving averages (van den Oord et al., arXiv 1711.00937, appendix A.1)


class Codebook(nn.Module):
    """Vector quantisation (VQ-VAE, arXiv 1711.00937): points [B, D] to the nearest of the codewords `weight` [K, D].

    cosine: the nearest codeword has the largest cosine. With `unit`, the default, points and codewords are then scaled
        to unit length everywhere; without, they keep their lengths in losses, averages and lookups.
    learning: `gradient` trains the codewords through `losses`. With `ema`, `weight` is a buffer; in training, each
        codeword becomes the moving average of the points that took it (equations 6 to 8), summed over replicas.
    """

    weight: Tensor
    _sum_KD: Tensor
    _count_K: Tensor
    replicas: Replicas = SINGLE

    def __init__(
        self,
        size: int,
        width: int,
        cosine: bool = False,
        learning: Literal["gradient", "ema"] = "gradient",
        unit: bool = True,
    ) -> None:
        super().__init__()
        self.cosine, self.learning, self._unit = cosine, learning, cosine and unit
        weight_KD = self._scaled(torch.randn(size, width) / width**0.5)
        if learning == "gradient":
            self.weight = nn.Parameter(weight_KD)
            return
        self.register_buffer("weight", weight_KD)
        self.register_buffer("_sum_KD", weight_KD.clone())
        self.register_buffer("_count_K", torch.ones(size))

    def forward(self, points_BD: Tensor) -> tuple[Tensor, Tensor]:
        """codes_B, and quantized_BD, the codewords with gradient. Updates the averages in training with `ema`."""
        codes_B = self.nearest(points_BD)
        quantized_BD = self.lookup(codes_B)
        if self.training and self.learning == "ema":
            self._average(points_BD.detach(), codes_B)
        return codes_B, quantized_BD

    def nearest(self, points_BD: Tensor) -> Tensor:
        """int64 [B]. Points need no scaling: a point's length does not change which cosine is largest."""
        return nearest(points_BD, self._compared(self.weight))

    def distances(self, points_BD: Tensor) -> Tensor:
        """[B, K]: squared distances from all codewords; with `cosine`, of directions. The nearest has the smallest."""
        return torch.cdist(self._compared(points_BD), self._compared(self.weight)).square()

    def lookup(self, codes_B: Tensor) -> Tensor:
        """The codewords [B, D], of unit length with `cosine` and `unit`."""
        return self._scaled(functional.embedding(codes_B, self.weight))

    def losses(self, points_BD: Tensor, quantized_BD: Tensor) -> tuple[Tensor, Tensor]:
        """Codebook loss |sg[point] - codeword|^2 and commitment |point - sg[codeword]|^2, summed over all entries.

        The first is 0 with `ema`. The caller averages and weighs the two (arXiv 1711.00937, equation 3).
        """
        points_BD = self._scaled(points_BD)
        commitment = functional.mse_loss(points_BD, quantized_BD.detach(), reduction="sum")
        if self.learning == "ema":
            return torch.zeros_like(commitment), commitment
        return functional.mse_loss(quantized_BD, points_BD.detach(), reduction="sum"), commitment

    @torch.no_grad()
    def place(self, points_PD: Tensor) -> None:
        """Sets the codewords to the centroids of k-means on at least K points, from a k-means++ start.

        With `cosine` the clusters are those of directions. Seeded by torch's generator.
        """
        import faiss

        size, width = self.weight.shape
        points = np.ascontiguousarray(self._compared(points_PD).cpu().numpy())
        learner = faiss.Kmeans(
            width,
            size,
            niter=ITERATIONS,
            seed=int(torch.randint(2**31, ())),
            spherical=self.cosine,
            init_method=faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS,
            min_points_per_centroid=1,
            max_points_per_centroid=len(points),
        )
        threads = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(1)  # so that the same seed gives the same centroids on any machine
        try:
            learner.train(points)
        finally:
            faiss.omp_set_num_threads(threads)
        self._set(torch.arange(size), torch.from_numpy(learner.centroids))
        if self._unit != self.cosine:
            self._set_means(points_PD)

    @torch.no_grad()
    def revive(self, dead_K: Tensor, points_PD: Tensor) -> int:
        """Moves dead codes to points drawn at random, no point twice. Returns how many moved.

        dead_K: bool [K]. When there are fewer points than dead codes, the last codes stay where they are.
        """
        codes = torch.nonzero(dead_K)[:, 0].cpu()
        chosen = torch.randperm(len(points_PD))[: len(codes)]
        self._set(codes[: len(chosen)], self._scaled(points_PD[chosen]))
        return min(len(codes), len(chosen))

    def _set_means(self, points_PD: Tensor) -> None:
        """Moves every codeword to the mean of the points that take it; one that none takes stays."""
        codes_P = self.nearest(points_PD)
        counts_K = torch.bincount(codes_P, minlength=len(self.weight))
        sums_KD = torch.zeros_like(self.weight).index_add_(0, codes_P, points_PD.to(self.weight))
        taken = torch.nonzero(counts_K)[:, 0]
        self._set(taken, sums_KD[taken] / counts_K[taken, None])

    def _set(self, codes: Tensor, points: Tensor) -> None:
        points = points.to(self.weight)
        self.weight[codes] = points
        if self.learning == "ema":
            self._sum_KD[codes], self._count_K[codes] = points, 1.0

    @torch.no_grad()
    def _average(self, points_BD: Tensor, codes_B: Tensor) -> None:
        size, width = self.weight.shape
        seen = self.weight.new_zeros(size, width + 1)  # sums and counts together, for a single all-reduce
        seen[:, :width].index_add_(0, codes_B, self._scaled(points_BD))
        seen[:, width] = torch.bincount(codes_B, minlength=size)
        seen = self.replicas.sum(seen)
        self._sum_KD.mul_(DECAY).add_(seen[:, :width], alpha=1 - DECAY)
        self._count_K.mul_(DECAY).add_(seen[:, width], alpha=1 - DECAY)
        taken = seen[:, width] > 0
        self.weight[taken] = self._scaled(self._sum_KD[taken] / self._count_K[taken, None])

    def _compared(self, points: Tensor) -> Tensor:
        return functional.normalize(points, dim=1) if self.cosine else points

    def _scaled(self, points: Tensor) -> Tensor:
        return functional.normalize(points, dim=1) if self._unit else points


def quantisation_terms(
    codebooks: nn.ModuleList,
    targets: Sequence[Tensor],
    quantized: Sequence[Tensor],
    commitment_weight: float,
    reduction: Literal["sum", "mean"],
) -> dict[str, Tensor]:
    """The terms `codebook` and `commitment` (`Codebook.losses`) of all levels, as means over items.

    Over dimensions and levels they are sums, or means with the reduction `mean`.
    targets, quantized: per level, the points that were quantised and the codewords that they took, [B, D].
    """
    codebook_loss = commitment = targets[0].new_zeros(())
    for codebook, target_BD, quantized_BD in zip(codebooks, targets, quantized, strict=True):
        assert isinstance(codebook, Codebook), "gradient-trained networks have Codebooks"
        level_loss, level_commitment = codebook.losses(target_BD, quantized_BD)
        codebook_loss, commitment = codebook_loss + level_loss, commitment + level_commitment
    items, width = targets[0].shape
    scale = items * (len(targets) * width if reduction == "mean" else 1)
    return {"codebook": codebook_loss / scale, "commitment": commitment_weight * commitment / scale}


def spread_codes(codebook: Codebook, points_BD: Tensor, entropy: float, iterations: int) -> Tensor:
    """int64 [B]: `sinkhorn_codes` of the points' squared distances from the codewords, without gradient."""
    distances_BK = torch.cdist(points_BD.detach(), codebook.weight.detach()).square()
    return sinkhorn_codes(distances_BK, entropy, iterations)


TINY = 1e-300  # prevents division by zero for a code that no point can reach


@torch.no_grad()
def sinkhorn_codes(distances_BK: Tensor, entropy: float, iterations: int) -> Tensor:
    """int64 [B]: codes that spread a batch evenly, by entropic optimal transport (LETTER, arXiv 2405.07314, released).

    All points have the same mass, and so have all codes; a point takes the code that gets most of its mass.
    distances_BK: squared distances. They are scaled to a range of 2, so that `entropy` does not depend on units, and
    transported by Sinkhorn's iterations (Cuturi, arXiv 1306.0895) in float64.
    """
    distances = distances_BK.double()
    span = distances.max() - distances.min() + 1e-5
    nearness = torch.exp((distances.min(dim=1, keepdim=True).values - distances) * (2 / span) / entropy)
    by_code_K = torch.ones_like(nearness[0])
    for _ in range(iterations):
        by_point_B = 1 / (nearness @ by_code_K).clamp_min(TINY)
        by_code_K = 1 / (nearness.T @ by_point_B).clamp_min(TINY)
    return (nearness * by_code_K).argmax(dim=1)  # a point's own factor does not change which code is largest
