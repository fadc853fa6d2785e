"""The batch: what one rank trains on in one step, and its making on the device from a worker's block.

Items are looked up once: `items` has one bag for each *unique* item among the targets and histories of the batch, and
`target_B` and `history_BT` are bag numbers. Bag 0 is always empty: padding points to it and gets a zero vector.

    rows                    unique items (bags of `items`)         target_B   history_BT
    target 7, history 9 4   0: (empty)  1: 4  2: 7  3: 9           [2,        [[3, 1],
    target 4, history 7                                             1]         [2, 0]]

Shapes: B rows, U bags, T history positions (latest items, oldest first, padded at the end; or the items that routes
select, `sidrec.data.history_routes`), X dense and S statistics columns, W weighted and G matched granularities, V width
of an item's content vector.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from torch.nn import functional
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Pipelineable

from sidrec.data.item_tables import ItemRows, ItemTables
from sidrec.data.worker import BatchBlock, JaggedPlace


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

    @property
    def bags(self) -> int:
        """U, the number of item bags."""
        return self.items.stride()


# A batch on the host, as a worker packed it.
#
# Shapes: F item features, I item ids.


@dataclass(frozen=True)
class PackedBatch(Pipelineable):
    """A batch in one block of memory, with the ids of its items. `to` makes the Batch.

    Of an item, 4 bytes are copied to the device, which looks up what the item tables say of it.

    bags: U of the Batch; item bags beyond the block's are empty.
    """

    block: BatchBlock
    tables: ItemTables
    bags: int

    def to(self, device: torch.device, non_blocking: bool = False) -> Batch:
        """The batch on a device, without waiting for it if the block is pinned."""
        return unpacked(self.block.to(device, non_blocking), self.tables.on(device), self.bags)

    def record_stream(self, stream: torch.Stream) -> None:
        self.block.bytes_.record_stream(stream)


def packed(block: BatchBlock, tables: ItemTables) -> PackedBatch:
    """A worker's block, as many bags as its items need."""
    place = block.places["ids_U"]
    assert not isinstance(place, JaggedPlace), "one id for each bag"
    return PackedBatch(block, tables, place.shape[0])


def pad_items(batch: PackedBatch, bags: int) -> PackedBatch:
    """Appends empty bags, so that `items` has `bags` bags, the same number on every rank.

    Raises ValueError if there are more already.
    """
    if bags < batch.bags:
        raise ValueError(f"items: expected at most {bags} bags, got {batch.bags}")
    return replace(batch, bags=bags)


def unpacked(block: BatchBlock, items: ItemRows, bags: int) -> Batch:
    """The batch of a block and the item tables' rows, both on the device."""
    found: dict[str, Tensor | KeyedJaggedTensor] = {}
    for name, place in block.places.items():
        if isinstance(place, JaggedPlace):
            ids = block.tensor(place.values).long()
            lengths = block.tensor(place.lengths) if place.lengths else ids.new_ones(len(ids), dtype=torch.int32)
            found[name] = _jagged(dict(zip(place.keys, place.per_key, strict=True)), ids, lengths, place.stride)
        else:
            found[name] = block.tensor(place)
    ids_U = found.pop("ids_U")
    known, more = len(ids_U) - 1, bags - len(ids_U)
    ids_U, content_UV = functional.pad(ids_U, (0, more)), functional.pad(found.pop("content_UV"), (0, 0, 0, more))
    return Batch(
        **found | {name: found[name].long() for name in ("target_B", "history_BT", "item_B")},
        items=item_lookups(items.rows_IF.index_select(0, ids_U), known, block.lookups, fixed=ids_U.is_cuda),
        token_weights_UW=items.token_weights_IW.index_select(0, ids_U),
        granules_UG=items.granules_IG.index_select(0, ids_U).long(),
        content_UV=content_UV,
    )


def item_lookups(rows_UF: Tensor, known: int, lookups: Mapping[str, int], *, fixed: bool) -> KeyedJaggedTensor:
    """A bag for each item: its row for each feature, none for row 0.

    known: items, in bags 1 to `known`. lookups: feature -> bags with a row. fixed: by operators whose sizes the host
    knows, so that it does not wait for a GPU.
    """
    rows_FU = rows_UF.t().contiguous()
    looked_up_FU = rows_FU > 0
    if all(count == known for count in lookups.values()):
        rows = rows_FU[:, 1 : 1 + known].flatten()
    elif fixed:
        there = looked_up_FU.flatten()
        place = torch.where(there, there.cumsum(0), 0)  # all others go to the first place, which is left out
        rows = rows_FU.new_zeros(1 + sum(lookups.values())).scatter_(0, place, rows_FU.flatten())[1:]
    else:
        rows = rows_FU.masked_select(looked_up_FU)
    return _jagged(lookups, rows.long(), looked_up_FU.flatten().int(), len(rows_UF))


def _jagged(per_key: Mapping[str, int], ids: Tensor, lengths: Tensor, stride: int) -> KeyedJaggedTensor:
    """per_key: key -> its number of ids, which TorchRec would read from the device."""
    keys, counts = list(per_key), list(per_key.values())
    return KeyedJaggedTensor(keys, ids, lengths=lengths, stride=stride, length_per_key=counts)
