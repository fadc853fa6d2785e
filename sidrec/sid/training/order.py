"""The order of items in an epoch: every item once, seeded, and near each other on disk where vectors do not fit in RAM.

Shapes: N items.
"""

import numpy as np

BLOCK = 4096  # neighbouring rows that a streamed epoch keeps within one window


def epoch_order(items: int, window: int, seed: int, epoch: int) -> np.ndarray:
    """int64 [N]: all row numbers, shuffled anew for every epoch.

    window: rows that the reader can hold. When it holds all, any order is as likely as any other. Otherwise blocks of
    neighbouring rows are shuffled, and the rows of as many blocks as fit in a window are shuffled among each other.
    """
    generator = np.random.default_rng([seed, epoch])
    if items <= window:
        return generator.permutation(items)
    starts = generator.permutation(np.arange(0, items, BLOCK))
    order = np.concatenate([np.arange(start, min(start + BLOCK, items)) for start in starts])
    rows = max(window // BLOCK, 1) * BLOCK
    for start in range(0, items, rows):
        generator.shuffle(order[start : start + rows])
    return order
