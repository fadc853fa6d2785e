"""The batch: what one rank trains on in one step, and its making from a worker's block.

Items are looked up once: `items` has one bag for each *unique* item among the targets and histories of the batch, and
`target_B` and `history_BT` are bag numbers. Bag 0 is always empty: padding points to it and gets a zero vector.

    rows                    unique items (bags of `items`)         target_B   history_BT
    target 7, history 9 4   0: (empty)  1: 4  2: 7  3: 9           [2,        [[3, 1],
    target 4, history 7                                             1]         [2, 0]]

Shapes: B rows, U bags, T history positions (latest items, oldest first, padded at the end; or the items that routes
select, `sidrec.data.history_routes`), X dense and S statistics columns, W weighted and G matched granularities, V width
of an item's content vector.
"""

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Pipelineable

from sidrec.data.worker import PER_BAG, BatchBlock, JaggedPlace


@dataclass
class Batch(Pipelineable):
    """One rank's share of a step: its lanes end to end, the same number of rows of each, padded at the end of a lane.

    Every field is a tensor or a KeyedJaggedTensor, so that TorchRec's pipelines can move the batch to the device.

    items: keys are the item features (hid, s1, ...), stride U, at most one id per bag.
    context: keys are the other id columns (user_id, cat_*), stride B, one id per bag; of a list column, its ids but 0.
    token_weights_UW: float32 token weights. granules_UG: int64 granule numbers, 0 for none. content_UV: float32 content
        vectors. All are zero in bag 0, and have width 0 if the model does not use them.
    target_B, history_BT: int64 bag numbers; 0 is padding.
    dense_BX, stats_BS: float32. stats are raw counts as of the row's time.
    label_B: float32, 0 or 1. weight_B: float32, 0 for padding and quarantined rows, which count nowhere.
    row_B, user_B, item_B: int64 row number within the split, -1 for padding, and the row's ids; for metrics.
    rows_per_rank: float32 scalar, the loss's denominator: rows of weight 1 over all ranks, divided by the ranks.
    chance_B: float32 in [0, 1), a random number for every row and epoch, which decides what training drops.
    """

    items: KeyedJaggedTensor
    context: KeyedJaggedTensor
    token_weights_UW: Tensor
    granules_UG: Tensor
    content_UV: Tensor
    target_B: Tensor
    history_BT: Tensor
    dense_BX: Tensor
    stats_BS: Tensor
    label_B: Tensor
    weight_B: Tensor
    row_B: Tensor
    user_B: Tensor
    item_B: Tensor
    rows_per_rank: Tensor
    chance_B: Tensor

    def to(self, device: torch.device, non_blocking: bool = False) -> "Batch":
        return Batch(*(getattr(self, f.name).to(device=device, non_blocking=non_blocking) for f in fields(self)))

    def record_stream(self, stream: torch.Stream) -> None:
        for f in fields(self):
            getattr(self, f.name).record_stream(stream)

    def pin_memory(self) -> "Batch":
        return Batch(*(getattr(self, f.name).pin_memory() for f in fields(self)))

    @property
    def bags(self) -> int:
        """U, the number of item bags."""
        return self.items.stride()


# In the training process.
#
# Shapes: F item features.


def collate(block: BatchBlock) -> Batch:
    """The batch that a worker packed, as views of its block."""
    values = {}
    for name, place in block.places.items():
        if isinstance(place, JaggedPlace):
            ids, lengths = block.tensor(place.values), block.tensor(place.lengths)
            values[name] = KeyedJaggedTensor(list(place.keys), ids, lengths=lengths, stride=place.stride)
        else:
            values[name] = block.tensor(place)
    return Batch(**values)


def pad_items(batch: Batch, bags: int) -> Batch:
    """Appends empty bags, so that `items` has `bags` bags, the same number on every rank.

    Raises ValueError if there are more already.
    """
    items = batch.items
    if bags < batch.bags:
        raise ValueError(f"items: expected at most {bags} bags, got {batch.bags}")
    lengths_FU = items.lengths().view(len(items.keys()), batch.bags)
    padded_FU = _padded(lengths_FU, lengths_FU.shape[0], bags)
    padded = KeyedJaggedTensor(keys=items.keys(), values=items.values(), lengths=padded_FU.view(-1), stride=bags)
    per_bag = {name: _padded(getattr(batch, name), bags, getattr(batch, name).shape[1]) for name in PER_BAG}
    return replace(batch, items=padded, **per_bag)


def _padded(values_RC: Tensor, rows: int, columns: int) -> Tensor:
    """The values, followed by zeros; pinned if they are, so that they are copied to a GPU in the background."""
    pinned = values_RC.is_pinned()
    padded = torch.empty(rows, columns, dtype=values_RC.dtype, device=values_RC.device, pin_memory=pinned)
    padded[: values_RC.shape[0], : values_RC.shape[1]] = values_RC
    padded[values_RC.shape[0] :] = 0
    padded[:, values_RC.shape[1] :] = 0
    return padded
