"""A plugged model goes on from a state dict of another catalog's."""

import copy

import numpy as np
import pytest
import torch
from torchrec.models.dlrm import DLRMTrain

from sidrec.config.item import SidCoordItem
from sidrec.config.item_parts import CountedFusion
from sidrec.plug import attach, carry_sids
from sidrec.schema import ContractError
from sidrec.sid.catalog import Catalog
from tests.plug.hosts import KNOWN, batch, catalog, counts, train_dlrm
from tests.plug.training import train_in_loop

OLD = catalog()
COUNTED = SidCoordItem(fusion=CountedFusion())


def permuted() -> Catalog:
    names_LK = np.stack([np.random.default_rng(level).permutation(4) for level in range(3)])
    return Catalog(
        OLD.item_ids_N, np.stack([names_LK[level][OLD.codes_NL[:, level]] for level in range(3)], axis=1), (4, 4, 4)
    )


def plugged(of: Catalog, seed: int = 0) -> DLRMTrain:
    return attach(train_dlrm(seed=seed), of, history="history", statistics=counts(), config=COUNTED)


@pytest.fixture(scope="module")
def old() -> DLRMTrain:
    model = plugged(OLD)
    train_in_loop(model, torch.optim.Adagrad(model.parameters(), lr=0.05), 0, 1, steps=20)
    return model


def logits(model: DLRMTrain) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(batch(200, seed=9))[1][1]
    return found


def test_renamed_codes_predict_as_the_old_model(old: DLRMTrain, capsys: pytest.CaptureFixture[str]) -> None:
    new = plugged(permuted(), seed=1)
    before = logits(new)
    new.load_state_dict(carry_sids(old.state_dict(), new, OLD))
    torch.testing.assert_close(logits(new), logits(old), atol=1e-6, rtol=0)
    assert (before - logits(old)).abs().max() > 0.01
    assert f"carried by {KNOWN} items: s1 4 of 4 rows (0 begin anew)" in capsys.readouterr().out


def test_rows_without_a_shared_item_keep_their_values(old: DLRMTrain) -> None:
    """Item 1 has a code of its own, and the old catalog lacks it."""
    codes_NL = OLD.codes_NL.copy()
    codes_NL[0] = 4
    new = plugged(Catalog(OLD.item_ids_N, codes_NL, (5, 5, 5)), seed=1)
    smaller = Catalog(OLD.item_ids_N[1:], OLD.codes_NL[1:], (4, 4, 4))
    trained = plugged(smaller)
    key = "model.sparse_arch.sid_coord.sid_tables.embedding_bags.s1.weight"
    found = carry_sids(trained.state_dict(), new, smaller)
    assert torch.equal(found[key][5], new.state_dict()[key][5])
    torch.testing.assert_close(found[key][1:5], trained.state_dict()[key][1:])


def test_what_cannot_be_carried_is_refused(old: DLRMTrain) -> None:
    state, new = old.state_dict(), plugged(permuted())
    with pytest.raises(ContractError, match="which the state dict was trained with"):
        carry_sids(state, new, permuted())
    with pytest.raises(ContractError, match="a model whose catalog was fitted again"):
        carry_sids(state, copy.deepcopy(old), OLD)
    with pytest.raises(ContractError, match="a model with SidCoord"):
        carry_sids(state, train_dlrm(), OLD)
    with pytest.raises(ContractError, match=r"a key .*catalog_fingerprint"):
        carry_sids({}, new, OLD)
    with pytest.raises(ContractError, match="items that both catalogs hold"):
        carry_sids(state, plugged(Catalog(np.array([45, 46]), OLD.codes_NL[:2], (4, 4, 4))), OLD)
    cut = {key: value[:3] if key.endswith("s1.weight") else value for key, value in state.items()}
    with pytest.raises(ContractError, match="as the old catalog has with this item table"):
        carry_sids(cut, new, OLD)
