"""What learners need: the same that their losses say."""

from typing import get_args

import pytest

from sidrec.config.learners import (
    AdaSidConfig,
    AdcSidConfig,
    DasLiteConfig,
    LetterConfig,
    MmRqVaeConfig,
    OpqConfig,
    QuaSidConfig,
    RandomCodesConfig,
    ResidualKMeansConfig,
    RqVaeConfig,
)
from sidrec.config.sid_losses import BehaviorAlignment, Contrast, Diversity, SidLossConfig
from sidrec.sid.networks.rqvae import RqVae
from sidrec.sid.training.objectives import NOTHING, Needs, build_loss, loss_needs, needs_of


def test_learners_by_hand() -> None:
    for learner in (ResidualKMeansConfig(), RandomCodesConfig(), OpqConfig(), RqVaeConfig()):
        assert needs_of(learner) == NOTHING
    assert needs_of(LetterConfig()) == Needs(behavior=True)
    assert needs_of(QuaSidConfig()) == needs_of(AdaSidConfig()) == Needs(pairs=True)
    assert needs_of(DasLiteConfig()) == Needs(pairs=True, behavior=True)
    assert needs_of(MmRqVaeConfig()) == Needs(unknown_behavior=True)
    assert needs_of(AdcSidConfig()) == Needs(raw=frozenset({"behavior"}), unknown_behavior=True)


def test_losses_that_are_added_count_too() -> None:
    learner = RqVaeConfig(losses=(Diversity(),), further_losses=(Contrast(), BehaviorAlignment()))
    assert needs_of(learner) == Needs(pairs=True, behavior=True)


@pytest.mark.parametrize("section", get_args(get_args(SidLossConfig)[0]))
def test_needs_asked_before_a_loss_is_built_are_those_of_the_loss_built(section: type) -> None:
    network = RqVae(RqVaeConfig(codebook_size=32, hidden=(4,), width=4), (("text", 3),))
    assert loss_needs(section()) == build_loss(section(), network, 5).needs
