"""Repulsion of dissimilar items that share codes: stages one (SeAR) and two (LAS) of AdaSID (arXiv 2604.23522).

Shapes as in `sidrec.sid.networks.network`; N pairs of a batch that share a code, each once.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from sidrec.config.sid_losses import OverlapRepulsion, at_depth
from sidrec.sid.losses.cosine import unit
from sidrec.sid.losses.loss import SidLoss
from sidrec.sid.losses.overlap_load import LoadStrength, bucket_load, pattern_load
from sidrec.sid.losses.valid_pairs import repelled_once, shared_levels
from sidrec.sid.networks.network import Coded, ItemBatch, Network

EPSILON = 1e-8  # keeps the mean over no pair at 0


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
    return 2 * total if reduction == "sum" else total / ((~relaxed.exempt_N).sum() + EPSILON)


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
