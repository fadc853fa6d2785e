"""Counts how many training steps have updated each row of the HID table.

Gates, shrinkage and serving need these counts: they say how much a row has learned. A step updates the rows that its
batch looks up, on any rank, once each; a step that is skipped updates none. Counts lie where the rows lie, on the rank
and device of the table's shard, and their rows are numbered as the shard's. A model that reads them has a copy of all
counts on every rank (`sidrec.model.tables.UpdateCounts`): 4 bytes a row. After each step the ranks exchange the rows
that it changed, so that the copy is exact.

Shapes: N rows of a shard, R rows of a table, P ids of a lookup, C changed rows.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torchrec.distributed.embedding_lookup import GroupedPooledEmbeddingsLookup
from torchrec.distributed.embedding_types import EmbeddingComputeKernel, ShardedEmbeddingTable
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from sidrec.data.item_tables import HID
from sidrec.model.tables import UpdateCounts
from sidrec.parallel.process_group import Ranks, largest

COUNT = torch.int32


class RowUpdates:
    """The counts of a shard of a table; of shards of columns, only the first counts.

    table: its name. first_row: of the shard. rows: of the whole table. replicated: whether all ranks hold it whole.
    reads_offsets: whether to read on the host where the table's ids lie in a lookup, which is cheap on a CPU only.
    counts_N1: int32, updates received by each row.
    """

    def __init__(self, table: ShardedEmbeddingTable, feature: int, features: int, device: torch.device) -> None:
        """feature: place of the table's only feature among the `features` of its lookup."""
        self.table, self.rows = table.name, table.num_embeddings
        self.first_row = table.local_metadata.shard_offsets[0] if table.local_metadata else 0
        self.replicated = table.compute_kernel == EmbeddingComputeKernel.DENSE
        self._feature, self._features = feature, features
        self.reads_offsets = device.type == "cpu"
        # The last element takes the ids of the lookup's other features, so that no size is read from the device.
        self._counts = torch.zeros(table.local_rows + 1, dtype=COUNT, device=device)
        self.counts_N1 = self._counts[:-1].unsqueeze(1)
        self._rows_P: Tensor | None = None
        self._changed: list[Tensor] | None = None  # None: nobody asks

    def record(self, ids: KeyedJaggedTensor) -> None:
        """Notes the rows that a forward pass looks up. ids: of the lookup, rows of its shards."""
        if torch.is_grad_enabled():
            self._rows_P = ids.values() if self._features == 1 else self._rows_of(ids)

    def _rows_of(self, ids: KeyedJaggedTensor) -> Tensor:
        first, last = (ids.offsets()[feature * ids.stride()] for feature in (self._feature, self._feature + 1))
        if self.reads_offsets:
            return ids.values()[first:last]
        return ids_between(ids.values(), first, last, elsewhere=len(self._counts) - 1)

    def end_step(self, *, skipped: Tensor | bool) -> None:
        """Counts the rows of the last forward pass, unless its step was skipped. All ranks call it.

        skipped: a bool, or a scalar on the counts' device, 0 or 1, which is not read on the host.
        """
        rows_P, self._rows_P = self._rows_P, None
        if rows_P is None or skipped is True:
            return
        one = (1 - skipped).to(COUNT) if isinstance(skipped, Tensor) else 1
        if self.replicated and dist.get_world_size() > 1:
            updated = torch.zeros(len(self._counts), dtype=torch.uint8, device=rows_P.device)
            updated[rows_P] = 1
            dist.all_reduce(updated, dist.ReduceOp.MAX)
            self._counts += updated * one
        else:  # an id that occurs twice reads the same count twice, and writes the same
            self._counts[rows_P] = self._counts.index_select(0, rows_P) + one
            self._note(rows_P)

    def restart(self, rows: Tensor) -> None:
        """Sets counts to 0, for rows that begin anew."""
        self.counts_N1[rows] = 0
        self._note(rows)

    def _note(self, rows: Tensor) -> None:
        if self._changed is not None and len(rows):
            self._changed.append(rows)

    def take_changes(self) -> Tensor:
        """Rows of the table that changed since the last call, and their counts: int64 [2, C]; notes them from now on.

        A row may come more than once. C is known without reading the device: ids that are no rows of the shard come as
        row `rows`, one beyond the table's last. Not for a replicated table.
        """
        changed, self._changed = self._changed, []
        if not changed:
            return torch.zeros(2, 0, dtype=torch.int64, device=self._counts.device)
        rows_C = torch.cat(changed)
        own_C = rows_C < len(self._counts) - 1
        counts_C = self._counts.index_select(0, rows_C).long()
        return torch.stack([torch.where(own_C, rows_C + self.first_row, self.rows), counts_C])

    def share_memory_with(self, copy: UpdateCounts) -> None:
        """Makes the copy the counts themselves, for a shard that is the whole table."""
        copy.counts_R = self._counts


def ids_between(ids_P: Tensor, first: Tensor, last: Tensor, elsewhere: int) -> Tensor:
    """ids_P, with `elsewhere` outside the positions [first, last); reads nothing from the device."""
    position_P = torch.arange(len(ids_P), device=ids_P.device)
    return torch.where((position_P >= first) & (position_P < last), ids_P, elsewhere)


# The copy of all counts for a model that reads them. All ranks call both functions together.


def share_counts(copy: UpdateCounts | None, shards: Sequence[RowUpdates]) -> None:
    """Fills the copy with the counts of all ranks' shards; after sharding and after loading. shards: of this rank.

    A shard that is the whole table becomes the copy itself, which then needs no exchange.
    """
    if copy is None:
        return
    if _is_whole(shards):
        shards[0].share_memory_with(copy)
        return
    copy.counts_R = torch.zeros_like(copy.counts_R)
    for shard in shards:
        shard.take_changes()
        copy.counts_R[shard.first_row : shard.first_row + len(shard.counts_N1)] = shard.counts_N1.squeeze(1)
    dist.all_reduce(copy.counts_R)


def share_changes(copy: UpdateCounts | None, shards: Sequence[RowUpdates], ranks: Ranks) -> None:
    """Brings what this step has changed in the shards of all ranks into the copy. Ranks gather 16 bytes per looked-up
    id; they agree on the number on the host, and read nothing from the device."""
    if copy is None or _is_whole(shards):
        return
    nothing = torch.zeros(2, 0, dtype=torch.int64, device=copy.counts_R.device)
    own_2C = torch.cat([nothing, *(shard.take_changes() for shard in shards)], dim=1)
    last = len(copy.counts_R) - 1  # not read: for ranks with fewer changes
    padded_2C = torch.full((2, largest(ranks, own_2C.shape[1])), last, dtype=torch.int64, device=own_2C.device)
    padded_2C[:, : own_2C.shape[1]] = own_2C
    gathered = [torch.empty_like(padded_2C) for _ in range(ranks.world)]
    dist.all_gather(gathered, padded_2C)
    rows_C, counts_C = torch.cat(gathered, dim=1)
    copy.counts_R[rows_C] = counts_C.to(COUNT)


def _is_whole(shards: Sequence[RowUpdates]) -> bool:
    return dist.get_world_size() == 1 or any(shard.replicated for shard in shards)


def count_updates(lookups: Iterator[GroupedPooledEmbeddingsLookup], device: torch.device) -> None:
    """Lets the lookups of a sharded model count the updates of the HID table's rows, from 0."""
    for lookup in lookups:
        found = list(_countable(lookup, device))
        lookup.row_updates = found
        if found:
            lookup.register_forward_pre_hook(_record)


def _countable(lookup: GroupedPooledEmbeddingsLookup, device: torch.device) -> Iterator[RowUpdates]:
    tables = [table for config in lookup.grouped_configs for table in config.embedding_tables]
    features = sum(table.num_features() for table in tables)
    first = 0
    for table in tables:
        column = table.local_metadata.shard_offsets[1] if table.local_metadata else 0
        if table.name == HID and column == 0 and table.local_rows:
            yield RowUpdates(table, first, features, device)
        first += table.num_features()


def _record(lookup: nn.Module, inputs: tuple[Any, ...]) -> None:
    for updates in updates_of(lookup):
        updates.record(inputs[0])


def updates_of(lookup: nn.Module) -> list[RowUpdates]:
    """The counts of a lookup's shards."""
    found: list[RowUpdates] = getattr(lookup, "row_updates", [])
    return found
