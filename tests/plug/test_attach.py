"""SID-Coord in TorchRec's own models: what changes and what does not."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torchrec.models.dlrm import DLRMTrain
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from sidrec.config.item import HidItem
from sidrec.plug import ItemCounts, SidCoord, embedding_parameters
from sidrec.plug.attach import SidCoordKeyedArch, SidCoordSparseArch
from sidrec.schema import ContractError
from sidrec.sid.catalog import Catalog
from tests.plug.hosts import DIM, KNOWN, MODELS, batch, dlrm, plugged, train_dlrm


@pytest.mark.parametrize("name", MODELS)
def test_every_model_resumes_where_it_was(name: str) -> None:
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
    nn.init.normal_(arch.sid_coord.get_parameter("coordination.project.weight"))
    embedded = arch.sid_coord(arch.embedding_bag_collection(rows.sparse_features), rows.sparse_features)
    old.sparse_arch.embedding_bag_collection.forward = lambda features: embedded  # type: ignore[union-attr]
    expected = old(rows.dense_features, rows.sparse_features)
    found = model(rows.dense_features, rows.sparse_features)
    torch.testing.assert_close(found, expected)
    torch.nn.init.constant_(arch.sid_coord.get_parameter("coordination.gate.mlp.2.bias"), 3.0)
    assert not torch.allclose(model(rows.dense_features, rows.sparse_features), expected, atol=1e-4)


def test_without_the_option_the_model_is_unchanged() -> None:
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


def test_an_empty_catalog_leaves_every_item_without_a_sid() -> None:
    nothing = Catalog(np.zeros(0, np.int64), np.zeros((0, 3), np.int64), (4, 4, 4))
    model, rows = plugged(dlrm(), catalog=nothing), batch()
    assert isinstance(model.sparse_arch, SidCoordSparseArch)
    assert isinstance(model.sparse_arch.sid_coord, SidCoord)
    assert torch.isfinite(model(rows.dense_features, rows.sparse_features)).all()


def test_counts_weigh_items_by_their_exposures() -> None:
    mean_S, std_S = ItemCounts(torch.tensor([0, 3])).moments()
    # weights 1/5 and 4/5 of log 1 and log 4: mean 4/5 log 4, standard deviation sqrt(1/5 4/5) log 4
    log = float(np.log(4))
    assert mean_S.tolist() == pytest.approx([0.8 * log])
    assert std_S.tolist() == pytest.approx([0.4 * log])


def test_a_table_may_start_at_0() -> None:
    """Row 0 is then the catalog's item 1, and the last row of the catalog is one row earlier."""
    rows = KeyedJaggedTensor(
        keys=["cat", "item_id", "history"],
        values=torch.tensor([0, 0, 0, KNOWN - 1, 0, KNOWN]),
        lengths=torch.tensor([1, 1, 1, 1, 1, 1]),
    )
    for first_id, with_sid in ((0, [True, True]), (1, [False, True])):
        join = plugged(dlrm(), first_id=first_id).get_submodule("sparse_arch.sid_coord.join")
        joined = join(rows, False)
        assert (joined.target_B > 0).tolist() == with_sid
        assert (joined.history_BT[:, 0] > 0).tolist() == ([True, False] if first_id == 0 else [False, True])
