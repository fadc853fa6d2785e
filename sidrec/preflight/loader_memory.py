"""What a loader process keeps in memory: its copy of the item tables, and the rows of its rank's lanes.

Shapes: I item ids, C context columns, T history positions, X dense and S statistics columns.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sidrec.config.tree import DataConfig
from sidrec.data.item_tables import ItemTables
from sidrec.data.rows import Columns

LIBRARIES = 90 << 20
"""Bytes that a loader process has to itself before it holds a row: what it forked, imported and started (measured)."""
FORK_SERVER = 60 << 20
"""Bytes of the processes that start a rank's loader processes and clean up after them (measured)."""


@dataclass(frozen=True)
class LoaderMemory:
    """Bytes of one loader process. items: by item id. rows: buffers of the lanes, full."""

    items: int
    rows: int

    @property
    def bytes(self) -> int:
        return LIBRARIES + self.items + self.rows


def bytes_per_row(columns: Columns) -> int:
    """Of a decoded row, as `sidrec.data.rows.Rows` holds it."""
    number, value, flag = 8, 4, 1
    numbers = 3 + len(columns.context) + columns.history_length  # row, user, item
    values = 1 + len(columns.log.dense) + len(columns.log.stats)  # label
    return numbers * number + values * value + flag


def item_bytes(tables: ItemTables) -> int:
    """Of everything by item id that crosses to a process, and of the numbers by which it finds unique items."""
    per_item: Mapping[str, object] = tables.per_item
    arrays = [array for array in per_item.values() if isinstance(array, np.ndarray)]
    return tables.rows_IF.nbytes + sum(array.nbytes for array in arrays) + 8 * len(tables.rows_IF)


def loader_memory(
    data: DataConfig, columns: Columns, tables: ItemTables, rows: int, largest_group: int, world: int
) -> LoaderMemory:
    """A process that reads a split of `rows` rows in row groups of at most `largest_group`.

    Every process of a rank reads all lanes of it: each holds a buffer and the row group read last, and the one that is
    being filled its parts and the whole.
    """
    lanes = max(1, data.lanes // world)
    lane = -(-rows // data.lanes)
    buffer, group = min(data.shuffle_rows, lane), min(largest_group, rows)
    held = lanes * (buffer + group) + buffer
    return LoaderMemory(item_bytes(tables), held * bytes_per_row(columns))
