"""TorchRec's lookups of a sharded model: tables that FBGEMM looks up together on this rank."""

from collections.abc import Iterator

from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torchrec.distributed.embedding_lookup import GroupedPooledEmbeddingsLookup
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection


def lookups_of(sharded: nn.Module) -> Iterator[GroupedPooledEmbeddingsLookup]:
    """They are in a plain list, which `modules()` does not look into; those of replicated tables are wrapped."""
    for collection in sharded.modules():
        if isinstance(collection, ShardedEmbeddingBagCollection):
            for lookup in collection._lookups:
                inner = lookup.module if isinstance(lookup, DistributedDataParallel) else lookup
                assert isinstance(inner, GroupedPooledEmbeddingsLookup), type(inner)
                yield inner
