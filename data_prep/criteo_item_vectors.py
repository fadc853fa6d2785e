"""Item vectors from what the items of a Criteo log occur with: PPMI of item and other columns' values, then an SVD.

A value and an item occur together in a row. With n_ij such rows, n_i and n_j their sums over values and items, and n
over both, PPMI_ij = max(0, log(n_ij n / (n_i n_j))); the vectors are U S^(1/2) of its truncated SVD (Levy, Goldberg,
Dagan, "Improving Distributional Similarity with Lessons Learned from Word Embeddings", TACL 2015, sections 2 and 3.3).

I item ids, J values of other columns, D width, N rows of a range.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import svds

from data_prep.criteo_layout import CriteoLayout
from data_prep.criteo_rows import CATEGORICAL
from data_prep.criteo_vocabulary import UNKNOWN, ValueCounts
from data_prep.progress import rows_bar
from data_prep.snapshot import load_snapshot, save_snapshot
from sidrec.schema import ContractError

RANGE_ROWS = 1 << 16
SNAPSHOT_ROWS = 1 << 24  # between two snapshots of the pairs counted so far: some minutes of work
NO_VALUE = -1


@dataclass(frozen=True)
class CoOccurrence:
    """Of the first `rows` rows: count_IJ, how often item i (row i) occurs with value j; scipy CSR, float64.

    Holds 16 bytes per pair that occurs, some 100 while pairs are merged, and 4 bytes per row of every table. Pairs are
    at most items times 25 times `most_values`.
    """

    count_IJ: sparse.csr_array

    @classmethod
    def of(cls, layout: CriteoLayout, item: int, rows: int, most_values: int, snapshot: Path) -> "CoOccurrence":
        """most_values: of each other column, its most frequent ones that are looked at; missing ones never are.

        snapshot: a file that counting goes on from if it is there, and that is written now and then.
        """
        others = [column for column in range(len(layout.table_rows)) if column != item]
        values = _numbered_values(layout, others, rows, most_values)
        width = 1 + max(int(numbers.max()) for numbers in values)
        if width == 0:
            raise ContractError(
                layout.folder, f"values in other columns than {CATEGORICAL[item]}", "none in the train split"
            )
        pair_P, count_P = _count_pairs(layout, item, rows, dict(zip(others, values, strict=True)), width, snapshot)
        place_P = np.divmod(pair_P.astype(np.int64), width)
        shape = (layout.table_rows[item], width)
        return cls(sparse.csr_array((count_P.astype(np.float64), place_P), shape=shape))

    def ppmi(self) -> sparse.csr_array:
        """PPMI, [I, J]."""
        pairs = self.count_IJ.tocoo()
        of_item, of_value = pairs.sum(axis=1), pairs.sum(axis=0)
        expected = of_item[pairs.row] * of_value[pairs.col] / pairs.sum()
        values = np.maximum(np.log(pairs.data / expected), 0.0)
        return sparse.csr_array((values, (pairs.row, pairs.col)), shape=pairs.shape)

    def vectors(self, width: int, seed: int) -> np.ndarray:
        """float32 [I, D]; all zeros for ids that occur with nothing. D is `width`, less if items or values are fewer.

        Raises ContractError when there are too few of them for any.
        """
        ppmi_IJ = self.ppmi()
        known = np.flatnonzero(np.diff(self.count_IJ.indptr))
        width = min(width, len(known) - 1, ppmi_IJ.shape[1] - 1)
        if width < 1:
            raise ContractError("the train split", "at least two items and two values they occur with", "fewer")
        start = np.random.default_rng(seed).random(min(len(known), ppmi_IJ.shape[1]))
        left, strength, _ = svds(ppmi_IJ[known], k=width, v0=start)
        order = np.argsort(-strength)
        left_KD = left[:, order] * np.sign(left[:, order].sum(axis=0) + 1e-300)  # one sign of the two that a SVD allows
        vectors_ID = np.zeros((self.count_IJ.shape[0], width), np.float32)
        vectors_ID[known] = left_KD * np.sqrt(strength[order])
        return vectors_ID


def _count_pairs(
    layout: CriteoLayout, item: int, rows: int, values: dict[int, np.ndarray], width: int, snapshot: Path
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs as item * width + value, rising, and how often each occurs. values: column -> id to j."""
    pairs, done = ValueCounts(np.uint64), 0
    if snapshot.exists():
        kept = load_snapshot(snapshot)
        pairs.add(kept["pairs"], kept["counts"])
        done = int(kept["done"])
    with rows_bar("co-occurrence", rows) as bar:
        bar.update(done)
        for part in layout.ranges(done, rows, RANGE_ROWS):
            id_NC = part.ids()
            item_N = id_NC[:, item].astype(np.int64)
            value_NJ = np.stack([value_of_id[id_NC[:, column]] for column, value_of_id in values.items()], axis=1)
            together_NJ = (value_NJ != NO_VALUE) & (item_N != UNKNOWN)[:, None]
            pairs.count((item_N[:, None] * width + value_NJ)[together_NJ].astype(np.uint64))
            bar.update(part.rows)
            if part.stop - done >= SNAPSHOT_ROWS:
                done = part.stop
                pair_P, count_P = pairs.total()
                save_snapshot(snapshot, pairs=pair_P, counts=count_P, done=done)
    return pairs.total()


def _numbered_values(layout: CriteoLayout, columns: list[int], rows: int, most: int) -> list[np.ndarray]:
    """Of every column an array from id to j, int32, NO_VALUE where the id is missing or not frequent enough."""
    numbered, numbers = [], 0
    for count in layout.counts(columns, 0, rows):
        count[UNKNOWN] = 0
        kept = np.argsort(-count, kind="stable")[:most]
        kept = kept[count[kept] > 0]
        value_of_id = np.full(len(count), NO_VALUE, np.int32)
        value_of_id[kept] = np.arange(numbers, numbers + len(kept))
        numbered.append(value_of_id)
        numbers += len(kept)
    return numbered
