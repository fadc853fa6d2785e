"""What must hold of the rows of a log, beyond the columns' types: which rows break it, and whether times go back."""

import math

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sidrec.schema import HISTORY, ITEM_ID, LABEL, TIMESTAMP, ContractError, Manifest, log_schema


def broken_rows(table: pa.Table, manifest: Manifest) -> dict[str, np.ndarray]:
    """Finds the rows that break the contract's value rules.

    Returns: rule -> bool mask over the table's rows, only for rules that some row breaks. A rule reads
    "column, expectation"; the caller turns it into an error or a quarantine.
    """
    rules: dict[str, np.ndarray] = {}

    def add(column: str, expectation: str, bad: np.ndarray) -> None:
        if bad.any():
            rules[f"column {column}, expected {expectation}"] = bad

    for column in log_schema(manifest).names:
        nulls = table[column].is_null().to_numpy()
        add(column, "no missing value", np.asarray(nulls, dtype=bool))
    label = _numpy(table, LABEL)
    add(LABEL, "0 or 1", ~((label == 0) | (label == 1)))
    for column in manifest.dense:
        add(column, "finite values", ~np.isfinite(_numpy(table, column)))
    for column in manifest.stats:
        values = _numpy(table, column)
        add(column, "finite counts of at least 0", ~(np.isfinite(values) & (values >= 0)))
    for column, rows in manifest.ids.items():
        ids = _numpy(table, column)
        add(column, f"ids in [0, {rows})", (ids < 0) | (ids >= rows))
    add(HISTORY, f"item ids in [0, {manifest.ids[ITEM_ID]})", _rows_with_bad_history(table, manifest))
    return rules


def _rows_with_bad_history(table: pa.Table, manifest: Manifest) -> np.ndarray:
    history = table[HISTORY].combine_chunks()
    values = pc.list_flatten(history).to_numpy(zero_copy_only=False)
    parents = pc.list_parent_indices(history).to_numpy(zero_copy_only=False)
    if values.dtype != np.int64:  # a null inside a list turns the values into floats
        values = np.where(np.isnan(values), -1, values)
    bad = np.zeros(table.num_rows, dtype=bool)
    bad[parents[(values < 0) | (values >= manifest.ids[ITEM_ID])]] = True
    return bad


def _numpy(table: pa.Table, column: str) -> np.ndarray:
    values = table[column].to_numpy()
    if values.dtype.kind == "f" and table.schema.field(column).type == pa.int64():
        values = np.nan_to_num(values, nan=-1)
    return np.asarray(values)


def check_time_order(timestamps: np.ndarray, where: object, after: float = -math.inf) -> None:
    """Timestamps never go back, and start no earlier than `after`. Raises ContractError with the first that does."""
    if len(timestamps) and timestamps[0] < after:
        raise ContractError(f"{where}, column {TIMESTAMP}", f"times from {after:.0f} on", int(timestamps[0]))
    back = np.flatnonzero(np.diff(timestamps) < 0)
    if len(back):
        row = int(back[0]) + 1
        got = f"{timestamps[row]} after {timestamps[row - 1]} at row {row}"
        raise ContractError(f"{where}, column {TIMESTAMP}", "rows sorted by time", got)
