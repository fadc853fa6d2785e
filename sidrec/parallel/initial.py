"""First values of the tables: a function of seed, table, row and column alone, whatever the plan and the world size.

Shapes: N rows of a table, D its width.
"""

import hashlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torchrec.modules.embedding_configs import EmbeddingBagConfig

ROWS_AT_A_TIME = 65536


def initial_rows(seed: int, table: EmbeddingBagConfig, first: int, count: int) -> Tensor:
    """Rows [first, first + count) of a table's initial values, float32 [count, D], uniform in the table's range.

    A counter-based generator (Philox) is moved to the row, so that any shard can be filled without the rows before it.
    """
    dim = table.embedding_dim
    key = int.from_bytes(hashlib.blake2b(f"{seed}/{table.name}".encode(), digest_size=16).digest(), "little")
    bits = np.random.Philox(key=key)
    draws_per_step = 4  # Philox makes four 64-bit numbers per counter value
    start = first * dim
    bits.advance(start // draws_per_step)
    generator = np.random.Generator(bits)
    generator.random(start % draws_per_step)
    low, high = table.get_weight_init_min(), table.get_weight_init_max()
    values = generator.random(count * dim) * (high - low) + low
    return torch.from_numpy(values.astype(np.float32).reshape(count, dim))


def fill_tables(sharded: nn.Module, tables: dict[str, EmbeddingBagConfig], seed: int) -> None:
    """Fills every local shard of `sharded` (a DistributedModelParallel) with its part of the initial values."""
    with torch.no_grad():
        for name, value in sharded.state_dict().items():
            table = tables.get(name.split(".")[-2])
            if table is None or not name.endswith(".weight") or ".embedding_bags." not in name:
                continue
            for shard, row, column in _local_shards(value):
                rows, width = shard.shape
                for start in range(0, rows, ROWS_AT_A_TIME):
                    count = min(ROWS_AT_A_TIME, rows - start)
                    values_ND = initial_rows(seed, table, row + start, count)
                    shard[start : start + count].copy_(values_ND[:, column : column + width])


def _local_shards(value: Tensor | ShardedTensor) -> Iterator[tuple[Tensor, int, int]]:
    """This rank's pieces of a table: (tensor, first row, first column)."""
    if isinstance(value, ShardedTensor):
        for shard in value.local_shards():
            yield shard.tensor, shard.metadata.shard_offsets[0], shard.metadata.shard_offsets[1]
    else:
        yield value, 0, 0
