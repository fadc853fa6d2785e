"""Made-up rows shaped like Criteo's Kaggle log, for measurements.

Shapes: B rows, X dense columns, F categorical columns.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

DENSE = 13
COLUMNS = tuple(f"C{column}" for column in range(1, 27))
MOST_ROWS = 135_000
_DISTINCT = (
    *(1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194),
    *(27, 14992, 5461306, 10, 5652, 2173, 4, 7046547, 18, 15, 286181, 105, 142572),
)
CARDINALITIES = tuple(min(values, MOST_ROWS) for values in _DISTINCT)
"""Distinct values of the columns in the Kaggle log, capped: 1,085,543 together."""


@dataclass(frozen=True)
class CriteoRows:
    """dense_BX: float32. ids_FB: int64, one per row and column. label_B: float32."""

    dense_BX: Tensor
    ids_FB: Tensor
    label_B: Tensor


def criteo_rows(batches: int, rows: int, exponent: float = 1.05) -> tuple[CriteoRows, ...]:
    """Batches whose ids follow Zipf's law in every column; labels are coins."""
    random = np.random.default_rng(0)
    masses = [np.cumsum(np.arange(1, size + 1) ** -exponent) for size in CARDINALITIES]
    made = []
    for _ in range(batches):
        ids_FB = np.stack([np.searchsorted(mass, random.random(rows) * mass[-1]) for mass in masses])
        dense_BX = random.random((rows, DENSE), dtype=np.float32)
        label_B = random.integers(0, 2, rows).astype(np.float32)
        made.append(CriteoRows(torch.from_numpy(dense_BX), torch.from_numpy(ids_FB), torch.from_numpy(label_B)))
    return tuple(made)
