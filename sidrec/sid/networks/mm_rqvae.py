"""MM-RQ-VAE: one RQ-VAE per modality, aligned in their quantised latents; and the MMD that aligns distributions.

Shapes: B items, N all items, V vector width, D latent width, M modalities (vector columns), L levels of all, K codes.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sidrec.config.learners import MmRqVaeConfig
from sidrec.schema import BEHAVIOR, ContractError
from sidrec.sid.losses.loss import info_nce, same_item
from sidrec.sid.networks.codebook import Codebook, quantisation_terms, spread_codes
from sidrec.sid.networks.network import Coded, ItemBatch, mlp
from sidrec.sid.networks.rqvae import reconstruction, weighted_sum
from sidrec.sid.networks.token_weights import ItemWeights, WeightedNetwork


class Branch(NamedTuple):
    """One modality of a batch. inputs_BV: its column. codes, quantized, targets: one per level of the modality."""

    inputs_BV: Tensor
    latent_BD: Tensor
    codes: list[Tensor]
    quantized: list[Tensor]
    targets: list[Tensor]


class MmRqVae(WeightedNetwork):
    """MM-RQ-VAE (MME-SID): an RQ-VAE of L / M levels per vector column. [B, V] -> codes [B, L].

    L = 3 sum_m MMD(x'_m, x_m) + sum_m (codebook_m + commitment_m) + .01 sum_(m != a) MMD(zq_a, zq_m)

    The preset `released` takes the terms of the released code (github.com/Applied-Machine-Learning-Lab/MME-SID, folder
    MM-RQ-VAE), whose training loop is not public: `one_kernel_mmd`, means over dimensions and levels, commitment .01
    from the first level alone, optimal transport on each column's last level.

    Each modality of an item has its own codes, and alignment makes the modalities agree. Levels of the first column
    come first. The anchor a is `behavior`, or the first column without it. The squared error can replace the
    reconstruction MMD (`reconstruct`), InfoNCE in both directions the alignment MMD (`align`: as the paper describes,
    not as released). Items without behaviour take no part in an alignment with it. Latents and quantised latents of the
    modalities are concatenated, [B, M D].
    """

    unknown_behavior = True
    codebooks: nn.ModuleList

    def __init__(self, config: MmRqVaeConfig, columns: tuple[tuple[str, int], ...]) -> None:
        """Raises ContractError when the columns cannot share the levels out evenly."""
        super().__init__()
        if config.levels % len(columns):
            expected = f"levels as a multiple of {len(columns)} vector columns"
            raise ContractError("learner mm_rqvae, levels", expected, config.levels)
        self.config = config
        names = [name for name, _ in columns]
        self.widths = [width for _, width in columns]
        self.anchor = names.index(BEHAVIOR) if BEHAVIOR in names else 0
        self.levels = config.levels // len(columns)
        self.encoders = nn.ModuleList(mlp((width, *config.hidden, config.width)) for width in self.widths)
        self.decoders = nn.ModuleList(mlp((config.width, *reversed(config.hidden), width)) for width in self.widths)
        self.codebooks = nn.ModuleList(Codebook(config.codebook_size, config.width) for _ in range(config.levels))
        self.weights = ItemWeights(config.router, columns, config.levels) if config.router else None

    @property
    def latent_width(self) -> int:
        return self.config.width * len(self.widths)

    @torch.no_grad()
    def place_codebooks(self, vectors_BV: Tensor) -> None:
        for encoder, inputs_BV, codebooks in self._modalities(vectors_BV):
            residual_BD = encoder(inputs_BV)
            for codebook in codebooks:
                codebook.place(residual_BD)
                residual_BD = residual_BD - codebook(residual_BD)[1]

    def forward(self, batch: ItemBatch) -> Coded:
        branches = self._branches(batch.vectors_BV)
        weights_BL = self.token_weights(batch.vectors_BV)
        sums = [weighted_sum(branch.quantized, part) for branch, part in self._weighted(branches, weights_BL)]
        terms = self._quantisation(branches)
        terms["reconstruction"] = self._reconstruction(branches, weights_BL)
        if self.config.align_weight and len(branches) > 1:
            through = [b.latent_BD + (sum_BD - b.latent_BD).detach() for b, sum_BD in zip(branches, sums, strict=True)]
            known_B = (branches[self.anchor].inputs_BV != 0).any(dim=1)
            terms["alignment"] = self.config.align_weight * self._alignment(through, batch.rows_B, known_B)
        terms |= self.weight_terms(weights_BL, batch.vectors_BV)
        return Coded(
            torch.cat([branch.latent_BD for branch in branches], dim=1),
            torch.cat(sums, dim=1),
            torch.stack([codes_B for branch in branches for codes_B in branch.codes], dim=1),
            tuple(target_BD for branch in branches for target_BD in branch.targets),
            terms,
            weights_BL,
        )

    @torch.no_grad()
    def encode(self, vectors_BV: Tensor) -> tuple[Tensor, Tensor | None]:
        codes = [codes_B for branch in self._branches(vectors_BV) for codes_B in branch.codes]
        return torch.stack(codes, dim=1), self.token_weights(vectors_BV)

    @torch.no_grad()
    def decode(self, codes_BL: Tensor, weights_BL: Tensor | None = None) -> Tensor | None:
        if self.misses_weights(weights_BL):
            return None
        quantized = [codewords[codes_B] for codewords, codes_B in zip(self.codewords, codes_BL.unbind(1), strict=True)]
        starts = range(0, len(quantized), self.levels)
        sums = [
            weighted_sum(quantized[start : start + self.levels], part_BL)
            for start, part_BL in zip(starts, self._parts(weights_BL), strict=True)
        ]
        return torch.cat([decoder(sum_BD) for decoder, sum_BD in zip(self.decoders, sums, strict=True)], dim=1)

    @torch.no_grad()
    def last_level_costs(self, vectors_BV: Tensor, codes_BL: Tensor) -> Tensor:
        encoder, inputs_BV, codebooks = list(self._modalities(vectors_BV))[-1]
        residual_BD = encoder(inputs_BV)
        own = codes_BL[:, -self.levels : -1].unbind(dim=1) if self.levels > 1 else ()
        for codebook, codes_B in zip(codebooks, own, strict=False):
            residual_BD = residual_BD - codebook.lookup(codes_B)
        return torch.cdist(residual_BD, self.codewords[-1]).square()

    def _modalities(self, vectors_BV: Tensor) -> Iterator[tuple[nn.Module, Tensor, list[Codebook]]]:
        """Encoder, vector column [B, V of the column] and codebooks of each modality."""
        codebooks = [codebook for codebook in self.codebooks if isinstance(codebook, Codebook)]
        parts = torch.split(vectors_BV, self.widths, dim=1)
        for number, (encoder, inputs_BV) in enumerate(zip(self.encoders, parts, strict=True)):
            yield encoder, inputs_BV, codebooks[number * self.levels : (number + 1) * self.levels]

    def _branches(self, vectors_BV: Tensor) -> list[Branch]:
        branches = []
        for encoder, inputs_BV, codebooks in self._modalities(vectors_BV):
            latent_BD = encoder(inputs_BV)
            branch = Branch(inputs_BV, latent_BD, [], [], [])
            residual_BD = latent_BD
            for level, codebook in enumerate(codebooks):
                codes_B = self._codes(codebook, residual_BD, last=level == self.levels - 1)
                quantized_BD = codebook.lookup(codes_B)
                branch.codes.append(codes_B)
                branch.quantized.append(quantized_BD)
                branch.targets.append(residual_BD)
                residual_BD = residual_BD - quantized_BD.detach()
                if self.config.commitment_gradient == "first_level":
                    residual_BD = residual_BD.detach()
            branches.append(branch)
        return branches

    def _codes(self, codebook: Codebook, residual_BD: Tensor, last: bool) -> Tensor:
        """The nearest codes; in training with `sinkhorn`, a column's last codes spread the batch evenly."""
        if self.training and self.config.sinkhorn and last:
            return spread_codes(codebook, residual_BD, self.config.sinkhorn, self.config.sinkhorn_iterations)
        return codebook.nearest(residual_BD)

    def _weighted(self, branches: list[Branch], weights_BL: Tensor | None) -> Iterator[tuple[Branch, Tensor | None]]:
        yield from zip(branches, self._parts(weights_BL), strict=True)

    def _parts(self, weights_BL: Tensor | None) -> Sequence[Tensor | None]:
        """Each modality's weights."""
        return [None] * len(self.widths) if weights_BL is None else torch.split(weights_BL, self.levels, dim=1)

    def _quantisation(self, branches: list[Branch]) -> dict[str, Tensor]:
        config = self.config
        terms = [
            quantisation_terms(
                self.codebooks[number * self.levels : (number + 1) * self.levels],
                branch.targets,
                branch.quantized,
                config.commitment,
                config.reconstruction,
            )
            for number, branch in enumerate(branches)
        ]
        return {name: torch.stack([of[name] for of in terms]).sum() for name in terms[0]}

    def _reconstruction(self, branches: list[Branch], weights_BL: Tensor | None) -> Tensor:
        total = branches[0].latent_BD.new_zeros(())
        for decoder, (branch, part_BL) in zip(self.decoders, self._weighted(branches, weights_BL), strict=True):
            fixed_BD = weighted_sum([quantized_BD.detach() for quantized_BD in branch.quantized], part_BL)
            decoded_BV = decoder(branch.latent_BD + fixed_BD - branch.latent_BD.detach())
            if self.config.reconstruct == "mmd":
                total = total + self._mmd(decoded_BV, branch.inputs_BV)
            else:
                total = total + reconstruction(decoded_BV, branch.inputs_BV, self.config.reconstruction)
        return self.config.reconstruct_weight * total

    def _alignment(self, quantized: Sequence[Tensor], rows_B: Tensor, known_B: Tensor) -> Tensor:
        """Alignment of the anchor's quantised latents with each other modality's.

        known_B: bool, the items that have a vector of the anchor; the others take no part.
        """
        total = quantized[0].new_zeros(())
        if not known_B.any():
            return total
        anchor_AD, excluded_AA = quantized[self.anchor][known_B], same_item(rows_B[known_B])
        for number, other_BD in enumerate(quantized):
            if number == self.anchor:
                continue
            other_AD = other_BD[known_B]
            if self.config.align == "mmd":
                total = total + self._mmd(anchor_AD, other_AD)
            else:
                there_A = info_nce(anchor_AD, other_AD, self.config.temperature, excluded_AA)
                back_A = info_nce(other_AD, anchor_AD, self.config.temperature, excluded_AA)
                total = total + (there_A + back_A).mean()
        return total

    def _mmd(self, x_BD: Tensor, y_BD: Tensor) -> Tensor:
        return mmd(x_BD, y_BD) if self.config.mmd == "five_kernels" else one_kernel_mmd(x_BD, y_BD)


def one_kernel_mmd(x_BD: Tensor, y_BD: Tensor) -> Tensor:
    """MMD of two batches of B rows, a scalar, as MME-SID's code and its library compute it (tllib, c4aa59e).

    sum_(i != j) (k(x_i, x_j) + k(y_i, y_j)) / (B (B - 1)) - 2 mean_ij k(x_i, y_j) + 2 / (B - 1)

    k(a, b) = exp(-|a - b|^2 / mean |p - q|^2), the mean over all pairs of the 2 B rows, a row with itself included, and
    without gradient. Not 0 for equal batches. Adding the diagonals of both sums, which are B, cancels the last term. A
    single row gives 0.
    """
    rows = len(x_BD)
    points_ND = torch.cat([x_BD, y_BD])
    points_ND = points_ND - points_ND.detach().mean(dim=0)  # rounding errors grow with the distance from the origin
    if rows < 2:
        return 0 * points_ND.sum()
    length_N = points_ND.square().sum(dim=1)
    distance_NN = torch.addmm(length_N, points_ND, points_ND.T, alpha=-2).add(length_N[:, None]).clamp_min(0)
    bandwidth = distance_NN.detach().mean().clamp_min(torch.finfo(distance_NN.dtype).tiny)
    kernel_NN = torch.exp(-distance_NN / bandwidth)
    same = kernel_NN[:rows, :rows].sum() + kernel_NN[rows:, rows:].sum()
    return same / (rows * (rows - 1)) - 2 * kernel_NN[:rows, rows:].mean()


DOUBLINGS = 4  # five kernels, each with twice the bandwidth of the one before; the middle one has the mean distance
ROWS = 128  # rows of a block


def mmd(x_BD: Tensor, y_CD: Tensor, rows: int = ROWS) -> Tensor:
    """Maximum mean discrepancy of two batches, a scalar: `gaussian_mmd` with the mean squared distance of all rows.

    Shapes: B rows of one batch, C of the other, N = B + C, R = `rows` of a block. The bandwidth has no gradient.
    """
    points_ND = torch.cat([x_BD, y_CD]).detach()
    mean_distance = 2 * (points_ND - points_ND.mean(dim=0)).square().sum() / (len(points_ND) - 1)
    return gaussian_mmd(x_BD, y_CD, mean_distance, rows)


def gaussian_mmd(x_BD: Tensor, y_CD: Tensor, bandwidth: Tensor, rows: int = ROWS) -> Tensor:
    """mean k(x, x') + mean k(y, y') - 2 mean k(x, y), the biased V-statistic, which includes every pair.

    k(a, b) = sum_i exp(-|a - b|^2 / (2^i bandwidth)), i = -2 .. 2. It is 0 for equal batches and never negative.
    """
    points_ND = torch.cat([x_BD, y_CD])
    points_ND = points_ND - points_ND.detach().mean(dim=0)  # rounding errors grow with the distance from the origin
    share_N = torch.cat([x_BD.new_full((len(x_BD),), 1 / len(x_BD)), y_CD.new_full((len(y_CD),), -1 / len(y_CD))])
    widest = bandwidth.clamp_min(torch.finfo(bandwidth.dtype).tiny) * 2 ** (DOUBLINGS // 2)
    discrepancy: Tensor = _KernelSum.apply(points_ND, share_N, widest, rows)  # type: ignore[no-untyped-call]
    return discrepancy


class _KernelSum(torch.autograd.Function):
    """sum_mn share_m share_n k(point_m, point_n); shares 1/B and -1/C give the MMD.

    Autograd would keep a dozen [N, N] tensors for the backward pass. Here the forward pass computes the gradient too,
    for a block of rows at a time that stays in the cache.
    """

    @staticmethod
    def forward(ctx: Any, points_ND: Tensor, share_N: Tensor, widest: Tensor, block: int) -> Tensor:
        length_N = points_ND.square().sum(dim=1)
        shared_ND = share_N[:, None] * points_ND
        total, gradient_ND = points_ND.new_zeros(()), torch.empty_like(points_ND)
        for first in range(0, len(points_ND), block):
            rows = slice(first, first + block)
            distance_RN = torch.addmm(length_N, points_ND[rows], points_ND.T, alpha=-2).add_(length_N[rows, None])
            kernel_RN, slope_RN = _kernels(distance_RN.clamp_min_(0).div_(-widest))
            total += share_N[rows] @ (kernel_RN @ share_N)
            toward_RD = points_ND[rows] * (slope_RN @ share_N)[:, None] - slope_RN @ shared_ND
            gradient_ND[rows] = toward_RD * (-4 / widest * share_N[rows, None])
        ctx.save_for_backward(gradient_ND)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient_ND,) = ctx.saved_tensors
        return gradient * gradient_ND, None, None, None


def _kernels(exponent_RN: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of all kernels, and its derivative by the exponent of the widest kernel; overwrites the exponent."""
    power_RN = exponent_RN.exp_()
    total_RN, slope_RN = power_RN.clone(), power_RN.clone()
    for doubling in range(1, DOUBLINGS + 1):
        power_RN.square_()  # half the bandwidth, without another exp
        total_RN.add_(power_RN)
        slope_RN.add_(power_RN, alpha=2**doubling)
    return total_RN, slope_RN
