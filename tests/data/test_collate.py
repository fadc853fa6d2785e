from dataclasses import replace

import numpy as np
import pytest
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from sidrec.data.batch import Batch, PackedBatch, packed, pad_items
from sidrec.data.item_tables import ItemTable, ItemTables
from sidrec.data.rows import Rows
from sidrec.data.worker import ArrayPlace, BatchArrays, pack


def tables_of(features: tuple[str, ...], rows_IF: np.ndarray, **arrays: np.ndarray) -> ItemTables:
    """A table of its own for every feature. arrays: fields of ItemTables by item id."""
    tables = {name: ItemTable(int(rows_IF.max()) + 1, (name,)) for name in features}
    ids = len(rows_IF)
    unused = {"token_weights_IW": np.zeros((ids, 0), np.float32), "granules_IG": np.zeros((ids, 0), np.int32)}
    return ItemTables(tables, rows_IF.astype(np.int32), **(unused | arrays))


CPU = torch.device("cpu")
HID_ONLY = tables_of(("hid",), np.arange(30)[:, None])


class Builder:
    """Rows to batch, all the way."""

    def __init__(self, tables: ItemTables, context: tuple[str, ...]) -> None:
        self._arrays, self._tables = BatchArrays(tables.for_workers(), context), tables

    def packed(self, rows: Rows, rows_per_rank: float) -> PackedBatch:
        return packed(pack(self._arrays(rows, rows_per_rank)), self._tables)

    def __call__(self, rows: Rows, rows_per_rank: float) -> Batch:
        return self.packed(rows, rows_per_rank).to(CPU)


def rows_of(items: list[int], histories: list[list[int]], context: list[list[int]] | None = None) -> Rows:
    size = len(items)
    width = max(map(len, histories))
    floats = np.arange(size, dtype=np.float32)
    return Rows(
        row_N=np.arange(size),
        good_N=np.array([item > 0 for item in items]),
        label_N=floats % 2,
        user_N=np.arange(size) + 100,
        item_N=np.array(items, np.int32),
        context_NC=np.array(context or [[]] * size, dtype=np.int32),
        dense_NX=np.stack([floats, -floats], axis=1),
        stats_NS=floats[:, None] * 10,
        history_NT=np.array([history + [0] * (width - len(history)) for history in histories], np.int32),
    )


def bags(jagged: KeyedJaggedTensor) -> dict[str, list[list[int]]]:
    """Key -> the ids of every bag, read off values and lengths one by one."""
    values, lengths = iter(jagged.values().tolist()), iter(jagged.lengths().tolist())
    return {
        key: [[next(values) for _ in range(next(lengths))] for _ in range(jagged.stride())]
        for key in list(jagged.keys())
    }


def test_the_picture_in_the_batch_docstring() -> None:
    batch = Builder(HID_ONLY, ())(rows_of([7, 4], [[9, 4], [7]]), rows_per_rank=2)
    assert bags(batch.items) == {"hid": [[], [4], [7], [9]]}
    assert batch.bags == 4
    assert batch.target_B.tolist() == [2, 1]
    assert batch.history_BT.tolist() == [[3, 1], [2, 0]]


def test_fields_and_dtypes() -> None:
    batch = Builder(HID_ONLY, ("user_id", "cat_a"))(rows_of([7, 4, 0], [[1], [], []], [[5, 1], [6, 2], [0, 0]]), 2.5)
    assert bags(batch.context) == {"user_id": [[5], [6], [0]], "cat_a": [[1], [2], [0]]}
    assert (batch.items.values().dtype, batch.items.lengths().dtype) == (torch.int64, torch.int32)
    assert (batch.context.values().dtype, batch.context.lengths().dtype) == (torch.int64, torch.int32)
    assert batch.dense_BX.tolist() == [[0, 0], [1, -1], [2, -2]]
    assert batch.stats_BS.tolist() == [[0], [10], [20]]
    assert batch.label_B.tolist() == [0, 1, 0]
    assert batch.weight_B.tolist() == [1, 1, 0]
    assert (batch.row_B.tolist(), batch.user_B.tolist(), batch.item_B.tolist()) == (
        [0, 1, 2],
        [100, 101, 102],
        [7, 4, 0],
    )
    assert float(batch.rows_per_rank) == 2.5
    for name in ("dense_BX", "stats_BS", "label_B", "weight_B", "rows_per_rank"):
        assert getattr(batch, name).dtype == torch.float32
    for name in ("target_B", "history_BT", "row_B", "user_B", "item_B"):
        assert getattr(batch, name).dtype == torch.int64


def test_an_unknown_item_is_bag_0_and_a_missing_sid_gets_no_lookup() -> None:
    # Items 0..3; item 2 has no SID.
    tables = tables_of(("hid", "s1"), np.array([[0, 0], [1, 2], [2, 0], [3, 1]]))
    batch = Builder(tables, ())(rows_of([2, 0, 3], [[1], [0, 1], []]), 2)
    assert bags(batch.items) == {"hid": [[], [1], [2], [3]], "s1": [[], [2], [], [1]]}
    assert batch.target_B.tolist() == [2, 0, 3]
    assert batch.history_BT.tolist() == [[1, 0], [0, 1], [0, 0]]


def test_padding_alone_has_one_empty_bag() -> None:
    batch = Builder(HID_ONLY, ())(rows_of([0, 0], [[0], [0]]), 0)
    assert bags(batch.items) == {"hid": [[]]}
    assert batch.weight_B.tolist() == [0, 0]


@pytest.mark.parametrize("seed", range(5))
def test_collate_equals_a_slow_reference(seed: int) -> None:
    rng = np.random.default_rng(seed)
    ids, size = int(rng.choice([5, 40, 1000])), int(rng.integers(1, 60))
    rows_IF = np.stack([np.arange(ids), rng.integers(0, 4, ids), rng.integers(0, 9, ids)], axis=1)
    rows_IF[0] = 0
    tables = tables_of(("hid", "s1", "s12"), rows_IF)
    histories = [rng.integers(0, ids, n).tolist() for n in rng.integers(0, 7, size)]
    rows = rows_of(rng.integers(0, ids, size).tolist(), histories)
    build = Builder(tables, ())
    for _ in range(2):  # nothing of one batch may leak into the next
        check_against_dicts(build(rows, 1.0), rows, histories, rows_IF)


def check_against_dicts(batch: Batch, rows: Rows, histories: list[list[int]], rows_IF: np.ndarray) -> None:
    known = sorted({id_ for ids in [rows.item_N.tolist(), *histories] for id_ in ids} - {0})
    bag = {0: 0} | {item: number for number, item in enumerate(known, start=1)}
    expected: dict[str, list[list[int]]] = {
        name: [[]] + [[int(rows_IF[item, g])] if rows_IF[item, g] else [] for item in known]
        for g, name in enumerate(("hid", "s1", "s12"))
    }
    assert bags(batch.items) == expected
    assert batch.target_B.tolist() == [bag[item] for item in rows.item_N.tolist()]
    width = rows.history_NT.shape[1]
    assert batch.history_BT.tolist() == [[bag[i] for i in h] + [0] * (width - len(h)) for h in histories]


def test_pad_items_appends_empty_bags_and_nothing_else() -> None:
    weights_IW = np.arange(30, dtype=np.float32)[:, None] / 10
    granules_IG = np.stack([np.arange(30) % 4, np.arange(30) % 7], axis=1).astype(np.int32)
    rows_IF = np.stack([np.arange(30), np.arange(30) % 9], axis=1)
    tables = tables_of(("hid", "s1"), rows_IF, token_weights_IW=weights_IW, granules_IG=granules_IG)
    host = Builder(replace(tables, content=weights_IW), ()).packed(rows_of([7, 4], [[9, 4], [7]]), 2)
    batch, padded = host.to(CPU), pad_items(host, 6).to(CPU)
    assert (batch.bags, padded.bags) == (4, 6)
    assert (batch.granules_UG.dtype, padded.items.lengths().dtype) == (torch.int64, torch.int32)
    assert bags(batch.items) == {"hid": [[], [4], [7], [9]], "s1": [[], [4], [7], []]}
    assert bags(padded.items) == {"hid": [[], [4], [7], [9], [], []], "s1": [[], [4], [7], [], [], []]}
    assert batch.granules_UG.tolist() == [[0, 0], [0, 4], [3, 0], [1, 2]]
    for name in ("token_weights_UW", "content_UV"):
        assert getattr(batch, name).flatten().tolist() == pytest.approx([0, 0.4, 0.7, 0.9])
    for name in ("token_weights_UW", "content_UV", "granules_UG"):
        known = getattr(batch, name)
        assert torch.equal(getattr(padded, name), torch.cat([known, torch.zeros_like(known[:2])]))
    for name in ("target_B", "history_BT", "dense_BX", "label_B"):
        assert torch.equal(getattr(padded, name), getattr(batch, name))
    with pytest.raises(ValueError, match=r"^items: expected at most 3 bags, got 4$"):
        pad_items(host, 3)


def test_all_that_a_worker_sends_lies_in_one_aligned_block() -> None:
    host = Builder(HID_ONLY, ("user_id",)).packed(rows_of([7, 4, 9], [[9, 4], [7], []], [[5], [6], [7]]), 2)
    places = [part for place in host.block.places.values() for part in (place if "keys" in dir(place) else [place])]
    arrays = [host.block.tensor(place) for place in places if isinstance(place, ArrayPlace)]
    assert len(arrays) == 14
    assert len({array.untyped_storage().data_ptr() for array in arrays}) == 1
    assert {array.storage_offset() * array.element_size() % 64 for array in arrays} == {0}


def test_a_batch_without_history_or_statistics_is_whole_too() -> None:
    rows = rows_of([7, 4], [[1], [2]])
    rows = replace(rows, history_NT=np.empty((2, 0), np.int64), stats_NS=np.empty((2, 0), np.float32))
    batch = Builder(HID_ONLY, ())(rows, 2)
    assert (batch.history_BT.shape, batch.stats_BS.shape) == ((2, 0), (2, 0))
    assert batch.target_B.tolist() == [2, 1]
