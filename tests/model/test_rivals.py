"""SID-Coord's rivals, each against values one can work out by hand or a slow reference."""

import math

import pytest
import torch
from torch import Tensor

from sidrec.config.item import ContentItem, GateSidItem, HidAndSidItem
from sidrec.config.item_parts import ConcatProjectFusion, MatchStatsAlignment, MeanGate, SumFusion
from sidrec.config.model import MeanPooling
from sidrec.data.dataset import Sizes
from sidrec.model.alignment import MatchStatistics, build_alignment
from sidrec.model.fusion_and_gate import ConcatProject, build_fusion, build_gate
from sidrec.model.gate_sid import GateSidRepresentation
from sidrec.model.history import index_history
from sidrec.model.items import ContentRepresentation, HidAndSidRepresentation
from sidrec.model.semantic_part import ItemLookup
from tests.model.test_ranker import ranker_for, tables_for

B, U, T, D, V, S = 5, 7, 4, 8, 3, 2
TARGET_B = torch.tensor([1, 2, 6, 3, 1])
HISTORY_BT = torch.tensor([[2, 3, 0, 0], [2, 2, 4, 6], [0, 0, 0, 0], [5, 0, 0, 0], [1, 6, 5, 4]])


def lookup_of(*features: str) -> ItemLookup:
    """Random embeddings with a zero for padding; bag 3 has no content."""
    torch.manual_seed(1)
    embedded = {name: torch.randn(U, D) for name in features}
    content_UV = torch.randn(U, V)
    content_UV[3] = 0
    for padded in (*embedded.values(), content_UV):
        padded[0] = 0
    return ItemLookup(embedded, torch.zeros(U, 0), torch.zeros(U, 0, dtype=torch.int64), content_UV)


def history_of(row: int) -> list[int]:
    return [bag for bag in HISTORY_BT[row].tolist() if bag]


def slow_mean(items_UD: Tensor, row: int) -> Tensor:
    history = history_of(row)
    return sum((items_UD[bag] for bag in history), torch.zeros(D)) / max(1, len(history))


def test_sum_and_concatenation_by_hand() -> None:
    granules_UGD = torch.tensor([[[0.0, 0], [0, 0]], [[1, 2], [30, 40]]])
    assert build_fusion(SumFusion(), 2, 2)(granules_UGD).tolist() == [[0, 0], [31, 42]]
    concat = build_fusion(ConcatProjectFusion(), 2, 2)
    assert isinstance(concat, ConcatProject)
    with torch.no_grad():
        concat.project.weight.copy_(torch.tensor([[1.0, 0, 0, 2], [0, -1, 1, 0]]))
    assert concat(granules_UGD).tolist() == [[0, 0], [1 + 80, -2 + 30]]


def test_the_mean_of_hid_and_sid() -> None:
    gate = build_gate(MeanGate(), 2, torch.zeros(S), torch.ones(S))
    assert gate(torch.tensor([[1.0, 2]]), torch.tensor([[3.0, -2]]), torch.zeros(1, S)).tolist() == [[2, 0]]


def test_match_statistics_by_hand() -> None:
    statistics = build_alignment(MatchStatsAlignment(), 2)
    assert isinstance(statistics, MatchStatistics)
    granules_UG = torch.tensor([[0, 0], [1, 7], [1, 8], [2, 8], [0, 9]])  # bag 4 has no first granule
    history = index_history(torch.tensor([[1, 2, 3], [3, 2, 0], [4, 0, 0], [0, 0, 0], [4, 4, 1]]))
    found = statistics(granules_UG, torch.tensor([2, 1, 4, 1, 4]), history)
    counts = [[2, 2], [1, 0], [0, 1], [0, 0], [0, 2]]
    lengths = [3, 2, 1, 1, 3]
    expected = [
        [math.log1p(a), math.log1p(b), a / n, b / n, float(row == 3)]
        for row, ((a, b), n) in enumerate(zip(counts, lengths, strict=True))
    ]
    torch.testing.assert_close(found, torch.tensor(expected))
    assert found.shape[1] == statistics.width


@pytest.mark.parametrize("seed", range(3))
def test_match_statistics_equal_a_slow_reference(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    granules_UG = torch.randint(0, 4, (20, 3), generator=generator)
    granules_UG[0] = 0
    target_B = torch.randint(0, 20, (30,), generator=generator)
    history_BT = torch.randint(0, 20, (30, 6), generator=generator)
    found = MatchStatistics(3)(granules_UG, target_B, index_history(history_BT))
    for row, (target, padded) in enumerate(zip(target_B.tolist(), history_BT.tolist(), strict=True)):
        bags = [bag for bag in padded if bag]
        for k in range(3):
            wanted = int(granules_UG[target, k])
            count = sum(int(granules_UG[bag, k]) == wanted for bag in bags) if wanted else 0
            assert found[row, k].item() == pytest.approx(math.log1p(count))
            assert found[row, 3 + k].item() == pytest.approx(count / max(1, len(bags)))


def test_hid_and_sid_are_features_side_by_side() -> None:
    config = HidAndSidItem(granularities=("s1", "s12"), fusion=SumFusion())
    items = lookup_of("hid", "s1", "s12")
    module = HidAndSidRepresentation(config, MeanPooling(), D, Sizes(tables_for(config), {}, 0, (), ()))
    embedded_BFD, dense_BE = module(items, TARGET_B, HISTORY_BT, torch.zeros(B, S))
    assert module.features == ("item", "item_sid", "history_hid", "history_sid")
    assert dense_BE.shape == (B, 0)
    hid_UD, sid_UD = items.embedded["hid"], items.embedded["s1"] + items.embedded["s12"]
    for row, target in enumerate(TARGET_B.tolist()):
        slow = [hid_UD[target], sid_UD[target], slow_mean(hid_UD, row), slow_mean(sid_UD, row)]
        torch.testing.assert_close(embedded_BFD[row], torch.stack(slow))


def gate_sid() -> tuple[GateSidRepresentation, Sizes]:
    config = GateSidItem(granularities=("s1", "s2"))
    sizes = Sizes(tables_for(config), {}, 0, (1.0, 2.0), (0.5, 3.0))
    torch.manual_seed(0)
    return GateSidRepresentation(config, D, sizes), sizes


def test_gate_sid_equals_a_slow_reference() -> None:
    module, sizes = gate_sid()
    items, stats_BS = lookup_of("hid", "s1", "s2"), torch.rand(B, S) * 50
    embedded_BFD, _ = module(items, TARGET_B, HISTORY_BT, stats_BS)
    hid_UD, sid_UD = items.embedded["hid"], module.semantic.embed(items)
    mean_S, std_S = torch.tensor(sizes.stats_mean), torch.tensor(sizes.stats_std)
    for row, target in enumerate(TARGET_B.tolist()):
        stats_S = (torch.log1p(stats_BS[row]) - mean_S) / std_S
        w = torch.sigmoid(module.mlp(torch.cat([hid_UD[target], stats_S])))
        mixed = []
        for bag in history_of(row):
            query, key = module.sid_scores.query.weight @ sid_UD[target], module.sid_scores.key.weight @ sid_UD[bag]
            score_sid = query @ key / math.sqrt(D)
            query, key = module.hid_scores.query.weight @ hid_UD[target], module.hid_scores.key.weight @ hid_UD[bag]
            mixed.append(w * score_sid + (1 - w) * (query @ key) / math.sqrt(D))
        attention = torch.softmax(torch.cat(mixed), dim=0) if mixed else torch.zeros(0)
        pooled = [
            sum((a * items_UD[bag] for a, bag in zip(attention, history_of(row), strict=True)), torch.zeros(D))
            for items_UD in (hid_UD, sid_UD)
        ]
        torch.testing.assert_close(embedded_BFD[row], torch.stack([hid_UD[target], sid_UD[target], *pooled]))


def test_gate_sid_s_gate_multiplies_the_sid() -> None:
    module, _ = gate_sid()
    items = lookup_of("hid", "s1", "s2")

    def pooled_with(bias: float) -> Tensor:
        torch.nn.init.constant_(module.mlp.get_parameter("2.bias"), bias)
        return module(items, TARGET_B, HISTORY_BT, torch.zeros(B, S))[0][:, 2:]

    before = pooled_with(50.0), pooled_with(-50.0)
    torch.nn.init.zeros_(module.hid_scores.key.weight)
    after = pooled_with(50.0), pooled_with(-50.0)
    torch.testing.assert_close(after[0], before[0])  # at w = 1 the HIDs have no say
    assert (after[1] - before[1]).abs().max() > 0.01


def test_content_is_projected_and_stays_zero_where_there_is_none() -> None:
    items = lookup_of("hid")
    assert items.content_UV is not None
    torch.manual_seed(0)
    module = ContentRepresentation(ContentItem(hidden=5), MeanPooling(), D, V)
    embedded_BFD, _ = module(items, TARGET_B, HISTORY_BT, torch.zeros(B, S))
    content_UD = torch.stack([module.project(row) if row.any() else torch.zeros(D) for row in items.content_UV])
    hid_UD = items.embedded["hid"]
    assert TARGET_B[3] == 3
    assert not embedded_BFD[3, 1].any()
    for row, target in enumerate(TARGET_B.tolist()):
        slow = [hid_UD[target], content_UD[target], slow_mean(hid_UD, row), slow_mean(content_UD, row)]
        torch.testing.assert_close(embedded_BFD[row], torch.stack(slow))


def test_only_attention_is_reported_as_attention() -> None:
    assert ranker_for(item={"kind": "hid_and_sid"}).fusion is not None
    assert ranker_for(item={"kind": "hid_and_sid", "fusion": {"kind": "sum"}}).fusion is None
    assert ranker_for(item={"kind": "content"}).fusion is None


def test_features_that_share_a_table_look_up_in_it() -> None:
    item = {"kind": "sid", "granularities": ["s1", "s12"], "index": {"kind": "modulo", "rows": 99}}
    ranker = ranker_for(item=item)
    assert ranker.items is not None
    assert {c.name: c.feature_names for c in ranker.items.embedding_bag_configs()} == {"sid": ["s1", "s12"]}
