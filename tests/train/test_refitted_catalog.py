"""`start.old_catalog`: a run whose catalog was fitted again takes the SID tables of a run of the old catalog."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchrec.distributed import DistributedModelParallel

from sidrec.checkpoint.state import belongs_to, state_shards
from sidrec.checkpoint.stored_tables import StoredTable, open_checkpoint
from sidrec.config import ConfigError, Recipe
from sidrec.data.dataset import Dataset
from sidrec.data.item_tables import HID
from sidrec.errors import SidrecError
from sidrec.parallel.process_group import Ranks, joined_ranks
from sidrec.sid.catalog import Catalog, load_catalog
from sidrec.train.assembly import Training, build_training, open_dataset
from sidrec.train.evaluation import score_split
from sidrec.train.run import train
from sidrec.train.warm_start import find_warm_start
from tests.ranks import joined, run_on_ranks
from tests.small_log import ITEMS_COUNT, small_recipe, write_small_log
from tests.soak.reshard.runs import build_ranker, machines_of
from tests.train.test_start import all_started, part

WIDTH = 16
ITEMS: Mapping[str, Mapping[str, Any]] = {
    "sid_coord": {"kind": "sid_coord"},
    "counted": {"kind": "sid_coord", "fusion": {"kind": "counted"}},
    "sid": {"kind": "sid", "granularities": ["s1", "s123"]},
    "hashed": {"kind": "sid_coord", "index": {"kind": "modulo", "rows": 50}},
    "subwords": {"kind": "sid_coord", "tokens": {"kind": "spm", "vocabulary": 30}},
    "hid": {"kind": "hid"},
}
SUMS = {"adagrad": "sum", "rowwise_adagrad": "row_sum"}
RANDOM = np.random.default_rng(5)
Change = Callable[[Catalog], Catalog]


def permuted(old: Catalog) -> Catalog:
    """The codes of each level under other names."""
    names_LK = np.stack([RANDOM.permutation(size) for size in old.codebook_sizes])
    codes_NL = np.stack([names_K[old.codes_NL[:, level]] for level, names_K in enumerate(names_LK)], axis=1)
    return Catalog(old.item_ids_N, codes_NL, old.codebook_sizes)


def split(old: Catalog) -> Catalog:
    """Each code becomes two, for items with even and odd ids."""
    return Catalog(old.item_ids_N, 2 * old.codes_NL + old.item_ids_N[:, None] % 2, (8, 8, 8))


def refitted(old: Catalog) -> Catalog:
    """Other codes, without the last ten items of the old catalog."""
    ids_N = old.item_ids_N[:-10]
    return Catalog(ids_N, RANDOM.integers(0, 5, size=(len(ids_N), 3)), (5, 5, 5))


CHANGES: Mapping[str, Change] = {"permuted": permuted, "split": split, "refitted": refitted}


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    with joined_ranks() as found:
        yield found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, ranks: Ranks) -> Path:
    """A log, other catalogs of its items, and a trained run of each item kind and each Adagrad."""
    folder = write_small_log(tmp_path_factory.mktemp("refit"))
    for name, change in CHANGES.items():
        change(load_catalog(folder / "catalog")).save(folder / name)
    for kind in ITEMS:
        train(recipe_of(folder, kind), ranks)
    train(recipe_of(folder, "sid_coord", "rowwise_adagrad"), ranks)
    return folder


def recipe_of(folder: Path, kind: str, adagrad: str = "adagrad", **sections: Any) -> Recipe:
    tree = {
        "model": {"embedding_dim": WIDTH, "item": ITEMS[kind]},
        "optimizer": {"tables": {"kind": adagrad, "lr": 0.2}, "dense": {"lr": 0.02}},
        "train": {"runs": str(folder / "runs"), "epochs": 1},
    }
    return small_recipe(folder, name=f"{kind}-{adagrad}", **{**tree, **sections})


def run_of(folder: Path, kind: str = "sid_coord", adagrad: str = "adagrad") -> Path:
    return folder / "runs" / f"{kind}-{adagrad}" / "seed0"


def carried_of(
    folder: Path, catalog: str, kind: str = "sid_coord", adagrad: str = "adagrad", **sections: Any
) -> Recipe:
    start = {"checkpoint": str(run_of(folder, kind, adagrad)), "old_catalog": str(folder / "catalog")}
    start |= sections.pop("start", {})
    data = {"catalog": str(folder / catalog)}
    return recipe_of(folder, kind, adagrad, start=start, data=data, seed=7, **sections)


def started_training(recipe: Recipe, ranks: Ranks) -> tuple[Dataset, Training]:
    """Before the first step."""
    data = open_dataset(recipe, ranks)
    start = find_warm_start(recipe, data, ranks)
    training = build_training(recipe, data, ranks)
    assert start is not None
    start.fill(training.model, training.optimizer, ranks)
    return data, training


def started_model(recipe: Recipe, ranks: Ranks) -> tuple[Dataset, DistributedModelParallel]:
    data, training = started_training(recipe, ranks)
    return data, training.model


def scores(recipe: Recipe, ranks: Ranks) -> np.ndarray:
    """Logits on both splits."""
    data, model = started_model(recipe, ranks)
    return np.concatenate([score_split(recipe, data, model, name, ranks).score_N for name in ("train", "test")])


def held_by_items(recipe: Recipe, ranks: Ranks) -> dict[str, Tensor]:
    """Key of a SID table's weight, state or impressions -> its row of every item."""
    data, training = started_training(recipe, ranks)
    found = {}
    for shard in state_shards(training.model, training.optimizer, ranks):
        name = next((name for name in data.tables.sid_tables if re.search(rf"[._]{name}(\.|$)", shard.key)), None)
        if name is not None:
            found[shard.key] = shard.values[torch.from_numpy(data.tables.rows_of(name)).long()].clone()
    return found


@pytest.mark.parametrize("kind", ["sid_coord", "counted", "sid"])
@pytest.mark.parametrize("catalog", ["permuted", "split"])
def test_renamed_and_split_codes_score_as_the_old_run(kind: str, catalog: str, folder: Path, ranks: Ranks) -> None:
    """A counted fusion weighs a split code less, as each of its halves was shown less."""
    same = recipe_of(folder, kind, start={"checkpoint": str(run_of(folder, kind))})
    before, after = scores(same, ranks), scores(carried_of(folder, catalog, kind), ranks)
    assert before.std() > 0.02, "the checkpoint has learned something to keep"
    if (kind, catalog) != ("counted", "split"):
        np.testing.assert_allclose(after, before, atol=2e-6)
    tables = ("s1", "s123") if kind == "sid" else ("s1", "s2", "s3", "s12", "s23")
    without = {"checkpoint": str(run_of(folder, kind)), "without": tables}
    anew = scores(recipe_of(folder, kind, start=without, data={"catalog": str(folder / catalog)}), ranks)
    assert abs(anew - before).max() > 0.02


@pytest.mark.parametrize("adagrad", SUMS)
def test_renamed_codes_keep_all_of_every_item(adagrad: str, folder: Path, ranks: Ranks) -> None:
    kind = "counted" if adagrad == "adagrad" else "sid_coord"
    same = recipe_of(folder, kind, adagrad, start={"checkpoint": str(run_of(folder, kind, adagrad))})
    before = held_by_items(same, ranks)
    after = held_by_items(carried_of(folder, "permuted", kind, adagrad), ranks)
    assert len(before) == (15 if kind == "counted" else 10), "weights, sums and impressions"
    assert before.keys() == after.keys()
    for key, values in before.items():
        assert torch.equal(after[key][1:], values[1:]), key
        assert values.any() or "user" in key


def stored(path: Path, key: str) -> np.ndarray:
    table = StoredTable(open_checkpoint(path).path, key)
    return table.rows(0, table.shape[0]).numpy()


def by_hand(
    values_RW: np.ndarray, old_NF: np.ndarray, new_NF: np.ndarray, divided: bool, anew_RW: np.ndarray
) -> np.ndarray:
    """The carried table, place by place."""
    found = anew_RW.copy()
    places = [(new, old) for new, old in zip(new_NF.flat, old_NF.flat, strict=True) if new and old]
    for row in {new for new, _ in places}:
        taken = [old for new, old in places if new == row]
        of = [sum(old == other for _, other in places) if divided else len(taken) for old in taken]
        found[row] = sum(values_RW[old].astype(np.float64) / count for old, count in zip(taken, of, strict=True))
    return found


@pytest.mark.parametrize(
    ("kind", "adagrad"), [("sid_coord", "rowwise_adagrad"), ("counted", "adagrad"), ("hashed", "adagrad")]
)
def test_other_codes_take_means_and_divide_sums(kind: str, adagrad: str, folder: Path, ranks: Ranks) -> None:
    recipe, path = carried_of(folder, "refitted", kind, adagrad), run_of(folder, kind, adagrad)
    new = open_dataset(recipe, ranks).tables
    old = open_dataset(recipe_of(folder, kind, adagrad), ranks).tables
    (held,) = run_on_ranks(
        1,
        all_started,
        {"": recipe, "fresh": recipe_of(folder, kind, adagrad, seed=7, data={"catalog": str(folder / "refitted")})},
    )
    checked = 0
    for name, table in new.tables.items():
        if name == HID:
            continue
        old_NF, new_NF = (np.stack([of.rows_of(feature) for feature in table.features], axis=1) for of in (old, new))
        for key, (_, values) in held[""].items():
            if re.search(rf"[._]{name}(\.|$)", key):
                divided = "embedding_bags" not in key or key.startswith("optimizer/")
                anew = held["fresh"][key][1].numpy()
                expected = by_hand(stored(path, key), old_NF, new_NF, divided, anew)
                np.testing.assert_allclose(values.numpy(), expected, rtol=1e-5, atol=1e-6, err_msg=key)
                checked += 1
    assert checked == {"sid_coord": 10, "counted": 15, "hashed": 2}[kind]


# Ranks.

Pieces = list[tuple[str, tuple[int, ...], Tensor]]
"""Key of a tensor, where a part of it begins, and the part's values."""
CUTS = [
    ("row_wise", "adagrad"),
    ("column_wise", "adagrad"),
    ("column_wise", "rowwise_adagrad"),
    ("grid_shard", "rowwise_adagrad"),
    ("data_parallel", "rowwise_adagrad"),
]


def cut_pieces(rank: int, world: int, old: Recipe, recipes: Sequence[Recipe]) -> list[Pieces]:
    """What this rank holds of SID tables: of each of CUTS, and last row-wise, from the run `old`, trained here."""
    machines_of(max(1, world // 2), world)
    ranks = joined(rank, world)
    train(old, ranks)
    found = []
    for recipe, (sharding, adagrad) in zip(recipes, [*CUTS, CUTS[0]], strict=True):
        data = open_dataset(recipe, ranks)
        start, ranker = find_warm_start(recipe, data, ranks), build_ranker(recipe, data, adagrad, sharding, ranks)
        assert start is not None
        start.fill(ranker.model, ranker.optimizer, ranks)
        held = state_shards(ranker.model, ranker.optimizer, ranks)
        found.append(
            [(of.key, of.offset, of.values.clone()) for of in held if belongs_to(of.key, data.tables.sid_tables)]
        )
    return found


def test_two_ranks_carry_what_one_carries(folder: Path) -> None:
    """From a run of one rank, and from one whose tables two ranks have cut by rows."""
    sections: dict[str, Any] = {"parallel": {"sharding": "row_wise"}, "train": {"runs": f"{folder}/two", "epochs": 1}}
    two = recipe_of(folder, "sid_coord", **sections)
    recipes = [carried_of(folder, "refitted", "sid_coord", adagrad) for _, adagrad in CUTS]
    recipes.append(carried_of(folder, "refitted", start={"checkpoint": str(two.run)}))
    on_two: list[list[Pieces]] = run_on_ranks(2, cut_pieces, two, recipes)
    (on_one,) = run_on_ranks(1, all_started, {str(number): recipe for number, recipe in enumerate(recipes)})
    for number, of_ranks in enumerate(zip(*on_two, strict=True)):
        whole, seen = on_one[str(number)], dict.fromkeys(on_one[str(number)], 0)
        for key, offset, values in (piece for pieces in of_ranks for piece in pieces):
            expected = whole[key][1]
            if key.endswith("row_sum"):
                expected = expected.expand(-1, 2)  # a shard of columns begins with the whole row's sum
            assert torch.equal(values, part(expected, offset, values)), (recipes[number].name, key)
            seen[key] += values.numel()
        sids = {key: count for key, count in seen.items() if belongs_to(key, ("s1", "s2", "s3", "s12", "s23"))}
        assert len(sids) == 10
        copies = 2 if number == CUTS.index(("data_parallel", "rowwise_adagrad")) else 1
        for key, count in sids.items():
            shards = count / copies / whole[key][1].numel()
            cut = key.endswith("row_sum") and CUTS[number % len(CUTS)][0] in ("column_wise", "grid_shard")
            assert shards == (2 if cut else 1), (recipes[number].name, key)


# What else the start does, and what it says.


def test_the_log_and_the_run_say_what_was_carried(
    folder: Path, ranks: Ranks, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = carried_of(folder, "refitted", start={"without": ["s2"]}, train={"runs": str(folder / "new"), "epochs": 1})
    assert train(recipe, ranks) == 0
    said = capsys.readouterr().out
    assert (
        f"carried from the catalog {folder}/catalog by 50 items that both hold: s1 5 of 5 rows (0 begin anew)" in said
    )
    facts = json.loads((recipe.run / "run.json").read_text())["start"]
    assert facts["without"] == ["s2"]
    assert facts["refit"]["shared_items"] == 50
    assert facts["refit"]["tables"].keys() == {"s1", "s3", "s12", "s23"}
    assert facts["refit"]["tables"]["s1"] == {"rows": 5, "carried": 5, "anew": 0}


def test_an_extended_old_catalog_covers_new_items(folder: Path, ranks: Ranks, tmp_path: Path) -> None:
    """Item 60 is new: without the extension its codes begin anew, with it they are those of item 1."""
    known = load_catalog(folder / "catalog")
    first = Catalog(known.item_ids_N[:-1], known.codes_NL[:-1], known.codebook_sizes)
    first.save(tmp_path / "first")
    codes_NL = np.concatenate([first.codes_NL, first.codes_NL[:1]])
    Catalog(known.item_ids_N, codes_NL, (4, 4, 4), extension_N=np.repeat([0, 1], [ITEMS_COUNT - 1, 1])).save(
        tmp_path / "extended"
    )
    new = np.concatenate([first.codes_NL, [[4, 4, 4]]])  # a code of its own
    Catalog(known.item_ids_N, new, (5, 5, 5)).save(tmp_path / "new")
    runs = {"runs": str(tmp_path / "runs"), "epochs": 1}
    old = recipe_of(folder, "sid_coord", data={"catalog": str(tmp_path / "first")}, train=runs)
    train(old, ranks)
    last_rows = {}
    for name in ("first", "extended"):
        start = {"checkpoint": str(old.run), "old_catalog": str(tmp_path / name)}
        recipe = recipe_of(folder, "sid_coord", start=start, data={"catalog": str(tmp_path / "new")}, seed=7)
        held = held_by_items(recipe, ranks)
        last_rows[name] = [values[[1, ITEMS_COUNT]] for key, values in held.items() if key.startswith("model/")]
    assert all(torch.equal(rows[0], rows[1]) for rows in last_rows["extended"])
    assert not any(torch.equal(rows[0], rows[1]) for rows in last_rows["first"])


def levels_of(catalog: Catalog, levels: Sequence[int]) -> Catalog:
    return Catalog(catalog.item_ids_N, catalog.codes_NL[:, levels], (4,) * len(levels))


@pytest.mark.parametrize(
    ("kind", "changes", "sentence"),
    [
        ("sid_coord", {"data": {"catalog": "catalog"}}, "a data.catalog that was fitted again since .*, got its own"),
        ("sid_coord", {"start": {"old_catalog": "refitted"}}, "expected the catalog .* was trained with"),
        ("sid_coord", {"start": {"old_catalog": "gone"}}, "gone/catalog.json: expected a catalog"),
        ("sid_coord", {"data": {"catalog": "others"}}, "expected items that data.catalog holds too, got none"),
        ("sid_coord", {"data": {"catalog": "four"}}, "expected 3 levels, as .* has, to carry tables over, got 4"),
        ("sid_coord", {"start": {"without": ["s1", "s2", "s3", "s12", "s23"]}}, "SID tables that start from the"),
        ("hid", {"model": {"item": ITEMS["sid"]}}, "expected SID tables, got item kind hid"),
        ("subwords", {}, "start.old_catalog: expected granularities, got tokens of kind spm"),
        (
            "sid",
            {"model": {"item": {"kind": "sid", "granularities": ["s1", "s12"]}}},
            r"features, s1, s123, .*table s12",
        ),
        ("hashed", {"model": {"item": ITEMS["sid_coord"]}}, "with its index, got the table s1 of s1; start.without"),
        ("sid_coord", {"model": {"embedding_dim": 8}}, "expected the"),
    ],
)
def test_refusals(kind: str, changes: Mapping[str, Any], sentence: str, folder: Path, ranks: Ranks) -> None:
    known = load_catalog(folder / "catalog")
    if not (folder / "four").exists():
        levels_of(known, [0, 1, 2, 0]).save(folder / "four")
        Catalog(known.item_ids_N + ITEMS_COUNT, known.codes_NL, (4, 4, 4)).save(folder / "others")
    data = {"catalog": str(folder / changes.get("data", {}).get("catalog", "refitted"))}
    start = {"checkpoint": str(run_of(folder, kind)), "old_catalog": str(folder / "catalog")}
    start |= {
        key: str(folder / value) if key == "old_catalog" else value for key, value in changes.get("start", {}).items()
    }
    model = {"embedding_dim": WIDTH, "item": ITEMS[kind], **changes.get("model", {})}
    recipe = recipe_of(folder, kind, data=data, start=start, model=model)
    with pytest.raises(SidrecError, match=sentence):
        find_warm_start(recipe, open_dataset(recipe, ranks), ranks)


def test_recipes_that_cannot_carry_are_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="old_catalog"):
        small_recipe(folder, start={"old_catalog": "catalog"})
    with pytest.raises(ConfigError, match="expected no `old_catalog` with `grow`"):
        small_recipe(folder, start={"checkpoint": "runs/old", "grow": True, "old_catalog": "catalog"})
