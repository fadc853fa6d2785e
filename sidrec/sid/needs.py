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
from sidrec.schema import BEHAVIOR
from sidrec.sid.losses.build import loss_needs
from sidrec.sid.losses.loss import Need


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
