"""Views and dropout in a plugged model: width and number of features stay, and it starts as the mixture."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from sidrec.config.item import SidCoordItem
from sidrec.config.item_parts import ShrinkageGate, StatsGate
from sidrec.plug import SidCoord
from sidrec.plug.sid_coord import _of_ids
from sidrec.schema import ContractError
from tests.plug.hosts import DIM, ITEMS, batch, tables
from tests.plug.test_sid_coord import B, gate_of, sid_coord, slow_sid, unknown

THREE = SidCoordItem(views=("hid", "mixed", "sid"))


def both(config: SidCoordItem) -> tuple[SidCoord, SidCoord]:
    """SID-Coord as published, and that of the config with the same layers."""
    published, module = sid_coord(), sid_coord(config=config)
    missing, unexpected = module.load_state_dict(published.state_dict(), strict=False)
    assert unexpected == []
    assert missing == (["coordination.combine.weight"] if len(config.views) > 1 else [])
    return published, module


def item_embeddings(module: SidCoord) -> Tensor:
    features = batch(B).sparse_features
    torch.manual_seed(1)
    embedded = tables()(features)
    torch.manual_seed(2)
    found = module(embedded, features)
    assert found.keys() == embedded.keys()
    return found["item_id"]


def parts() -> tuple[Tensor, Tensor, Tensor, list[bool]]:
    """e_hid, e_sid and g of the batch's targets, by slow references; and whether each has no SID."""
    features, module = batch(B).sparse_features, sid_coord()
    torch.manual_seed(1)
    hid_BD = tables()(features)["item_id"]
    items = features["item_id"].values().tolist()
    sid_BD = torch.stack([slow_sid(module, item) for item in items])
    gate_B1 = gate_of(module).value(torch.tensor([[float(ITEMS - 1 - item)] for item in items]))
    return hid_BD, sid_BD, gate_B1, [unknown(item) for item in items]


def mixed(hid_BD: Tensor, sid_BD: Tensor, gate_B1: Tensor, without: list[bool]) -> Tensor:
    without_B1 = torch.tensor(without).unsqueeze(1)
    return torch.where(without_B1, hid_BD, gate_B1 * hid_BD + (1 - gate_B1) * sid_BD)


def test_it_starts_as_the_mixture() -> None:
    published, module = both(THREE)
    torch.testing.assert_close(item_embeddings(module), item_embeddings(published))
    assert module.coordination.combine is not None
    item_embeddings(module).sum().backward()
    assert module.coordination.combine.weight.grad is not None
    assert all(part.any() for part in module.coordination.combine.weight.grad.split(DIM, dim=1))


def test_the_views_are_projected_back_to_one_embedding() -> None:
    _, module = both(THREE)
    assert module.coordination.combine is not None
    torch.nn.init.normal_(module.coordination.combine.weight)
    hid_BD, sid_BD, gate_B1, without = parts()
    views = torch.cat([hid_BD, mixed(hid_BD, sid_BD, gate_B1, without), sid_BD], dim=1)
    torch.testing.assert_close(item_embeddings(module), views @ module.coordination.combine.weight.t())


def test_training_drops_hids_and_sids_and_evaluation_none() -> None:
    config = SidCoordItem(hid_dropout=0.4, sid_dropout=0.3)
    published, module = both(config)
    torch.testing.assert_close(item_embeddings(module.eval()), item_embeddings(published))
    torch.manual_seed(2)
    chance_B = torch.rand(B)
    no_hid_B1, no_sid_B1 = (chance_B < 0.4).unsqueeze(1), (chance_B >= 0.7).unsqueeze(1)
    assert 0 < no_hid_B1.sum() < B - no_sid_B1.sum() < B
    hid_BD, sid_BD, gate_B1, without = parts()
    without = [bool(no_sid) or found for no_sid, found in zip(no_sid_B1, without, strict=True)]
    expected = mixed(hid_BD.masked_fill(no_hid_B1, 0), sid_BD, gate_B1, without)
    torch.testing.assert_close(item_embeddings(module.train()), expected)


def test_of_sequences_only_the_target_s_ids_are_dropped() -> None:
    dropped_B, row_P = torch.tensor([True, False, True]), torch.tensor([0, 1, 2])
    found = _of_ids(dropped_B, row_P, torch.zeros(5))
    assert found is not None
    assert found.tolist() == [True, False, True, False, False]


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"gate": ShrinkageGate()}, "a gate that reads exposures"),
        ({"gate": StatsGate(updates=True)}, "a gate that reads exposures"),
        ({"views": ("hid", "sid")}, "mixed among them"),
        ({"hid_dropout_history": 0.3}, "config.hid_dropout_history"),
    ],
)
def test_what_a_host_cannot_have_is_refused(changed: dict[str, Any], expected: str) -> None:
    with pytest.raises(ContractError, match=expected):
        sid_coord(config=replace(SidCoordItem(), **changed))
