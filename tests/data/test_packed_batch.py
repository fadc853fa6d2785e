"""What the device looks up for a batch's items equals their rows one by one, for every item kind; bytes of a batch."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sidrec.config.item import ContentItem, HidAndSidItem, HidItem, Item, SidCoordItem, SidItem
from sidrec.config.item_parts import ManagedCollisionIndex, MatchStatsAlignment, ModuloIndex, SpmTokens
from sidrec.data.batch import Batch, item_lookups, packed, pad_items
from sidrec.data.item_tables import ItemTable, ItemTables, item_tables
from sidrec.data.rows import Rows
from sidrec.data.worker import BatchArrays, pack
from sidrec.schema import ContractError
from sidrec.sid.catalog import Catalog
from sidrec.sid.granularity import Subwords, fit_subwords
from tests.data.log_files import manifest_of
from tests.data.test_collate import CPU, bags, rows_of
from tests.train.host_reads import HostReads

IDS = 30
SID_ITEMS = np.array([1, 2, 4, 5, 9, 11, 17, 29])
"""The others have no SID."""
RANDOM = np.random.default_rng(0)
CATALOG = Catalog(SID_ITEMS, RANDOM.integers(0, 4, (8, 3)), (4, 4, 4), RANDOM.random((8, 3)).astype(np.float32))
WHOLE = Catalog(np.arange(1, IDS), RANDOM.integers(0, 4, (IDS - 1, 3)), (4, 4, 4))

KINDS: dict[str, Item] = {
    "hid": HidItem(),
    "hid modulo": HidItem(hid_index=ModuloIndex(rows=7)),
    "hid managed": HidItem(hid_index=ManagedCollisionIndex(rows=7)),
    "sid": SidItem(granularities=("s1", "s12", "s123")),
    "sid modulo": SidItem(granularities=("s1", "s3"), index=ModuloIndex(rows=5)),
    "sid weights": SidItem(granularities=("s2", "s23"), token_weights="both"),
    "sid matches": SidItem(granularities=("s1", "s12"), alignment=MatchStatsAlignment()),
    "hid and sid, subwords": HidAndSidItem(tokens=SpmTokens(vocabulary=20)),
    "hid and sid, managed": HidAndSidItem(hid_index=ManagedCollisionIndex(rows=7)),
    "sid_coord": SidCoordItem(),
    "content": ContentItem(),
}


def tables_of(item: Item, catalog: Catalog = CATALOG) -> ItemTables:
    subwords = None
    if item.sids is not None and item.sids.subwords is not None:
        impressions_I = np.arange(IDS)
        fitted = fit_subwords(catalog.codes_by_id(IDS), impressions_I, catalog.codebook_sizes, item.sids.subwords)
        subwords = Subwords(fitted, catalog.codebook_sizes)
    content = RANDOM.random((IDS, 4)).astype(np.float32) if isinstance(item, ContentItem) else None
    return item_tables(item, manifest_of(), catalog if item.sids else None, subwords, content)


def some_rows() -> Rows:
    histories = [RANDOM.integers(0, 20, 5).tolist() for _ in range(12)]
    return rows_of([0, *RANDOM.integers(1, IDS, 11).tolist()], histories)


def check_item_by_item(batch: Batch, rows: Rows, tables: ItemTables, more: int) -> None:
    """Against loops over ids and features."""
    ids = [0, *sorted({*rows.item_N.tolist(), *rows.history_NT.ravel().tolist()} - {0}), *[0] * more]
    looked_up = {
        name: [[int(tables.rows_of(name)[item])] if tables.rows_of(name)[item] else [] for item in ids]
        for name in tables.features
    }
    assert bags(batch.items) == looked_up
    assert batch.items.length_per_key() == [sum(map(len, of_bag)) for of_bag in looked_up.values()]
    assert [ids[bag] for bag in batch.target_B] == rows.item_N.tolist() == batch.item_B.tolist()
    assert [[ids[bag] for bag in history] for history in batch.history_BT] == rows.history_NT.tolist()
    assert batch.token_weights_UW.tolist() == [tables.token_weights_IW[item].tolist() for item in ids]
    assert batch.granules_UG.tolist() == [tables.granules_IG[item].tolist() for item in ids]
    if tables.content is None:
        assert batch.content_UV.shape == (len(ids), 0)
    else:
        vectors = [tables.content[np.array([item])][0].tolist() if item else [0] * 4 for item in ids]
        assert batch.content_UV.tolist() == vectors


@pytest.mark.parametrize("more", [0, 3])
@pytest.mark.parametrize("change", [None, "trained on fewer items", "a SID for every item"])
@pytest.mark.parametrize("kind", list(KINDS))
def test_every_kind_and_index_is_looked_up_item_by_item(kind: str, change: str | None, more: int) -> None:
    item = KINDS[kind]
    weighted = item.sids is not None and item.sids.token_weights != "off"
    tables = tables_of(item, WHOLE if change == "a SID for every item" and not weighted else CATALOG)
    if change == "trained on fewer items":
        tables = tables.as_trained({name: max(2, table.rows // 2) for name, table in tables.tables.items()})
    rows = some_rows()
    host = packed(pack(BatchArrays(tables.for_workers(), ())(rows, 1.0)), tables)
    batch = pad_items(host, host.bags + more).to(CPU)
    check_item_by_item(batch, rows, tables, more)


@pytest.mark.parametrize("kind", list(KINDS))
def test_on_a_gpu_no_size_is_read_and_lookups_are_the_same(kind: str) -> None:
    tables = tables_of(KINDS[kind])
    ids_U = torch.cat([torch.zeros(1, dtype=torch.int32), torch.arange(1, 20, dtype=torch.int32), torch.zeros(2).int()])
    rows_UF = tables.on(CPU).rows_IF.index_select(0, ids_U)
    lookups = dict(zip(tables.features, (rows_UF > 0).sum(dim=0).tolist(), strict=True))
    with HostReads() as reads:
        found = item_lookups(rows_UF, 19, lookups, fixed=True)
    assert not reads.places
    expected = item_lookups(rows_UF, 19, lookups, fixed=False)
    assert bags(found) == bags(expected)
    assert (found.values().dtype, found.lengths().dtype) == (torch.int64, torch.int32)


def test_the_arrays_by_item_are_on_a_device_once() -> None:
    tables = tables_of(SidCoordItem())
    assert tables.on(CPU) is tables.on(CPU)
    assert tables.on(CPU).rows_IF.data_ptr() == tables.rows_IF.ctypes.data, "shared on a CPU"
    assert not tables.rows_IF[0].any()


def test_a_worker_knows_no_rows_and_one_mask_for_all_granularities() -> None:
    items = tables_of(SidCoordItem()).for_workers()
    assert items.has_row["hid"] is None
    (mask_I,) = {id(mask): mask for mask in items.has_row.values() if mask is not None}.values()
    assert np.flatnonzero(mask_I).tolist() == SID_ITEMS.tolist()
    assert all(mask is None for mask in tables_of(SidCoordItem(), WHOLE).for_workers().has_row.values())


def test_more_items_than_32_bits_count_are_refused() -> None:
    manifest = replace(manifest_of(), ids={"user_id": 5, "item_id": 2**31})
    with pytest.raises(ContractError, match=r"ids\.item_id: expected at most 2147483647 item ids, got"):
        item_tables(HidItem(), manifest, None)


# Bytes.

BATCH, HISTORY, ITEMS, CONTEXT = 65_536, 50, 1_300_000, 27


def large_rows() -> Rows:
    """Criteo-like rows: 13 dense, 27 id and 4 statistics columns, and 1.25 million distinct items."""
    ids_M = np.concatenate([np.arange(1, ITEMS), RANDOM.integers(1, ITEMS, BATCH * (1 + HISTORY) - ITEMS + 1)])
    ids_M = np.where(ids_M <= 1_250_000, ids_M, 0).astype(np.int32)
    floats = np.zeros(BATCH, np.float32)
    return Rows(
        row_N=np.arange(BATCH),
        good_N=np.ones(BATCH, dtype=bool),
        label_N=floats,
        user_N=np.arange(BATCH),
        item_N=ids_M[:BATCH],
        context_NC=np.zeros((BATCH, CONTEXT), np.int32),
        dense_NX=np.zeros((BATCH, 13), np.float32),
        stats_NS=np.zeros((BATCH, 4), np.float32),
        history_NT=ids_M[BATCH:].reshape(BATCH, HISTORY),
    )


@pytest.mark.parametrize("sids", [0, 5])
def test_a_batch_of_65536_rows_is_at_most_35_mb_whatever_the_sids(sids: int) -> None:
    """With the rows and lengths of six features it was 143 MB."""
    rows_IF = np.ones((ITEMS, 1 + sids), np.int32)
    rows_IF[0] = 0
    tables = {f"s{k}": ItemTable(2, (f"s{k}",)) for k in range(1 + sids)}
    items = ItemTables(tables, rows_IF, np.zeros((ITEMS, 0), np.float32), np.zeros((ITEMS, 0), np.int32))
    names = tuple(f"cat_{c}" for c in range(CONTEXT))
    block = pack(BatchArrays(items.for_workers(), names)(large_rows(), 1.0))
    assert block.bytes_.nbytes <= 35_000_000
    assert set(block.lookups.values()) == {1_250_000}
    assert packed(block, items).bags == 1_250_001
