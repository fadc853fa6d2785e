"""Memory of one training step, without tables and layers: its batch, looked-up vectors, tensors saved for backward.

A forward pass on `meta` tensors finds what autograd saves without allocating it. Scratch memory of kernels and of the
allocator is unknown, so the result is approximate.

Shapes: B rows, U item bags, T history positions, X dense and S statistics columns, W weighted and G matched
granularities, V width of an item's content vector.
"""

from collections.abc import Mapping
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

    context_ids: ids of all context columns in a row, at most.
    per_item: field of Batch with one row for each item bag -> its width.
    """

    rows: int
    bags: int
    history: int
    dense: int
    stats: int
    item_features: tuple[str, ...]
    context: tuple[str, ...]
    per_item: Mapping[str, int]
    context_ids: int

    @property
    def bytes(self) -> int:
        """Bytes of all arrays if every item bag is filled: an upper bound of what a loader process sends."""
        ids, lengths, number, flag = 8, 4, 8, 4
        items = len(self.item_features) * self.bags * (ids + lengths)
        context = self.rows * (self.context_ids * ids + len(self.context) * lengths)
        per_item = self.bags * sum(width * (8 if name == "granules_UG" else 4) for name, width in self.per_item.items())
        pointers = self.rows * number * (1 + self.history)
        floats = self.rows * flag * (self.dense + self.stats)
        return items + context + per_item + pointers + floats + self.rows * (2 * flag + 3 * number)


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
        token_weights_UW=torch.empty(shape.bags, shape.per_item["token_weights_UW"]),
        granules_UG=ids(shape.bags, shape.per_item["granules_UG"]),
        content_UV=torch.empty(shape.bags, shape.per_item["content_UV"]),
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
