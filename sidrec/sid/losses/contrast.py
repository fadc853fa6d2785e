"""Contrast of an item with its partner (the dual-tower term of QuaSID, arXiv 2603.00632).

Shapes as in `sidrec.sid.networks.network`; A items of the batch whose partner is known.
"""

import torch
from torch import Tensor

from sidrec.config.sid_losses import Contrast
from sidrec.sid.losses.info_nce import info_nce, mean_or_zero, same_item
from sidrec.sid.losses.loss import Need, SidLoss
from sidrec.sid.networks.network import Coded, ItemBatch, Network


class ContrastLoss(SidLoss):
    """Draws an item to its partner and away from the other items' partners, from item to partner only.

    Items without a known partner take no part, neither as anchors nor, in the place of their partners, as negatives.
    """

    needs = frozenset[Need]({"pairs"})

    def __init__(self, config: Contrast) -> None:
        super().__init__()
        self.config = config

    def forward(self, coded: Coded, batch: ItemBatch, network: Network) -> Tensor:
        """weight / A sum_m InfoNCE_m; partners of the same item's other places in the batch are no negatives."""
        assert batch.partners is not None, "a loss that needs pairs gets them"
        latent_BD = coded.latent_BD if self.config.on == "latent" else coded.straight_through()
        anchors_A = torch.arange(batch.partners, device=latent_BD.device)
        if batch.has_partner_P is not None:
            anchors_A = anchors_A[batch.has_partner_P]
        targets_A = anchors_A + batch.partners
        excluded_AA = same_item(batch.rows_B[anchors_A])
        if self.config.mask_targets:
            excluded_AA |= same_item(batch.rows_B[targets_A])
        loss_A = info_nce(latent_BD[anchors_A], latent_BD[targets_A], self.config.temperature, excluded_AA)
        return self.config.weight * mean_or_zero(loss_A)
