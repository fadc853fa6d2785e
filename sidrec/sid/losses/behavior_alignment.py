"""Alignment of what an item is with how it is used (ADC-SID, arXiv 2510.25622, eq. 18-21; DAS, arXiv 2508.10584).

Shapes as in `sidrec.sid.networks.network`; A items of the batch that have a behaviour vector.
"""

from torch import Tensor, nn

from sidrec.config.sid_losses import BehaviorAlignment
from sidrec.sid.losses.controller import alignment_strength
from sidrec.sid.losses.info_nce import info_nce, mean_or_zero, same_item
from sidrec.sid.losses.loss import Need, SidLoss
from sidrec.sid.networks.network import Coded, ItemBatch, Network


class BehaviorAlignmentLoss(SidLoss):
    """InfoNCE from an item's latent to its behaviour vector, which a learned linear map brings to the latent's width.

    Items without a behaviour vector take no part, neither as anchors nor as negatives.
    """

    needs = frozenset[Need]({"behavior"})

    def __init__(self, config: BehaviorAlignment, latent_width: int, behavior_width: int) -> None:
        super().__init__()
        self.config = config
        self.map = nn.Linear(behavior_width, latent_width, bias=False)

    def forward(self, coded: Coded, batch: ItemBatch, network: Network) -> Tensor:
        """weight / A sum_m w_m InfoNCE_m; an item twice in the batch is no negative of itself."""
        assert batch.behavior_BE is not None, "a loss that needs behaviour vectors gets them"
        known_B = (batch.behavior_BE != 0).any(dim=1)
        latent_BD = coded.latent_BD if self.config.on == "latent" else coded.straight_through()
        behavior_AD = self.map(batch.behavior_BE[known_B])
        excluded_AA = same_item(batch.rows_B[known_B])
        loss_A = info_nce(latent_BD[known_B], behavior_AD, self.config.temperature, excluded_AA)
        if self.config.controller is not None:
            assert batch.scaled_norm_B is not None, "norms come with the behaviour vectors"
            loss_A = loss_A * alignment_strength(batch.scaled_norm_B[known_B], self.config.controller)
        return self.config.weight * mean_or_zero(loss_A)
