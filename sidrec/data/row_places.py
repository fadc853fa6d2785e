"""Where rows of a split lie: the files that they were read from.

Shapes: N rows.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from sidrec.data.split_index import RowGroup


def row_places(groups: Sequence[RowGroup], row_N: Iterable[int]) -> dict[Path, list[int]]:
    """File -> the rows' numbers within it, ascending. row_N: numbers within the split, each at least 0."""
    starts = np.array([group.first_row for group in groups])
    places: dict[Path, list[int]] = {}
    for row in sorted(row_N):
        group = groups[int(np.searchsorted(starts, row, side="right")) - 1]
        places.setdefault(group.path, []).append(row - group.first_row + group.first_row_in_file)
    return places
