"""From a learner's section to the losses of its training: its own and those added, each with its schedule.

To add a loss: its section in `sidrec.config.learner_parts`, its `SidLoss` in `sidrec.sid.losses`, and a line in LOSSES.
"""

from collections.abc import Sequence
from typing import NamedTuple

from sidrec.config.learner_parts import (
    BehaviorAlignment,
    Collaborative,
    Contrast,
    Diversity,
    HammingRepulsion,
    OverlapRepulsion,
    SidLossConfig,
    WeightSchedule,
)
from sidrec.config.learners import GradientLearnerConfig
from sidrec.schema import ContractError
from sidrec.sid.losses.attraction import BehaviorAlignmentLoss, CollaborativeLoss, ContrastLoss, DiversityLoss
from sidrec.sid.losses.loss import LossInput, SidLoss
from sidrec.sid.losses.repulsion import HammingRepulsionLoss, OverlapRepulsionLoss
from sidrec.sid.networks.network import Network
from sidrec.sid.tokenizer import SideInformation

LOSSES: dict[type, type[SidLoss]] = {
    Contrast: ContrastLoss,
    HammingRepulsion: HammingRepulsionLoss,
    OverlapRepulsion: OverlapRepulsionLoss,
    Diversity: DiversityLoss,
    Collaborative: CollaborativeLoss,
    BehaviorAlignment: BehaviorAlignmentLoss,
}
SOURCE = "`sidrec prep behavior` makes them"


class ScheduledLoss(NamedTuple):
    """A loss, the name under which the journal reports its mean, and how its weight changes."""

    name: str
    loss: SidLoss
    schedule: WeightSchedule | None


def scheduled_losses(
    config: GradientLearnerConfig, network: Network, side: SideInformation, items: int
) -> tuple[ScheduledLoss, ...]:
    """The learner's own losses and those added, each under its own name.

    items: N. Raises ContractError when a loss needs pairs or behaviour vectors that are missing.
    """
    behavior_width = None if side.behavior_NE is None else side.behavior_NE.shape[-1]
    losses: dict[str, ScheduledLoss] = {}
    for section in (*config.losses, *config.further_losses):
        again = sum(name.split(":")[0] == section.kind for name in losses)
        name = f"{section.kind}:{again + 1}" if again else section.kind
        _check_inputs(f"learner {config.kind}, loss {name}", loss_inputs(section), side, items)
        losses[name] = ScheduledLoss(name, build_loss(section, network, behavior_width), section.schedule)
    return tuple(losses.values())


def loss_inputs(*sections: SidLossConfig) -> frozenset[LossInput]:
    """What batches must hold for the losses of these sections. Needs no network."""
    return frozenset[LossInput]().union(*(LOSSES[type(section)].inputs for section in sections))


def build_loss(config: SidLossConfig, network: Network, behavior_width: int | None) -> SidLoss:
    """The loss of this section, for `network`.

    behavior_width: E, None without behaviour vectors. Raises ContractError when the loss does not work with the
    network's codebooks, or needs behaviour vectors that are missing.
    """
    return LOSSES[type(config)].build(config, network, behavior_width)


def clip_quantile(losses: Sequence[ScheduledLoss], kind: str) -> float:
    """The outer quantile at which behaviour norms in batches are clipped; 0 without a loss that asks for one.

    kind: of the learner, for the message. Raises ContractError when two losses ask for different ones.
    """
    quantiles = sorted({one.loss.clip_quantile for one in losses if one.loss.clip_quantile is not None})
    if len(quantiles) > 1:
        raise ContractError(f"learner {kind}, losses", "one controller.clip_quantile for all losses", quantiles)
    return quantiles[0] if quantiles else 0.0


def _check_inputs(where: str, inputs: frozenset[LossInput], side: SideInformation, items: int) -> None:
    if "pairs" in inputs and (side.pairs_P2 is None or not len(side.pairs_P2)):
        raise ContractError(where, f"pairs of items ({SOURCE})", "none")
    if "behavior" not in inputs:
        return
    if side.behavior_NE is None:
        raise ContractError(where, f"behaviour vectors ({SOURCE})", "none")
    if side.behavior_NE.ndim != 2 or len(side.behavior_NE) != items:
        raise ContractError(where, f"behaviour vectors of shape [{items}, width]", side.behavior_NE.shape)
