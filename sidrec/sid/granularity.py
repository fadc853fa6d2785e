"""SID-Coord's granularities (arXiv 2604.10471, module I): SID features made of one level or of adjacent levels.

Shapes: N or I items, L levels.
"""

import numpy as np

from sidrec.config.granularity import granularity_levels
from sidrec.schema import ContractError

RADIX = 10_000
"""Bx of the paper: above its 8,192 codes per level, so that composed ids are unique and can be read by eye."""


def radix_ids(codes_IL: np.ndarray, name: str) -> np.ndarray:
    """The paper's composed id, s12 = Bx * s1 + s2, for every item.

    codes_IL: integer codes in [0, 10000), or -1 in a whole row for an item without a SID.
    Returns: int64 [I], -1 where the item has no SID.
    Raises ContractError when the granularity needs levels that the codes lack, or a code does not fit the radix;
    ValueError for a malformed name.

    >>> radix_ids(np.array([[8191, 8191, 8191], [-1, -1, -1]]), "s23").tolist()
    [81918191, -1]
    """
    levels = granularity_levels(name)
    if levels[-1] > codes_IL.shape[1]:
        raise ContractError(f"granularity {name}", f"levels among the {codes_IL.shape[1]} of the catalog", levels[-1])
    part = codes_IL[:, levels[0] - 1 : levels[-1]].astype(np.int64)
    if part.size and part.max() >= RADIX:
        raise ContractError(f"granularity {name}", f"codes below the radix {RADIX}", int(part.max()))
    weights = RADIX ** np.arange(len(levels) - 1, -1, -1, dtype=np.int64)
    return np.where((part < 0).any(axis=1), -1, part @ weights)


def granularity_rows(codes_IL: np.ndarray, name: str) -> tuple[np.ndarray, int]:
    """The table row of every item: an exact, dense numbering of the composed ids that occur.

    Raw composed ids reach 81,918,191, so a table over them would be almost empty. Rows follow the order of the composed
    ids, which makes the numbering a function of the codes alone.

    codes_IL: as for `radix_ids`; usually `Catalog.codes_by_id(...)`, so that the result is indexed by item id.
    Returns: (rows_I, table_rows): int64 [I], where row 0 is kept for items without a SID and for padding; and the
    number of rows that the table needs, row 0 included.
    """
    ids_I = radix_ids(codes_IL, name)
    observed, rows_I = np.unique(ids_I, return_inverse=True)
    starts_unknown = bool(len(observed)) and bool(observed[0] == -1)
    offset = 0 if starts_unknown else 1
    return rows_I.astype(np.int64) + offset, len(observed) + offset
