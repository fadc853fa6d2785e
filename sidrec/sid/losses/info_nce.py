"""InfoNCE and its relatives: tell an anchor's own target from the other targets of the batch.

Shapes: A anchors and their targets, D width.
"""

import torch
from torch import Tensor

from sidrec.sid.losses.cosine import unit


def info_nce(anchor_AD: Tensor, target_AD: Tensor, temperature: float, excluded_AA: Tensor | None = None) -> Tensor:
    """-log of the softmax of cos(anchor m, target n) / temperature at n = m, per anchor [A]. Zero rows have cosine 0.

    excluded_AA: bool, True where target n is no negative of anchor m; what it says of n = m does not matter.
    """
    return own_cross_entropy(unit(anchor_AD) @ unit(target_AD).T / temperature, excluded_AA)


def own_cross_entropy(logit_AA: Tensor, excluded_AA: Tensor | None = None) -> Tensor:
    """logsumexp_n logit[m, n] - logit[m, m] per row m [A], over n = m and all n that are not excluded."""
    own_A = logit_AA.diagonal()
    if excluded_AA is not None:
        diagonal_AA = torch.eye(len(logit_AA), dtype=torch.bool, device=logit_AA.device)
        logit_AA = logit_AA.masked_fill(excluded_AA & ~diagonal_AA, -torch.inf)
    return torch.logsumexp(logit_AA, dim=1) - own_A


def same_item(rows_A: Tensor) -> Tensor:
    """bool [A, A]: the same catalogue item, which is no negative of itself."""
    return rows_A[:, None] == rows_A


def mean_or_zero(loss_A: Tensor) -> Tensor:
    """The mean, or 0 that still belongs to the graph when nothing takes part: every parameter keeps a gradient."""
    return loss_A.sum() / max(len(loss_A), 1)
