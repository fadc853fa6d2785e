"""Tables of items: exact, hashed and subword rows, and content vectors."""

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sidrec.config import Recipe
from sidrec.config.item import ContentItem, HidAndSidItem, HidItem, Item, SidCoordItem, SidItem
from sidrec.config.item_parts import ManagedCollisionIndex, MatchStatsAlignment, ModuloIndex, SpmTokens
from sidrec.config.model import ModelConfig
from sidrec.config.recipe import DataConfig
from sidrec.data.dataset import independent_levels
from sidrec.data.item_tables import ContentVectors, ItemTable, ItemTables, hashed_rows, item_tables
from sidrec.schema import ContractError
from sidrec.sid.catalog import Catalog
from sidrec.sid.granularity import Subwords, fit_subwords
from tests.data.log_files import manifest_of

# Items 1, 2 and 4 of a log that knows ids 0 to 29; s1 takes the codes 5 and 7, s12 takes 5.0, 5.1 and 7.0.
CATALOG = Catalog(np.array([1, 2, 4]), np.array([[7, 0], [5, 1], [5, 0]]), (8, 2))
CATALOG_3 = Catalog(np.array([1]), np.array([[7, 0, 1]]), (8, 2, 2))


def tables_of(item: Item) -> ItemTables:
    return item_tables(item, manifest_of(), CATALOG)


def rows_by_table(tables: ItemTables) -> dict[str, int]:
    return {name: table.rows for name, table in tables.tables.items()}


def test_hid_rows_are_the_item_ids() -> None:
    tables = item_tables(HidItem(), manifest_of(), None)
    assert rows_by_table(tables) == {"hid": 30}
    assert tables.rows_of("hid").tolist() == list(range(30))


def test_sid_rows_number_the_codes_that_occur() -> None:
    tables = tables_of(SidItem(granularities=("s1", "s12")))
    assert rows_by_table(tables) == {"s1": 3, "s12": 4}
    assert tables.rows_of("s1").tolist() == [0, 2, 1, 0, 1] + [0] * 25
    assert tables.rows_of("s12").tolist() == [0, 3, 2, 0, 1] + [0] * 25


def test_sid_coord_has_both() -> None:
    tables = tables_of(SidCoordItem(granularities=("s2",)))
    assert tables.features == ("hid", "s2")
    assert tables.rows_of("s2").tolist() == [0, 1, 2, 0, 1] + [0] * 25


def test_a_granularity_weighs_the_product_of_its_tokens() -> None:
    weighted = Catalog(np.array([1, 4]), np.array([[7, 0], [5, 0]]), (8, 2), np.array([[1.0, 0.5], [3.0, 0.25]]))
    item = SidItem(granularities=("s1", "s2", "s12"), token_weights="multiply")
    tables = item_tables(item, manifest_of(), weighted)
    weights = tables.token_weights_IW
    assert weights[np.array([1, 4])].tolist() == [[1, 0.5, 0.5], [3, 0.25, 0.75]]
    assert not weights[np.array([0, 2, 29])].any()
    assert item_tables(SidItem(), manifest_of(), CATALOG_3).token_weights_IW.shape == (30, 0)


def test_token_weights_that_the_catalog_lacks_are_refused() -> None:
    with pytest.raises(ContractError, match=r"^catalog: expected token weights, .*, got codes alone$"):
        tables_of(SidItem(granularities=("s1",), token_weights="append"))


def test_sids_without_a_catalog_are_refused() -> None:
    with pytest.raises(ContractError, match=r"^model\.item: expected a catalog, .* sid_coord need, got none$"):
        item_tables(SidCoordItem(), manifest_of(), None)


def test_hashed_granularities_share_a_table_and_collide() -> None:
    item = HidAndSidItem(granularities=("s1", "s12"), index=ModuloIndex(rows=4))
    tables = item_tables(item, manifest_of(), CATALOG)
    assert tables.tables == {"hid": ItemTable(30, ("hid",)), "sid": ItemTable(4, ("s1", "s12"))}
    assert tables.features == ("hid", "s1", "s12")
    composed = {"s1": [7, 5, 5], "s12": [70_000, 50_001, 50_000]}  # of items 1, 2, 4, with radix 10,000
    for name, ids in composed.items():
        expected = np.zeros(30, np.int64)
        expected[[1, 2, 4]] = hashed_rows(np.array(ids), name, 4)
        assert tables.rows_of(name).tolist() == expected.tolist()
    assert len(np.unique(tables.rows_IF[:, 1:])) <= 4


def test_hids_can_be_hashed_too() -> None:
    tables = item_tables(HidItem(hid_index=ModuloIndex(rows=7)), manifest_of(), None)
    assert tables.tables == {"hid": ItemTable(7, ("hid",))}
    rows_I = tables.rows_of("hid")
    assert rows_I[0] == 0
    assert (rows_I[1:] > 0).all()
    assert rows_I.max() < 7
    assert 4 < len(np.unique(rows_I)) <= 7


def test_managed_tables_are_looked_up_by_the_id_itself() -> None:
    index = ManagedCollisionIndex(rows=7)
    tables = item_tables(HidAndSidItem(granularities=("s1",), hid_index=index), manifest_of(), CATALOG)
    exact = item_tables(HidAndSidItem(granularities=("s1",)), manifest_of(), CATALOG)
    assert tables.tables == {**exact.tables, "hid": ItemTable(7, ("hid",), managed=index)}
    np.testing.assert_array_equal(tables.rows_IF, exact.rows_IF)


def test_match_statistics_compare_exact_granules_whatever_the_index() -> None:
    item = SidItem(granularities=("s1", "s12"), index=ModuloIndex(rows=2), alignment=MatchStatsAlignment())
    granules = item_tables(item, manifest_of(), CATALOG).granules_IG
    assert granules[np.array([0, 1, 2, 3, 4])].tolist() == [[0, 0], [2, 3], [1, 2], [0, 0], [1, 1]]


def test_subwords_share_a_table() -> None:
    codes_IL = CATALOG.codes_by_id(30)
    impressions_I = np.zeros(30, np.int64)
    impressions_I[[2, 4]] = 100, 1
    subwords = Subwords(fit_subwords(codes_IL, impressions_I, (8, 2), 6), (8, 2))
    item = SidItem(tokens=SpmTokens(vocabulary=6))
    tables = item_tables(item, manifest_of(), CATALOG, subwords)
    assert tables.tables == {"sid": ItemTable(6, ("spm_1", "spm_2"))}
    used = (tables.rows_IF > 0).sum(axis=1)
    assert used[[1, 2, 4]].tolist() == [2, 1, 2], "the popular item has a row of its own"
    assert not used[[0, 3, *range(5, 30)]].any()


def test_content_travels_with_the_tables() -> None:
    content = np.ones((30, 5), np.float32)
    tables = item_tables(ContentItem(), manifest_of(), None, content=content)
    assert tables.features == ("hid",)
    assert tables.content is content


@pytest.mark.parametrize("tokens", [None, SpmTokens(vocabulary=9)])
def test_every_kind_with_sids_wants_a_catalog(tokens: SpmTokens | None) -> None:
    item = HidAndSidItem(tokens=tokens) if tokens else HidAndSidItem()
    with pytest.raises(ContractError, match=r"^model\.item: expected a catalog, .* hid_and_sid need, got none$"):
        item_tables(item, manifest_of(), None)


@pytest.mark.parametrize("item", [HidAndSidItem(), HidAndSidItem(index=ModuloIndex(rows=9))])
def test_granularities_deeper_than_the_catalog_are_refused(item: HidAndSidItem) -> None:
    with pytest.raises(ContractError, match=r"^granularity s3: expected levels among the 2 of the catalog, got 3$"):
        item_tables(item, manifest_of(), CATALOG)


WORD = 2**64


def slow_row(id_: int, feature: str, rows: int) -> int:
    """In Python's own integers."""
    if id_ < 0:
        return 0
    number = id_ + int.from_bytes(hashlib.blake2b(feature.encode(), digest_size=8).digest(), "little")
    number = (number + 0x9E3779B97F4A7C15) % WORD
    number = (number ^ (number >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    number = (number ^ (number >> 27)) * 0x94D049BB133111EB % WORD
    return 1 + (number ^ (number >> 31)) % (rows - 1)


def test_the_mixer_is_splitmix64() -> None:
    # The generator's first output from seed 0, as its authors give it.
    assert slow_row(-int.from_bytes(hashlib.blake2b(b"s1", digest_size=8).digest(), "little") % WORD, "s1", 2**64) == (
        1 + 0xE220A8397B1DCDAF % (2**64 - 1)
    )


@pytest.mark.parametrize("rows", [2, 3, 101, 1_000_000])
@pytest.mark.parametrize("feature", ["hid", "s12"])
def test_rows_equal_a_slow_reference(feature: str, rows: int) -> None:
    ids = np.array([-1, 0, 1, 2, 9999, 81_918_191, 2**40])
    found = hashed_rows(ids, feature, rows)
    assert found.tolist() == [slow_row(id_, feature, rows) for id_ in ids.tolist()]
    assert found.dtype == np.int64
    assert found[0] == 0
    assert (found[1:] >= 1).all()
    assert (found[1:] < rows).all()


def test_collisions_are_as_frequent_as_chance_has_them_and_differ_by_feature() -> None:
    ids, rows = np.arange(10_000), 1001
    by_feature = {feature: hashed_rows(ids, feature, rows) for feature in ("s1", "s2")}
    for found in by_feature.values():
        counts = np.bincount(found, minlength=rows)[1:]
        assert counts.min() > 0
        assert counts.var() == pytest.approx(10, rel=0.2)  # a Poisson's, of mean 10
    together = (by_feature["s1"][:5000] == by_feature["s1"][5000:]) & (
        by_feature["s2"][:5000] == by_feature["s2"][5000:]
    )
    assert not together.any()


def test_no_code_of_a_composed_id_is_lost_to_a_round_number_of_rows() -> None:
    pairs = np.arange(50) * 10_000 + 7  # the same last code; a plain modulo by 100 would give one row
    assert len(np.unique(hashed_rows(pairs, "s12", 101))) > 30


def write_items(folder: Path) -> Path:
    """Items 3, 1 and 9 with a text vector of length 5, and a visual one of length 2."""
    vectors = {"text": [[3, 4], [0, 5], [-5, 0]], "visual": [[2, 0, 0], [0, 2, 0], [0, 0, 2]]}
    columns = {"item_id": pa.array([3, 1, 9])}
    for name, values in vectors.items():
        columns[name] = pa.array(values, pa.list_(pa.float32(), len(values[0])))
    path = folder / "items.parquet"
    pq.write_table(pa.table(columns), path)
    return path


def test_vectors_are_found_by_item_id(tmp_path: Path) -> None:
    content = ContentVectors(write_items(tmp_path), ("text",), 5)  # the log does not know item 9
    assert content.width == 2
    expected = np.array([[0, 0], [0, 1], [0, 0], [0.6, 0.8], [0, 0]])
    np.testing.assert_allclose(content[np.arange(5)], expected)
    np.testing.assert_allclose(content[np.array([3, 3, 1])], expected[[3, 3, 1]])
    assert content[np.array([], np.int64)].shape == (0, 2)
    assert content[np.array([1])].dtype == np.float32


def test_columns_are_joined_after_scaling(tmp_path: Path) -> None:
    content = ContentVectors(write_items(tmp_path), ("visual", "text"), 5)
    np.testing.assert_allclose(content[np.array([3])], [[1, 0, 0, 0.6, 0.8]])


def test_another_process_reads_the_same_file_and_leaves_it_there(tmp_path: Path) -> None:
    content = ContentVectors(write_items(tmp_path), ("text",), 5)
    sent = pickle.dumps(content)
    assert len(sent) < 2000, "vectors travel by their file"
    copy = pickle.loads(sent)
    np.testing.assert_array_equal(copy[np.arange(5)], content[np.arange(5)])
    folder = content._folder
    del copy
    assert folder.exists()
    del content
    assert not folder.exists()


def test_a_missing_column_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ContractError, match=r"expected a vector column behavior, got vector columns \['text', 'visual'\]"
    ):
        ContentVectors(write_items(tmp_path), ("text", "behavior"), 5)


ARTIFACTS = Path(__file__).parents[1] / "golden" / "v0.1.0" / "artifacts"


@pytest.mark.parametrize(
    ("catalog", "item", "joined"),
    [
        ("weighted", SidCoordItem(), "granularities s12, s23"),
        ("weighted", SidItem(granularities=("s2", "s34")), "granularities s34"),
        ("weighted", HidAndSidItem(tokens=SpmTokens(vocabulary=9)), "tokens of kind spm"),
        ("weighted", SidItem(granularities=("s1", "s5")), None),
        ("weighted", HidItem(), None),
        ("catalog", SidCoordItem(), None),
        ("data", SidCoordItem(), None),
    ],
)
def test_a_warning_of_joined_levels_that_are_independent(catalog: str, item: Item, joined: str | None) -> None:
    """`weighted` is of adc_sid, `catalog` of residual k-means; `data` is no catalog."""
    recipe = Recipe(
        name="a", data=DataConfig(path=Path("data"), catalog=ARTIFACTS / catalog), model=ModelConfig(item=item)
    )
    found = independent_levels(recipe)
    where = f"{ARTIFACTS / catalog}: levels of adc_sid do not refine each other, so model.item."
    assert found == (joined and f"{where}{joined} join independent codes; granularities s1, s2, .. keep them apart")
