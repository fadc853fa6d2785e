"""AdaSID's loads and the strength that follows from them."""

import pytest
import torch

from sidrec.config.sid_losses import OverlapRepulsion
from sidrec.sid.losses.repulsion import STEPS, LoadStrength, bucket_load, pattern_load

CODES = torch.tensor([[1, 2, 3], [1, 2, 4], [1, 5, 3], [6, 2, 3]])
FIRST, SECOND = torch.tensor([0, 0, 0, 1, 1, 2]), torch.tensor([1, 2, 3, 2, 3, 3])


def test_pattern_load_by_hand() -> None:
    """Agreement 110, 101, 011, 100, 010, 001: each its own pattern, in both orders."""
    assert pattern_load(CODES, FIRST, SECOND).tolist() == [2] * 6
    again = CODES[[0, 1, 2, 3, 0]]  # with 4 = 0: 4-1 is 110 as 0-1
    first, second = torch.tensor([0, 1, 0]), torch.tensor([1, 4, 4])
    assert pattern_load(again, first, second).tolist() == [4, 4, 2]


def test_bucket_load_by_hand() -> None:
    """Two items begin with 1 2, three with 1; the others share no first code, hence no bucket."""
    assert bucket_load(CODES, FIRST, SECOND).tolist() == [2, 3, 0, 3, 0, 0]


def test_ramp_by_hand() -> None:
    strength = LoadStrength(OverlapRepulsion(load_min=1.0, load_max=3.0, load_saturation=8, load_power=0.5))
    assert strength(torch.tensor([0, 2, 8, 80])).tolist() == [1, 2, 3, 3]


def test_saturation_is_a_percentile_over_the_first_steps() -> None:
    """The 19th of 20 loads is the 95th percentile; steps 20 and 40 average to 30."""
    strength = LoadStrength(OverlapRepulsion())
    strength(torch.tensor([1] * 18 + [20, 1000]))
    assert strength.saturation.item() == 20
    assert strength(torch.full((20,), 40)).tolist() == [2] * 20
    assert strength.saturation.item() == 30


def test_after_a_hundred_steps_the_saturation_stays() -> None:
    strength = LoadStrength(OverlapRepulsion())
    for _ in range(STEPS):
        strength(torch.tensor([4]))
    strength(torch.tensor([4000]))
    assert (STEPS, strength.saturation.item()) == (100, 4)


def test_evaluation_observes_nothing() -> None:
    strength = LoadStrength(OverlapRepulsion()).eval()
    strength(torch.tensor([4]))
    assert strength.steps.item() == 0


def test_a_checkpoint_knows_the_saturation() -> None:
    seen, other = LoadStrength(OverlapRepulsion()), LoadStrength(OverlapRepulsion())
    seen(torch.tensor([10, 10]))
    other.load_state_dict(seen.state_dict())
    load = torch.tensor([30])
    assert (seen(load).item(), seen.saturation.item()) == (other(load).item(), other.saturation.item()) == (2, 20)


def test_a_given_saturation_does_not_move() -> None:
    strength = LoadStrength(OverlapRepulsion(load_saturation=10))
    assert strength(torch.tensor([5])).item() == pytest.approx(1.5)
    assert strength.saturation.item() == 10
