"""A DLRM that was trained without SIDs goes on with them."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint import DefaultLoadPlanner
from torchrec.models.dlrm import DLRMTrain

from sidrec.config import ConfigError
from sidrec.config.item_parts import StatsGate
from sidrec.config.load import parse
from sidrec.model.fusion_and_gate import TargetAwareGate
from sidrec.plug import SidCoord, attach, load_without_sids
from sidrec.schema import ContractError
from sidrec.sid.catalog import Catalog
from tests.plug.hosts import batch, catalog, counts, train_dlrm
from tests.plug.training import batches, sharded, train_in_loop
from tests.ranks import run_on_ranks

ROWS_OF_TEST = 400


def plugged(seed: int, device: str = "cpu") -> DLRMTrain:
    return attach(train_dlrm(device, seed), catalog(), history="history", statistics=counts(), warm_start=True)


def adagrad(model: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adagrad(model.parameters(), lr=0.02)


def mean_loss(model: torch.nn.Module) -> float:
    """Of rows that were not trained on."""
    with torch.no_grad():
        return float(model(batch(ROWS_OF_TEST, seed=1000))[0])


def test_it_predicts_as_the_old_model_and_then_learns_more() -> None:
    old = train_dlrm()
    train_in_loop(old, adagrad(old), 0, 1, steps=10)
    new = plugged(seed=1)
    load_without_sids(new, old.state_dict())
    rows, at_first = batch(ROWS_OF_TEST, seed=1000), mean_loss(old)
    assert torch.equal(new(rows)[1][1], old(rows)[1][1])
    sid_coord = new.model.sparse_arch.sid_coord
    assert isinstance(sid_coord, SidCoord)
    gate = sid_coord.coordination.gate
    assert isinstance(gate, TargetAwareGate)
    assert gate.open is not None
    before = {name: parameter.clone() for name, parameter in sid_coord.named_parameters()}
    for model in (old, new):
        train_in_loop(model, adagrad(model), 0, 1, steps=30)
    assert abs(gate.open.item()) > 0.05
    moved = {name: (parameter - before[name]).abs().max().item() for name, parameter in sid_coord.named_parameters()}
    assert min(moved.values()) > 1e-3, moved
    assert mean_loss(new) < mean_loss(old) < at_first


def test_keys_that_do_not_belong_are_refused_before_anything_is_loaded() -> None:
    model = plugged(seed=1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = train_dlrm(seed=2).state_dict()
    short = {name: value for name, value in state.items() if name != "model.over_arch.model.1.bias"}
    with pytest.raises(ContractError, match=re.escape("got missing ['model.over_arch.model.1.bias'], unknown []")):
        load_without_sids(model, short)
    with pytest.raises(ContractError, match=re.escape("got missing [], unknown ['more']")):
        load_without_sids(model, {**state, "more": torch.zeros(1)})
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_checkpoint_of_another_catalog_is_refused() -> None:
    one = catalog()
    another = Catalog(one.item_ids_N, one.codes_NL[::-1].copy(), one.codebook_sizes)
    with_catalog, other = plugged(seed=1), train_dlrm(seed=1)
    attach(other, another, history="history", statistics=counts(), warm_start=True)
    sizes = [{name: value.shape for name, value in model.state_dict().items()} for model in (with_catalog, other)]
    assert sizes[0] == sizes[1], "tables of other sizes would be refused for their sizes"
    with_catalog(batch())
    with_catalog.load_state_dict(other.state_dict())
    sentence = f"expected the catalog {one.fingerprint}, got {another.fingerprint}"
    with pytest.raises(ContractError, match=sentence):
        with_catalog(batch())


def save_old(rank: int, world: int, folder: Path) -> Tensor:
    """Trains and saves the old model as people do. Returns its logits for this rank's rows."""
    model, optimizer = sharded(train_dlrm(), world, "row_wise")
    train_in_loop(model, optimizer, rank, world)
    dcp.save({"model": model.state_dict()}, checkpoint_id=folder)
    return model(next(batches(rank, world)))[1][1]


def load_new(rank: int, world: int, folder: Path) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Loads it into the plugged model. Returns the logits for the same rows, and the SID tables before and after."""
    model, _ = sharded(plugged(seed=1), world, "table_wise")
    state: dict[str, Any] = model.state_dict()
    before = sid_tables(state)
    dcp.load({"model": state}, checkpoint_id=folder, planner=DefaultLoadPlanner(allow_partial_load=True))
    model.load_state_dict(dict(state))
    return model(next(batches(rank, world)))[1][1], before, sid_tables(model.state_dict())


def sid_tables(state: dict[str, Any]) -> list[Tensor]:
    tables = [value for name, value in state.items() if ".sid_tables." in name]
    return [shard.tensor.clone() for table in tables for shard in table.local_shards()]


def test_a_distributed_checkpoint_of_the_old_model(tmp_path: Path) -> None:
    old = run_on_ranks(2, save_old, tmp_path / "old")
    loaded = run_on_ranks(2, load_new, tmp_path / "old")
    assert sum(len(before) for _, before, _ in loaded) == 5
    for logits_B, (found_B, before, after) in zip(old, loaded, strict=True):
        torch.testing.assert_close(found_B, logits_B, rtol=0, atol=1e-6)
        assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))


def load_plain(rank: int, world: int, state: dict[str, Tensor]) -> Tensor:
    model, _ = sharded(plugged(seed=1), world, "row_wise")
    load_without_sids(model, state)
    return model(next(batches(rank, world)))[1][1]


def test_a_plain_state_dict_into_a_sharded_model() -> None:
    old = train_dlrm(seed=3)
    (found_B,) = run_on_ranks(1, load_plain, dict(old.state_dict()))
    torch.testing.assert_close(found_B, old(next(batches(0, 1)))[1][1], rtol=0, atol=1e-6)


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
    torch.nn.init.zeros_(gate.mlp.get_parameter("2.weight"))
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
