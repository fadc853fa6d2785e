"""What a state_dict's weight is as a whole, whether this rank has all of it or shards.

torch warns of its own ShardedTensor whenever one is asked like a Tensor; its metadata says the same in peace.
"""

import torch
from torch import Tensor
from torch.distributed._shard.sharded_tensor import ShardedTensor

Weight = Tensor | ShardedTensor


def shape_of(weight: Weight) -> tuple[int, ...]:
    """The shape of the whole."""
    return tuple(weight.metadata().size if isinstance(weight, ShardedTensor) else weight.shape)


def dtype_of(weight: Weight) -> torch.dtype:
    """The type of its values."""
    return weight.metadata().tensor_properties.dtype if isinstance(weight, ShardedTensor) else weight.dtype


def held(weight: Weight) -> bool:
    """Whether this rank holds any of it: of a table with fewer rows than ranks, not all do."""
    return not isinstance(weight, ShardedTensor) or any(shard.tensor.numel() for shard in weight.local_shards())
