"""Ranges of prepared Criteo rows as the files of a log. What lies there from a killed run is kept.

N rows of a file.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.as_of import Runs, Totals
from data_prep.criteo_layout import CriteoLayout, RowRange
from data_prep.criteo_rows import CATEGORICAL
from data_prep.log_writer import ROW_GROUP
from data_prep.progress import rows_bar
from sidrec import schema
from sidrec.schema import LogFile, Manifest

FILE_ROWS = 1 << 18
STATS = ("stat_exposures", "stat_clicks")


class CriteoLogFiles:
    """Writes the splits, which have to come in order: statistics are those of all earlier rows.

    item: the column that is the item.
    """

    def __init__(self, layout: CriteoLayout, manifest: Manifest, item: int) -> None:
        self._layout, self._item = layout, item
        self._arrow = schema.log_schema(manifest)
        self._totals = Totals.empty(layout.table_rows[item])

    def write(self, log: Path, split: str, rows: range) -> Iterator[LogFile]:
        """One file after the other; each appears whole. Of files that are there, rows are only counted again."""
        (log / split).mkdir(parents=True, exist_ok=True)
        with rows_bar(f"writing {split}", len(rows)) as bar:
            for number, part in enumerate(self._layout.ranges(rows.start, rows.stop, FILE_ROWS)):
                path = Path(split) / f"part-{number:05d}.parquet"
                if not (log / path).exists():
                    partial = (log / path).with_suffix(".partial")
                    pq.write_table(self._table(part), partial, row_group_size=ROW_GROUP, compression="zstd")
                    partial.replace(log / path)
                self._totals.add(part.ids()[:, self._item], part.labels(), np.arange(part.first, part.stop))
                bar.update(part.rows)
                yield LogFile(str(path), part.rows, part.first, part.stop - 1, schema.crc32_of(log / path))

    def _table(self, part: RowRange) -> pa.Table:
        id_NC, label_N, row_N = part.ids(), part.labels(), np.arange(part.first, part.stop)
        value_N = id_NC[:, self._item]
        runs = Runs.of(value_N, row_N)
        exposures_N = self._totals.rows[value_N] + runs.earlier_rows()
        clicks_N = self._totals.clicks[value_N] + runs.earlier_sum(label_N)
        columns = [
            label_N.astype(np.float32),
            row_N,
            np.zeros(len(row_N), np.int64),
            value_N.astype(np.int64),  # a missing value is the unknown item: both are 0
            *part.dense().T,
            *(id_NC[:, column].astype(np.int64) for column in range(len(CATEGORICAL)) if column != self._item),
            pa.ListArray.from_arrays(np.zeros(len(row_N) + 1, np.int32), pa.array([], pa.int64())),
            exposures_N.astype(np.float32),
            clicks_N.astype(np.float32),
        ]
        return pa.Table.from_arrays([pa.array(column) for column in columns], schema=self._arrow)
