"""Contrastive losses of HIDs and SIDs against values one can work out by hand and slow references."""

import math

import pytest
import torch
from torch import Tensor

from sidrec.config.item import GateSidItem
from sidrec.config.item_parts import CodeContrast, GateContrast
from sidrec.data.dataset import Sizes
from sidrec.model.contrast import CodeGuidedContrast, contrast_within_lanes, symmetric_contrast
from sidrec.model.gate_sid import GateSidRepresentation
from tests.model.test_ranker import batch_for, ranker_for, tables_for
from tests.model.test_rivals import D, S, lookup_of

LANE = 4
BAG_B = torch.tensor([3, 5, 3, 1, 2, 2, 6, 0])
"""Two lanes; the first has item 3 twice, the second item 2, and ends in padding."""


def vectors() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(8, D, requires_grad=True), torch.randn(8, D, requires_grad=True)


def slow_info_nce(anchor_BD: Tensor, target_BD: Tensor, temperature: float) -> list[float]:
    """Row by row: against the other items of the row's lane."""
    losses = []
    for row, bag in enumerate(BAG_B.tolist()):
        first = row // LANE * LANE
        others = [n for n in range(first, first + LANE) if BAG_B[n] not in (0, bag)]
        cosines = [float(torch.cosine_similarity(anchor_BD[row], target_BD[n], dim=0)) for n in (row, *others)]
        own, *_ = exponents = [math.exp(cosine / temperature) for cosine in cosines]
        losses.append(math.log(sum(exponents) / own) if bag else 0.0)
    return losses


def test_two_items_by_hand() -> None:
    unit_BD = torch.tensor([[3.0, 0], [0, 0.5]])
    aligned = contrast_within_lanes(unit_BD, unit_BD, torch.tensor([1, 2]), 2, 0.5)
    swapped = contrast_within_lanes(unit_BD, unit_BD.flip(0), torch.tensor([1, 2]), 2, 0.5)
    assert aligned.tolist() == pytest.approx([math.log1p(math.exp(-2))] * 2)
    assert swapped.tolist() == pytest.approx([math.log1p(math.exp(2))] * 2)


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_rows_against_the_other_items_of_their_lane(temperature: float) -> None:
    anchor_BD, target_BD = vectors()
    found = contrast_within_lanes(anchor_BD, target_BD, BAG_B, LANE, temperature)
    assert found.tolist() == pytest.approx(slow_info_nce(anchor_BD.detach(), target_BD.detach(), temperature), rel=1e-4)


def test_other_lanes_and_padding_have_no_say() -> None:
    anchor_BD, target_BD = vectors()
    contrast_within_lanes(anchor_BD, target_BD, BAG_B, LANE, 0.1)[:LANE].sum().backward()
    assert anchor_BD.grad is not None
    assert target_BD.grad is not None
    assert target_BD.grad[:LANE].any(dim=1).all()
    assert not anchor_BD.grad[LANE:].any()
    assert not target_BD.grad[LANE:].any()
    contrast_within_lanes(anchor_BD, target_BD, BAG_B, LANE, 0.1)[LANE:].sum().backward()
    assert target_BD.grad[LANE:-1].any(dim=1).all()
    assert not anchor_BD.grad[-1].any()
    assert not target_BD.grad[-1].any()


def test_an_item_alone_in_its_lane_has_nothing_to_learn() -> None:
    anchor_BD, target_BD = vectors()
    alone = torch.tensor([4, 4, 4, 0])
    assert contrast_within_lanes(anchor_BD[:LANE], target_BD[:LANE], alone, LANE, 0.1).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("teaches_gate", [True, False])
def test_gate_sid_weighs_the_contrastive_loss_by_its_gate(teaches_gate: bool) -> None:
    config = GateSidItem(
        granularities=("s1", "s2"), contrastive=GateContrast(weight=0.3, temperature=0.2, teaches_gate=teaches_gate)
    )
    torch.manual_seed(0)
    module = GateSidRepresentation(
        config, D, Sizes(tables_for(config), {}, 0, (1.0, 2.0), (0.5, 3.0), rows_per_lane=LANE)
    )
    items, stats_BS = lookup_of("hid", "s1", "s2"), torch.rand(len(BAG_B), S) * 50
    (contrast_B,) = (losses := module.losses(items, BAG_B, stats_BS)).values()
    assert list(losses) == ["contrastive"]
    hid_BD, sid_BD = items.embedded["hid"][BAG_B], module.semantic.embed(items)[BAG_B]
    slow = slow_info_nce(sid_BD.detach(), hid_BD, 0.2)
    share = module.sid_share(hid_BD, stats_BS).squeeze(1).tolist()
    assert contrast_B.tolist() == pytest.approx([0.3 * w * loss for w, loss in zip(share, slow, strict=True)], rel=1e-4)
    contrast_B.sum().backward()
    assert (module.mlp.get_parameter("0.weight").grad is not None) == teaches_gate
    gradient = module.semantic.fusion.get_parameter("project.weight").grad
    assert gradient is not None
    assert gradient.any()


def test_the_ranker_adds_it_in_training_alone() -> None:
    item = {"kind": "gate_sid"}
    plain, contrasted = ranker_for(item=item), ranker_for(item={**item, "contrastive": {}})
    batch = batch_for(plain)
    loss, (terms, logits_B) = plain(batch)
    whole, (parts, same_B) = contrasted(batch)
    assert list(terms) == ["loss"]
    assert list(parts) == ["loss", "contrastive"]
    assert torch.equal(same_B, logits_B)
    assert parts["contrastive"] > 0.01
    assert whole.item() == pytest.approx(loss.item() + parts["contrastive"].item(), rel=1e-6)
    contrasted.eval()
    evaluated, (terms, _) = contrasted(batch)
    assert evaluated == loss
    assert list(terms) == ["loss"]


def test_padding_rows_and_rows_of_weight_zero_count_nowhere() -> None:
    ranker = ranker_for(item={"kind": "gate_sid", "contrastive": {}})
    batch = batch_for(ranker)
    _, (terms, _) = ranker(batch)
    whole_B = ranker.item.losses(ranker._look_up(batch), batch.target_B, batch.stats_BS)["contrastive"]
    assert terms["contrastive"].item() == pytest.approx(whole_B.mean().item(), rel=1e-5)
    batch.weight_B[2:4] = 0
    batch.rows_per_rank = batch.weight_B.sum()
    _, (terms, _) = ranker(batch)
    assert terms["contrastive"].item() == pytest.approx(whole_B[[0, 1, 4, 5]].mean().item(), rel=1e-5)


# H2Rec's code-guided alignment.

GRANULES_BG = torch.tensor([[1, 4], [2, 4], [1, 4], [1, 5], [3, 6], [3, 6], [3, 6], [0, 0]])
"""Of the rows of BAG_B: items 2 and 6, both in the second lane, have the same SID; item 1 shares a part of item 3's."""


def slow_symmetric(hid_BD: Tensor, sid_BD: Tensor, temperature: float, same_sid: bool) -> list[float]:
    """Lane by lane, over the distinct items, in both directions."""
    losses = []
    for first in range(0, len(BAG_B), LANE):
        rows = [row for row in range(first, first + LANE) if BAG_B[row]]
        distinct = list({int(BAG_B[row]): row for row in rows}.values())

        def one(row: int, anchor_BD: Tensor, other_BD: Tensor, distinct: list[int] = distinct) -> float:
            all_, positive = 0.0, 0.0
            for other in distinct:
                value = math.exp(float(torch.cosine_similarity(anchor_BD[row], other_BD[other], dim=0)) / temperature)
                all_ += value
                same = BAG_B[row] == BAG_B[other] or (same_sid and bool((GRANULES_BG[row] == GRANULES_BG[other]).all()))
                positive += value if same else 0.0
            return math.log(all_ / positive)

        for row in range(first, first + LANE):
            if row in rows:
                twice = one(row, sid_BD, hid_BD) + one(row, hid_BD, sid_BD)
                copies = sum(int(BAG_B[other]) == int(BAG_B[row]) for other in rows)
                losses.append(twice / 2 / copies * len(rows) / len(distinct))
            else:
                losses.append(0.0)
    return losses


def of_items(vectors_BD: Tensor) -> Tensor:
    """Rows of the same item get the same vector."""
    first = {int(bag): row for row, bag in reversed(list(enumerate(BAG_B)))}
    return vectors_BD[[first[int(bag)] for bag in BAG_B]]


def test_two_aligned_items_by_hand() -> None:
    unit_BD, bag_B = torch.eye(2), torch.tensor([1, 2])
    found_B = symmetric_contrast(unit_BD, unit_BD, bag_B, None, 2, 0.5)
    assert found_B.tolist() == pytest.approx([0.12693] * 2, abs=1e-5)
    same = symmetric_contrast(unit_BD, unit_BD, bag_B, torch.tensor([[1, 1], [1, 1]]), 2, 0.5)
    assert same.tolist() == pytest.approx([0, 0], abs=1e-6)


@pytest.mark.parametrize("same_sid", [False, True])
@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_both_directions_over_distinct_items(temperature: float, same_sid: bool) -> None:
    hid_BD, sid_BD = (of_items(rows_BD.detach()) for rows_BD in vectors())
    granules_BG = GRANULES_BG if same_sid else None
    found_B = symmetric_contrast(hid_BD, sid_BD, BAG_B, granules_BG, LANE, temperature)
    assert found_B.tolist() == pytest.approx(slow_symmetric(hid_BD, sid_BD, temperature, same_sid), rel=1e-4, abs=1e-6)


def test_a_lane_of_padding_is_zero() -> None:
    hid_BD, sid_BD = vectors()
    found_B = symmetric_contrast(hid_BD, sid_BD, torch.zeros(8, dtype=torch.int64), None, LANE, 0.5)
    found_B.sum().backward()
    assert not found_B.any()
    assert hid_BD.grad is not None
    assert not hid_BD.grad.any()


def test_the_light_form_teaches_rare_hids_alone() -> None:
    hid_BD, sid_BD = vectors()
    stats_BS = torch.tensor([[0.0, 9], [10, 9], [30, 9], [90, 9]] * 2)
    plain = CodeGuidedContrast(CodeContrast(weight=0.5, same_sid=False), LANE)
    light = CodeGuidedContrast(CodeContrast(weight=0.5, same_sid=False, detach_sid=True, strength=10.0), LANE)
    full_B, light_B = (loss(hid_BD, sid_BD, BAG_B, None, stats_BS) for loss in (plain, light))
    torch.testing.assert_close(light_B, full_B * torch.tensor([1, 1 / 2, 1 / 4, 1 / 10] * 2))
    light_B.sum().backward()
    assert sid_BD.grad is None
    assert hid_BD.grad is not None
    assert hid_BD.grad[:-1].any(dim=1).all()


@pytest.mark.parametrize("kind", ["sid_coord", "hid_and_sid"])
def test_the_ranker_adds_the_alignment_of_hids_and_sids(kind: str) -> None:
    plain, aligned = ranker_for(item={"kind": kind}), ranker_for(item={"kind": kind, "contrast": {}})
    batch = batch_for(plain)
    loss, _ = plain(batch)
    whole, (parts, _) = aligned(batch)
    assert list(parts) == ["loss", "contrast"]
    assert parts["contrast"] > 0.01
    assert whole.item() == pytest.approx(loss.item() + parts["contrast"].item(), rel=1e-6)
    lookup = aligned._look_up(batch)
    hid_BD = lookup.embedded["hid"][batch.target_B]
    semantic = aligned.get_submodule("item.semantic")
    sid_BD = semantic.embed(lookup)[batch.target_B]  # type: ignore[operator]
    granules_BG = batch.granules_UG[batch.target_B]
    expected_B = symmetric_contrast(hid_BD, sid_BD, batch.target_B, granules_BG, len(batch.target_B) // 2, 0.5)
    assert parts["contrast"].item() == pytest.approx(0.1 * expected_B.mean().item(), rel=1e-5)
