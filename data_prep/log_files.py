"""The files of a data folder: one Parquet file for each partition and split of the log, and items.parquet.

Shapes: M selected rows of a partition, N rows of a batch.
"""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sidrec import schema
from sidrec.io.files import replaced_file

from .events import Items
from .item_vectors import vector_column
from .log_pass import Lists, PartitionRows
from .source_files import open_stream
from .splits import BEFORE, SPLITS

ROW_GROUP = 16_384
ITEM_ROW_GROUP = 16_384


@dataclass
class LogWriter:
    """Writes partitions under the folder `log`, and counts rows and positives.

    arrow: schema of every file. files: split -> files so far. counts: "X rows" and "X positives", where X is a split,
    "new" (rows whose item was never shown before) or "idle" (rows whose item had positives, but no recent ones), and
    "before rows", which are in no split; "X ids" and "X longest" of each list column X.
    """

    log: Path
    arrow: pa.Schema
    files: dict[str, list[schema.LogFile]] = field(default_factory=lambda: {split: [] for split in SPLITS})
    counts: Counter[str] = field(default_factory=Counter)

    def write(self, partition: int, rows: PartitionRows) -> None:
        """Writes one file for each split in the partition. A file appears whole or not at all."""
        self.counts["before rows"] += int((rows.split_N == BEFORE).sum())
        for place, split in enumerate(SPLITS):
            row_M = np.flatnonzero(rows.split_N == place)
            if len(row_M):
                path = Path(split) / f"part-{partition:05d}.parquet"
                self._write_file(self.log / path, rows, row_M)
                first, last = map(int, rows.columns[schema.TIMESTAMP][row_M[[0, -1]]])
                self.files[split].append(schema.LogFile.of(self.log, path, len(row_M), first, last))
            self._count(split, rows, row_M)

    def list_columns(self) -> dict[str, schema.ListColumn]:
        """The cat_* columns of lists, as the manifest states them."""
        rows = sum(self.counts[f"{split} rows"] for split in SPLITS)
        names = [name.removesuffix(" longest") for name in self.counts if name.endswith(" longest")]
        return {
            name: schema.ListColumn(self.counts[f"{name} longest"], self.counts[f"{name} ids"] / max(1, rows))
            for name in sorted(names)
        }

    def _count(self, split: str, rows: PartitionRows, row_M: np.ndarray) -> None:
        positive_M = rows.columns[schema.LABEL][row_M] > 0
        shown_M = rows.columns["stat_exposures"][row_M] > 0
        idle_M = (rows.columns["stat_clicks"][row_M] > 0) & (rows.columns["stat_clicks_recent"][row_M] == 0)
        for name, chosen_M in ((split, np.ones_like(shown_M)), ("new", ~shown_M), ("idle", idle_M)):
            self.counts[f"{name} rows"] += int(chosen_M.sum())
            self.counts[f"{name} positives"] += int((positive_M & chosen_M).sum())
        for name in rows.lists.keys() - {schema.HISTORY}:
            lengths_M = rows.lists[name].length_N[row_M]
            self.counts[f"{name} ids"] += int(lengths_M.sum())
            self.counts[f"{name} longest"] = max(self.counts[f"{name} longest"], int(lengths_M.max(initial=0)))

    def _write_file(self, path: Path, rows: PartitionRows, row_M: np.ndarray) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with (
            replaced_file(path, one_writer=True) as partial,
            pq.ParquetWriter(partial, self.arrow, compression="zstd") as writer,
        ):
            for begin in range(0, len(row_M), ROW_GROUP):
                writer.write_table(self._table(rows, row_M[begin : begin + ROW_GROUP]))

    def _table(self, rows: PartitionRows, row_M: np.ndarray) -> pa.Table:
        columns = []
        for name in self.arrow.names:
            if name in rows.lists:
                columns.append(pa.ListArray.from_arrays(*rows.lists[name].rows(row_M)))
            else:
                columns.append(pa.array(rows.columns[name][row_M]))
        return pa.Table.from_arrays(columns, schema=self.arrow)

    def facts(self) -> str:
        """Files and counts as JSON, for a snapshot."""
        files = {split: [asdict(file) for file in files] for split, files in self.files.items()}
        return json.dumps({"files": files, "counts": self.counts})

    def resume(self, facts: str) -> None:
        """Restores what `facts` returned. Files written since then are written again."""
        raw = json.loads(facts)
        self.files = {split: [schema.LogFile(**file) for file in files] for split, files in raw["files"].items()}
        self.counts = Counter(raw["counts"])


def rows_on_items(log: Path, files: tuple[schema.LogFile, ...], wanted: np.ndarray) -> int:
    """Number of rows whose item is wanted, reading one row group at a time. wanted: bool per item id."""
    total = 0
    for entry in files:
        for batch in open_stream(log / entry.path).iter_batches(batch_size=ROW_GROUP, columns=[schema.ITEM_ID]):
            total += int(wanted[batch.column(0).to_numpy()].sum())
    return total


def write_items(
    path: Path,
    items: Items,
    train_impressions: np.ndarray,
    category_ids: Mapping[str, np.ndarray],
    list_ids: Mapping[str, Lists],
) -> None:
    """Writes items.parquet in one step.

    train_impressions, category_ids (by cat_* column): int64 per item id, 0 included. list_ids: the same for lists.
    """
    table = items.table
    table = table.add_column(0, schema.ITEM_ID, pa.array(np.arange(1, table.num_rows + 1)))
    table = table.add_column(1, schema.TRAIN_IMPRESSIONS, pa.array(train_impressions[1:]))
    for column, ids in category_ids.items():
        table = table.append_column(column, pa.array(ids[1:]))
    for column, lists in list_ids.items():
        table = table.append_column(column, pa.ListArray.from_arrays(*lists.rows(np.arange(1, table.num_rows + 1))))
    for column, (values, _) in items.numbers.items():
        table = table.append_column(column, pa.array(values, mask=np.isnan(values)))
    for column, vectors in items.vectors.items():
        table = table.append_column(column, vector_column(vectors))
    with replaced_file(path, one_writer=True) as partial:
        pq.write_table(table, partial, row_group_size=ITEM_ROW_GROUP)
