"""Ids as popularity spreads them: row r of a table is drawn with a probability of about 1 / (r + 1)^exponent."""

import numpy as np


def zipf_rows(random: np.random.Generator, rows: int, exponent: float, count: int) -> np.ndarray:
    """int64 [count] rows in [0, rows), the first ones the most popular. exponent: 0 for all alike.

    Drawn from the continuous law between 1 and rows + 1, rounded down, by inversion of its distribution: exact in the
    limit of many rows, any number of which costs the same, and a little less steep over the first few.
    """
    uniform = random.random(count)
    end = rows + 1.0
    if exponent == 1:
        place = end**uniform
    else:
        power = 1 - exponent
        place = (1 + uniform * (end**power - 1)) ** (1 / power)
    return np.minimum(place.astype(np.int64) - 1, rows - 1)
