"""Fusions that know more than the granules, counts or the HID: by hand and against loops."""

import math

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from sidrec.config.item import Item
from sidrec.config.item_parts import AdditiveFusion, CountedFusion, HidQueryFusion
from sidrec.model.fusion_and_gate import AdditiveAttention, CountedAttention, HidQueryAttention, build_fusion

U, D = 5, 4
IMPRESSIONS = {"s1": torch.tensor([[0.0], [99], [9]]), "s12": torch.tensor([[0.0], [0], [999], [3]])}
ROWS_UG = torch.tensor([[0, 0], [1, 1], [1, 2], [2, 3], [2, 7]])
"""Granule 7 of s12 is of a later extension: the model has no row for it."""


def counted(**keys: object) -> CountedAttention:
    fusion = build_fusion(CountedFusion(**keys), 2, D, IMPRESSIONS)  # type: ignore[arg-type]
    assert isinstance(fusion, CountedAttention)
    return fusion


def test_counts_of_granules() -> None:
    assert counted().counts(ROWS_UG).tolist() == [[0, 0], [99, 0], [99, 999], [9, 3], [9, 0]]


def test_rare_granules_leave_their_weight_to_popular_ones() -> None:
    fusion = counted(strength=10.0)
    nn.init.zeros_(fusion.score.weight)  # the additive part of all scores is 0
    weights_UG = fusion.weights(torch.randn(U, 2, D), ROWS_UG)
    # m / (m + 10) with m = n + 1
    shares = [(100 / 110, 1 / 11), (100 / 110, 1000 / 1010), (1 / 2, 4 / 14), (1 / 2, 1 / 11)]
    expected = [[first / (first + second), second / (first + second)] for first, second in shares]
    torch.testing.assert_close(weights_UG[1:], torch.tensor(expected))


def test_without_factors_it_is_the_additive_attention() -> None:
    fusion, additive = counted(), build_fusion(AdditiveFusion(), 2, D)
    assert isinstance(additive, AdditiveAttention)
    additive.load_state_dict(
        {name: value for name, value in fusion.state_dict().items() if name in additive.state_dict()}
    )
    granules_UGD = torch.randn(U, 2, D)
    assert not torch.allclose(fusion(granules_UGD, ROWS_UG), additive(granules_UGD))
    nn.init.zeros_(fusion.factor_G)
    torch.testing.assert_close(fusion(granules_UGD, ROWS_UG), additive(granules_UGD))


@pytest.mark.parametrize("learned", [True, False])
def test_strength_and_factors_learn_if_asked(learned: bool) -> None:
    fusion = counted(learned=learned)
    fusion(torch.randn(U, 2, D), ROWS_UG).square().sum().backward()
    assert (fusion.factor_G.grad is not None) == learned
    assert (fusion.log_strength.grad is not None) == learned
    assert {name for name in fusion.state_dict() if "impressions" in name} == {"impressions_s1", "impressions_s12"}


def hid_query(granularities: int, dim: int, **keys: object) -> HidQueryAttention:
    torch.manual_seed(0)
    fusion = build_fusion(HidQueryFusion(**keys), granularities, dim)  # type: ignore[arg-type]
    assert isinstance(fusion, HidQueryAttention)
    return fusion


def test_one_query_at_all_levels_by_hand() -> None:
    fusion = hid_query(3, 2, hid_dropout=0.0)
    nn.init.eye_(fusion.guide.weight)
    for mlp in fusion.queries:
        for parameter in mlp.parameters():
            nn.init.zeros_(parameter)
        mlp.get_parameter("2.bias").data.copy_(torch.tensor([1.0, 0]))
    granules_UGD = torch.tensor([[[2.0, 0], [0, 2], [-2, 0]]])
    hid_UD = torch.tensor([[1.0, 0]])
    weights_UG = fusion.weights(granules_UGD, None, hid_UD)
    torch.testing.assert_close(weights_UG, torch.tensor([[0.76792, 0.18669, 0.04539]]), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        fusion(granules_UGD, None, hid_UD), torch.tensor([[1.44506, 0.37339]]), atol=2e-5, rtol=0
    )


def slow_scores(fusion: HidQueryAttention, granules_GD: Tensor, hid_D: Tensor) -> Tensor:
    guide_D = fusion.guide(hid_D)
    query_D, scores = guide_D, []
    for level, granule_D in enumerate(granules_GD):
        if level:
            query_D = fusion.queries[level - 1](torch.cat([granules_GD[level - 1], guide_D]))
        scores.append(query_D @ granule_D / math.sqrt(len(hid_D)))
    return torch.stack(scores)


def test_queries_follow_the_levels() -> None:
    fusion, granules_UGD, hid_UD = hid_query(3, D).eval(), torch.randn(U, 3, D), torch.randn(U, D)
    slow = [slow_scores(fusion, granules_GD, hid_D) for granules_GD, hid_D in zip(granules_UGD, hid_UD, strict=True)]
    torch.testing.assert_close(fusion.scores(granules_UGD, None, hid_UD), torch.stack(slow))


def test_items_of_one_sid_differ_by_their_hids() -> None:
    fusion, granules_UGD = hid_query(3, D).eval(), torch.randn(1, 3, D).expand(2, 3, D)
    first, second = fusion(granules_UGD, None, torch.randn(2, D))
    assert not torch.allclose(first, second)


def test_dropped_hids_are_zero_in_training_alone() -> None:
    fusion, granules_UGD, hid_UD = hid_query(2, D, hid_dropout=0.5), torch.randn(400, 2, D), torch.randn(400, D)
    with_hid, without = (fusion.eval().weights(granules_UGD, None, hid) for hid in (hid_UD, torch.zeros(400, D)))
    found = fusion.train().weights(granules_UGD, None, hid_UD)
    dropped_U = torch.isclose(found, without).all(dim=1)
    assert torch.isclose(found, with_hid).all(dim=1).logical_xor(dropped_U).all()
    assert 150 < dropped_U.sum() < 250


@pytest.mark.parametrize("detach", [True, False])
def test_the_gradient_of_hids_can_be_kept_out(detach: bool) -> None:
    fusion, hid_UD = hid_query(2, D, detach_hid=detach, hid_dropout=0.0), torch.randn(U, D, requires_grad=True)
    fusion(torch.randn(U, 2, D), None, hid_UD).sum().backward()
    assert (hid_UD.grad is None) == detach
    assert fusion.guide.weight.grad is not None


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (
            {"kind": "sid", "fusion": {"kind": "hid_query"}},
            "expected an item kind with HIDs with fusion hid_query, got sid",
        ),
        (
            {"kind": "sid", "fusion": {"kind": "counted"}, "index": {"kind": "modulo", "rows": 9}},
            "expected tokens of kind granularities and index of kind exact with fusion counted",
        ),
    ],
)
def test_what_a_fusion_cannot_read_is_refused(item: dict[str, object], message: str) -> None:
    adapter: TypeAdapter[Item] = TypeAdapter(Item)
    with pytest.raises(ValidationError, match=message):
        adapter.validate_python(item)
