"""SID-Coord in TorchRec's own models: what changes and what does not, and what is refused."""

import copy
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torchrec.models.dlrm import DLRMTrain
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward

from sidrec.config.gate import SumGate
from sidrec.config.item import HidItem, SidCoordItem, SidItem
from sidrec.plug import ItemCounts, SidCoord, StatFeatures, attach, embedding_parameters
from sidrec.plug.sparse_arch import SidCoordKeyedArch, SidCoordSparseArch
from sidrec.schema import ContractError
from sidrec.sid.catalog import Catalog
from tests.plug.hosts import DIM, ITEMS, MODELS, batch, catalog, counts, dlrm, train_dlrm

COUNTS = counts()


def plugged(model: nn.Module, **options: Any) -> nn.Module:
    return attach(model, **{"catalog": catalog(), "history": "history", "statistics": COUNTS, **options})


@pytest.mark.parametrize("name", MODELS)
def test_every_model_goes_on_where_it_was(name: str) -> None:
    torch.manual_seed(0)
    model, rows = MODELS[name](), batch()
    before, keys = model(rows.dense_features, rows.sparse_features), set(model.state_dict())
    assert plugged(model, warm_start=True) is model
    assert torch.equal(model(rows.dense_features, rows.sparse_features), before)
    added = set(model.state_dict()) - keys
    assert keys < set(model.state_dict())
    assert {key.split(".")[:2] == ["sparse_arch", "sid_coord"] for key in added} == {True}


@pytest.mark.parametrize("name", MODELS)
def test_every_model_gets_the_gated_item(name: str) -> None:
    """The same as if the old model's collection had brought the embedding that SID-Coord makes."""
    torch.manual_seed(0)
    model, rows = MODELS[name](), batch()
    old = copy.deepcopy(model)
    plugged(model)
    arch = model.sparse_arch
    assert isinstance(arch, SidCoordSparseArch | SidCoordKeyedArch)
    nn.init.normal_(arch.sid_coord.coordination.project.weight)  # type: ignore[union-attr]
    embedded = arch.sid_coord(arch.embedding_bag_collection(rows.sparse_features), rows.sparse_features)
    old.sparse_arch.embedding_bag_collection.forward = lambda features: embedded  # type: ignore[union-attr]
    expected = old(rows.dense_features, rows.sparse_features)
    found = model(rows.dense_features, rows.sparse_features)
    torch.testing.assert_close(found, expected)
    torch.nn.init.constant_(arch.sid_coord.coordination.gate.mlp[2].bias, 3.0)
    assert not torch.allclose(model(rows.dense_features, rows.sparse_features), expected, atol=1e-4)


def test_switched_off_the_model_stays_as_it_is() -> None:
    model = dlrm()
    arch = model.sparse_arch
    assert plugged(model, config=HidItem()).sparse_arch is arch


def test_the_contract_of_sparse_architectures_is_kept() -> None:
    model = dlrm()
    old = model.sparse_arch
    arch = plugged(model).sparse_arch
    assert (arch.F, arch.D, arch.sparse_feature_names) == (old.F, old.D, old.sparse_feature_names)
    assert (old.F, old.D) == (3, DIM)


def test_tables_on_meta_leave_the_dense_layers_ready() -> None:
    with torch.device("meta"):
        model = plugged(DLRMTrain(dlrm("meta")), warm_start=True)
    coordination = model.model.sparse_arch.sid_coord.coordination
    assert {p.device.type for p in embedding_parameters(model)} == {"meta"}
    assert {p.device.type for p in coordination.parameters()} == {"cpu"}
    assert coordination.gate.open.item() == 0


def test_dense_layers_need_an_optimizer_that_waits_for_all_ranks() -> None:
    model, rows = plugged(train_dlrm()), batch()
    apply_optimizer_in_backward(torch.optim.SGD, model.model.sparse_arch.parameters(), {"lr": 0.1})
    expected = (
        r"expected an optimizer of the dense layers; apply_optimizer_in_backward takes embedding_parameters\(model\)"
    )
    with pytest.raises(ContractError, match=expected):
        model(rows)
    model = plugged(train_dlrm())
    apply_optimizer_in_backward(torch.optim.SGD, embedding_parameters(model), {"lr": 0.1})
    model(rows)[0].backward()


def with_tables(*configs: tuple[str, int, int, list[str]]) -> nn.Module:
    model = dlrm()
    model.sparse_arch.embedding_bag_collection = EmbeddingBagCollection(
        tables=[
            EmbeddingBagConfig(name=name, num_embeddings=rows, embedding_dim=dim, feature_names=features)
            for name, rows, dim, features in configs
        ]
    )
    return model


def with_another_child() -> nn.Module:
    model = dlrm()
    model.sparse_arch.more = nn.Linear(1, 1)
    return model


ITEM = ("t_item", ITEMS, DIM, ["item_id", "history"])
CAT = ("cat", 9, DIM, ["cat"])
REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "no sparse_arch": (
        lambda: nn.Linear(1, 1),
        {},
        "Linear: expected one module with a sparse_arch, as the models of torchrec.models, got 0",
    ),
    "two of them": (lambda: nn.ModuleList([dlrm(), dlrm()]), {}, "expected one module with a sparse_arch"),
    "another kind of sparse_arch": (
        with_another_child,
        {},
        "DLRM, sparse_arch: expected an embedding_bag_collection of tables and nothing else, got "
        "embedding_bag_collection: EmbeddingBagCollection, more: Linear",
    ),
    "a second time": (
        lambda: plugged(dlrm()),
        {},
        "nothing else, got embedding_bag_collection: EmbeddingBagCollection, s",
    ),
    "item not there": (
        dlrm,
        {"item": "product"},
        "feature product: expected one table that reads it, got features ['cat', 'history', 'item_id']",
    ),
    "history not there": (
        dlrm,
        {"history": "clicks"},
        "feature clicks: expected one table that reads it, got features",
    ),
    "item in two tables": (
        lambda: with_tables(ITEM, ("t_cat", 9, DIM, ["item_id"])),
        {},
        "feature item_id: expected one table that reads it, got 2 of them",
    ),
    "widths that differ": (
        lambda: with_tables(ITEM, ("t_cat", 9, 2 * DIM, ["cat"])),
        {},
        f"table t_cat: expected the width of the item's table t_item, {DIM}, got {2 * DIM}",
    ),
    "history of other ids": (
        lambda: with_tables(("t_item", ITEMS, DIM, ["item_id"]), ("t_history", 7, DIM, ["history"])),
        {},
        f"feature history: expected a table of {ITEMS} rows as item_id has, for the same ids, got 7 rows",
    ),
    "a table called s1": (
        lambda: with_tables(ITEM, ("s1", 9, DIM, ["cat"])),
        {},
        "expected no table or feature called as a granularity, got s1",
    ),
    "a feature called s23": (
        lambda: with_tables(ITEM, ("t_cat", 9, DIM, ["s23"])),
        {},
        "expected no table or feature called as a granularity, got s23",
    ),
    "statistics from a table": (
        dlrm,
        {"statistics": StatFeatures(("cat",))},
        "feature cat: expected no table that reads statistics, got one",
    ),
    "no statistics": (
        dlrm,
        {"statistics": None},
        "SID-Coord, statistics: expected StatFeatures or ItemCounts for the gate to see, or gate kind sum, got none",
    ),
    "an item table that is too small": (
        lambda: with_tables(("t_item", 30, DIM, ["item_id", "history"])),
        {},
        "catalog, item ids: expected ids below 30, the rows of the item table, got 40",
    ),
    "a granularity that the catalog lacks": (
        dlrm,
        {"config": SidCoordItem(granularities=("s1", "s34"))},
        "granularity s34: expected levels among the 3 of the catalog, got 4",
    ),
    "token weights that the catalog lacks": (
        dlrm,
        {"config": SidCoordItem(token_weights="multiply")},
        "catalog: expected token weights, which a learner with a router gives, got codes alone",
    ),
    "another item kind": (
        dlrm,
        {"config": SidItem()},
        "expected SidCoordItem, or HidItem to switch it off, got SidItem",
    ),
    "histories as features": (
        dlrm,
        {"config": SidCoordItem(history=("hid", "sid"))},
        "SID-Coord, config.history: expected hid alone, which the model has, got ['hid', 'sid']",
    ),
    "a warm start without a gate": (
        dlrm,
        {"config": SidCoordItem(gate=SumGate()), "warm_start": True},
        "attach, config.gate: expected a gate of kind stats with warm_start, as it can start at the HID, got sum",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_and_the_model_stays_as_it_was(case: str) -> None:
    build, options, sentence = REFUSED[case]
    model = build()
    before = {name: type(module) for name, module in model.named_modules()}
    with pytest.raises(ContractError, match=re.escape(sentence)):
        plugged(model, **options)
    assert {name: type(module) for name, module in model.named_modules()} == before


def test_counts_that_cannot_be() -> None:
    with pytest.raises(
        ContractError, match="ItemCounts, item 1, statistic 0: expected a finite count of at least 0, got -2"
    ):
        ItemCounts(torch.tensor([3.0, -2.0]))
    with pytest.raises(ContractError, match=re.escape("expected counts [items, statistics], got shape (2, 1, 3)")):
        ItemCounts(torch.zeros(2, 1, 3))
    with pytest.raises(ContractError, match="StatFeatures, mean_S: expected one value for each of"):
        StatFeatures(("a", "b"), mean_S=(1.0,))
    with pytest.raises(ContractError, match="StatFeatures, names: expected at least one feature, got none"):
        StatFeatures(())


def test_an_empty_catalog_leaves_every_item_without_a_sid() -> None:
    nothing = Catalog(np.zeros(0, np.int64), np.zeros((0, 3), np.int64), (4, 4, 4))
    model, rows = plugged(dlrm(), catalog=nothing), batch()
    assert isinstance(model.sparse_arch, SidCoordSparseArch)
    assert isinstance(model.sparse_arch.sid_coord, SidCoord)
    assert torch.isfinite(model(rows.dense_features, rows.sparse_features)).all()


def test_counts_weigh_items_by_what_they_have_been_through() -> None:
    mean_S, std_S = ItemCounts(torch.tensor([0, 3])).moments()
    # weights 1/5 and 4/5 of log 1 and log 4: mean 4/5 log 4, standard deviation sqrt(1/5 4/5) log 4
    log = float(np.log(4))
    assert mean_S.tolist() == pytest.approx([0.8 * log])
    assert std_S.tolist() == pytest.approx([0.4 * log])
