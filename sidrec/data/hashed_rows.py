"""The hashing trick: ids that share the rows of a table.

Shapes: I item ids.
"""

import hashlib

import numpy as np


def hashed_rows(ids_I: np.ndarray, feature: str, rows: int) -> np.ndarray:
    """Rows of ids in a table of `rows` rows: int64 [I] in [1, rows), 0 for ids below 0.

    Features that share a table collide in ways of their own, as each starts from an offset of its own. Ids are mixed
    (splitmix64) before the modulo: of composed ids, which have a round radix, a plain modulo by a round number of rows
    would keep the last code alone.
    """
    offset = np.uint64(int.from_bytes(hashlib.blake2b(feature.encode(), digest_size=8).digest(), "little"))
    mixed_I = _splitmix64(ids_I.astype(np.uint64) + offset)
    return np.where(ids_I < 0, 0, 1 + (mixed_I % np.uint64(rows - 1)).astype(np.int64))


def _splitmix64(numbers: np.ndarray) -> np.ndarray:
    """The output function of the splitmix64 generator, a bijection of 64-bit numbers (Steele et al., OOPSLA 2014)."""
    mixed = numbers + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
