"""Items without a SID: their HID alone, and no part in what compares or pools SIDs; in ranker and plug alike.

Shapes: B rows, U bags, T history positions.
"""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from sidrec.config.item import SidCoordItem
from sidrec.config.item_parts import (
    HistogramAlignment,
    MatchStatsAlignment,
    MeanFusion,
    MeanGate,
    RawStatsAlignment,
    StatsGate,
    SumGate,
)
from sidrec.config.model import MeanPooling
from sidrec.data.batch import Batch, item_lookups
from sidrec.data.dataset import Sizes
from sidrec.data.item_tables import HID, item_tables
from sidrec.model.history import HistoryIndex, attention_among, index_history
from sidrec.model.items import SidCoordRepresentation
from sidrec.model.ranker import Ranker
from sidrec.model.semantic_part import ItemLookup
from sidrec.plug import SidCoord, StatFeatures
from sidrec.schema import ITEM_ID
from tests.model.test_ranker import ALTERNATIVES, U, batch_for, ranker_for
from tests.plug.hosts import DIM, ITEMS, KNOWN, catalog

WITHOUT = [2, 5, 8]
"""Bags whose items have no SID."""
WITH_SIDS = [name for name in ALTERNATIVES if ranker_for(**ALTERNATIVES[name]).item.sids]


def batch_without_sids(ranker: Ranker) -> Batch:
    """Row 0: a target without a SID. Row 1: a history of such items alone. Row 2: both. Rows 3 on: neither."""
    batch = batch_for(ranker)
    keys, lengths_FU = batch.items.keys(), batch.items.lengths().view(-1, U).clone()
    values_FU = torch.zeros(lengths_FU.shape, dtype=torch.int64)
    values_FU[lengths_FU > 0] = batch.items.values()
    for number, key in enumerate(keys):
        if key != HID:
            lengths_FU[number, WITHOUT] = 0
    items = KeyedJaggedTensor(keys=keys, values=values_FU[lengths_FU > 0], lengths=lengths_FU.flatten())
    batch.token_weights_UW[WITHOUT], batch.granules_UG[WITHOUT] = 0, 0
    target_B = torch.tensor([2, 1, 5, 1, 3, 4])
    history_BT = torch.tensor([[1, 3, 2, 0], [2, 5, 8, 0], [8, 2, 0, 0], [3, 4, 6, 7], [1, 1, 0, 0], [6, 0, 0, 0]])
    return replace(batch, items=items, target_B=target_B, history_BT=history_BT)


def change_sids(ranker: Ranker) -> None:
    """Changes all rows of all SID tables."""
    assert ranker.items is not None
    with torch.no_grad():
        for name, table in ranker.items.embedding_bags.items():
            if name != HID:
                table.weight.add_(torch.randn(table.weight.shape))


@pytest.mark.parametrize("name", WITH_SIDS)
def test_sid_tables_do_not_touch_rows_without_sids(name: str) -> None:
    ranker = ranker_for(**ALTERNATIVES[name]).eval()
    batch = batch_without_sids(ranker)
    before = ranker.score(batch)
    change_sids(ranker)
    changed_B = (ranker.score(batch) != before).tolist()
    assert changed_B[2] is False
    assert changed_B[3:] == [True] * 3


@pytest.mark.parametrize("name", WITH_SIDS)
def test_such_items_are_as_padding_among_sids(name: str) -> None:
    """Without them in the history, alignment and pooled SIDs are the same: only HID features differ."""
    ranker = ranker_for(**ALTERNATIVES[name]).eval()
    batch = batch_without_sids(ranker)
    shorter_BT = batch.history_BT.clone()
    shorter_BT[torch.isin(shorter_BT, torch.tensor(WITHOUT))] = 0
    found, expected = (
        ranker.item(ranker._look_up(batch), batch.target_B, history_BT, batch.stats_BS)
        for history_BT in (batch.history_BT, shorter_BT)
    )
    torch.testing.assert_close(found[1], expected[1])
    for number, feature in enumerate(ranker.item.features):
        if not feature.endswith("_hid") and name not in ("GateSID", "GateSID without its contrastive loss"):
            torch.testing.assert_close(found[0][:, number], expected[0][:, number])


@pytest.mark.parametrize("name", WITH_SIDS)
def test_a_target_without_a_sid_has_the_alignment_of_an_empty_history(name: str) -> None:
    ranker = ranker_for(**ALTERNATIVES[name]).eval()
    batch = batch_without_sids(ranker)
    looked_up = ranker._look_up(batch)
    dense_BE = ranker.item(looked_up, batch.target_B, batch.history_BT, batch.stats_BS)[1]
    empty_BE = ranker.item(looked_up, batch.target_B, torch.zeros_like(batch.history_BT), batch.stats_BS)[1]
    torch.testing.assert_close(dense_BE[[0, 2]], empty_BE[[0, 2]])


@pytest.mark.parametrize("lengths", ["as_is", "equal"])
@pytest.mark.parametrize("form", ["mix", "residual"])
def test_the_target_is_its_hid_alone(lengths: str, form: str) -> None:
    """With equal lengths, at the length that the gate gives HIDs."""
    gate = {"kind": "stats", "form": form, "lengths": lengths}
    ranker = ranker_for(item={"kind": "sid_coord", "gate": gate})
    batch = batch_without_sids(ranker)
    looked_up = ranker._look_up(batch)
    target_BD = ranker.item(looked_up, batch.target_B, batch.history_BT, batch.stats_BS)[0][:, 0]
    hid_BD = looked_up.embedded[HID][batch.target_B]
    assert ranker.gate is not None
    torch.testing.assert_close(target_BD[[0, 2]], ranker.gate.scaled(hid_BD)[[0, 2]], atol=0, rtol=0)
    assert not torch.isclose(target_BD[3:], ranker.gate.scaled(hid_BD)[3:]).any()
    assert torch.equal(hid_BD, ranker.gate.scaled(hid_BD)) == (lengths == "as_is")


def test_the_gate_of_such_targets_is_not_a_number() -> None:
    ranker = ranker_for(item={"kind": "sid_coord"})
    batch = batch_without_sids(ranker)
    assert ranker.gate is not None
    found_B = ranker.gate_values(batch)
    assert found_B.isnan().tolist() == [True, False, True, False, False, False]
    torch.testing.assert_close(found_B[3:], ranker.gate.value(batch.stats_BS)[3:, 0])


def test_the_contrast_of_gate_sid_leaves_them_out() -> None:
    """Neither a loss of their own, nor a negative of other rows."""
    ranker = ranker_for(**ALTERNATIVES["GateSID"])
    batch = batch_without_sids(ranker)
    looked_up = ranker._look_up(batch)
    before = ranker.item.losses(looked_up, batch.target_B, batch.stats_BS)["contrastive"]
    assert before[[0, 2]].tolist() == [0, 0]
    hid_UD = looked_up.embedded[HID].clone()
    hid_UD[WITHOUT] += 1
    moved = replace(looked_up, embedded={**looked_up.embedded, HID: hid_UD})
    after = ranker.item.losses(moved, batch.target_B, batch.stats_BS)["contrastive"]
    assert torch.equal(before[[1, 3, 4, 5]], after[[1, 3, 4, 5]])


def test_attention_is_divided_among_what_is_left() -> None:
    history = HistoryIndex(torch.tensor([[1, 2, 3], [1, 2, 0], [2, 0, 0]]))
    part = history.where(torch.tensor([[True, False, True], [True, True, False], [False, False, False]]))
    attention_BT = torch.tensor([[0.2, 0.5, 0.3], [0.6, 0.4, 0.0], [1.0, 0, 0]])
    found = attention_among(attention_BT, history, part)
    torch.testing.assert_close(found, torch.tensor([[0.4, 0, 0.6], [0.6, 0.4, 0], [0, 0, 0]]))


# Ranker and plug: the same weights, the same numbers.


CONFIGS = {
    "as published": SidCoordItem(),
    "equal lengths": SidCoordItem(gate=StatsGate(lengths="equal")),
    "residual": SidCoordItem(gate=StatsGate(form="residual")),
    "sum": SidCoordItem(gate=SumGate(), alignment=RawStatsAlignment()),
    "mean": SidCoordItem(gate=MeanGate(), fusion=MeanFusion(), alignment=HistogramAlignment()),
    "match statistics": SidCoordItem(alignment=MatchStatsAlignment()),
}
TARGETS = [0, 1, KNOWN + 1, 7, KNOWN + 3, 7, 12]
HISTORIES = [[1, 2], [KNOWN + 1, 3], [4, 5, 6], [0, KNOWN + 1], [KNOWN + 2], [], [7, 7, 0, KNOWN + 9, 1]]


def plugged(config: SidCoordItem, hid: torch.nn.Embedding, stats_BS: Tensor) -> tuple[SidCoord, Tensor, Tensor]:
    """The module, its target embeddings and its alignment features."""
    module = SidCoord(
        catalog(),
        items=ITEMS,
        dim=DIM,
        history="history",
        statistics=StatFeatures(("exposures",), mean_S=(3.0,), std_S=(2.0,)),
        config=config,
        alignment_key="alignment",
    )
    lengths = [1] * len(TARGETS) + [len(history) for history in HISTORIES] + [1] * len(TARGETS)
    values = [*TARGETS, *(item for history in HISTORIES for item in history), *stats_BS[:, 0].long().tolist()]
    features = KeyedJaggedTensor(
        keys=["item_id", "history", "exposures"], values=torch.tensor(values), lengths=torch.tensor(lengths)
    )
    target_BD, aligned_BA = module.target(hid(torch.tensor(TARGETS)), features)
    return module, target_BD, aligned_BA


def ranked(module: SidCoord, config: SidCoordItem, hid: torch.nn.Embedding, stats_BS: Tensor) -> tuple[Tensor, Tensor]:
    """The ranker's target embeddings and dense features, with the plug's tables and layers."""
    tables = item_tables(config, cast(Any, SimpleNamespace(ids={ITEM_ID: ITEMS})), catalog())
    padded_NT = np.array([history + [0] * (5 - len(history)) for history in HISTORIES])
    ids_U, bag_M = np.unique([0, *TARGETS, *padded_NT.ravel()], return_inverse=True)
    rows_UF = torch.from_numpy(tables.rows_IF[ids_U])
    counts = dict(zip(tables.features, (rows_UF > 0).sum(dim=0).tolist(), strict=True))
    lookups = item_lookups(rows_UF, len(ids_U) - 1, counts, fixed=False)
    embedded = {}
    for name, jagged in lookups.to_dict().items():
        rows_UD = torch.zeros(len(ids_U), DIM)
        weight = hid.weight if name == HID else module.sid_tables.embedding_bags[name].weight
        rows_UD[jagged.lengths() > 0] = weight[jagged.values()]
        embedded[name] = rows_UD
    granules_UG = torch.from_numpy(tables.granules_IG[ids_U]).long()
    has_sid_U = lookups["s1"].lengths() > 0
    items = ItemLookup(embedded, torch.zeros(len(ids_U), 0), granules_UG, None, has_sid_U)
    representation = SidCoordRepresentation(config, MeanPooling(), DIM, Sizes(tables.tables, {}, 0, (3.0,), (2.0,)))
    representation.semantic.load_state_dict(module.coordination.semantic.state_dict())
    assert representation.gate is not None
    representation.gate.load_state_dict(module.coordination.gate.state_dict())
    bags = torch.from_numpy(bag_M[1:])
    embedded_BFD, aligned_BE = representation(items, bags[: len(TARGETS)], bags[len(TARGETS) :].view(-1, 5), stats_BS)
    return embedded_BFD[:, 0], aligned_BE


@pytest.mark.parametrize("name", CONFIGS)
def test_ranker_and_plug_agree(name: str) -> None:
    torch.manual_seed(0)
    hid, stats_BS = torch.nn.Embedding(ITEMS, DIM), torch.randint(0, 100, (len(TARGETS), 1)).float()
    with torch.no_grad():
        hid.weight[0] = 0  # the ranker looks up no row for the unknown item
    module, target_BD, aligned_BA = plugged(CONFIGS[name], hid, stats_BS)
    expected_BD, expected_BA = ranked(module, CONFIGS[name], hid, stats_BS)
    torch.testing.assert_close(target_BD, expected_BD)
    torch.testing.assert_close(aligned_BA, expected_BA)


def test_a_part_of_a_history_shares_its_sort() -> None:
    history = index_history(torch.tensor([[1, 2], [2, 0]]))
    part = history.where(history.bag_BT == 2)
    assert part._entries(9) is history._entries(9)
    assert part.count_B1.tolist() == [[1], [1]]
