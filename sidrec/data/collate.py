"""Columns of a step's rows -> Batch: finds the unique items and looks up their table rows.

Shapes: B rows, T history positions, U item bags (bag 0 empty), G item tables, I item ids, C context columns.
"""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from sidrec.data.batch import Batch
from sidrec.data.item_tables import ItemTables
from sidrec.data.rows import Rows


class Collate:
    """Builds the batches of one process.

    tables: table rows by item id. context: names of the context columns, in the order of `Rows.context_NC`.
    Keeps one int64 per item id, so that finding the unique items needs no sort of all ids.
    """

    def __init__(self, tables: ItemTables, context: tuple[str, ...]) -> None:
        self._tables = tables
        self._context = context
        self._bag_I = np.zeros(len(tables.rows_IG), np.int64)

    def __call__(self, rows: Rows, rows_per_rank: float) -> Batch:
        """The batch of B rows. Items are numbered 1..U-1 by increasing id; item id 0 is bag 0, as padding is."""
        ids_M = np.concatenate([rows.item_N, rows.history_NT.ravel()])
        known_U, bag_M = self._number(ids_M)
        size = len(rows)
        return Batch(
            items=self._items(known_U),
            context=_one_id_per_bag(self._context, rows.context_NC),
            target_B=torch.from_numpy(bag_M[:size]),
            history_BT=torch.from_numpy(bag_M[size:].reshape(rows.history_NT.shape)),
            dense_BX=torch.from_numpy(rows.dense_NX),
            stats_BS=torch.from_numpy(rows.stats_NS),
            label_B=torch.from_numpy(rows.label_N),
            weight_B=torch.from_numpy(rows.good_N.astype(np.float32)),
            row_B=torch.from_numpy(rows.row_N),
            user_B=torch.from_numpy(rows.user_N),
            item_B=torch.from_numpy(rows.item_N),
            rows_per_rank=torch.tensor(rows_per_rank, dtype=torch.float32),
        )

    def _number(self, ids_M: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The distinct ids other than 0, sorted, and every id's bag."""
        position_M = np.arange(len(ids_M))
        self._bag_I[ids_M] = position_M  # one position of each id survives: it stands for the id
        known_U = ids_M[self._bag_I[ids_M] == position_M]
        known_U.sort()
        known_U = known_U[np.searchsorted(known_U, 0, side="right") :]
        self._bag_I[0] = 0
        self._bag_I[known_U] = np.arange(1, len(known_U) + 1)
        return known_U, self._bag_I[ids_M]

    def _items(self, known_U: np.ndarray) -> KeyedJaggedTensor:
        rows_GU = np.zeros((len(self._tables.names), len(known_U) + 1), np.int64)
        rows_GU[:, 1:] = self._tables.rows_IG[known_U].T
        looked_up_GU = rows_GU > 0
        return KeyedJaggedTensor(
            keys=list(self._tables.names),
            values=torch.from_numpy(rows_GU[looked_up_GU]),
            lengths=torch.from_numpy(looked_up_GU.astype(np.int32).ravel()),
            stride=rows_GU.shape[1],
        )


def _one_id_per_bag(keys: tuple[str, ...], ids_BC: np.ndarray) -> KeyedJaggedTensor:
    return KeyedJaggedTensor(
        keys=list(keys),
        values=torch.from_numpy(np.ascontiguousarray(ids_BC.T).ravel()),
        lengths=torch.ones(ids_BC.size, dtype=torch.int32),
        stride=len(ids_BC),
    )


def pad_items(batch: Batch, bags: int) -> Batch:
    """The batch with empty bags appended, so that `items` has `bags` of them on every rank. Raises ValueError when
    there are more already."""
    items = batch.items
    if bags < batch.bags:
        raise ValueError(f"items: expected at most {bags} bags, got {batch.bags}")
    lengths_GU: Tensor = items.lengths().view(len(items.keys()), batch.bags)
    padded_GU = torch.nn.functional.pad(lengths_GU, (0, bags - batch.bags))
    padded = KeyedJaggedTensor(keys=items.keys(), values=items.values(), lengths=padded_GU.view(-1), stride=bags)
    return replace(batch, items=padded)
