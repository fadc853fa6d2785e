"""Learner inputs follow from networks and losses."""

from typing import get_args

import pytest

from sidrec.config.learner_parts import BehaviorAlignment, Contrast, Diversity, SidLossConfig
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
from sidrec.sid.learners.registry import learner_inputs
from sidrec.sid.networks.rqvae import RqVae
from sidrec.sid.tokenizer import VECTORS_ALONE, LearnerInputs
from sidrec.sid.training.objectives import build_loss, loss_inputs


def test_learners_by_hand() -> None:
    for learner in (ResidualKMeansConfig(), RandomCodesConfig(), OpqConfig(), RqVaeConfig()):
        assert learner_inputs(learner) == VECTORS_ALONE
    assert learner_inputs(LetterConfig()) == LearnerInputs(behavior=True)
    assert learner_inputs(QuaSidConfig()) == learner_inputs(AdaSidConfig()) == LearnerInputs(pairs=True)
    assert learner_inputs(DasLiteConfig()) == LearnerInputs(pairs=True, behavior=True)
    assert learner_inputs(MmRqVaeConfig()) == LearnerInputs(unknown_behavior=True)
    assert learner_inputs(AdcSidConfig()) == LearnerInputs(unscaled=frozenset({"behavior"}), unknown_behavior=True)


def test_losses_that_are_added_count_too() -> None:
    learner = RqVaeConfig(losses=(Diversity(),), further_losses=(Contrast(), BehaviorAlignment()))
    assert learner_inputs(learner) == LearnerInputs(pairs=True, behavior=True)


@pytest.mark.parametrize("section", get_args(get_args(SidLossConfig)[0]))
def test_inputs_of_a_section_are_those_of_its_loss(section: type) -> None:
    network = RqVae(RqVaeConfig(codebook_size=32, hidden=(4,), width=4), (("text", 3),))
    assert loss_inputs(section()) == build_loss(section(), network, 5).inputs
