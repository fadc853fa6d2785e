"""Losses that draw items together: to a partner, to their behaviour vector, to the codes of a group.

Shapes as in `sidrec.sid.networks.network`; A items of the batch that take part, G groups of codewords.
"""

from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from sidrec.config.learner_parts import AlignmentController, BehaviorAlignment, Collaborative, Contrast, Diversity
from sidrec.schema import ContractError
from sidrec.sid.losses.loss import LossInput, SidLoss, info_nce, known_width, mean_or_zero, own_cross_entropy, same_item
from sidrec.sid.networks.network import Coded, ItemBatch, Network


class ContrastLoss(SidLoss):
    """Contrast of co-occurring items: the dual-tower term of QuaSID (arXiv 2603.00632), also of AdaSID and DAS.

    L = weight / A sum_m -log( exp(cos(z_m, z'_m) / tau) / sum_n exp(cos(z_m, z'_n) / tau) )

    z_m [D] is the latent of item m (or its quantised latent, `on: quantized`), z'_m that of its partner. If item
    m occurs again in the batch, the partner there is not a negative. From item to partner only; items without a known
    partner are neither anchors nor negatives. Needs item pairs; items that are used together then share codes.
    """

    inputs = frozenset[LossInput]({"pairs"})

    def __init__(self, config: Contrast) -> None:
        super().__init__()
        self.config = config

    def forward(self, coded: Coded, batch: ItemBatch, network: Network) -> Tensor:
        assert batch.partners is not None, "the batch holds pairs for a loss whose inputs name them"
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


class CollaborativeLoss(SidLoss):
    """Collaborative signal of LETTER (arXiv 2405.07314): quantised latents identify their item's behaviour vector.

    L = weight / A sum_m ( logsumexp_n(zq_m . W b_n) - zq_m . W b_m )

    zq_m [D] is the quantised latent with straight-through gradient, b_m [E] the behaviour vector. Inner products are
    neither normalised nor divided by a temperature, as in the released code. W is the identity for E = D, as in LETTER,
    else a learned linear map. Items without a behaviour vector are neither anchors nor negatives; an item twice in the
    batch is not a negative of itself.
    """

    inputs = frozenset[LossInput]({"behavior"})

    def __init__(self, config: Collaborative, latent_width: int, behavior_width: int) -> None:
        super().__init__()
        self.config = config
        same = latent_width == behavior_width
        self.map: nn.Module = nn.Identity() if same else nn.Linear(behavior_width, latent_width, bias=False)

    @classmethod
    def build(cls, config: Collaborative, network: Network, behavior_width: int | None) -> Self:
        return cls(config, network.latent_width, known_width(behavior_width, config.kind))

    def forward(self, coded: Coded, batch: ItemBatch, network: Network) -> Tensor:
        assert batch.behavior_BE is not None, "the batch holds behaviour vectors for a loss whose inputs name them"
        known_B = (batch.behavior_BE != 0).any(dim=1)
        logit_AA = coded.straight_through()[known_B] @ self.map(batch.behavior_BE[known_B]).T
        loss_A = own_cross_entropy(logit_AA, same_item(batch.rows_B[known_B]))
        return self.config.weight * mean_or_zero(loss_A)


class BehaviorAlignmentLoss(SidLoss):
    """Alignment of content with behaviour (ADC-SID, arXiv 2510.25622, eq. 18-21; DAS, arXiv 2508.10584).

    L = weight / A sum_m w_m InfoNCE(z_m -> W b_m), with cosines and a temperature

    z_m [D] is the latent (or the quantised latent, `on: quantized`), b_m [E] the behaviour vector, W a learned linear
    map to width D, w_m the controller's `alignment_strength`, 1 without a controller. Unlike the collaborative loss it
    normalises, and can weigh items with little behaviour less. Items without a behaviour vector are
    neither anchors nor negatives; an item twice in the batch is not a negative of itself.
    """

    inputs = frozenset[LossInput]({"behavior"})

    def __init__(self, config: BehaviorAlignment, latent_width: int, behavior_width: int) -> None:
        super().__init__()
        self.config = config
        self.clip_quantile = None if config.controller is None else config.controller.clip_quantile
        self.map = nn.Linear(behavior_width, latent_width, bias=False)

    @classmethod
    def build(cls, config: BehaviorAlignment, network: Network, behavior_width: int | None) -> Self:
        return cls(config, network.latent_width, known_width(behavior_width, config.kind))

    def forward(self, coded: Coded, batch: ItemBatch, network: Network) -> Tensor:
        assert batch.behavior_BE is not None, "the batch holds behaviour vectors for a loss whose inputs name them"
        known_B = (batch.behavior_BE != 0).any(dim=1)
        latent_BD = coded.latent_BD if self.config.on == "latent" else coded.straight_through()
        behavior_AD = self.map(batch.behavior_BE[known_B])
        excluded_AA = same_item(batch.rows_B[known_B])
        loss_A = info_nce(latent_BD[known_B], behavior_AD, self.config.temperature, excluded_AA)
        if self.config.controller is not None:
            assert batch.scaled_norm_B is not None, "norms come with the behaviour vectors"
            loss_A = loss_A * alignment_strength(batch.scaled_norm_B[known_B], self.config.controller)
        return self.config.weight * mean_or_zero(loss_A)


def alignment_strength(scaled_norm_B: Tensor, controller: AlignmentController) -> Tensor:
    """Per-item weight of an alignment with behaviour [B] (ADC-SID, arXiv 2510.25622, eq. 17).

    w = sigmoid(alpha n - beta) / sigmoid(alpha - beta): 1 at the largest norm, n = 1, and near 0 at the smallest.
    scaled_norm_B: n, norms of behaviour vectors scaled to [0, 1] over all items; 0 for items without one.
    """
    greatest = torch.sigmoid(scaled_norm_B.new_tensor(controller.alpha - controller.beta))
    return torch.sigmoid(controller.alpha * scaled_norm_B - controller.beta) / greatest


class DiversityLoss(SidLoss):
    """Diversity of codes (LETTER, arXiv 2405.07314): a codeword is drawn to others of its group.

    L = weight / L sum_l mean_i CE(logits = q_il . codewords_l without the own code, target = another code of the group)

    q_il [D] is the codeword that item i took at level l. Targets are drawn with torch's generator. Codewords that lie
    close together are used more evenly. Groups of equal size, int64 [K] per level, are buffers; every epoch clusters
    the codewords anew from the groups of the epoch before. Needs codewords that learn by gradient.
    """

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

    @classmethod
    def build(cls, config: Diversity, network: Network, behavior_width: int | None) -> Self:
        return cls(config, network)

    def begin_epoch(self, network: Network) -> None:
        """Clusters every level's codewords into groups of equal size."""
        for level, codewords_KD in enumerate(network.codewords):
            group_K = self.get_buffer(f"group_{level}")
            found_K = balanced_groups(codewords_KD.detach().cpu().numpy(), group_K.cpu().numpy(), self.config.groups)
            group_K.copy_(torch.from_numpy(found_K))

    def forward(self, coded: Coded, batch: ItemBatch, network: Network) -> Tensor:
        terms = [
            diversity(codes_B, draw_other(codes_B, self.get_buffer(f"group_{level}")), codewords_KD)
            for level, (codes_B, codewords_KD) in enumerate(zip(coded.codes_BL.T, network.codewords, strict=True))
        ]
        return self.config.weight * torch.stack(terms).mean()


def diversity(codes_B: Tensor, target_B: Tensor, codewords_KD: Tensor) -> Tensor:
    """Mean cross-entropy of quantised vector . codewords, the own code left out, against the target code; a scalar."""
    logit_BK = codewords_KD[codes_B] @ codewords_KD.T
    own_BK = torch.zeros_like(logit_BK, dtype=torch.bool).scatter_(1, codes_B[:, None], True)
    return torch.nn.functional.cross_entropy(logit_BK.masked_fill(own_BK, -torch.inf), target_B)


def draw_other(codes_B: Tensor, group_K: Tensor) -> Tensor:
    """int64 [B]: for every code another code of its group, each equally likely. Groups have at least two codes."""
    order_K = torch.argsort(group_K, stable=True)
    size_G = torch.bincount(group_K)
    start_K = (size_G.cumsum(0) - size_G)[group_K]
    rank_K = torch.argsort(order_K) - start_K
    size_B = size_G[group_K[codes_B]]
    step_B = 1 + torch.randint(2**62, codes_B.shape, device=codes_B.device) % (size_B - 1)
    return order_K[start_K[codes_B] + (rank_K[codes_B] + step_B) % size_B]


ROUNDS = 10


def balanced_groups(codewords_KD: np.ndarray, group_K: np.ndarray, groups: int) -> np.ndarray:
    """int64 [K]: the group of every codeword; group sizes differ by at most one, squared distances sum to little.

    Balanced k-means (Malinen and Fränti, 2014) replaces LETTER's constrained k-means. scipy's assignment solver takes
    a tenth of a second for a thousand codewords, and its effort grows with the cube of K; the package
    k-means-constrained would install OR-Tools for the same.

    group_K: the groups to start from, so that they follow slowly moving codewords; every group has a member, and -1
        marks a codeword without a group.
    """
    from scipy.optimize import linear_sum_assignment  # takes long to import

    slots_K = np.arange(len(codewords_KD)) % groups
    codewords_KD = codewords_KD.astype(np.float64)
    for _ in range(ROUNDS):
        centres_GD = np.stack([codewords_KD[group_K == group].mean(axis=0) for group in range(groups)])
        near_KG = codewords_KD @ centres_GD.T  # with fixed sizes, squared lengths sum to the same in any assignment
        next_K = slots_K[linear_sum_assignment(near_KG[:, slots_K], maximize=True)[1]]
        if np.array_equal(next_K, group_K):
            break
        group_K = next_K
    return group_K
