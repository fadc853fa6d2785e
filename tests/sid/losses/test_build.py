"""Every section has its loss, and every loss plugs into a network it has never seen."""

from typing import get_args

import pytest
import torch

from sidrec.config.sid_losses import BehaviorAlignment, Collaborative, Diversity, SidLossConfig
from sidrec.schema import ContractError
from sidrec.sid.losses.build import build_loss
from tests.sid.losses.tiny_network import TinyNetwork, random_batch

SECTIONS = get_args(get_args(SidLossConfig)[0])
PAIRS, BEHAVIOR = frozenset({"pairs"}), frozenset({"behavior"})
NEEDS = {"contrast": PAIRS, "collaborative": BEHAVIOR, "behavior_alignment": BEHAVIOR}


@pytest.mark.parametrize("section", SECTIONS)
def test_plugs_into_a_network(section: type) -> None:
    config = Diversity(groups=2) if section is Diversity else section()
    network, batch = TinyNetwork(latent=6, size=4), random_batch(16)
    loss = build_loss(config, network, 5)
    assert loss.needs == NEEDS.get(config.kind, frozenset())
    loss.begin_epoch(network)
    term = loss(network(batch), batch, network)
    assert term.shape == ()
    assert term.isfinite()
    term.backward()
    gradients = [part.grad for part in [*network.parameters(), *loss.parameters()] if part.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert all(isinstance(value, float | int) for value in loss.seen().values())


@pytest.mark.parametrize("config", [Collaborative(), BehaviorAlignment()])
def test_behaviour_that_is_not_there(config: Collaborative | BehaviorAlignment) -> None:
    with pytest.raises(ContractError, match=f"losses, {config.kind}: expected behaviour vectors"):
        build_loss(config, TinyNetwork(), None)


def test_the_map_is_as_wide_as_the_networks_latents() -> None:
    loss = build_loss(BehaviorAlignment(), TinyNetwork(latent=6), 5)
    assert [tuple(part.shape) for part in loss.parameters()] == [(6, 5)]
    assert not list(build_loss(Collaborative(), TinyNetwork(latent=5), 5).parameters())
    assert all(part.dtype == torch.float32 for part in loss.parameters())
