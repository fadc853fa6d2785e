"""Memory of one training step, without tables and layers: its batch, looked-up vectors, tensors saved for backward.

A forward pass on `meta` tensors finds what autograd saves without allocating it. Scratch memory of kernels and of the
allocator is unknown, so the result is approximate.

Shapes: B rows, U item bags, T history positions, X dense and S statistics columns, W weighted and G matched
granularities, V width of an item's content vector.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from sidrec.config.model import ModelConfig
from sidrec.data.batch import Batch
from sidrec.data.dataset import Sizes
from sidrec.model.ranker import Ranker

LOOKUP_COPIES = 4
"""Copies of the looked-up vectors at one time: output of the kernel, output of the exchange, and their gradients."""
COPIES_AHEAD = 3
"""More of them on a GPU: the previous step's output and gradients, kept until its outcome is known, and the gradients
without those of a skipped step."""
FLOAT = 4


@dataclass(frozen=True)
class BatchShape:
    """Sizes of a rank's batch. item_features, context: keys of its two KeyedJaggedTensors.

    context_ids: ids of all context columns in a row, at most. context_bytes: of one such id in a block.
    context_lengths: whether a block has the lengths of context bags. weights, granules, content: widths W, G, V.
    """

    rows: int
    bags: int
    history: int
    dense: int
    stats: int
    item_features: tuple[str, ...]
    context: tuple[str, ...]
    context_ids: int
    context_bytes: int
    context_lengths: bool
    weights: int = 0
    granules: int = 0
    content: int = 0

    @property
    def packed_bytes(self) -> int:
        """Bytes of the block that a loader process sends, at most."""
        number, half = 8, 4
        context = self.context_ids * self.context_bytes + half * len(self.context) * self.context_lengths
        halves = 1 + self.history + self.dense + self.stats + 4  # target; item, label, weight, chance
        return self.rows * (context + half * halves + 2 * number) + self.bags * half * (1 + self.content)

    @property
    def unpacked_bytes(self) -> int:
        """Bytes that the device adds to the block: rows of items, and bags and ids as 64-bit numbers, at most."""
        number, half = 8, 4
        ids = number + half  # and a length
        items = len(self.item_features) * ids + half * (self.weights + self.content) + number * self.granules
        return self.bags * items + self.rows * (self.context_ids * ids + number * (2 + self.history))


def lookup_bytes(shape: BatchShape, dim: int, device: str) -> int:
    """Bytes of the looked-up vectors of width `dim`, for each of their copies. device: cpu or cuda."""
    copies = LOOKUP_COPIES + (COPIES_AHEAD if device == "cuda" else 0)
    bags = shape.bags * len(shape.item_features) + shape.rows * len(shape.context)
    return copies * FLOAT * dim * bags


def saved_for_backward(config: ModelConfig, sizes: Sizes, shape: BatchShape) -> int:
    """Bytes that autograd saves in one forward pass of the ranker, without parameters and buffers."""
    with torch.device("meta"):
        model = Ranker(config, sizes).train()
        batch = _batch(shape)
    _without_tables(model)
    # By address of the storage. A kept tensor keeps its storage alive, so that its address is not used again.
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        return kept.setdefault(_storage(tensor), tensor)

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        loss, _ = model(batch)
    assert loss.requires_grad, "a forward without a graph keeps nothing"
    for known in (*model.parameters(), *model.buffers()):
        kept.pop(_storage(known), None)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


class _Vectors(nn.Module):
    """Replaces an embedding collection: returns vectors of the right shape."""

    def __init__(self, features: list[str], dim: int, managed: bool) -> None:
        super().__init__()
        self.features, self.dim, self.managed = features, dim, managed

    def forward(self, bags: KeyedJaggedTensor) -> KeyedTensor | tuple[KeyedTensor, KeyedJaggedTensor]:
        widths = [self.dim] * len(self.features)
        values = torch.empty(bags.stride(), sum(widths), device="meta", requires_grad=True)
        found = KeyedTensor(self.features, widths, values)
        return (found, bags) if self.managed else found


def _without_tables(model: nn.Module) -> None:
    """Replaces every embedding collection by `_Vectors`."""
    for name, module in list(model.named_children()):
        managed = isinstance(module, ManagedCollisionEmbeddingBagCollection)
        collection = module._embedding_module if managed else module
        if isinstance(collection, EmbeddingBagCollection):
            tables = collection.embedding_bag_configs()
            features = [feature for table in tables for feature in table.feature_names]
            setattr(model, name, _Vectors(features, tables[0].embedding_dim, managed))


def _batch(shape: BatchShape) -> Batch:
    """A batch of the right shapes on torch's default device."""

    def ids(*sizes: int) -> Tensor:
        return torch.empty(sizes, dtype=torch.int64)

    def bags(keys: tuple[str, ...], stride: int) -> KeyedJaggedTensor:
        count = len(keys) * stride
        return KeyedJaggedTensor(
            keys=list(keys), values=ids(count), lengths=torch.empty(count, dtype=torch.int32), stride=stride
        )

    rows = shape.rows
    return Batch(
        items=bags(shape.item_features, shape.bags),
        context=bags(shape.context, rows),
        token_weights_UW=torch.empty(shape.bags, shape.weights),
        granules_UG=ids(shape.bags, shape.granules),
        content_UV=torch.empty(shape.bags, shape.content),
        target_B=ids(rows),
        history_BT=ids(rows, shape.history),
        dense_BX=torch.empty(rows, shape.dense),
        stats_BS=torch.empty(rows, shape.stats),
        label_B=torch.empty(rows),
        weight_B=torch.empty(rows),
        row_B=ids(rows),
        user_B=ids(rows),
        item_B=ids(rows),
        rows_per_rank=torch.empty(()),
        chance_B=torch.empty(rows),
    )
