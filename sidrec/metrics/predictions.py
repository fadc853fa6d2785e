"""Predictions of a split: collected batch by batch on each rank, gathered on all ranks, saved as parquet.

Gathered rows are sorted by their number in the split, so results are the same, bit for bit, at any world size that
scores rows equally. Shapes: B rows of a batch, N rows; E extra columns; V = 3 + E values.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from sidrec.io.files import column_type, readable, replaced_file
from sidrec.schema import ITEM_ID, LABEL, UNKNOWN_ID, USER_ID, ContractError

if TYPE_CHECKING:  # reading predictions must not import TorchRec
    from sidrec.data.batch import Batch


ROW = "row"
SCORE = "score"
PROBABILITY = "probability"
_IDS = (ROW, USER_ID, ITEM_ID)
_VALUES = (LABEL, SCORE)
SOURCES = {USER_ID: "user", ITEM_ID: "item"}
"""Id column -> the column with its source ids, text."""
NO_MAPS: Mapping[str, pa.ChunkedArray] = {}
ROW_GROUP = 1 << 20  # rows written at a time


@dataclass(frozen=True)
class Predictions:
    """Rows of one split, ascending by row number.

    row_N, user_N, item_N: int64 row numbers within the split, and ids.
    label_N: float32, 0 or 1. score_N: float32 logits.
    extra: name -> float32 [N], further values of each row.
    """

    split: str
    row_N: NDArray[np.int64]
    user_N: NDArray[np.int64]
    item_N: NDArray[np.int64]
    label_N: NDArray[np.float32]
    score_N: NDArray[np.float32]
    extra: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.row_N)

    def save(self, path: Path, source_ids: Mapping[str, pa.ChunkedArray] = NO_MAPS) -> None:
        """Writes parquet in one step: row, user_id, item_id, label, score, the extra columns and probability.

        source_ids: of the columns user_id and item_id, the source id of every dense id from 1 on. With them, the file
        also has the columns user and item, null for id 0.
        """
        values = (self.row_N, self.user_N, self.item_N, self.label_N, self.score_N)
        columns = {**dict(zip(_IDS + _VALUES, values, strict=True)), **self.extra}
        columns[PROBABILITY] = np.exp(-np.logaddexp(np.float32(0), -self.score_N))
        table = pa.table(columns)
        schema = pa.schema([*table.schema, *((SOURCES[column], ids.type) for column, ids in source_ids.items())])
        with replaced_file(path) as partial, pq.ParquetWriter(partial, schema, compression="zstd") as file:
            for first in range(0, max(1, len(table)), ROW_GROUP):
                part = table.slice(first, ROW_GROUP)
                for column, ids in source_ids.items():
                    dense_N = part[column].to_numpy()
                    texts = ids.take(pa.array(dense_N - 1, mask=dense_N == UNKNOWN_ID))
                    part = part.append_column(SOURCES[column], texts)
                file.write_table(part)


def load_predictions(path: Path, split: str) -> Predictions:
    """Reads what `Predictions.save` wrote. Raises ContractError naming the column that is wrong."""
    with readable(path, "a readable parquet file of predictions"):
        table = pq.read_table(path)
    for names, expected in ((_IDS, pa.int64()), (_VALUES, pa.float32())):
        for name in names:
            kind = column_type(table.schema, name, path)
            if kind != expected or table[name].null_count:
                got = f"{kind} with {table[name].null_count} missing"
                raise ContractError(f"{path}, column {name}", f"{expected} without missing values", got)
    others = {PROBABILITY, *SOURCES.values()}  # derived from the score and from ids
    columns = {name: table[name].to_numpy() for name in table.column_names if name not in others}
    row, user, item, label, score = (columns.pop(name) for name in _IDS + _VALUES)
    return Predictions(split, row, user, item, label, score, columns)


class PredictionCollector:
    """Collects this rank's predictions of a split. Host memory: 32 bytes per row, and 4 per extra column.

    split: for messages and file names. extra: names of the extra values of every batch; equal on all ranks.
    """

    def __init__(self, split: str, extra: tuple[str, ...] = ()) -> None:
        self.split = split
        self.extra = extra
        self._ids_3B: list[Tensor] = []
        self._values_EB: list[Tensor] = []

    def rows(self, batch: "Batch", score_B: Tensor, **extra_B: Tensor) -> tuple[Tensor, Tensor]:
        """A batch's rows for `add`, still on its device, of which nothing is read: int64 ids [3, B], and float32
        weight, label, score and extras [3 + E, B]. score_B: logits, [B] or [B, 1]; each extra [B] or [B, 1]."""
        assert tuple(extra_B) == self.extra, f"expected the extra values {self.extra}, got {tuple(extra_B)}"
        values = (batch.weight_B, batch.label_B, score_B, *extra_B.values())
        ids_3B = torch.stack((batch.row_B, batch.user_B, batch.item_B))
        return ids_3B, torch.stack([value_B.detach().reshape(-1).float() for value_B in values])

    def add(self, ids_3B: Tensor, values_VB: Tensor) -> None:
        """Adds what `rows` returned, on the host; rows of weight 0 are left out."""
        kept_B = values_VB[0] > 0
        self._ids_3B.append(ids_3B[:, kept_B])
        self._values_EB.append(values_VB[1:, kept_B])

    def gathered(self, group: dist.ProcessGroup | None, rows: int, left_out: int = 0) -> Predictions:
        """Gathers all ranks' rows on every rank. Every rank of the group must call it, also one without rows.

        group: the ranks that share the split; None: the default group, or this process alone if there is none.
        rows: rows of the split. left_out: how many of them the reader quarantined, over all ranks.
        Memory on every rank: 32 bytes per row and 4 per extra column; three times that temporarily.

        Raises ContractError, on all ranks alike, for a repeated or missing row and a score that is not finite.
        """
        ids_3N = torch.cat([torch.empty(3, 0, dtype=torch.int64), *self._ids_3B], dim=1)
        values_EN = torch.cat([torch.empty(2 + len(self.extra), 0), *self._values_EB], dim=1)
        if dist.is_initialized():
            ids_3N, values_EN = _all_gather(ids_3N, group), _all_gather(values_EN, group)
        order_N = torch.argsort(ids_3N[0], stable=True)
        row_N, user_N, item_N = ids_3N[:, order_N].numpy()
        label_N, score_N, *extra_EN = values_EN[:, order_N].numpy()
        _check_rows(row_N, rows, left_out, self.split)
        _check_finite(row_N, score_N, self.split)
        return Predictions(
            self.split, row_N, user_N, item_N, label_N, score_N, dict(zip(self.extra, extra_EN, strict=True))
        )


def _all_gather(columns_CN: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Concatenates the ranks' columns along N, in rank order; ranks may have different numbers of rows, or none."""
    ranks = dist.get_world_size(group)
    device = torch.device("cuda" if dist.get_backend(group) == "nccl" else "cpu")
    size = torch.tensor([columns_CN.shape[1]], device=device)
    sizes = [torch.empty_like(size) for _ in range(ranks)]
    dist.all_gather(sizes, size, group=group)
    longest = max(int(size) for size in sizes)
    padded_CN = columns_CN.new_zeros(columns_CN.shape[0], longest, device=device)
    padded_CN[:, : columns_CN.shape[1]] = columns_CN
    parts = [torch.empty_like(padded_CN) for _ in range(ranks)]
    dist.all_gather(parts, padded_CN, group=group)
    return torch.cat([part[:, : int(size)] for part, size in zip(parts, sizes, strict=True)], dim=1).cpu()


def _check_rows(row_N: NDArray[np.int64], rows: int, left_out: int, split: str) -> None:
    where = f"predictions of split {split}"
    twice = np.flatnonzero(row_N[1:] == row_N[:-1])
    if len(twice):
        raise ContractError(where, "each row once", f"row {row_N[twice[0]]} twice")
    if len(row_N) and (row_N[0] < 0 or row_N[-1] >= rows):
        raise ContractError(where, f"rows in [0, {rows})", f"row {row_N[0] if row_N[0] < 0 else row_N[-1]}")
    if len(row_N) != rows - left_out:
        seen = np.zeros(rows, dtype=bool)
        seen[row_N] = True
        first = f"; the first row not seen is {np.argmin(seen)}" if not seen.all() else ""
        raise ContractError(where, f"{rows - left_out} rows", f"{len(row_N)}{first}")


def _check_finite(row_N: NDArray[np.int64], score_N: NDArray[np.float32], split: str) -> None:
    bad = np.flatnonzero(~np.isfinite(score_N))
    if len(bad):
        got = f"{score_N[bad[0]]} at row {row_N[bad[0]]} ({len(bad)} of {len(row_N)} rows)"
        raise ContractError(f"predictions of split {split}, column {SCORE}", "finite scores", got)
