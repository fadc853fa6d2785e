"""What plans are measured on: a model and its batches."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from sidrec.config.tree import AdagradTables, OptimizerConfig, RowwiseAdagradTables, TableOptimizer


@dataclass(frozen=True)
class Subject:
    """A model to shard, and this rank's batches.

    model: makes the module with its tables on `meta` and its dense layers filled, the same at every call
        and on every rank; its forward takes a batch and returns (loss, (terms with the key `loss`, anything)).
    batches: the same number on every rank; equally many bags of a collection in a step on all ranks.
    optimizer: one that learns the same under every plan. pipeline: as in `parallel.pipeline`.
    facts: of the batches, for the result.
    """

    name: str
    model: Callable[[], nn.Module]
    batches: list[Any]
    rows_per_rank: int
    optimizer: OptimizerConfig
    pipeline: str
    seed: int
    facts: dict[str, Any]

    def endless(self) -> Iterator[Any]:
        """The batches over and over, as the loader would hand them over: with nothing yet computed of them."""
        while True:
            yield from map(unread, self.batches)


def unread(batch: Any) -> Any:
    """A batch whose KeyedJaggedTensors have forgotten what they computed of themselves (offsets, lengths per key)."""
    return replace(
        batch,
        **{
            field.name: KeyedJaggedTensor(keys=value.keys(), values=value.values(), lengths=value.lengths())
            for field in fields(batch)
            if isinstance(value := getattr(batch, field.name), KeyedJaggedTensor)
        },
    )


def same_under_every_plan(optimizer: OptimizerConfig) -> tuple[OptimizerConfig, str | None]:
    """The optimizer with element-wise Adagrad where it has row-wise, and the sentence that says so.

    A column shard of row-wise Adagrad keeps a state of its own per row, so that plans would learn differently.
    """
    if not any(isinstance(tables, RowwiseAdagradTables) for tables in (optimizer.tables, optimizer.hid)):
        return optimizer, None
    hid = None if optimizer.hid is None else _element_wise(optimizer.hid)
    changed = replace(optimizer, tables=_element_wise(optimizer.tables), hid=hid)
    return changed, "element-wise Adagrad in the place of row-wise, which learns otherwise on column shards"


def _element_wise(optimizer: TableOptimizer) -> TableOptimizer:
    if isinstance(optimizer, RowwiseAdagradTables):
        return AdagradTables(lr=optimizer.lr, eps=optimizer.eps)
    return optimizer


def on_meta(subject: Subject) -> nn.Module:
    """The model, nothing of it allocated."""
    with torch.device("meta"):
        return subject.model()
