"""What a fusion, a loss or a pooling asks of the data: impressions of granules, statistics, SIDs of histories."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sidrec.config import ConfigError, Recipe
from sidrec.config.item import SidCoordItem
from sidrec.config.item_parts import CodeContrast, CountedFusion
from sidrec.config.load import parse
from sidrec.config.model import RoutesPooling
from sidrec.data.dataset import assemble_dataset, read_contracts, read_dataset
from sidrec.data.item_tables import impressions_by_id
from sidrec.data.loader import open_split
from sidrec.schema import ITEM_ID, ContractError
from tests.small_log import small_recipe, write_small_log


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return small_recipe(write_small_log(tmp_path_factory.mktemp("log"), rows=300))


def with_model(recipe: Recipe, **sections: Any) -> Recipe:
    return replace(recipe, model=replace(recipe.model, **sections))


def test_impressions_are_summed_over_the_items_of_a_granule(recipe: Recipe) -> None:
    data = read_dataset(with_model(recipe, item=SidCoordItem(granularities=("s1", "s12"), fusion=CountedFusion())))
    _, catalog = read_contracts(recipe)
    assert catalog is not None
    items = data.manifest.ids[ITEM_ID]
    shown_I, codes_IL = impressions_by_id(recipe.data.path / "items.parquet", items), catalog.codes_by_id(items)
    assert set(data.sizes.impressions) == {"s1", "s12"}
    for name, levels in (("s1", 1), ("s12", 2)):
        rows_I, counts_R = data.tables.rows_of(name), data.sizes.impressions[name]
        assert len(counts_R) == data.tables.tables[name].rows
        for item in range(1, items):
            if codes_IL[item, 0] >= 0:
                same_I = (codes_IL[:, :levels] == codes_IL[item, :levels]).all(axis=1)
                assert counts_R[rows_I[item]] == shown_I[same_I].sum()
        assert counts_R[0] == 0
    assert read_dataset(recipe).sizes.impressions == {}


def test_a_loss_weighted_by_exposures_needs_statistics(recipe: Recipe) -> None:
    weighted = with_model(recipe, item=SidCoordItem(contrast=CodeContrast(strength=5.0)))
    manifest, catalog = read_contracts(weighted)
    expected = r"model\.item\.contrast\.strength: expected a log with stat_\* columns, which it reads, got none"
    with pytest.raises(ContractError, match=expected):
        assemble_dataset(weighted, replace(manifest, stats=()), catalog, None)


def test_a_loader_searches_histories_by_sid(recipe: Recipe) -> None:
    length = recipe.data.history_length
    searched = with_model(recipe, history_pooling=RoutesPooling(routes=("prefix",), keep=2))
    batches = []
    for one in (recipe, searched):
        data = read_dataset(one)
        loader = open_split(
            one.data, one.model, "test", rank=0, world=1, seed=0, shuffle=False, tables=data.tables,
            manifest=data.manifest,
        )  # fmt: skip
        batches.append((next(iter(loader.batches(0))), data))
    (plain, data), (found, _) = batches
    assert plain.history_BT.shape[1] == length
    assert found.history_BT.shape[1] == 2
    s1_I, selected = data.tables.rows_of("s1"), 0
    for row, item in enumerate(found.item_B.tolist()):
        ids = [_item(found, int(bag)) for bag in found.history_BT[row] if bag]
        assert all(s1_I[i] == s1_I[item] > 0 for i in ids)
        selected += len(ids)
        before = [_item(plain, int(bag)) for bag in plain.history_BT[row] if bag]
        assert len(ids) == min(2, sum(s1_I[i] == s1_I[item] > 0 for i in before))
    assert selected > 20


def _item(batch: Any, bag: int) -> int:
    """The item id of a bag: its row of the HID table, which has a row for each id."""
    offsets = batch.items["hid"].offsets()
    return int(batch.items["hid"].values()[offsets[bag]])


def parsed(tmp_path: Path, model: dict[str, Any], history_length: int = 100) -> Recipe:
    data = {"path": str(tmp_path), "catalog": str(tmp_path), "history_length": history_length}
    return parse({"name": "a", "data": data, "model": model}, "recipe.yaml")


@pytest.mark.parametrize(
    ("model", "length", "message"),
    [
        (
            {"history_pooling": {"kind": "routes"}},
            39,
            "data.history_length: expected at least the 40 items that the routes of model.history_pooling keep, got 39",
        ),
        (
            {"history_pooling": {"kind": "routes"}, "item": {"kind": "hid"}},
            100,
            "expected history_pooling.routes without prefix with item kind hid, which has no SIDs",
        ),
        (
            {"history_pooling": {"kind": "pma", "heads": 3}},
            100,
            "expected a divisor of embedding_dim 16 in history_pooling.heads, got 3",
        ),
    ],
)
def test_poolings_that_do_not_fit_are_refused(tmp_path: Path, model: Any, length: int, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parsed(tmp_path, model, length)
    assert message in str(refused.value)


def test_a_control_without_sids_needs_none(tmp_path: Path) -> None:
    pooling = {"kind": "routes", "routes": ["recent", "random"], "keep": 5}
    recipe = parsed(tmp_path, {"history_pooling": pooling, "item": {"kind": "hid"}})
    assert recipe.model.history_pooling.kept(100) == 10
