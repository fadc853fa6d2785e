"""Losses that push items apart that share codes: HaMR of QuaSID, SeAR and LAS of AdaSID. For any network.

Shapes as in `sidrec.sid.networks.network`; N pairs of a batch, each once.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sidrec.config.learner_parts import HammingRepulsion, OverlapRepulsion, at_depth
from sidrec.sid.losses.loss import SidLoss, unit
from sidrec.sid.networks.network import Coded, ItemBatch, Network

EPSILON = 1e-8  # keeps the mean of an empty group at 0


class HammingRepulsionLoss(SidLoss):
    """Hamming-guided margin repulsion (HaMR) of QuaSID (arXiv 2603.00632): pushes apart items whose SIDs collide.

    L = lambda_full mean_full max(0, m_full - d) + lambda_part mean_part max(0, m_part - d),   d = 1 - cos(z_i, z_j)

    A full conflict is a pair with equal SIDs, a partial one a pair that differs in 1 to R levels. z [D] are latents
    before quantisation; codes and masks have no gradient. `mask_valid` leaves out pairs that belong together
    (`valid_pairs`); without item pairs in the batch any two different items may conflict.
    """

    def __init__(self, config: HammingRepulsion) -> None:
        super().__init__()
        self.config = config
        self._counts = (0, 0)

    def forward(self, coded: Coded, batch: ItemBatch, network: Network) -> Tensor:
        config = self.config
        found = conflicts(coded.latent_BD, coded.codes_BL, repelled_once(batch, config.mask_valid), config.radius)
        self._counts = (len(found.full), len(found.part))
        full = config.weight_full * mean_hinge(found.full, config.margin_full)
        return full + config.weight_part * mean_hinge(found.part, config.margin_part)

    def diagnostics(self) -> dict[str, float]:
        """Pairs of the last batch in each group."""
        full, part = self._counts
        return {"full_conflicts": full, "partial_conflicts": part}


class Conflicts(NamedTuple):
    """Cosine distances 1 - cos of pairs [N]. full: with equal SIDs. part: that differ in 1 to R levels."""

    full: Tensor
    part: Tensor


def conflicts(latent_BD: Tensor, codes_BL: Tensor, pairs_BB: Tensor, radius: int) -> Conflicts:
    """Of the pairs marked in pairs_BB, those that conflict. Gradients go through the distances only."""
    unit_BD = unit(latent_BD)
    distance_BB = 1 - unit_BD @ unit_BD.T
    levels = codes_BL.shape[1]
    shared_BB = shared_levels(codes_BL)
    full_BB = shared_BB == levels
    part_BB = (shared_BB >= max(levels - radius, 0)) & ~full_BB
    return Conflicts(distance_BB[pairs_BB & full_BB], distance_BB[pairs_BB & part_BB])


def mean_hinge(distance_N: Tensor, margin: float) -> Tensor:
    """sum max(0, margin - D) / (N + epsilon), exactly 0 for an empty group."""
    return torch.relu(margin - distance_N).sum() / (len(distance_N) + EPSILON)


class OverlapRepulsionLoss(SidLoss):
    """Overlap repulsion of AdaSID (arXiv 2604.23522): stage one relaxes (SeAR), stage two adapts to the load (LAS).

    L = weight mean_(i,j) a_ij (1 - g_ij) max(0, m_o - d_ij),   d_ij = 1 - cos(z_i, z_j)

    Pairs share o > 0 codes, at any levels. g_ij = 1 exempts a pair whose similarity reaches the threshold eta_o: items
    that are alike may share codes. a_ij grows with how loaded the overlap is (`LoadStrength`). z [D] are latents before
    quantisation; the gradient goes through the distance only. `reduction: sum` is the paper's sum. `mask_valid`
    leaves out pairs that belong together; without item pairs in the batch any two different items may be repelled.
    """

    def __init__(self, config: OverlapRepulsion) -> None:
        super().__init__()
        self.config = config
        self.strength = None if config.load == "none" else LoadStrength(config)
        self._last: RelaxedHinges | None = None

    def forward(self, coded: Coded, batch: ItemBatch, network: Network) -> Tensor:
        config, codes_BL = self.config, coded.codes_BL
        shared_BB = shared_levels(codes_BL)
        first_N, second_N = torch.nonzero(repelled_once(batch, config.mask_valid) & (shared_BB > 0), as_tuple=True)
        unit_BD = unit(coded.latent_BD)
        cosine_N = (unit_BD @ unit_BD.T)[first_N, second_N]
        relaxed = relax(
            cosine_N,
            cosine_N.detach() if config.space == "latent" else _cosines(batch.vectors_BV, first_N, second_N),
            shared_BB[first_N, second_N].long(),
            config,
        )
        self._last = RelaxedHinges(*(part.detach() for part in relaxed))
        return config.weight * repulsion(relaxed, self._strength(codes_BL, first_N, second_N), config.reduction)

    def _strength(self, codes_BL: Tensor, first_N: Tensor, second_N: Tensor) -> Tensor:
        if self.strength is None or len(first_N) == 0:
            return torch.ones(len(first_N), device=codes_BL.device)
        load = pattern_load if self.config.load == "pattern" else bucket_load
        strength_N: Tensor = self.strength(load(codes_BL, first_N, second_N))
        return strength_N

    def diagnostics(self) -> dict[str, float]:
        """By overlap depth of the last batch: pairs, the share that is exempt, and the share with a positive hinge."""
        if self._last is None:
            return {}
        active_N = (self._last.hinge_N > 0) & ~self._last.exempt_N
        values: dict[str, float] = {}
        for depth in torch.unique(self._last.depth_N).tolist():
            here_N = self._last.depth_N == depth
            values[f"overlap_{depth}_pairs"] = float(here_N.sum())
            values[f"overlap_{depth}_exempt"] = float(self._last.exempt_N[here_N].float().mean())
            values[f"overlap_{depth}_repelled"] = float(active_N[here_N].float().mean())
        return values


class RelaxedHinges(NamedTuple):
    """hinge_N: max(0, m - d). exempt_N: bool, g of the equation. depth_N: o, levels shared, from 1."""

    hinge_N: Tensor
    exempt_N: Tensor
    depth_N: Tensor


def relax(cosine_N: Tensor, similarity_N: Tensor, depth_N: Tensor, config: OverlapRepulsion) -> RelaxedHinges:
    """Stage one: the hinge of d = 1 - cosine at the depth's margin; exempt where similarity reaches the depth's eta.

    similarity_N: the cosine that decides on exemption, without gradient; of the latents or of the inputs.
    """
    depths = range(1, max(len(config.thresholds), len(config.margins)) + 1)
    place_N = depth_N.clamp(max=len(depths)) - 1
    margin_N = cosine_N.new_tensor([at_depth(config.margins, depth) for depth in depths])[place_N]
    hinge_N = torch.relu(margin_N - (1 - cosine_N))
    if not config.relax:
        return RelaxedHinges(hinge_N, torch.zeros_like(depth_N, dtype=torch.bool), depth_N)
    threshold_N = cosine_N.new_tensor([at_depth(config.thresholds, depth) for depth in depths])[place_N]
    return RelaxedHinges(hinge_N, similarity_N >= threshold_N, depth_N)


def repulsion(relaxed: RelaxedHinges, strength_N: Tensor, reduction: str) -> Tensor:
    """sum a (1 - g) max(0, m - d): `sum` counts each pair in both orders, `mean` divides by the pairs with g = 0."""
    total = torch.where(relaxed.exempt_N, 0, strength_N * relaxed.hinge_N).sum()
    return 2 * total if reduction == "sum" else total / ((~relaxed.exempt_N).sum() + EPSILON)


def _cosines(vectors_BV: Tensor, first_N: Tensor, second_N: Tensor) -> Tensor:
    unit_BV = unit(vectors_BV)
    return (unit_BV @ unit_BV.T)[first_N, second_N]


PERCENTILE = 0.95
STEPS = 100


def pattern_load(codes_BL: Tensor, first_N: Tensor, second_N: Tensor) -> Tensor:
    """int64 [N]: how many of the batch's pairs agree in exactly the same levels; both orders count, as in the paper."""
    agree_NL = codes_BL[first_N] == codes_BL[second_N]
    bits_L = 1 << torch.arange(codes_BL.shape[1], device=codes_BL.device)
    _, pattern_N, pairs = torch.unique((agree_NL * bits_L).sum(dim=1), return_inverse=True, return_counts=True)
    return 2 * pairs[pattern_N]


def bucket_load(codes_BL: Tensor, first_N: Tensor, second_N: Tensor) -> Tensor:
    """int64 [N]: how many items of the batch have the pair's longest common prefix; 0 where the first codes differ."""
    agree_NL = codes_BL[first_N] == codes_BL[second_N]
    prefix_N = agree_NL.long().cumprod(dim=1).sum(dim=1)
    items_B1L = [torch.zeros_like(codes_BL[:, :1])]
    for length in range(1, codes_BL.shape[1] + 1):
        _, prefix_B, items = torch.unique(codes_BL[:, :length], dim=0, return_inverse=True, return_counts=True)
        items_B1L.append(items[prefix_B, None])
    return torch.cat(items_B1L, dim=1)[first_N, prefix_N]


class LoadStrength(nn.Module):
    """Stage two, load-adaptive strengthening: a = f_min + (f_max - f_min) (min(c, d) / d)^alpha for load c.

    The paper gives no function, only that it is bounded and grows. d is `load_saturation`, or the 95th percentile of c,
    averaged over the first hundred steps with a pair (before that, over the steps so far). d is a buffer, so that a
    resumed training keeps it.
    """

    saturation: Tensor
    steps: Tensor

    def __init__(self, config: OverlapRepulsion) -> None:
        super().__init__()
        self.config = config
        given = config.load_saturation
        self.register_buffer("saturation", torch.tensor(float(given or 0), dtype=torch.float64))
        self.register_buffer("steps", torch.tensor(0 if given is None else STEPS))

    def forward(self, load_N: Tensor) -> Tensor:
        """float32 strengths [N >= 1] in [f_min, f_max]; in training it also averages d."""
        if self.training and self.steps < STEPS:
            self._average_saturation(load_N)
        config = self.config
        saturation = self.saturation.clamp_min(1)
        share_N = load_N.clamp(max=saturation) / saturation
        return (config.load_min + (config.load_max - config.load_min) * share_N**config.load_power).float()

    def _average_saturation(self, load_N: Tensor) -> None:
        percentile = torch.kthvalue(load_N, math.ceil(PERCENTILE * len(load_N))).values
        self.steps += 1
        self.saturation += (percentile - self.saturation) / self.steps


def valid_pairs(rows_B: Tensor, partners: int | None) -> Tensor:
    """QuaSID's conflict-aware valid pair mask (CVPM, arXiv 2603.00632): M = M_i2i M_item, bool [B, B].

    False for an item and its partner, and for two places with the same item (so also on the diagonal).
    """
    valid_BB = rows_B[:, None] != rows_B
    if partners is not None:
        anchors_P = torch.arange(partners, device=rows_B.device)
        valid_BB[anchors_P, anchors_P + partners] = False
        valid_BB[anchors_P + partners, anchors_P] = False
    return valid_BB


def repelled_once(batch: ItemBatch, mask_valid: bool) -> Tensor:
    """bool [B, B], True for i < j that may be repelled: valid pairs with `mask_valid`, else all pairs."""
    rows_B = batch.rows_B
    if mask_valid:
        return valid_pairs(rows_B, batch.partners).triu(diagonal=1)
    return torch.ones(len(rows_B), len(rows_B), dtype=torch.bool, device=rows_B.device).triu(diagonal=1)


def shared_levels(codes_BL: Tensor) -> Tensor:
    """uint8 [B, B]: in how many levels two items have the same code: L minus their Hamming distance."""
    codes_LB = codes_BL.T.to(torch.int32).contiguous()
    shared_BB = torch.zeros(len(codes_BL), len(codes_BL), dtype=torch.uint8, device=codes_BL.device)
    for codes_B in codes_LB:
        shared_BB += codes_B[:, None] == codes_B
    return shared_BB
