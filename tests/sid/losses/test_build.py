"""Every section has its loss, and every loss plugs into a network it has never seen."""

from typing import get_args

import pytest
import torch

from sidrec.config.learners import AdcSidConfig, GradientLearnerConfig, MmRqVaeConfig, MultiVqConfig, RqVaeConfig
from sidrec.config.sid_losses import BehaviorAlignment, Collaborative, Diversity, SidLossConfig
from sidrec.schema import ContractError
from sidrec.sid.learners.gradient import build_network
from sidrec.sid.training.objectives import build_loss
from tests.sid.losses.tiny_network import TinyNetwork, random_batch

COLUMNS = (("text", 4), ("behavior", 5))
LEARNERS = [
    RqVaeConfig(codebook_size=4, width=6, hidden=(8,)),
    MultiVqConfig(codebook_size=4, width=6, hidden=(8,)),
    MmRqVaeConfig(codebook_size=4, width=6, hidden=(8,)),
    AdcSidConfig(codebook_size=4, width=6, hidden=8),
]
SECTIONS = get_args(get_args(SidLossConfig)[0])
PAIRS, BEHAVIOR = frozenset({"pairs"}), frozenset({"behavior"})
INPUTS = {"contrast": PAIRS, "collaborative": BEHAVIOR, "behavior_alignment": BEHAVIOR}


@pytest.mark.parametrize("section", SECTIONS)
@pytest.mark.parametrize("learner", LEARNERS, ids=lambda learner: learner.kind)
def test_plugs_into_every_network(section: type, learner: GradientLearnerConfig) -> None:
    """The term is finite, and so are its gradients, which reach the network."""
    torch.manual_seed(0)
    config = Diversity(groups=2) if section is Diversity else section()
    network, batch = build_network(learner, COLUMNS), random_batch(16, width=9)
    network.measure(batch.vectors_BV.numpy())
    loss = build_loss(config, network, 5)
    assert loss.inputs == INPUTS.get(config.kind, frozenset())
    loss.begin_epoch(network)
    term = loss(network(batch), batch, network)
    assert term.shape == ()
    assert term.isfinite()
    term.backward()
    gradients = [part.grad for part in network.parameters() if part.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in [*gradients, *(part.grad for part in loss.parameters())])
    assert all(isinstance(value, float | int) for value in loss.diagnostics().values())


@pytest.mark.parametrize("config", [Collaborative(), BehaviorAlignment()])
def test_behaviour_that_is_not_there(config: Collaborative | BehaviorAlignment) -> None:
    with pytest.raises(ContractError, match=f"losses, {config.kind}: expected behaviour vectors"):
        build_loss(config, TinyNetwork(), None)


def test_the_map_is_as_wide_as_the_networks_latents() -> None:
    loss = build_loss(BehaviorAlignment(), TinyNetwork(latent=6), 5)
    assert [tuple(part.shape) for part in loss.parameters()] == [(6, 5)]
    assert not list(build_loss(Collaborative(), TinyNetwork(latent=5), 5).parameters())
    assert all(part.dtype == torch.float32 for part in loss.parameters())
