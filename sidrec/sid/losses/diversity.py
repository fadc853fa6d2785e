"""Diversity of codes (LETTER, arXiv 2405.07314): a codeword is drawn to others of its group.

Shapes as in `sidrec.sid.networks.network`; G groups.
"""

import torch
from torch import Tensor

from sidrec.config.sid_losses import Diversity
from sidrec.schema import ContractError
from sidrec.sid.losses.balanced_groups import balanced_groups
from sidrec.sid.losses.loss import SidLoss
from sidrec.sid.networks.network import Coded, ItemBatch, Network


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
