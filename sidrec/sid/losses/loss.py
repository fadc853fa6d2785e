"""The contract of the losses that plug into any gradient-trained learner.

Shapes as in `sidrec.sid.networks.network`.
"""

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from sidrec.config.sid_losses import Schedule
from sidrec.sid.networks.network import Coded, ItemBatch, Network

Need = Literal["pairs", "behavior"]


class SidLoss(nn.Module, ABC):
    """One term. `needs`: what the batch must carry. Buffers are part of a training's checkpoint."""

    needs: ClassVar[frozenset[Need]] = frozenset()

    @abstractmethod
    def forward(self, coded: Coded, batch: ItemBatch, network: Network) -> Tensor:
        """The weighted term, a scalar; without the schedule's factor, which the training applies."""

    def begin_epoch(self, network: Network) -> None:
        """Called before every epoch, for what follows the codebooks at a distance."""

    def seen(self) -> dict[str, float]:
        """What is worth logging of the last step."""
        return {}


def schedule_factor(schedule: Schedule | None, progress: float) -> float:
    """Factor of a weight at `progress`, the share of all steps done (AdaSID, arXiv 2604.23522, section PAR)."""
    if schedule is None:
        return 1.0
    span = schedule.end - schedule.begin
    done = min(max((progress - schedule.begin) / span, 0.0), 1.0) if span > 0 else float(progress >= schedule.end)
    return schedule.first + (schedule.last - schedule.first) * done


# InfoNCE and its relatives: tell an anchor's own target from the other targets of the batch.
#
# Shapes: A anchors and their targets, D width.


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


# Unit vectors, the ground of every cosine here. Shapes: B rows, D width.


def unit(vectors_BD: Tensor) -> Tensor:
    """Rows at length one; a zero row stays zero and gets no gradient, as it has no direction."""
    length_B1 = torch.linalg.vector_norm(vectors_BD, dim=1, keepdim=True)
    return vectors_BD / length_B1.masked_fill(length_B1 == 0, torch.inf)
