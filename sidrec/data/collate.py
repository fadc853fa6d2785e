"""What the training process does to a batch: gives it its types, and pads its items to a count all ranks share.

Shapes: U item bags, F item features.
"""

from dataclasses import replace

import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from sidrec.data.batch import Batch
from sidrec.data.batch_arrays import PER_BAG
from sidrec.data.batch_block import BatchBlock, JaggedPlace


def collate(block: BatchBlock) -> Batch:
    """The batch that a worker sent, as views of its block."""
    values = {}
    for name, place in block.places.items():
        if isinstance(place, JaggedPlace):
            ids, lengths = block.tensor(place.values), block.tensor(place.lengths)
            values[name] = KeyedJaggedTensor(list(place.keys), ids, lengths=lengths, stride=place.stride)
        else:
            values[name] = block.tensor(place)
    return Batch(**values)


def pad_items(batch: Batch, bags: int) -> Batch:
    """The batch with empty bags appended, so that `items` has `bags` of them on every rank. Raises ValueError when
    there are more already."""
    items = batch.items
    if bags < batch.bags:
        raise ValueError(f"items: expected at most {bags} bags, got {batch.bags}")
    lengths_FU = items.lengths().view(len(items.keys()), batch.bags)
    padded_FU = torch.nn.functional.pad(lengths_FU, (0, bags - batch.bags))
    padded = KeyedJaggedTensor(keys=items.keys(), values=items.values(), lengths=padded_FU.view(-1), stride=bags)
    per_bag = {name: torch.nn.functional.pad(getattr(batch, name), (0, 0, 0, bags - batch.bags)) for name in PER_BAG}
    return replace(batch, items=padded, **per_bag)
