"""The contract of the losses that plug into any gradient-trained learner, and the InfoNCE that several of them share.

Shapes as in `sidrec.sid.networks.network`; A anchors and their targets, D width, E behaviour width.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from sidrec.config.learner_parts import WeightSchedule
from sidrec.schema import ContractError
from sidrec.sid.networks.network import Coded, ItemBatch, Network

LossInput = Literal["pairs", "behavior"]


class SidLoss(nn.Module, ABC):
    """One term of a training's loss. Its parameters are trained; its buffers are part of the training's checkpoint.

    inputs: what the batch must hold.
    clip_quantile: the outer quantile at which behaviour norms are clipped; None where the loss does not use norms.
    """

    inputs: ClassVar[frozenset[LossInput]] = frozenset()
    clip_quantile: float | None = None

    @classmethod
    def build(cls, config: Any, network: Network, behavior_width: int | None) -> Self:
        """The loss that `config`, its section of the recipe, describes.

        behavior_width: E, None without behaviour vectors. Raises ContractError when the loss does not work with the
        network's codebooks, or needs behaviour vectors that are missing.
        """
        return cls(config)

    @abstractmethod
    def forward(self, coded: Coded, batch: ItemBatch, network: Network) -> Tensor:
        """The weighted term, a scalar, without the schedule's factor, which the trainer applies."""

    def begin_epoch(self, network: Network) -> None:
        """Called before every epoch, for state that follows the codebooks once per epoch."""

    def diagnostics(self) -> dict[str, float]:
        """Figures about the last step, for the journal."""
        return {}


def known_width(behavior_width: int | None, kind: str) -> int:
    """E. Raises ContractError, naming the kind of loss, when there are no behaviour vectors."""
    if behavior_width is None:
        raise ContractError(f"losses, {kind}", "behaviour vectors of the items", "none")
    return behavior_width


def schedule_factor(schedule: WeightSchedule | None, progress: float) -> float:
    """Factor of a weight at `progress`, the share of all steps done (AdaSID, arXiv 2604.23522, section PAR).

    f = first + (last - first) clip((progress - begin) / (end - begin), 0, 1); 1 without a schedule.
    """
    if schedule is None:
        return 1.0
    span = schedule.end - schedule.begin
    done = min(max((progress - schedule.begin) / span, 0.0), 1.0) if span > 0 else float(progress >= schedule.end)
    return schedule.first + (schedule.last - schedule.first) * done


def info_nce(anchor_AD: Tensor, target_AD: Tensor, temperature: float, excluded_AA: Tensor | None = None) -> Tensor:
    """InfoNCE per anchor m [A]: -log softmax_n( cos(anchor m, target n) / temperature ) at n = m.

    Zero rows have cosine 0. excluded_AA: bool, True where target n is not a negative of anchor m; its diagonal is
    ignored.
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
    """bool [A, A]: True where two places hold the same item. An item is not its own negative."""
    return rows_A[:, None] == rows_A


def mean_or_zero(loss_A: Tensor) -> Tensor:
    """The mean; without anchors 0, still in the autograd graph, so that every parameter gets a gradient."""
    return loss_A.sum() / max(len(loss_A), 1)


def unit(vectors_BD: Tensor) -> Tensor:
    """Rows [B, D] at length one; a zero row stays zero and gets no gradient, as it has no direction."""
    length_B1 = torch.linalg.vector_norm(vectors_BD, dim=1, keepdim=True)
    return vectors_BD / length_B1.masked_fill(length_B1 == 0, torch.inf)
