"""Finished rows of the relations (`data_prep.log_relations`) as tables of the log contract (`sidrec.schema`).

`LogRows.table` works on any batch of rows alone, in any process.

Shapes: N rows, I item ids (0 included).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from sidrec import schema

from .dense_numbers import DenseNumbers
from .events import EventColumns
from .histories import Histories, Lists
from .ordered_events import SECONDS_PER_DAY, own_columns

ROW_DENSE = ("int_user_events", "int_user_click_rate", "int_days_since_last")
STATS = ("stat_exposures", "stat_clicks", "stat_exposures_recent", "stat_clicks_recent")
COUNTS = ("item_rows", "item_clicks", "recent", "recent_clicks")  # of the relations, in the order of STATS


@dataclass(frozen=True)
class LogRows:
    """Turns rows of `LogRelations.rows` into rows of the log.

    arrow: columns of the log. item_categories: cat_* column -> int64 [I]. item_lists: cat_* column -> lists [I].
    """

    arrow: pa.Schema
    columns: EventColumns
    histories: Histories
    numbers: DenseNumbers
    item_categories: Mapping[str, np.ndarray] = field(default_factory=dict)
    item_lists: Mapping[str, Lists] = field(default_factory=dict)

    def table(self, rows: pa.RecordBatch) -> pa.Table:
        """The rows as the log has them, in the same order."""
        item_N, at_N = rows.column("item_id").to_numpy(), rows.column("moment").to_numpy()
        own = {name: rows.column(column) for name, column in own_columns(self.columns).items()}
        found: dict[str, object] = {
            schema.LABEL: rows.column("label").to_numpy(),
            schema.TIMESTAMP: at_N if self.columns.timed else np.zeros_like(at_N),
            schema.USER_ID: rows.column("user_id").to_numpy(),
            schema.ITEM_ID: item_N,
            schema.HISTORY: self.histories.of(rows).array(),
        }
        found |= _user_columns(rows, at_N)
        found |= {stat: rows.column(count).to_numpy() for stat, count in zip(STATS, COUNTS, strict=True)}
        found |= {name: ids_I[item_N] for name, ids_I in self.item_categories.items()}
        found |= {name: lists.take(item_N).array() for name, lists in self.item_lists.items()}
        found |= self.numbers.rows({name: own[name].to_numpy() for name in self.columns.numbers}, item_N)
        found |= {name: Lists.of(own[name]).array() for name in self.columns.lists}
        whole = (*self.columns.dense, *self.columns.labels, *self.columns.extra, *self.columns.categorical)
        found |= {name: own[name].to_numpy() for name in whole}
        return pa.Table.from_arrays([_as(found[column.name], column.type) for column in self.arrow], schema=self.arrow)


def _as(values: object, kind: pa.DataType) -> pa.Array:
    if isinstance(values, np.ndarray):
        return pa.array(values.astype(kind.to_pandas_dtype(), copy=False))
    return values


def _user_columns(rows: pa.RecordBatch, at_N: np.ndarray) -> dict[str, np.ndarray]:
    rows_N, clicks_N = rows.column("user_rows").to_numpy(), rows.column("user_clicks").to_numpy()
    latest_N = rows.column("latest").fill_null(-1).to_numpy()
    days_N = np.where(latest_N < 0, 0.0, (at_N - latest_N) / SECONDS_PER_DAY)
    values = (np.log1p(rows_N), (clicks_N + 1) / (rows_N + 2), np.log1p(days_N))
    return dict(zip(ROW_DENSE, values, strict=True))
