"""Looks up the SIDs of a batch: from the item and history features of a KeyedJaggedTensor to bags of granules.

A module without parameters, so that TorchRec's pipelines can run it ahead of time, with `pipeline_postproc=True`. It
then runs a step ahead in the stream of TorchRec's input distribution, which waits for nothing but the copy of the ids.
The host reads the sizes of a batch there once, as TorchRec reads how many ids ranks exchange: that read does not wait
for the step in hand.

Shapes: B rows, U bags, T history positions, P ids of a feature in one line, Q ids of all sequences and M ids
of all features in one line, F features, I item ids, G granularities, S statistics, W weighted granularities.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from sidrec.config.item import SidCoordItem
from sidrec.data.item_tables import granularity_weights
from sidrec.plug.statistics import Statistics
from sidrec.schema import ContractError
from sidrec.sid.catalog import Catalog
from sidrec.sid.granularity import granularity_rows


class JoinedSids(NamedTuple):
    """What SidJoin finds for a batch; bags are as in `sidrec.data.batch`.

    granules: keys are granularities, stride U; one id per bag, none for an item without a SID.
    rows_UG: the same ids as a tensor, 0 for none. token_weights_UW: W = 0 if they are not used.
    target_B, history_BT: int64 bags; bag 0 is empty and marks padding; T = 0 without a history. stats_BS: raw
        counts.
    bag_Q, stats_QS: bags and raw counts of the sequences' ids, end to end. row_P: rows of the target's ids, which come
        first among them; Q = P = 0 without sequences.
    """

    granules: KeyedJaggedTensor
    rows_UG: Tensor
    token_weights_UW: Tensor
    target_B: Tensor
    history_BT: Tensor
    stats_BS: Tensor
    bag_Q: Tensor
    stats_QS: Tensor
    row_P: Tensor


class SidJoin(nn.Module):
    """Maps the targets and histories of a batch to bags: one bag per distinct item with a SID.

    rows: the catalog's. item, history: features. statistics: the gate's input, or None. sequences: features of items
    for which bags and counts of every id are wanted; the target's comes first.
    """

    rows_IG: Tensor
    weights_IW: Tensor
    counts_IS: Tensor
    with_sid_I: Tensor

    def __init__(
        self,
        rows: "CatalogRows",
        item: str,
        history: str | None,
        statistics: Statistics | None,
        sequences: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.granularities, self.first_id = rows.granularities, rows.first_id
        self.item, self.history = item, history
        self.sequences = tuple(sorted(dict.fromkeys(sequences), key=lambda name: name != item))
        self.stat_features = statistics.features if statistics else ()
        self.sequence_stats = tuple(statistics.of(name, item) for name in self.sequences) if statistics else ()
        counts_IS = _from_first_id(statistics, rows) if statistics else torch.zeros(len(rows.rows_IG), 0)
        with_sid_I = torch.arange(len(rows.rows_IG), dtype=torch.int32).mul_(rows.rows_IG[:, 0] > 0)
        found = {
            "rows_IG": rows.rows_IG,
            "weights_IW": rows.weights_IW,
            "counts_IS": counts_IS,
            "with_sid_I": with_sid_I,
        }
        for name, value in found.items():
            self.register_buffer(name, value, persistent=False)  # they come from the catalog, not from checkpoints

    def forward(self, features: KeyedJaggedTensor, same_on_ranks: bool) -> JoinedSids:
        """same_on_ranks: appends empty bags, so that all ranks have the same number, as row-wise sharding requires.

        Ids that the catalog or the item table lacks have no SID.
        Raises ContractError for a batch without these features, with more than one target id in a row, or with strides
        that vary by feature.
        """
        self._check(features)
        names = dict.fromkeys([self.item, *([self.history] if self.history else []), *self.sequences])
        ids = {name: self._known(features[name].values()) for name in names}
        distinct = _Distinct(self._with_sid(torch.cat(list(ids.values()))))
        known, longest = self._sizes(features, distinct)
        bags = dict(zip(ids, distinct.bag_M.split([len(ids_P) for ids_P in ids.values()]), strict=True))
        bags_U = 1 + known
        if same_on_ranks:
            bags_U = _most_on_any_rank(bags_U)
        lengths_B = features[self.item].lengths()
        target_B = _one_per_row(bags[self.item], lengths_B)
        history_BT = target_B.new_zeros(len(target_B), 0)
        if self.history is not None:
            history_BT = _padded(bags[self.history], features[self.history].lengths(), longest)
        stats_BS = self._statistics(features, _one_per_row(ids[self.item], lengths_B))
        bag_Q = torch.cat([bags[name] for name in self.sequences]) if self.sequences else target_B[:0]
        stats_QS = self._sequence_statistics(features, ids) if self.sequences else stats_BS[:0]
        row_P = target_B[:0]
        if self.item in self.sequences:
            row_P = torch.arange(len(lengths_B), device=lengths_B.device).repeat_interleave(
                lengths_B, output_size=len(ids[self.item])
            )
        bags_of_ids = self._bags(distinct.ids(bags_U), known)
        return JoinedSids(*bags_of_ids, target_B, history_BT, stats_BS, bag_Q, stats_QS, row_P)

    def _sizes(self, features: KeyedJaggedTensor, distinct: "_Distinct") -> tuple[int, int]:
        """How many distinct items have a SID, and the longest history, at least 1: all that the host reads of a batch.

        Raises ContractError for two values in a row of a feature that has at most one.
        """
        single = list(dict.fromkeys([self.item, *self.stat_features]))
        lengths = [features[name].lengths() for name in (*single, *([self.history] if self.history else []))]
        most_F = functional.pad(torch.stack(lengths), (1, 0)).amax(dim=1)  # 0 of a batch without rows
        known, *most = torch.cat([distinct.count.reshape(1), most_F]).tolist()
        for name, of_feature in zip(single, most, strict=False):
            if of_feature > 1:
                lengths_B = features[name].lengths()
                row = int((lengths_B > 1).nonzero()[0])
                raise ContractError(f"batch, feature {name}, row {row}", "at most one value", int(lengths_B[row]))
        return known, max(1, most[-1])

    def _check(self, features: KeyedJaggedTensor) -> None:
        needed = [self.item, *([self.history] if self.history else []), *self.sequences, *self.stat_features]
        needed = list(dict.fromkeys([*needed, *(name for names in self.sequence_stats for name in names)]))
        there = set(features.keys())
        missing = [name for name in needed if name not in there]
        if missing:
            raise ContractError("batch, KeyedJaggedTensor", f"the features {needed}", f"none called {missing[0]}")
        if features.variable_stride_per_key():
            raise ContractError("batch, KeyedJaggedTensor", "as many rows in every feature", "strides that vary")

    def _known(self, ids: Tensor) -> Tensor:
        """Numbers ids as the catalog does, from 1 on; ids outside the item table become 0, which has no SID."""
        ids = ids if self.first_id == 1 else ids + (1 - self.first_id)
        return torch.where((ids >= 0) & (ids < len(self.rows_IG)), ids, 0)

    def _with_sid(self, ids_M: Tensor) -> Tensor:
        """int32: ids without a SID become 0."""
        return self.with_sid_I.index_select(0, ids_M)

    def _statistics(self, features: KeyedJaggedTensor, target_B: Tensor) -> Tensor:
        if not self.stat_features:
            return self.counts_IS.index_select(0, target_B)
        found = [features[name] for name in self.stat_features]
        counts = [_one_per_row(jagged.values(), jagged.lengths()) for jagged in found]
        return torch.stack(counts, dim=1).float()

    def _sequence_statistics(self, features: KeyedJaggedTensor, ids: dict[str, Tensor]) -> Tensor:
        if not self.stat_features:
            return self.counts_IS.index_select(0, torch.cat([ids[name] for name in self.sequences]))
        found = []
        for name, stats in zip(self.sequences, self.sequence_stats, strict=True):
            counts = [features[stat].values() for stat in stats]
            for stat, counts_P in zip(stats, counts, strict=True):
                if len(counts_P) != len(ids[name]):
                    expected = f"a count for each of the {len(ids[name])} ids of {name}"
                    raise ContractError(f"batch, feature {stat}", expected, len(counts_P))
            found.append(torch.stack(counts, dim=1).float())
        return torch.cat(found)

    def _bags(self, ids_U: Tensor, known: int) -> tuple[KeyedJaggedTensor, Tensor, Tensor]:
        """One bag per id: its granules as KeyedJaggedTensor and tensor, and its token weights.

        known: how many ids have a SID; they follow the first. An item with a SID has a row at every granularity.
        """
        rows_UG = self.rows_IG.index_select(0, ids_U)
        granules = KeyedJaggedTensor(
            keys=list(self.granularities),
            values=rows_UG[1 : 1 + known].t().flatten().long(),
            lengths=(rows_UG.t() > 0).flatten().int(),
            stride=len(ids_U),
        )
        return granules, rows_UG, self.weights_IW.index_select(0, ids_U)


class _Distinct:
    """The distinct ids of a batch, in buffers of fixed size: torch.unique would read the size of its result.

    bag_M: int64, the place of each id among the distinct ones, counted from 1 in their order; 0 for id 0.
    count: how many there are besides 0, a scalar on the ids' device.
    """

    def __init__(self, ids_M: Tensor) -> None:
        self._sorted_M, order_M = ids_M.sort()
        new_M = torch.ones_like(self._sorted_M, dtype=torch.bool)
        torch.ne(self._sorted_M[1:], self._sorted_M[:-1], out=new_M[1:])
        self._bag_M = (new_M & (self._sorted_M > 0)).cumsum(0)
        self.bag_M = torch.empty_like(self._bag_M).scatter_(0, order_M, self._bag_M)
        self.count = self._bag_M[-1:].sum()  # 0 of no ids

    def ids(self, bags: int) -> Tensor:
        """int32 [bags]: 0, then the distinct ids, then zeros."""
        ids_U = self._sorted_M.new_zeros(bags)
        return ids_U.scatter_(0, self._bag_M, self._sorted_M)  # equal ids write the same to the same place


def _one_per_row(values_P: Tensor, lengths_B: Tensor) -> Tensor:
    """The value of every row [B], 0 for a row without one."""
    return values_P.new_zeros(len(lengths_B)).masked_scatter(lengths_B > 0, values_P)


def _padded(bag_P: Tensor, lengths_B: Tensor, longest: int) -> Tensor:
    """[B, longest], 0 at padding."""
    there_BT = torch.arange(longest, device=lengths_B.device) < lengths_B.unsqueeze(1)
    return bag_P.new_zeros(there_BT.shape).masked_scatter(there_BT, bag_P)


def _most_on_any_rank(count: int) -> int:
    """Exchanged between hosts: a collective of the device would queue behind the step in hand."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return count
    most = torch.tensor(count)
    dist.all_reduce(most, dist.ReduceOp.MAX, group=_hosts(dist.group.WORLD))
    return int(most)


@lru_cache(maxsize=1)
def _hosts(world: dist.ProcessGroup) -> dist.ProcessGroup:
    """All ranks, with collectives for tensors on the host: NCCL has none, so gloo joins it. All ranks call it."""
    if "cpu:" in dist.get_backend_config(world):
        return world
    group = dist.new_group(backend="gloo")
    assert group is not None, "of all ranks"
    return group


@dataclass(frozen=True)
class CatalogRows:
    """A catalog as table rows: the row of every item id at every granularity.

    granularities: names of the G tables. table_rows: rows of each table.
    rows_IG: int32; row 0 means "no SID" and is never looked up. weights_IW: float32 token weights, W = 0 if
    unused. fingerprint: the catalog's. first_id: the id of the catalog's item 1 in features and item table.
    """

    granularities: tuple[str, ...]
    table_rows: tuple[int, ...]
    rows_IG: Tensor
    weights_IW: Tensor
    fingerprint: str
    first_id: int = 1


def catalog_rows(catalog: Catalog, config: SidCoordItem, items: int, first_id: int = 1) -> CatalogRows:
    """The catalog's rows for the ids in [0, items), the rows of the item table. first_id: that of the catalog's item 1.

    Raises ContractError if the catalog has larger ids, or lacks levels of a granularity or token weights that the
    config uses.
    """
    if first_id < 0:
        raise ContractError("SID-Coord, first_id", "the row of the catalog's item 1, at least 0", first_id)
    items += 1 - first_id
    if len(catalog) and catalog.item_ids_N[-1] >= items:
        numbered = "" if first_id == 1 else f", with item 1 in row {first_id}"
        expected = f"ids below {items}, the rows of the item table{numbered}"
        raise ContractError("catalog, item ids", expected, int(catalog.item_ids_N[-1]))
    codes_IL = catalog.codes_by_id(items)
    extension_I = catalog.extension_by_id(items)
    columns = [granularity_rows(codes_IL, name, extension_I) for name in config.granularities]
    weights_IW = np.zeros((items, 0), np.float32)
    if config.token_weights != "off":
        weights_IW = granularity_weights(catalog.weights_by_id(items), config.granularities)
    return CatalogRows(
        granularities=config.granularities,
        table_rows=tuple(rows for _, rows in columns),
        rows_IG=torch.from_numpy(_stacked([rows_I for rows_I, _ in columns])),
        weights_IW=torch.from_numpy(weights_IW),
        fingerprint=catalog.fingerprint,
        first_id=first_id,
    )


def impressions_of(rows: "CatalogRows", counts_IS: Tensor) -> dict[str, Tensor]:
    """Granularity -> the first count, summed over the items of each row of its table, [R, 1]; 0 for row 0."""
    found = {}
    for k, (name, size) in enumerate(zip(rows.granularities, rows.table_rows, strict=True)):
        row_I = rows.rows_IG[:, k].long()
        found[name] = torch.zeros(size, 1).index_add_(0, row_I, counts_IS[:, :1] * (row_I > 0).unsqueeze(1))
    return found


def _from_first_id(statistics: Statistics, rows: CatalogRows) -> Tensor:
    """Counts per item as the catalog numbers items, [I, S]: row 0 is of unknown items."""
    items, first = len(rows.rows_IG), rows.first_id
    counts_IS = statistics.rows(items + first - 1)
    unknown_1S = counts_IS[:1] if first else torch.zeros_like(counts_IS[:1])
    return torch.cat([unknown_1S, counts_IS[first:]])


def _stacked(columns_I: Sequence[np.ndarray]) -> np.ndarray:
    return np.stack(columns_I, axis=1).astype(np.int32)
