"""The gate that starts at the HID alone."""

import pytest
import torch

from sidrec.config import ConfigError
from sidrec.config.item import StatsGate
from sidrec.config.load import parse
from sidrec.model.fusion_and_gate import TargetAwareGate

ZERO, ONE = torch.zeros(2), torch.ones(2)


def test_it_starts_at_the_hid_to_the_last_bit() -> None:
    gate = TargetAwareGate(StatsGate(start="hid_only"), 8, ZERO, ONE)
    hid_BD, sid_BD = torch.randn(6, 8), torch.randn(6, 8)
    assert torch.equal(gate(hid_BD, sid_BD, torch.rand(6, 2) * 100), hid_BD)


def test_open_is_the_share_of_the_published_gate() -> None:
    torch.manual_seed(0)
    gate = TargetAwareGate(StatsGate(start="hid_only"), 8, ZERO, ONE)
    torch.manual_seed(0)
    published = TargetAwareGate(StatsGate(), 8, ZERO, ONE)
    stats = torch.rand(6, 2) * 100
    assert gate.open is not None
    for opened in (1.0, 0.25):
        torch.nn.init.constant_(gate.open, opened)
        torch.testing.assert_close(gate.value(stats), 1 - opened * (1 - published.value(stats)))


def test_open_gets_a_gradient_at_once_and_the_rest_once_it_is_open() -> None:
    gate = TargetAwareGate(StatsGate(start="hid_only"), 8, ZERO, ONE)
    hid_BD, sid_BD = torch.ones(1, 8), torch.zeros(1, 8, requires_grad=True)
    torch.nn.init.zeros_(gate.mlp[2].weight)
    gate(hid_BD, sid_BD, torch.ones(1, 2)).sum().backward()
    assert gate.open is not None
    assert gate.open.grad is not None
    assert gate.open.grad.item() == pytest.approx(-4.0)  # d e / d open = (sid - hid) / 2 in each of 8 dimensions
    assert sid_BD.grad is not None
    assert not sid_BD.grad.any()
    torch.nn.init.constant_(gate.open, 0.5)
    gate(hid_BD, sid_BD, torch.ones(1, 2)).sum().backward()
    assert sid_BD.grad[0].tolist() == pytest.approx([0.25] * 8)


@pytest.mark.parametrize("option", [{"form": "residual"}, {"lengths": "equal"}])
def test_forms_that_change_the_hid_cannot_start_at_it(option: dict[str, str]) -> None:
    gate = {"kind": "stats", "start": "hid_only", **option}
    tree = {"name": "n", "data": {"path": "a", "catalog": "b"}, "model": {"item": {"kind": "sid_coord", "gate": gate}}}
    with pytest.raises(ConfigError, match="expected form mix and lengths as_is with start hid_only"):
        parse(tree, "test")
