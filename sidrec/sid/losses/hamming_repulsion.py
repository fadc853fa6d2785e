"""Hamming-guided margin repulsion (HaMR) of QuaSID (arXiv 2603.00632), for any network.

Shapes as in `sidrec.sid.networks.network`; N pairs of a group.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from sidrec.config.sid_losses import HammingRepulsion
from sidrec.sid.losses.cosine import unit
from sidrec.sid.losses.loss import SidLoss
from sidrec.sid.losses.valid_pairs import repelled_once, shared_levels
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
