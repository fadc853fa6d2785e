"""The losses of a learner, ready for its training: its own and those added, each with its schedule."""

from typing import NamedTuple

from sidrec.config.learners import GradientLearnerConfig
from sidrec.config.sid_losses import BehaviorAlignment, Schedule
from sidrec.schema import ContractError
from sidrec.sid.losses.build import build_loss, loss_needs
from sidrec.sid.losses.loss import Need, SidLoss
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
