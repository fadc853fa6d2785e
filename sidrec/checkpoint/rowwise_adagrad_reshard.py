"""Row-wise Adagrad's state of a table whose columns are cut into other shards than when it was saved.

A shard of columns keeps one value per row: the sum over steps of the mean over its columns of the squared gradient. For
another shard no such value was ever kept; the nearest is the mean of those of the saved shards, weighted by the columns
that they share with it. Whole rows, cut: every shard starts with the row's value. Cut rows, made whole: the mean of
squares over a row is the mean of its shards' means, so the sum is that of whole rows with the same gradients.

Shapes: R rows, S shards of the columns that were saved.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed._shard.sharded_tensor import ShardedTensor

from sidrec.checkpoint.tensor_shard import (
    MODEL,
    OPTIMIZER,
    ROW_SUM,
    CheckpointIndex,
    StoredTensor,
    TensorShard,
    Weight,
    is_table,
    parameter_of,
    table_of,
)
from sidrec.errors import CheckpointError

Columns = tuple[int, int]
"""First column of a shard, and the one after its last."""
logger = logging.getLogger(__name__)


def column_shards(weight: Weight | StoredTensor) -> list[Columns]:
    """How the columns of a table [rows, width] are cut, from left to right."""
    if isinstance(weight, ShardedTensor):
        cuts = {(shard.shard_offsets[1], shard.shard_sizes[1]) for shard in weight.metadata().shards_metadata}
    elif isinstance(weight, StoredTensor):
        cuts = {(shard.offset[1], shard.shape[1]) for shard in weight.shards}
    else:
        cuts = {(0, weight.shape[1])}
    return sorted((first, first + width) for first, width in cuts)


def column_weights(shard: Columns, saved: Sequence[Columns]) -> Tensor:
    """How much each saved shard counts for a shard: the part of its columns that they share, [S], 1 together."""
    shared = [max(0, min(shard[1], end) - max(shard[0], first)) for first, end in saved]
    return torch.tensor(shared, dtype=torch.float32) / (shard[1] - shard[0])


@dataclass(frozen=True)
class Conversion:
    """One shard's row sums, to be computed once `saved.values` [R, S] is read."""

    saved: TensorShard
    wanted: TensorShard
    share_S: Tensor

    def apply(self) -> None:
        """Fills the values of `wanted`."""
        saved_RS = self.saved.values
        self.wanted.values.copy_((saved_RS * self.share_S.to(saved_RS)).sum(dim=1, keepdim=True))


class RowwiseAdagradReshard:
    """How the optimizer's states on this rank are read from a checkpoint.

    shards: what to read: the states themselves, but where columns are cut differently all that was saved of their rows,
    from which `convert` then computes them.
    """

    def __init__(
        self,
        path: Path,
        index: CheckpointIndex,
        weights: Mapping[str, Weight],
        states: Sequence[TensorShard],
    ) -> None:
        """index: of the checkpoint `path`, which fits the model. weights: by name. states: this rank's shards.

        Raises CheckpointError for row sums that are not of as many shards as their table.
        """
        self._path = path
        self._recut = _recut(path, index, weights)
        self._conversions: list[Conversion] = []
        whole_rows: dict[str, TensorShard] = {}
        for state in states:
            if state.key in self._recut:
                saved, current = self._recut[state.key]
                row, column_shard = state.offset
                saved_RS = state.values.new_empty(len(state.values), len(saved))
                to_read = TensorShard(state.key, (state.shape[0], len(saved)), (row, 0), saved_RS)
                to_read = whole_rows.setdefault(to_read.name, to_read)  # column shards of the same rows read them once
                self._conversions.append(Conversion(to_read, state, column_weights(current[column_shard], saved)))
        self.shards = [*(state for state in states if state.key not in self._recut), *whole_rows.values()]

    def log_converted_tables(self) -> None:
        """Says in the log what is converted, if anything is."""
        if self._recut:
            logger.warning(
                "%s: the columns of table(s) %s were cut into other shards: their row-wise Adagrad goes on from the "
                "saved shards' mean, weighted by shared columns; losses stay close to that run's, but are not equal",
                self._path,
                ", ".join(sorted({table_of(parameter_of(key)) for key in self._recut})),
            )

    def convert(self) -> None:
        """Computes the states that are not read as they are, once `shards` are read."""
        for conversion in self._conversions:
            conversion.apply()


def _recut(
    path: Path, index: CheckpointIndex, weights: Mapping[str, Weight]
) -> dict[str, tuple[list[Columns], list[Columns]]]:
    """Keys of all row sums whose table's columns are cut differently now: the saved shards, and those of this plan."""
    recut = {}
    for name, weight in weights.items():
        key = f"{OPTIMIZER}/{name}/{ROW_SUM}"
        if not is_table(name) or key not in index.tensors:
            continue
        saved, current = column_shards(index.tensors[f"{MODEL}/{name}"]), column_shards(weight)
        expected, found = (index.tensors[f"{MODEL}/{name}"].shape[0], len(saved)), index.tensors[key].shape
        if found != expected:
            raise CheckpointError(f"{path}: {key}: expected shape {list(expected)}, got {list(found)}")
        if saved != current:
            recut[key] = saved, current
    return recut
