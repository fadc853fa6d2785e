"""Contrast of an item with its partner (the dual-tower term of QuaSID, arXiv 2603.00632).

Shapes as in `sidrec.sid.networks.network`; A items of the batch whose partner is known.
"""

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from sidrec.config.sid_losses import AlignmentController, BehaviorAlignment, Collaborative, Contrast, Diversity
from sidrec.schema import ContractError
from sidrec.sid.losses.loss import Need, SidLoss, info_nce, mean_or_zero, own_cross_entropy, same_item
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


# Collaborative signal of LETTER (arXiv 2405.07314): quantised latents tell whose behaviour vector is whose.
#
# Shapes as in `sidrec.sid.networks.network`; A items of the batch that have a behaviour vector.


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


# Alignment of what an item is with how it is used (ADC-SID, arXiv 2510.25622, eq. 18-21; DAS, arXiv 2508.10584).
#
# Shapes as in `sidrec.sid.networks.network`; A items of the batch that have a behaviour vector.


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


# How strongly an item is drawn to its behaviour vector (ADC-SID, arXiv 2510.25622, eq. 17). Shapes: B items.


def alignment_strength(scaled_norm_B: Tensor, controller: AlignmentController) -> Tensor:
    """w = sigmoid(alpha n - beta) / sigmoid(alpha - beta) [B]: 1 at the greatest norm, n = 1, and near 0 at the least.

    scaled_norm_B: n, norms of behaviour vectors scaled to [0, 1] over all items; 0 for items without one.
    """
    greatest = torch.sigmoid(scaled_norm_B.new_tensor(controller.alpha - controller.beta))
    return torch.sigmoid(controller.alpha * scaled_norm_B - controller.beta) / greatest


# Diversity of codes (LETTER, arXiv 2405.07314): a codeword is drawn to others of its group.
#
# Shapes as in `sidrec.sid.networks.network`; G groups.


def diversity(codes_B: Tensor, target_B: Tensor, codewords_KD: Tensor) -> Tensor:
    """Mean cross-entropy of quantised vector . codewords, the own code left out, against the target code; a scalar."""
    logit_BK = codewords_KD[codes_B] @ codewords_KD.T
    own_BK = torch.zeros_like(logit_BK, dtype=torch.bool).scatter_(1, codes_B[:, None], True)
    return torch.nn.functional.cross_entropy(logit_BK.masked_fill(own_BK, -torch.inf), target_B)


def draw_other(codes_B: Tensor, group_K: Tensor) -> Tensor:
    """int64 [B]: for every code another of its group, each as likely. Groups have two codes at least."""
    order_K = torch.argsort(group_K, stable=True)
    size_G = torch.bincount(group_K)
    start_K = (size_G.cumsum(0) - size_G)[group_K]
    rank_K = torch.argsort(order_K) - start_K
    size_B = size_G[group_K[codes_B]]
    step_B = 1 + torch.randint(2**62, codes_B.shape, device=codes_B.device) % (size_B - 1)
    return order_K[start_K[codes_B] + (rank_K[codes_B] + step_B) % size_B]


class DiversityLoss(SidLoss):
    """The mean over levels. Groups are buffers, found anew before every epoch from those of the epoch before."""

    def __init__(self, config: Diversity, network: Network) -> None:
        """Raises ContractError when a group would have no second code, or codewords have no gradient."""
        super().__init__()
        self.config = config
        for level, codewords_KD in enumerate(network.codewords):
            size = len(codewords_KD)
            if size < 2 * config.groups:
                expected = f"at most {size // 2}, two codes in every group of the {size} of level {level + 1}"
                raise ContractError("diversity, groups", expected, config.groups)
            if not codewords_KD.requires_grad:
                raise ContractError("diversity", "codewords that learn by gradient", "moving averages")
            group_K = torch.arange(size)
            self.register_buffer(f"group_{level}", group_K.masked_fill(group_K >= config.groups, -1))

    def begin_epoch(self, network: Network) -> None:
        """Clusters every level's codewords into groups of equal size."""
        for level, codewords_KD in enumerate(network.codewords):
            group_K = self.get_buffer(f"group_{level}")
            found_K = balanced_groups(codewords_KD.detach().cpu().numpy(), group_K.cpu().numpy(), self.config.groups)
            group_K.copy_(torch.from_numpy(found_K))

    def forward(self, coded: Coded, batch: ItemBatch, network: Network) -> Tensor:
        """weight / L sum_l; targets are drawn with torch's generator."""
        terms = [
            diversity(codes_B, draw_other(codes_B, self.get_buffer(f"group_{level}")), codewords_KD)
            for level, (codes_B, codewords_KD) in enumerate(zip(coded.codes_BL.T, network.codewords, strict=True))
        ]
        return self.config.weight * torch.stack(terms).mean()


# Codewords in groups of equal size: balanced k-means (Malinen and Fränti, 2014).
#
# LETTER's constrained k-means by means of scipy's assignment solver, which is a tenth of a second for a thousand
# codewords; k-means-constrained would bring OR-Tools along for the same. The effort grows with the cube of K.
#
# Shapes: K codewords, G groups, D width.


ROUNDS = 10


def balanced_groups(codewords_KD: np.ndarray, group_K: np.ndarray, groups: int) -> np.ndarray:
    """int64 [K]: the group of every codeword, sizes differing by at most one, at a low sum of squared distances.

    group_K: the groups to start from, so that they follow slowly moving codewords; every group has a member, and -1 is
    no group yet.
    """
    slots_K = np.arange(len(codewords_KD)) % groups
    codewords_KD = codewords_KD.astype(np.float64)
    for _ in range(ROUNDS):
        centres_GD = np.stack([codewords_KD[group_K == group].mean(axis=0) for group in range(groups)])
        near_KG = codewords_KD @ centres_GD.T  # as sizes are given, squared lengths sum to the same in any assignment
        next_K = slots_K[linear_sum_assignment(near_KG[:, slots_K], maximize=True)[1]]
        if np.array_equal(next_K, group_K):
            break
        group_K = next_K
    return group_K
