"""Made-up rows in the shape of MLPerf's DLRM-DCNv2 benchmark: the log of Criteo's terabyte, multi-hot.

Sizes of tables and of bags are those of its reference implementation. Ids follow Zipf's law.

Shapes: B rows, X dense columns, F categorical columns, N ids of all bags.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torchrec.datasets.utils import Batch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

DENSE = 13
COLUMNS = tuple(f"cat_{column}" for column in range(26))
CARDINALITIES = (
    *(40_000_000, 39_060, 17_295, 7_424, 20_265, 3, 7_122, 1_543, 63, 40_000_000, 3_067_956, 405_282, 10),
    *(2_209, 11_938, 155, 4, 976, 14, 40_000_000, 40_000_000, 40_000_000, 590_152, 12_973, 108, 36),
)
BAG_SIZES = (3, 2, 1, 2, 6, 1, 1, 1, 1, 7, 3, 8, 1, 6, 9, 5, 1, 1, 1, 12, 100, 27, 10, 3, 1, 1)
DIM = 128
ROWS_PER_GPU = 8192
"""A global batch of 65,536 on eight GPUs."""


def mlperf_batches(
    batches: int, rows: int, sizes: Sequence[int] = CARDINALITIES, bags: Sequence[int] = BAG_SIZES
) -> tuple[Batch, ...]:
    """Batches in TorchRec's form; labels are coins. sizes: rows of each table. bags: ids per row of each column."""
    random = np.random.default_rng(0)
    columns = COLUMNS[: len(sizes)]
    lengths = torch.from_numpy(np.repeat(np.asarray(bags, dtype=np.int32), rows))
    made = []
    for _ in range(batches):
        ids_N = np.concatenate([_zipf(random, size, rows * bag) for size, bag in zip(sizes, bags, strict=True)])
        sparse = KeyedJaggedTensor(list(columns), torch.from_numpy(ids_N), lengths=lengths)
        made.append(Batch(_dense(random, rows), sparse, torch.from_numpy(random.integers(0, 2, rows, dtype=np.int32))))
    return tuple(made)


def _dense(random: np.random.Generator, rows: int) -> Tensor:
    return torch.from_numpy(random.random((rows, DENSE), dtype=np.float32))


def _zipf(random: np.random.Generator, size: int, draws: int) -> np.ndarray:
    """Ids in [0, size), drawn with a density proportional to 1 / (id + 1), without a table of `size` masses."""
    return np.minimum(np.exp(random.random(draws) * np.log(size + 1)) - 1, size - 1).astype(np.int64)
