"""Views of the target and dropout of HIDs and SIDs: which rows see what, by hand, and that evaluation sees all."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from sidrec.config.item import ContentItem, HidItem, Item, SidCoordItem
from sidrec.config.item_parts import StatsGate
from sidrec.config.model import MeanPooling
from sidrec.config.section import unused_keys_below
from sidrec.data.worker import epoch_key, row_chances
from sidrec.model.items import ContentRepresentation, HidRepresentation
from tests.model.test_ranker import batch_for, ranker_for
from tests.model.test_rivals import HISTORY_BT, TARGET_B, B, D, S, V, lookup_of

_ITEM: TypeAdapter[Any] = TypeAdapter(Item)
CHANCE_B = torch.tensor([0.0, 0.3, 0.5, 0.7, 0.9])
RATES = {"hid_dropout": 0.4, "hid_dropout_history": 0.2, "sid_dropout": 0.2}
NO_HID, NO_HISTORY, NO_SID = [0, 1], [0], [4]
"""The rows that these rates drop; the last row's chance is at least 1 - 0.2."""


def features_of(training: bool, item: dict[str, Any]) -> tuple[dict[str, Tensor], Tensor, Any]:
    """The item's features by name, [5, D] each, its dense features, and the ranker."""
    ranker = ranker_for(item=item).train(training)
    batch = batch_for(ranker)
    batch = replace(batch, chance_B=torch.cat([CHANCE_B, torch.tensor([0.6])]))
    looked_up = ranker._look_up(batch)
    embedded_BFD, dense_BE = ranker.item(looked_up, batch.target_B, batch.history_BT, batch.stats_BS)
    names = dict(zip(ranker.item.features, embedded_BFD[:5].unbind(1), strict=True))
    return names, dense_BE[:5], ranker


def rows_that_are_zero(embedded_BD: Tensor) -> list[int]:
    return (~embedded_BD.any(dim=1)).nonzero().flatten().tolist()


def rows_that_differ(first_BD: Tensor, second_BD: Tensor) -> list[int]:
    return (first_BD != second_BD).any(dim=1).nonzero().flatten().tolist()


def test_the_views_are_the_mixture_and_its_parts_in_the_order_of_the_recipe() -> None:
    gate = {"gate": {"kind": "mean"}}
    names, _, ranker = features_of(True, {"kind": "sid_coord", "views": ["sid", "mixed", "hid"], **gate})
    assert list(names) == ["item_sid", "item", "item_hid", "history_hid"]
    torch.testing.assert_close(names["item"], (names["item_hid"] + names["item_sid"]) / 2)
    assert ranker.gate is None
    published, _, _ = features_of(True, {"kind": "sid_coord", **gate})
    assert list(published) == ["item", "history_hid"]
    without, _, ranker = features_of(True, {"kind": "sid_coord", "views": ["hid"]})
    assert list(without) == ["item_hid", "history_hid"]
    assert ranker.item.gate is None


@pytest.mark.parametrize("training", [True, False])
def test_a_dropped_part_is_zero_in_all_that_the_row_sees(training: bool) -> None:
    both = {"kind": "sid_coord", "views": ["mixed", "hid", "sid"], "history": ["hid", "sid"], "gate": {"kind": "mean"}}
    whole, whole_BE, _ = features_of(training, both)
    found, found_BE, _ = features_of(training, {**both, **RATES})
    no_hid, no_history, no_sid = (NO_HID, NO_HISTORY, NO_SID) if training else ([], [], [])
    assert rows_that_are_zero(found["item_hid"]) == rows_that_differ(found["item_hid"], whole["item_hid"]) == no_hid
    assert rows_that_are_zero(found["item_sid"]) == rows_that_differ(found["item_sid"], whole["item_sid"]) == no_sid
    assert set(rows_that_differ(found["history_hid"], whole["history_hid"])) == set(no_history)
    assert not found["history_hid"][no_history].any()
    torch.testing.assert_close(found["history_sid"], whole["history_sid"])
    torch.testing.assert_close(found["item"][no_hid], whole["item_sid"][no_hid] / 2)
    torch.testing.assert_close(found["item"][no_sid], whole["item_hid"][no_sid])  # as of an item without a SID
    assert rows_that_differ(found["item"], whole["item"]) == no_hid + no_sid
    assert rows_that_differ(found_BE, whole_BE) == no_sid  # the alignment


def test_concatenation_drops_the_same_rows() -> None:
    whole, _, _ = features_of(True, {"kind": "hid_and_sid"})
    found, _, _ = features_of(True, {"kind": "hid_and_sid", **RATES})
    assert rows_that_are_zero(found["item"]) == rows_that_differ(found["item"], whole["item"]) == NO_HID
    assert rows_that_are_zero(found["item_sid"]) == NO_SID
    assert not found["history_hid"][NO_HISTORY].any()


def test_hids_alone_and_beside_content() -> None:
    items = replace(lookup_of("hid"), chance_B=CHANCE_B)
    torch.manual_seed(0)
    content = ContentRepresentation(
        ContentItem(hidden=5, hid_dropout=0.4, hid_dropout_history=0.2), MeanPooling(), D, V
    )
    hids = HidRepresentation(HidItem(hid_dropout=0.4, hid_dropout_history=0.2), MeanPooling(), D)
    for module in (hids, content):
        dropped_BFD, _ = module(items, TARGET_B, HISTORY_BT, torch.zeros(B, S))
        whole_BFD, _ = module(replace(items, chance_B=None), TARGET_B, HISTORY_BT, torch.zeros(B, S))
        hid, history = module.features.index("item"), module.features.index("history_hid")
        assert rows_that_differ(dropped_BFD[:, hid], whole_BFD[:, hid]) == NO_HID
        assert rows_that_differ(dropped_BFD[:, history], whole_BFD[:, history]) == NO_HISTORY
        assert not dropped_BFD[NO_HID, hid].any()
        assert not dropped_BFD[NO_HISTORY, history].any()


def test_a_dropped_hid_gets_no_gradient_from_its_row() -> None:
    item = {"kind": "sid_coord", "views": ["mixed", "hid", "sid"], "hid_dropout": 0.999}
    ranker = ranker_for(item=item)
    batch = batch_for(ranker)
    batch = replace(batch, history_BT=torch.zeros_like(batch.history_BT))
    ranker(batch)[0].backward()
    assert ranker.items is not None
    gradients = {name: ranker.items.embedding_bags[name].weight.grad for name in ("hid", "s1")}
    assert not gradients["hid"].any()
    assert gradients["s1"].any()


def test_refusals() -> None:
    for wrong, said in (
        ({"views": []}, "at least one view"),
        ({"views": ["hid", "hid"]}, "got 'hid' twice"),
        ({"hid_dropout": 1.0}, "less than 1"),
        ({"hid_dropout": 0.6, "sid_dropout": 0.5}, "no row loses both"),
        ({"hid_dropout_history": 0.6, "sid_dropout": 0.5}, "no row loses both"),
    ):
        with pytest.raises(ValidationError, match=said):
            _ITEM.validate_python({"kind": "sid_coord", **wrong})
    unused: dict[str, Any] = {"kind": "sid_coord", "views": ["hid"], "gate": {"kind": "sum"}}
    assert unused_keys_below(_ITEM.validate_python(unused)) == {"gate": "none without the view mixed, got sum"}
    unused = {"kind": "hid_and_sid", "history": ["sid"], "hid_dropout_history": 0.5}
    expected = {"hid_dropout_history": "none where history pools no hid, got 0.5"}
    assert unused_keys_below(_ITEM.validate_python(unused)) == expected


def test_a_preset_fills_in_what_the_recipe_leaves_out() -> None:
    published = _ITEM.validate_python({"kind": "sid_coord", "preset": "published"})
    assert replace(published, preset=None) == SidCoordItem()
    recommended = _ITEM.validate_python({"kind": "sid_coord", "preset": "recommended"})
    assert recommended.views == recommended.history == ("hid", "sid")
    assert recommended.hid_dropout == 0.1
    own = {"hid_dropout": 0.0, "views": ["mixed", "hid"], "gate": {"kind": "stats", "hidden": 8}}
    changed = _ITEM.validate_python({"kind": "sid_coord", "preset": "recommended", **own})
    assert changed == replace(recommended, hid_dropout=0.0, views=("mixed", "hid"), gate=StatsGate(hidden=8))
    with pytest.raises(ValidationError, match="'published' or 'recommended'"):
        _ITEM.validate_python({"kind": "sid_coord", "preset": "paper"})


def test_chances_are_uniform_and_a_function_of_seed_epoch_and_row() -> None:
    rows_N = np.arange(100_000)
    chances_N = row_chances(rows_N, epoch_key(0, 0))
    assert chances_N.dtype == np.float32
    assert chances_N.min() >= 0
    assert chances_N.max() < 1
    tenths = np.histogram(chances_N, bins=10, range=(0, 1))[0]
    assert np.abs(tenths - 10_000).max() < 400  # over 4 standard deviations
    assert np.array_equal(chances_N[::-7], row_chances(rows_N[::-7], epoch_key(0, 0)))
    for other in (epoch_key(0, 1), epoch_key(1, 0)):
        again_N = row_chances(rows_N, other)
        assert abs(np.corrcoef(chances_N, again_N)[0, 1]) < 0.02
    assert abs(np.corrcoef(chances_N[1:], chances_N[:-1])[0, 1]) < 0.02
