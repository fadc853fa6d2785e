"""From a section of the recipe to its loss."""

from sidrec.config.sid_losses import (
    BehaviorAlignment,
    Collaborative,
    Contrast,
    Diversity,
    HammingRepulsion,
    OverlapRepulsion,
    SidLossConfig,
)
from sidrec.schema import ContractError
from sidrec.sid.losses.behavior_alignment import BehaviorAlignmentLoss
from sidrec.sid.losses.collaborative import CollaborativeLoss
from sidrec.sid.losses.contrast import ContrastLoss
from sidrec.sid.losses.diversity import DiversityLoss
from sidrec.sid.losses.hamming_repulsion import HammingRepulsionLoss
from sidrec.sid.losses.loss import Need, SidLoss
from sidrec.sid.losses.overlap_repulsion import OverlapRepulsionLoss
from sidrec.sid.networks.network import Network

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
