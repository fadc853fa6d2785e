"""Collaborative signal of LETTER (arXiv 2405.07314): quantised latents tell whose behaviour vector is whose.

Shapes as in `sidrec.sid.networks.network`; A items of the batch that have a behaviour vector.
"""

from torch import Tensor, nn

from sidrec.config.sid_losses import Collaborative
from sidrec.sid.losses.info_nce import mean_or_zero, own_cross_entropy, same_item
from sidrec.sid.losses.loss import Need, SidLoss
from sidrec.sid.networks.network import Coded, ItemBatch, Network


class CollaborativeLoss(SidLoss):
    """Cross-entropy of inner products within the batch, neither normalised nor divided by a temperature, as released.

    LETTER's behaviour vectors are as wide as its latents. Where they are not, a learned linear map brings them there.
    Items without a behaviour vector take no part, neither as anchors nor as negatives.
    """

    needs = frozenset[Need]({"behavior"})

    def __init__(self, config: Collaborative, latent_width: int, behavior_width: int) -> None:
        super().__init__()
        self.config = config
        same = latent_width == behavior_width
        self.map: nn.Module = nn.Identity() if same else nn.Linear(behavior_width, latent_width, bias=False)

    def forward(self, coded: Coded, batch: ItemBatch, network: Network) -> Tensor:
        """weight / A sum_m cross-entropy_m; an item twice in the batch is no negative of itself."""
        assert batch.behavior_BE is not None, "a loss that needs behaviour vectors gets them"
        known_B = (batch.behavior_BE != 0).any(dim=1)
        logit_AA = coded.straight_through()[known_B] @ self.map(batch.behavior_BE[known_B]).T
        loss_A = own_cross_entropy(logit_AA, same_item(batch.rows_B[known_B]))
        return self.config.weight * mean_or_zero(loss_A)
