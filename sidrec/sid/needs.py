"""What a learner needs besides the vector columns: one question, asked by whoever reads items for it."""

from dataclasses import dataclass

from sidrec.config.learners import (
    AdcSidConfig,
    Learner,
    MmRqVaeConfig,
    OpqConfig,
    RandomCodesConfig,
    ResidualKMeansConfig,
)
from sidrec.config.sid_losses import BehaviorAlignment, Collaborative, Contrast
from sidrec.schema import BEHAVIOR


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
    losses = (*learner.losses, *learner.further_losses)
    return Needs(
        pairs=any(isinstance(loss, Contrast) for loss in losses),
        behavior=any(isinstance(loss, Collaborative | BehaviorAlignment) for loss in losses),
        raw=frozenset({BEHAVIOR}) if isinstance(learner, AdcSidConfig) else frozenset(),
        unknown_behavior=isinstance(learner, AdcSidConfig | MmRqVaeConfig),
    )
