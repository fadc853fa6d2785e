"""What cannot be plugged into is refused in one sentence, and stays as it was."""

import re
from typing import Any

import pytest
import torch
from torch import nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from sidrec.config.item import SidCoordItem, SidItem
from sidrec.config.item_parts import CodeContrast, CountedFusion, HidQueryFusion, ModuloIndex, SpmTokens, SumGate
from sidrec.plug import ItemCounts, StatFeatures
from sidrec.plug.attach import ELSE
from sidrec.schema import ContractError
from tests.plug.hosts import DIM, ITEMS, dlrm, plugged, tables
from tests.plug.test_sequences import collection


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
        f"Linear: expected one module with a sparse_arch, as the models of torchrec.models have ({ELSE}), got 0",
    ),
    "a collection alone": (tables, {}, f"a model with a sparse_arch ({ELSE}), got an EmbeddingBagCollection alone"),
    "a model with an EmbeddingCollection": (
        lambda: nn.ModuleDict({"sequences": collection()}),
        {},
        f"ModuleDict: expected one module with a sparse_arch, as the models of torchrec.models have ({ELSE}), got 0",
    ),
    "a fusion that counts, without counts": (
        dlrm,
        {"config": SidCoordItem(fusion=CountedFusion()), "statistics": StatFeatures(("shown",))},
        "SID-Coord, statistics: expected ItemCounts, whose first count fusion counted adds up by granule, got StatFeat",
    ),
    "a fusion by HIDs": (
        dlrm,
        {"config": SidCoordItem(fusion=HidQueryFusion())},
        "SID-Coord in another model, config.fusion: expected a fusion that needs no HIDs: those of the history",
    ),
    "a contrastive loss": (
        dlrm,
        {"config": SidCoordItem(contrast=CodeContrast())},
        "SID-Coord in another model, config.contrast: expected none: a loss is the host model's to add, got a section",
    ),
    "a first id beyond the table": (
        dlrm,
        {"first_id": 20},
        "catalog, item ids: expected ids below 31, the rows of the item table, with item 1 in row 20, got 40",
    ),
    "two of them": (lambda: nn.ModuleList([dlrm(), dlrm()]), {}, "expected one module with a sparse_arch"),
    "another kind of sparse_arch": (
        with_another_child,
        {},
        f"DLRM, sparse_arch: expected an embedding_bag_collection of tables and nothing else ({ELSE}), got "
        "embedding_bag_collection: EmbeddingBagCollection, more: Linear",
    ),
    "a second time": (
        lambda: plugged(dlrm()),
        {},
        f"nothing else ({ELSE}), got embedding_bag_collection: EmbeddingBagCollection, s",
    ),
    "item not there": (
        dlrm,
        {"item": "product"},
        f"feature product: expected one table that reads it ({ELSE}), got features ['cat', 'history', 'item_id']",
    ),
    "item misspelt": (
        dlrm,
        {"item": "item"},
        "got features ['cat', 'history', 'item_id']; did you mean item_id?",
    ),
    "history not there": (
        dlrm,
        {"history": "clicks"},
        f"feature clicks: expected one table that reads it ({ELSE}), got features",
    ),
    "item in two tables": (
        lambda: with_tables(ITEM, ("t_cat", 9, DIM, ["item_id"])),
        {},
        f"feature item_id: expected one table that reads it ({ELSE}), got 2 of them",
    ),
    "widths that differ": (
        lambda: with_tables(ITEM, ("t_cat", 9, 2 * DIM, ["cat"])),
        {},
        f"table t_cat: expected the width of the item's table t_item, {DIM} ({ELSE}), got {2 * DIM}",
    ),
    "history of other ids": (
        lambda: with_tables(("t_item", ITEMS, DIM, ["item_id"]), ("t_history", 7, DIM, ["history"])),
        {},
        f"feature history: expected a table of {ITEMS} rows as item_id has, for the same ids ({ELSE}), got 7 rows",
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
        "SID-Coord in another model, config.history: expected ('hid',), got ('hid', 'sid')",
    ),
    "item ids that are hashed here": (
        dlrm,
        {"config": SidCoordItem(hid_index=ModuloIndex(rows=9))},
        "SID-Coord in another model, config.hid_index: expected ExactIndex(kind='exact'), got ModuloIndex(",
    ),
    "granularities that share a table": (
        dlrm,
        {"config": SidCoordItem(index=ModuloIndex(rows=9))},
        "SID-Coord in another model, config.index: expected ExactIndex(kind='exact'), got ModuloIndex(",
    ),
    "subwords": (
        dlrm,
        {"config": SidCoordItem(tokens=SpmTokens(vocabulary=9))},
        "SID-Coord in another model, config.tokens: expected GranularityTokens(kind='granularities'), got SpmTokens(",
    ),
    "a warm start without a gate": (
        dlrm,
        {"config": SidCoordItem(gate=SumGate()), "warm_start": True},
        "SID-Coord, config.gate: expected a gate of kind stats with warm_start, as it can start at the HID, got sum",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_mismatch_is_refused_and_the_model_is_unchanged(case: str) -> None:
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
