"""Tables of which a rank holds no row: a table of five rows, cut by rows for four ranks, lies as 2, 2, 1 and 0."""

from itertools import accumulate

import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_training import SplitTableBatchedEmbeddingBagsCodegen as Tables
from torch import nn

from sidrec.parallel.lookups import lookups_of


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
