"""The losses of a learner, ready for its training: its own and those added, each with its schedule."""

from dataclasses import dataclass
from typing import NamedTuple

from sidrec.config.learners import (
    AdcSidConfig,
    GradientLearnerConfig,
    Learner,
    MmRqVaeConfig,
    OpqConfig,
    RandomCodesConfig,
    ResidualKMeansConfig,
)
from sidrec.config.sid_losses import (
    BehaviorAlignment,
    Collaborative,
    Contrast,
    Diversity,
    HammingRepulsion,
    OverlapRepulsion,
    Schedule,
    SidLossConfig,
)
from sidrec.schema import BEHAVIOR, ContractError
from sidrec.sid.losses.attraction import BehaviorAlignmentLoss, CollaborativeLoss, ContrastLoss, DiversityLoss
from sidrec.sid.losses.loss import Need, SidLoss
from sidrec.sid.losses.repulsion import HammingRepulsionLoss, OverlapRepulsionLoss
from sidrec.sid.networks.network import Network
from sidrec.sid.tokenizer import SideInformation

MAKE = "`python -m data_prep.behavior` makes them"


class ScheduledLoss(NamedTuple):
    """A loss, the name its mean is reported under, and how its weight changes."""

    name: str
    loss: SidLoss
    schedule: Schedule | None


def scheduled_losses(
    config: GradientLearnerConfig, network: Network, side: SideInformation, items: int
) -> tuple[ScheduledLoss, ...]:
    """The learner's own losses and those added, each under its own name.

    items: N. Raises ContractError for pairs or behaviour vectors that a loss needs and that are not there.
    """
    behavior_width = None if side.behavior_NE is None else side.behavior_NE.shape[-1]
    losses: dict[str, ScheduledLoss] = {}
    for section in (*config.losses, *config.further_losses):
        again = sum(name.split(":")[0] == section.kind for name in losses)
        name = f"{section.kind}:{again + 1}" if again else section.kind
        _check_needs(f"learner {config.kind}, loss {name}", loss_needs(section), side, items)
        losses[name] = ScheduledLoss(name, build_loss(section, network, behavior_width), section.schedule)
    return tuple(losses.values())


def _check_needs(where: str, needs: frozenset[Need], side: SideInformation, items: int) -> None:
    if "pairs" in needs and (side.pairs_P2 is None or not len(side.pairs_P2)):
        raise ContractError(where, f"pairs of items ({MAKE})", "none")
    if "behavior" not in needs:
        return
    if side.behavior_NE is None:
        raise ContractError(where, f"behaviour vectors ({MAKE})", "none")
    if side.behavior_NE.ndim != 2 or len(side.behavior_NE) != items:
        raise ContractError(where, f"behaviour vectors of shape [{items}, width]", side.behavior_NE.shape)


def clip_quantile(config: GradientLearnerConfig) -> float:
    """Of the behaviour norms in the batches. Raises ContractError when two losses want different ones."""
    controllers = [
        section.controller
        for section in (*config.losses, *config.further_losses)
        if isinstance(section, BehaviorAlignment)
    ]
    quantiles = sorted({controller.clip_quantile for controller in controllers if controller is not None})
    if len(quantiles) > 1:
        raise ContractError(f"learner {config.kind}, losses", "one controller.clip_quantile for all losses", quantiles)
    return quantiles[0] if quantiles else 0.0


# From a section of the recipe to its loss.


LOSSES: dict[type, type[SidLoss]] = {
    Contrast: ContrastLoss,
    HammingRepulsion: HammingRepulsionLoss,
    OverlapRepulsion: OverlapRepulsionLoss,
    Diversity: DiversityLoss,
    Collaborative: CollaborativeLoss,
    BehaviorAlignment: BehaviorAlignmentLoss,
}


def loss_needs(config: SidLossConfig) -> frozenset[Need]:
    """What batches must carry for the loss that `config` names; known before there is a network to build it for."""
    return LOSSES[type(config)].needs


def build_loss(config: SidLossConfig, network: Network, behavior_width: int | None) -> SidLoss:
    """The loss that `config` names, for `network`.

    behavior_width: E, None where there are no behaviour vectors. Raises ContractError when the loss cannot work with
    the network's codebooks, or needs behaviour vectors that are not there.
    """
    match config:
        case Contrast():
            return ContrastLoss(config)
        case HammingRepulsion():
            return HammingRepulsionLoss(config)
        case OverlapRepulsion():
            return OverlapRepulsionLoss(config)
        case Diversity():
            return DiversityLoss(config, network)
        case Collaborative():
            return CollaborativeLoss(config, network.latent_width, _known(behavior_width, config.kind))
        case BehaviorAlignment():
            return BehaviorAlignmentLoss(config, network.latent_width, _known(behavior_width, config.kind))


def _known(behavior_width: int | None, kind: str) -> int:
    if behavior_width is None:
        raise ContractError(f"losses, {kind}", "behaviour vectors of the items", "none")
    return behavior_width


# What a learner needs besides the vector columns: one question, asked by whoever reads items for it.


@dataclass(frozen=True)
class Needs:
    """pairs, behavior: side information. raw: vector columns that stay as they are, whatever `normalize` says.

    unknown_behavior: whether it can learn from items whose vector in the column `behavior` is all zeros.
    """

    pairs: bool = False
    behavior: bool = False
    raw: frozenset[str] = frozenset()
    unknown_behavior: bool = False


NOTHING = Needs()


def needs_of(learner: Learner) -> Needs:
    """From the learner's kind and the losses in its section."""
    if isinstance(learner, ResidualKMeansConfig | RandomCodesConfig | OpqConfig):
        return NOTHING
    asked = frozenset[Need]().union(*map(loss_needs, (*learner.losses, *learner.further_losses)))
    return Needs(
        pairs="pairs" in asked,
        behavior="behavior" in asked,
        raw=frozenset({BEHAVIOR}) if isinstance(learner, AdcSidConfig) else frozenset(),
        unknown_behavior=isinstance(learner, AdcSidConfig | MmRqVaeConfig),
    )
