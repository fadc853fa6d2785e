"""`start.grow`: a model with SIDs starts from a checkpoint of HIDs alone and scores as it does."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sidrec.checkpoint.state import state_shards
from sidrec.checkpoint.stored_tables import StoredTable, open_checkpoint
from sidrec.config import Recipe
from sidrec.errors import ConfigError, SidrecError
from sidrec.parallel.process_group import Ranks, joined_ranks
from sidrec.train.assembly import build_training, open_dataset
from sidrec.train.evaluation import score_split
from sidrec.train.run import train
from sidrec.train.warm_start import find_warm_start
from tests.small_log import small_recipe, write_small_log

ATTENTION = {"kind": "target_attention", "hidden": [5]}
BACKBONES: Mapping[str, Mapping[str, Any]] = {
    "dlrm": {"history_pooling": ATTENTION},
    "dlrm_dcn": {"stats_as_dense": False, "backbone": {"kind": "dlrm_dcn", "cross_layers": 2, "low_rank": 8}},
    "dlrm_projection": {"backbone": {"kind": "dlrm_projection", "projections": [2, 3]}},
    "ppnet": {"history_pooling": ATTENTION, "backbone": {"kind": "ppnet", "layers": [16, 8], "gate_hidden": 8}},
    "deepfm": {"backbone": {"kind": "deepfm"}},
}
HID_AND_SID = {"kind": "hid_and_sid", "alignment": {"kind": "autodis"}}
HID_ONLY = {"kind": "sid_coord", "gate": {"kind": "stats", "start": "hid_only"}}
BOTH_HISTORIES = {**HID_ONLY, "history": ["sid", "hid"]}
VIEWS = {"kind": "sid_coord", "views": ["mixed", "sid", "hid"], "gate": {"kind": "mean"}, "hid_dropout": 0.3}


OTHERS = [("dlrm", BOTH_HISTORIES), ("dlrm", VIEWS), ("deepfm", HID_ONLY)]


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    with joined_ranks() as found:
        yield found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, ranks: Ranks) -> Path:
    """A log, and a trained run of the kind hid for each backbone."""
    folder = write_small_log(tmp_path_factory.mktemp("grow"), rows=320)
    for name in BACKBONES:
        train(recipe_of(folder, name, {"kind": "hid"}), ranks)
    return folder


def recipe_of(folder: Path, backbone: str, item: Mapping[str, Any], **sections: Any) -> Recipe:
    model = {**BACKBONES[backbone], "item": item}
    return small_recipe(folder, name=backbone, model=model, train={"epochs": 1}, optimizer=_FAST, **sections)


_FAST = {"dense": {"lr": 0.05}}


def grown_of(folder: Path, backbone: str, item: Mapping[str, Any], **sections: Any) -> Recipe:
    start = {"checkpoint": str(folder / "runs" / backbone / "seed0"), "grow": True}
    return recipe_of(folder, backbone, item, start=start, **sections)


def scores(recipe: Recipe, ranks: Ranks) -> tuple[np.ndarray, Mapping[str, Tensor]]:
    """Logits on the test split before the first step, and the model's tensors."""
    data = open_dataset(recipe, ranks)
    start = find_warm_start(recipe, data, ranks)
    training = build_training(recipe, data, ranks)
    assert start is not None
    start.fill(training.model, training.optimizer, ranks)
    held = {shard.key: shard.values.clone() for shard in state_shards(training.model, training.optimizer, ranks)}
    return score_split(recipe, data, training.model, "test", ranks).score_N, held


@pytest.mark.parametrize(
    ("backbone", "item"),
    [(name, HID_AND_SID) for name in BACKBONES if name != "deepfm"]
    + [("dlrm", BOTH_HISTORIES), ("dlrm", VIEWS), ("deepfm", HID_ONLY)],
)
def test_scores_are_the_checkpoints(backbone: str, item: Mapping[str, Any], folder: Path, ranks: Ranks) -> None:
    hids = recipe_of(folder, backbone, {"kind": "hid"}, start={"checkpoint": f"{folder}/runs/{backbone}/seed0"})
    (before, _), (after, _) = scores(hids, ranks), scores(grown_of(folder, backbone, item), ranks)
    assert before.std() > 0.02, "the checkpoint has learned something to keep"
    np.testing.assert_allclose(after, before, atol=2e-6)


def test_without_grow_the_layers_do_not_fit(folder: Path, ranks: Ranks) -> None:
    start = {"checkpoint": str(folder / "runs" / "dlrm" / "seed0"), "without": ["s1", "s2", "s3", "s12", "s23"]}
    with pytest.raises(SidrecError, match="expected the layer"):
        scores(recipe_of(folder, "dlrm", HID_AND_SID, start=start), ranks)


def test_old_columns_keep_weights_and_optimizer_state_and_new_ones_are_zero(folder: Path, ranks: Ranks) -> None:
    """DLRM's first over layer: the dense vector, then products of dense, item, item_sid, history_hid, history_sid,
    user_id and cat_a in order; of them a model of HIDs has dense, item, history_hid, user_id and cat_a."""
    _, held = scores(grown_of(folder, "dlrm", HID_AND_SID), ranks)
    checkpoint = open_checkpoint(folder / "runs" / "dlrm" / "seed0")
    key = "backbone.over_arch.model.0._mlp.0._linear.weight"
    features = ["dense", "item", "item_sid", "history_hid", "history_sid", "user_id", "cat_a"]
    pairs = [(one, two) for place, one in enumerate(features) for two in features[place + 1 :]]
    old = [True] * 8 + [not {"item_sid", "history_sid"} & set(pair) for pair in pairs]
    for name in (f"model/{key}", f"optimizer/{key}/exp_avg", f"optimizer/{key}/exp_avg_sq"):
        stored = StoredTable(checkpoint.path, name)
        assert torch.equal(held[name][:, old], stored.rows(0, stored.shape[0])), name
        assert not held[name][:, [not kept for kept in old]].any(), name
    assert held["optimizer/item.pooling.hid.layers.0.weight/exp_avg"].any(), "renamed layers keep their state"
    assert "optimizer/item.semantic.fusion.project.weight/exp_avg" not in held, "new layers have none"


def test_new_inputs_are_learned_and_the_run_tells_its_start(folder: Path, ranks: Ranks) -> None:
    recipe = grown_of(folder, "dlrm", HID_AND_SID, seed=3)
    assert train(recipe, ranks) == 0
    checkpoint = open_checkpoint(recipe.run)
    weight = StoredTable(checkpoint.path, "model/backbone.over_arch.model.0._mlp.0._linear.weight").rows(0, 128)
    assert (weight.abs().sum(dim=0) > 0).all(), "every column has a gradient"
    facts = json.loads((recipe.run / "run.json").read_text())["start"]
    assert facts["without"] == ["s1", "s12", "s2", "s23", "s3"]
    assert "backbone.over_arch.model.0._mlp.0._linear.weight" in facts["grown"]


@pytest.mark.parametrize(
    ("backbone", "item", "message"),
    [
        ("deepfm", HID_AND_SID, "factorization machine has no weights, with 2 new"),
        ("dlrm", {"kind": "sid"}, "expected an item kind with a feature that equals e_hid"),
        ("dlrm", {"kind": "sid_coord"}, "sid_coord has one with"),
        ("dlrm", {**HID_ONLY, "history": ["sid"]}, "with hid in history"),
        ("dlrm_dcn", {"kind": "gate_sid"}, "expected an item kind"),
    ],
)
def test_what_cannot_start_so_is_refused(
    backbone: str, item: Mapping[str, Any], message: str, folder: Path, ranks: Ranks
) -> None:
    recipe = grown_of(folder, backbone, item)
    with pytest.raises(SidrecError, match=message):
        find_warm_start(recipe, open_dataset(recipe, ranks), ranks)


def test_only_a_checkpoint_of_hids_grows(folder: Path, ranks: Ranks) -> None:
    own = recipe_of(folder, "dlrm", HID_ONLY, seed=9)
    train(own, ranks)
    recipe = recipe_of(folder, "dlrm", HID_AND_SID, start={"checkpoint": str(own.run), "grow": True})
    with pytest.raises(SidrecError, match=r"item kind hid, got .* of kind sid_coord"):
        find_warm_start(recipe, open_dataset(recipe, ranks), ranks)


def test_grow_needs_a_checkpoint(folder: Path) -> None:
    with pytest.raises(ConfigError, match="grow"):
        small_recipe(folder, start={"grow": True})
