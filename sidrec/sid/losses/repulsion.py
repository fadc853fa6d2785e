"""Hamming-guided margin repulsion (HaMR) of QuaSID (arXiv 2603.00632), for any network.

Shapes as in `sidrec.sid.networks.network`; N pairs of a group.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sidrec.config.sid_losses import HammingRepulsion, OverlapRepulsion, at_depth
from sidrec.sid.losses.loss import SidLoss, unit
from sidrec.sid.networks.network import Coded, ItemBatch, Network

EPSILON = 1e-8  # keeps the mean of an empty group at 0


class Conflicts(NamedTuple):
    """Cosine distances of pairs [N]: full with equal SIDs, part that differ in 1 to R levels."""

    full: Tensor
    part: Tensor


def conflicts(latent_BD: Tensor, codes_BL: Tensor, pairs_BB: Tensor, radius: int) -> Conflicts:
    """The distances 1 - cos of the pairs that conflict. Only they have a gradient, codes and masks have none."""
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


class HammingRepulsionLoss(SidLoss):
    """lambda_full mean max(0, m_full - D) over full conflicts + lambda_part mean max(0, m_part - D) over partial ones.

    Repels latents before quantisation. Without pairs in the batch all different items may conflict.
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

    def seen(self) -> dict[str, float]:
        """Pairs of the last batch in either group."""
        full, part = self._counts
        return {"full_conflicts": full, "partial_conflicts": part}


# Repulsion of dissimilar items that share codes: stages one (SeAR) and two (LAS) of AdaSID (arXiv 2604.23522).
#
# Shapes as in `sidrec.sid.networks.network`; N pairs of a batch that share a code, each once.


OVERLAP_EPSILON = 1e-8  # keeps the mean over no pair at 0


class Relaxed(NamedTuple):
    """hinge_N: max(0, m - d). exempt_N: bool, similar enough to share codes. depth_N: levels shared, from 1."""

    hinge_N: Tensor
    exempt_N: Tensor
    depth_N: Tensor


def relax(cosine_N: Tensor, similarity_N: Tensor, depth_N: Tensor, config: OverlapRepulsion) -> Relaxed:
    """Stage one: d = 1 - cosine against the margin of the depth; exempt from similarity eta of the depth on.

    similarity_N: the cosine that decides on exemption, which has no gradient; the latents' or the inputs'.
    """
    depths = range(1, max(len(config.thresholds), len(config.margins)) + 1)
    place_N = depth_N.clamp(max=len(depths)) - 1
    margin_N = cosine_N.new_tensor([at_depth(config.margins, depth) for depth in depths])[place_N]
    hinge_N = torch.relu(margin_N - (1 - cosine_N))
    if not config.relax:
        return Relaxed(hinge_N, torch.zeros_like(depth_N, dtype=torch.bool), depth_N)
    threshold_N = cosine_N.new_tensor([at_depth(config.thresholds, depth) for depth in depths])[place_N]
    return Relaxed(hinge_N, similarity_N >= threshold_N, depth_N)


def repulsion(relaxed: Relaxed, strength_N: Tensor, reduction: str) -> Tensor:
    """sum a (1 - g) max(0, m - d) over both orders of every pair, or that over the number of pairs with g = 0."""
    total = torch.where(relaxed.exempt_N, 0, strength_N * relaxed.hinge_N).sum()
    return 2 * total if reduction == "sum" else total / ((~relaxed.exempt_N).sum() + OVERLAP_EPSILON)


class OverlapRepulsionLoss(SidLoss):
    """Repels latents before quantisation; the gradient goes through the distance alone.

    Without pairs in the batch all different items that share a code may be repelled.
    """

    def __init__(self, config: OverlapRepulsion) -> None:
        super().__init__()
        self.config = config
        self.strength = None if config.load == "none" else LoadStrength(config)
        self._last: Relaxed | None = None

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
        self._last = Relaxed(*(part.detach() for part in relaxed))
        return config.weight * repulsion(relaxed, self._strength(codes_BL, first_N, second_N), config.reduction)

    def _strength(self, codes_BL: Tensor, first_N: Tensor, second_N: Tensor) -> Tensor:
        if self.strength is None or len(first_N) == 0:
            return torch.ones(len(first_N), device=codes_BL.device)
        load = pattern_load if self.config.load == "pattern" else bucket_load
        strength_N: Tensor = self.strength(load(codes_BL, first_N, second_N))
        return strength_N

    def seen(self) -> dict[str, float]:
        """Of the last batch, by overlap depth: pairs, the exempt share, and the share repelled by a hinge > 0."""
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


def _cosines(vectors_BV: Tensor, first_N: Tensor, second_N: Tensor) -> Tensor:
    unit_BV = unit(vectors_BV)
    return (unit_BV @ unit_BV.T)[first_N, second_N]


# How loaded an overlap of codes is, and how much stronger its repulsion gets (AdaSID's LAS, arXiv 2604.23522).
#
# Shapes as in `sidrec.sid.networks.network`; N pairs of a batch, each once.


PERCENTILE = 0.95
STEPS = 100


def pattern_load(codes_BL: Tensor, first_N: Tensor, second_N: Tensor) -> Tensor:
    """int64 [N]: how many of the batch's pairs agree in exactly the same levels, either order counted as printed."""
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
    """a = f_min + (f_max - f_min) (min(c, d) / d)^alpha, the ramp from load c to strength.

    d is given, or the 95th percentile of c averaged over the first hundred steps that had a pair; until then over the
    steps so far. It is a buffer, so that a training that goes on knows it.
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
        """float32 strengths [N] of at least one pair, in [f_min, f_max]; in training it also observes the loads."""
        if self.training and self.steps < STEPS:
            self._observe(load_N)
        config = self.config
        saturation = self.saturation.clamp_min(1)
        share_N = load_N.clamp(max=saturation) / saturation
        return (config.load_min + (config.load_max - config.load_min) * share_N**config.load_power).float()

    def _observe(self, load_N: Tensor) -> None:
        percentile = torch.kthvalue(load_N, math.ceil(PERCENTILE * len(load_N))).values
        self.steps += 1
        self.saturation += (percentile - self.saturation) / self.steps


# Pairs of a batch that a repulsion looks at, and how many codes they share.
#
# Shapes as in `sidrec.sid.networks.network`.


def valid_pairs(rows_B: Tensor, partners: int | None) -> Tensor:
    """QuaSID's conflict-aware valid pair mask (CVPM, arXiv 2603.00632): M = M_i2i M_item, bool [B, B].

    False for an item and its own partner, and for places that hold the same item, hence also on the diagonal.
    """
    valid_BB = rows_B[:, None] != rows_B
    if partners is not None:
        anchors_P = torch.arange(partners, device=rows_B.device)
        valid_BB[anchors_P, anchors_P + partners] = False
        valid_BB[anchors_P + partners, anchors_P] = False
    return valid_BB


def repelled_once(batch: ItemBatch, mask_valid: bool) -> Tensor:
    """bool [B, B], True for i < j that may be repelled: the valid pairs, or without the mask all."""
    rows_B = batch.rows_B
    if mask_valid:
        return valid_pairs(rows_B, batch.partners).triu(diagonal=1)
    return torch.ones(len(rows_B), len(rows_B), dtype=torch.bool, device=rows_B.device).triu(diagonal=1)


def shared_levels(codes_BL: Tensor) -> Tensor:
    """uint8 [B, B]: in how many levels two items have the same code, or L less their Hamming distance."""
    codes_LB = codes_BL.T.to(torch.int32).contiguous()
    shared_BB = torch.zeros(len(codes_BL), len(codes_BL), dtype=torch.uint8, device=codes_BL.device)
    for codes_B in codes_LB:
        shared_BB += codes_B[:, None] == codes_B
    return shared_BB
