"""New runs that start from an older run's checkpoint, or from files with rows of tables, bit by bit."""

import json
import shutil
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from sidrec import cli
from sidrec.checkpoint.state import state_shards
from sidrec.checkpoint.stored_tables import StoredTable, open_checkpoint
from sidrec.config import Recipe
from sidrec.parallel.process_group import Ranks
from sidrec.train.assembly import build_training, open_dataset
from sidrec.train.optimizers import build_optimizer
from sidrec.train.warm_start import find_warm_start
from tests.ranks import joined, run_on_ranks
from tests.train.older_run import STATE, WIDE, grown, other_catalog, recipe_of, run_of
from tests.train.refusals import start as run_recipe

HID, USER = "items.embedding_bags.hid.weight", "context.embedding_bags.user_id.weight"
S23 = "items.embedding_bags.s23.weight"
SHARDINGS = ("data_parallel", "row_wise", "column_wise", "grid_shard")
RECUT = [(kind, "adagrad") for kind in SHARDINGS]
RECUT += [(kind, "rowwise_adagrad") for kind in ("data_parallel", "column_wise")]

Held = Mapping[str, tuple[tuple[int, ...], Tensor]]
"""Key of a tensor -> where this rank's part of it begins, and the part's values; the last one of several parts."""


def started(recipe: Recipe, ranks: Ranks) -> Held:
    """What this rank holds of a run that has just started."""
    data = open_dataset(recipe, ranks)
    found = find_warm_start(recipe, data, ranks)
    model = build_training(recipe, data, ranks).model
    optimizer = build_optimizer(model, recipe.optimizer, recipe.model.embedding_dim)
    if found is not None:
        found.fill(model, optimizer, ranks)
    return {piece.key: (piece.offset, piece.values.clone()) for piece in state_shards(model, optimizer, ranks)}


def all_started(rank: int, world: int, recipes: Mapping[str, Recipe]) -> dict[str, Held]:
    ranks = joined(rank, world)
    return {name: started(recipe, ranks) for name, recipe in recipes.items()}


@pytest.fixture(scope="module")
def files(trained: Path) -> dict[str, str]:
    """Rows of three tables: two exported, one by numpy and shorter than the table."""
    for table, file in (("hid", "hid.parquet"), ("cat_a", "cat_a.safetensors")):
        assert cli.main(["table", "export", str(run_of(trained)), table, str(trained / file)]) == 0
    np.save(trained / "user.npy", stored(trained, f"model/{USER}")[:30].numpy())
    return {"hid": f"{trained}/hid.parquet", "cat_a": f"{trained}/cat_a.safetensors", "user_id": f"{trained}/user.npy"}


@pytest.fixture(scope="module")
def recipes(trained: Path, files: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Recipe]:
    """New runs by name: of a grown log, but row-wise ones; or of the same log, with files."""
    more = grown(trained, tmp_path_factory.mktemp("new"))
    found = {"fresh": recipe_of(more, parallel={"sharding": "data_parallel"})}
    for kind in SHARDINGS:
        sharded = {"parallel": {"sharding": kind}}
        found[f"files {kind}"] = recipe_of(trained, start={"tables": files}, **sharded)
    for kind, adagrad in RECUT:
        sections = {"start": {"checkpoint": str(run_of(trained, adagrad))}, "optimizer": {"tables": {"kind": adagrad}}}
        folder = trained if kind == "row_wise" else more
        found[f"{kind} {adagrad}"] = recipe_of(folder, parallel={"sharding": kind}, **sections)
    return found


@pytest.fixture(scope="module")
def on_two_ranks(recipes: dict[str, Recipe]) -> list[dict[str, Held]]:
    return run_on_ranks(2, all_started, recipes)


@cache
def stored(folder: Path, key: str, kind: str = "adagrad") -> Tensor:
    checkpoint = open_checkpoint(run_of(folder, kind))
    if not checkpoint.index.tensors[key].shape:
        with safe_open(checkpoint.path / "rank-0.safetensors", framework="pt") as file:
            return file.get_tensor(f"{key}@")
    table = StoredTable(checkpoint.path, key)
    return table.rows(0, table.shape[0])


def part(whole: Tensor, offset: tuple[int, ...], like: Tensor) -> Tensor:
    """Where `like` lies in the whole."""
    for dimension, (first, length) in enumerate(zip(offset, like.shape, strict=True)):
        whole = whole.narrow(dimension, first, length)
    return whole


def expected_of(key: str, folder: Path, kind: str, shards: int) -> Tensor:
    """The stored tensor; row sums were kept of whole rows, and every shard of columns starts with them."""
    whole = stored(folder, key, kind)
    return whole.expand(-1, shards) if key.endswith("row_sum") else whole


@pytest.mark.parametrize(("sharding", "adagrad"), RECUT)
def test_a_checkpoint_is_taken_over_bit_by_bit(
    sharding: str, adagrad: str, on_two_ranks: list[dict[str, Held]], trained: Path
) -> None:
    """Rows that the tables have grown by are a fresh model's, with no state."""
    fresh = {key: values for key, (_, values) in on_two_ranks[0]["fresh"].items()}
    grown_to = {key.removeprefix("model/"): len(values) for key, values in fresh.items() if "embedding_bags" in key}
    assert (grown_to[HID], grown_to[USER]) == (70, 50)
    assert grown_to[S23] > len(stored(trained, f"model/{S23}")), "a new item has a new pair of codes"
    taken = set()
    for held in on_two_ranks:
        for key, (offset, values) in held[f"{sharding} {adagrad}"].items():
            expected = expected_of(key, trained, adagrad, 2)
            rows = grown_to.get(key.split("/")[1], 0)
            if rows and sharding != "row_wise":
                new = torch.zeros(rows, expected.shape[1]) if key.startswith("optimizer/") else fresh[key]
                expected = torch.cat([expected, new[len(expected) :]])
            assert torch.equal(values, part(expected, offset, values)), key
            taken.add(key)
    assert taken == {key for key in open_checkpoint(run_of(trained, adagrad)).index.tensors if key[:6] != "ranks/"}
    assert stored(trained, f"optimizer/{USER}/{STATE[adagrad]}", adagrad).count_nonzero(), "the old run has trained"


@pytest.mark.parametrize("sharding", SHARDINGS)
def test_rows_of_files_are_put_where_they_belong(
    sharding: str, on_two_ranks: list[dict[str, Held]], trained: Path
) -> None:
    """What was exported from one rank comes into two; rows and tables that no file has keep their first values."""
    first_values = {key: values for key, (_, values) in on_two_ranks[0]["files data_parallel"].items()}
    recipe = recipe_of(trained)
    (fresh,) = run_on_ranks(1, all_started, {"fresh": recipe}) if sharding == SHARDINGS[0] else ({},)
    for held in on_two_ranks:
        for key, (offset, values) in held[f"files {sharding}"].items():
            if not key.startswith("model/"):
                assert not values.any(), "state of an optimizer that has not seen a step"
                continue
            whole = first_values[key]
            assert torch.equal(values, part(whole, offset, values)), key
    for key, values in first_values.items():
        if fresh and key.startswith("model/"):
            expected = fresh["fresh"][key][1]
            if HID in key or "cat_a" in key:
                expected = stored(trained, key)
            if USER in key:
                expected = torch.cat([stored(trained, key)[:30], expected[30:]])
            assert torch.equal(values, expected), key


def test_a_run_records_its_warm_start_and_resumes_without_its_files(trained: Path, tmp_path: Path) -> None:
    folder = grown(trained, tmp_path)
    shutil.copytree(run_of(trained) / "checkpoints", tmp_path / "old" / "checkpoints")
    shutil.copy(run_of(trained) / "config.yaml", tmp_path / "old")
    np.save(tmp_path / "user.npy", np.ones((3, 16), np.float32))
    started = {"checkpoint": str(tmp_path / "old"), "optimizer": False, "tables": {"user_id": f"{tmp_path}/user.npy"}}
    recipe = recipe_of(folder, start={**started, "without": ["s1"]})
    assert run_recipe(recipe) == 0
    facts = json.loads((recipe.run / "run.json").read_text())
    checkpoint = open_checkpoint(tmp_path / "old")
    assert facts["start"] == {
        "checkpoint": str(checkpoint.path),
        "step": checkpoint.position.step,
        "optimizer": False,
        "without": ["s1", "user_id"],
        "tables": {"user_id": {"file": f"{tmp_path}/user.npy", "rows": 3}},
    }
    shutil.rmtree(tmp_path / "old")
    (tmp_path / "user.npy").unlink()
    assert run_recipe(recipe) == 0, "it goes on from its own checkpoint"
    assert json.loads((recipe.run / "run.json").read_text()) == facts


def test_tables_left_out_need_not_fit(trained: Path, tmp_path: Path) -> None:
    """Another catalog, another width of one table's ids: what is left out starts anew, the rest is taken over."""
    folder = grown(trained, tmp_path)
    other_catalog(folder)
    sids = ["s1", "s2", "s3", "s12", "s23"]
    model = {**WIDE["model"], "item": {"kind": "sid_coord", "hid_index": {"kind": "modulo", "rows": 13}}}
    recipe = recipe_of(folder, start={"checkpoint": str(run_of(trained)), "without": ["hid", *sids]}, model=model)
    (held,) = run_on_ranks(1, all_started, {"": recipe})
    for key, (_, values) in held[""].items():
        if "backbone" in key:
            assert torch.equal(values, stored(trained, key)), key
    user = held[""][f"model/{USER}"][1]
    assert torch.equal(user[:41], stored(trained, f"model/{USER}"))
    assert held[""][f"model/{HID}"][1].shape == (13, 16)
    assert not held[""][f"optimizer/{HID}/sum"][1].any()
