"""A step's rows -> the arrays of a Batch: finds the unique items and looks up their table rows.

Shapes: B rows, T history positions, U item bags (bag 0 empty), M = B (1 + T) ids of targets and histories, G item
tables, W weighted granularities, I item ids, C context columns.
"""

import numpy as np

from sidrec.data.batch_block import Jagged
from sidrec.data.rows import Rows


class BatchArrays:
    """Builds the arrays of one process's batches.

    tables: G names of item tables. rows_IG: int64 table row of every item id, 0 for none. weights_IW: float32 token
        weights of every item id (ItemTables).
    context: names of the context columns, in the order of `Rows.context_NC`.
    Keeps one int64 per item id, so that finding the unique items needs no sort of all ids.
    """

    def __init__(
        self, tables: tuple[str, ...], rows_IG: np.ndarray, weights_IW: np.ndarray, context: tuple[str, ...]
    ) -> None:
        self._tables, self._rows_IG, self._weights_IW, self._context = tables, rows_IG, weights_IW, context
        self._bag_I = np.zeros(len(rows_IG), np.int64)

    def __call__(self, rows: Rows, rows_per_rank: float) -> dict[str, np.ndarray | Jagged]:
        """Batch field -> its array. Items are numbered 1..U-1 by increasing id; item id 0 is bag 0, as padding is."""
        known_U, bag_M = self._number(np.concatenate([rows.item_N, rows.history_NT.ravel()]))
        size = len(rows)
        return {
            "items": self._items(known_U),
            "context": _one_id_per_bag(self._context, rows.context_NC),
            "token_weights_UW": self._token_weights(known_U),
            "target_B": bag_M[:size],
            "history_BT": bag_M[size:].reshape(rows.history_NT.shape),
            "dense_BX": rows.dense_NX,
            "stats_BS": rows.stats_NS,
            "label_B": rows.label_N,
            "weight_B": rows.good_N.astype(np.float32),
            "row_B": rows.row_N,
            "user_B": rows.user_N,
            "item_B": rows.item_N,
            "rows_per_rank": np.array(rows_per_rank, np.float32),
        }

    def _number(self, ids_M: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The distinct ids other than 0, sorted, and every id's bag."""
        position_M = np.arange(len(ids_M))
        self._bag_I[ids_M] = position_M  # one position of each id survives: it stands for the id
        known_U = np.sort(ids_M[self._bag_I[ids_M] == position_M])
        known_U = known_U[np.searchsorted(known_U, 0, side="right") :]
        self._bag_I[0] = 0
        self._bag_I[known_U] = np.arange(1, len(known_U) + 1)
        return known_U, self._bag_I[ids_M]

    def _token_weights(self, known_U: np.ndarray) -> np.ndarray:
        weights_UW = np.zeros((len(known_U) + 1, self._weights_IW.shape[1]), np.float32)
        weights_UW[1:] = self._weights_IW[known_U]
        return weights_UW

    def _items(self, known_U: np.ndarray) -> Jagged:
        rows_GU = np.zeros((len(self._tables), len(known_U) + 1), np.int64)
        rows_GU[:, 1:] = self._rows_IG[known_U].T
        looked_up_GU = rows_GU > 0
        return Jagged(self._tables, rows_GU.shape[1], rows_GU[looked_up_GU], looked_up_GU.ravel().astype(np.int32))


def _one_id_per_bag(keys: tuple[str, ...], ids_BC: np.ndarray) -> Jagged:
    return Jagged(keys, len(ids_BC), np.ascontiguousarray(ids_BC.T).ravel(), np.ones(ids_BC.size, np.int32))
