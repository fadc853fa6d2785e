"""Converts row-wise Adagrad's state if a table's columns are sharded differently than when it was saved.

A shard of columns keeps one value per row: the sum over steps of the mean over its columns of the squared gradient. A
new shard gets the mean of the saved shards' values, weighted by the columns they share. If whole rows are cut, every
shard starts with the row's value. If cut rows become whole, the result is exact for the same gradients: the mean of
squares over a row is the mean of its shards' means.

Shapes: R rows, S saved shards of the columns.
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
"""Columns [first, end) of a shard."""
logger = logging.getLogger(__name__)


def column_shards(weight: Weight | StoredTensor) -> list[Columns]:
    """The column shards of a table [rows, width], from left to right."""
    if isinstance(weight, ShardedTensor):
        cuts = {(shard.shard_offsets[1], shard.shard_sizes[1]) for shard in weight.metadata().shards_metadata}
    elif isinstance(weight, StoredTensor):
        cuts = {(shard.offset[1], shard.shape[1]) for shard in weight.shards}
    else:
        cuts = {(0, weight.shape[1])}
    return sorted((first, first + width) for first, width in cuts)


def column_weights(shard: Columns, saved: Sequence[Columns]) -> Tensor:
    """Weight of each saved shard: the share of `shard`'s columns that they have in common, [S], summing to 1."""
    shared = [max(0, min(shard[1], end) - max(shard[0], first)) for first, end in saved]
    return torch.tensor(shared, dtype=torch.float32) / (shard[1] - shard[0])


@dataclass(frozen=True)
class Conversion:
    """One shard's row sums, to be computed once `saved.values` [R, S] is loaded."""

    saved: TensorShard
    wanted: TensorShard
    share_S: Tensor

    def apply(self) -> None:
        """Fills the values of `wanted`."""
        saved_RS = self.saved.values
        self.wanted.values.copy_((saved_RS * self.share_S.to(saved_RS)).sum(dim=1, keepdim=True))


class RowwiseAdagradReshard:
    """Loads this rank's optimizer states from a checkpoint: load `shards`, then call `convert`.

    shards: the states themselves; for a table whose columns are sharded differently, all saved values of the rows.
    """

    def __init__(
        self,
        path: Path,
        index: CheckpointIndex,
        weights: Mapping[str, Weight],
        states: Sequence[TensorShard],
    ) -> None:
        """index: of the compatible checkpoint `path`. weights: by name. states: this rank's shards.

        Raises CheckpointError if the number of row sums is not that of the table's column shards.
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
        """Logs a warning that names the converted tables, if any."""
        if self._recut:
            logger.warning(
                "%s: the columns of table(s) %s were cut into other shards: their row-wise Adagrad goes on from the "
                "saved shards' mean, weighted by shared columns; losses stay close to that run's, but are not equal",
                self._path,
                ", ".join(sorted({table_of(parameter_of(key)) for key in self._recut})),
            )

    def convert(self) -> None:
        """Computes the converted states from the loaded `shards`."""
        for conversion in self._conversions:
            conversion.apply()


def _recut(
    path: Path, index: CheckpointIndex, weights: Mapping[str, Weight]
) -> dict[str, tuple[list[Columns], list[Columns]]]:
    """Key of row sums -> saved and present column shards, of tables whose columns are sharded differently now."""
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
