"""Routes through a long history: which of its items a batch holds (`model.history_pooling` of kind routes).

The selection is ours [I], after R2LED (arXiv 2602.06622), of whose paper only the abstract is public. It runs in the
loader, so that tables are read for the selected items alone.

Shapes: N rows, T history positions that are read, K positions of a route, J routes, I item ids, L levels of a SID.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sidrec.config.model import Pooling, Route, RoutesPooling
from sidrec.data.item_tables import ItemTables
from sidrec.data.rows import Rows
from sidrec.serve.id_lookup import splitmix64


@dataclass(frozen=True)
class HistoryRoutes:
    """Selects up to K items of every history by each of J routes; a route selects among those that earlier ones left.

    codes_IL: the SID of every item id, -1 without one; needed by the route prefix alone.
    """

    routes: Sequence[Route]
    keep: int
    codes_IL: np.ndarray

    def __call__(self, rows: Rows) -> np.ndarray:
        """Item ids [N, J K]: of route after route, best first, 0 after the last item of a route."""
        left_NT = rows.history_NT > 0
        found = []
        for route in self.routes:
            rank_NT = np.where(left_NT, self._ranks(route, rows), -1)
            place_NK = _best(rank_NT, self.keep)
            selected_NK = np.take_along_axis(rank_NT, place_NK, axis=1) >= 0
            found.append(np.take_along_axis(rows.history_NT, place_NK, axis=1) * selected_NK)
            still_NK = np.take_along_axis(left_NT, place_NK, axis=1) & ~selected_NK
            np.put_along_axis(left_NT, place_NK, still_NK, axis=1)
        return np.concatenate(found, axis=1)

    def _ranks(self, route: Route, rows: Rows) -> np.ndarray:
        """int64 [N, T]: the highest are selected, those below 0 never. Later items win ties."""
        length = rows.history_NT.shape[1]
        position_T = np.arange(length)
        match route:
            case "recent":
                return np.broadcast_to(position_T, rows.history_NT.shape)
            case "prefix":
                shared_NT = shared_levels(self.codes_IL, rows.item_N, rows.history_NT)
                return np.where(shared_NT > 0, shared_NT * length + position_T, -1)
            case "random":  # a function of row and position, so that any loader of any rank draws the same
                number_NT = rows.row_N.astype(np.uint64)[:, None] * np.uint64(length) + position_T.astype(np.uint64)
                return (splitmix64(number_NT) >> np.uint64(1)).astype(np.int64)


def shared_levels(codes_IL: np.ndarray, item_N: np.ndarray, history_NT: np.ndarray) -> np.ndarray:
    """Number of leading codes that each history item shares with the target, int64 [N, T]; 0 without a SID."""
    shared_NT = np.zeros(history_NT.shape, np.int64)
    same_NT = np.ones(history_NT.shape, dtype=bool)
    for code_I in codes_IL.T:
        wanted_N1 = code_I[item_N][:, None]
        same_NT &= (code_I[history_NT] == wanted_N1) & (wanted_N1 >= 0)
        shared_NT += same_NT
    return shared_NT


def _best(rank_NT: np.ndarray, count: int) -> np.ndarray:
    """Positions of the `count` highest ranks, highest first, [N, count]."""
    first = rank_NT.shape[1] - count
    place_NK = np.argpartition(rank_NT, first, axis=1)[:, first:]
    order_NK = np.argsort(-np.take_along_axis(rank_NT, place_NK, axis=1), axis=1)
    return np.take_along_axis(place_NK, order_NK, axis=1)


def history_routes(pooling: Pooling, tables: ItemTables) -> HistoryRoutes | None:
    """The selection that the recipe's section `model.history_pooling` wants; None: the latest items."""
    if not isinstance(pooling, RoutesPooling):
        return None
    return HistoryRoutes(pooling.routes, pooling.keep, tables.codes_IL)
