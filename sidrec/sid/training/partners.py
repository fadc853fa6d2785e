"""The items that an item belongs together with.

Shapes: P pairs, N items, A anchors.
"""

import numpy as np

from sidrec.schema import ContractError


class Partners:
    """Partners of every item. A pair (a, b) makes b a partner of a and a one of b; a pair given twice counts twice."""

    def __init__(self, pairs_P2: np.ndarray, items: int) -> None:
        """Raises ContractError when the pairs are no int [P, 2] of row numbers, or there is none."""
        if pairs_P2.ndim != 2 or pairs_P2.shape[1] != 2 or not len(pairs_P2) or pairs_P2.dtype.kind != "i":
            raise ContractError("item pairs", "int [pairs, 2], at least one", f"{pairs_P2.dtype} {pairs_P2.shape}")
        if pairs_P2.min() < 0 or pairs_P2.max() >= items:
            extremes = f"{pairs_P2.min()} to {pairs_P2.max()}"
            raise ContractError("item pairs", f"row numbers in [0, {items})", extremes)
        anchors, others = pairs_P2.T, pairs_P2.T[::-1]
        by_anchor = np.argsort(anchors.ravel(), kind="stable")
        self._others = others.ravel()[by_anchor]
        self._count_N = np.bincount(pairs_P2.ravel(), minlength=items)
        self._start_N = np.cumsum(self._count_N) - self._count_N

    def draw(self, rows_A: np.ndarray, chance_A: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A partner's row for every anchor, the anchor's own where it has none; and bool [A], whether it has one.

        chance_A: uniform on [0, 1), picks among an anchor's partners.
        """
        count_A = self._count_N[rows_A]
        place_A = self._start_N[rows_A] + (chance_A * count_A).astype(np.int64)
        known_A = count_A > 0
        return np.where(known_A, self._others[np.where(known_A, place_A, 0)], rows_A), known_A
