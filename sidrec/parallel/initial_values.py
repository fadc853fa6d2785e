"""First values of the tables: a function of seed, table, row and column alone, whatever the plan and the world size.

Shapes: N rows of a table, D its width.
"""

import hashlib
from collections.abc import Iterator
from itertools import accumulate

import numpy as np
import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_training import SplitTableBatchedEmbeddingBagsCodegen as Tables
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.nn.parallel import DistributedDataParallel
from torchrec.distributed.embedding_lookup import GroupedPooledEmbeddingsLookup
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection
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


# Tables of which a rank holds no row: a table of five rows, cut by rows for four ranks, lies as 2, 2, 1 and 0.


def set_empty_shards_apart(sharded: nn.Module) -> None:
    """Has FBGEMM's CPU kernels take a shard without rows for a table of its own, of one row that no id is for.

    They tell tables apart by where each one's rows begin in a count of all rows. A shard without rows begins where the
    next one does, so both are updated as one table, of the width of the first; and where it is the last, they read past
    the end of the count (get_hash_size in FBGEMM's embedding_backward_split_cpu_template.cpp) and go by what lies
    there. The count serves for nothing else on a CPU. Where no shard has rows, the kernel for GPUs would be called
    (use_cpu in its split_embedding_codegen_lookup_invoker.template).
    """
    together = (part for lookup in lookups_of(sharded) for part in lookup.modules() if isinstance(part, Tables))
    for tables in together:
        rows = [spec[0] for spec in tables.embedding_specs]
        if tables.use_cpu and 0 in rows:
            first = [0, *accumulate(max(count, 1) for count in rows)]
            counted = [first[table] for table in tables.feature_table_map] + [first[-1]]
            tables.hash_size_cumsum.copy_(torch.tensor(counted))
            if not any(rows):
                tables.weights_host.data = tables.weights_host.new_zeros(tables.max_D)


# TorchRec's lookups of a sharded model: tables that FBGEMM looks up together on this rank.


def lookups_of(sharded: nn.Module) -> Iterator[GroupedPooledEmbeddingsLookup]:
    """They are in a plain list, which `modules()` does not look into; those of replicated tables are wrapped."""
    for collection in sharded.modules():
        if isinstance(collection, ShardedEmbeddingBagCollection):
            for lookup in collection._lookups:
                inner = lookup.module if isinstance(lookup, DistributedDataParallel) else lookup
                assert isinstance(inner, GroupedPooledEmbeddingsLookup), type(inner)
                yield inner
