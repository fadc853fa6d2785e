"""`sidrec skew`: do the features that requests were scored with equal those that preparation makes of the same events?

A row of the feature log and a prepared one are the same event if request and item are equal, where the prepared rows
have a column `request`; else if user, item and timestamp are. Numbers, histories and ids are compared as the model
reads them, and the logged score with the score of the prepared row by the same version.

Shapes: N rows that both have, X number columns, T history positions.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sidrec.errors import ContractError
from sidrec.io.places import Place
from sidrec.serve.batch_scoring import HISTORY, SCORE, VERSION, Input, RowsToScore, score_table
from sidrec.serve.feature_log import REQUEST_ID, TIME
from sidrec.serve.scorer import ITEM, USER, Model
from sidrec.text import text_table

KEYS = ((REQUEST_ID, ITEM), (USER, ITEM, TIME))
RELATIVE, OF_SCORES = 1e-4, 1e-3
"""Largest difference of equal numbers, as a share of the larger; largest difference of equal scores."""
MOST_DIFFERING = 0.01
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class ColumnSkew:
    """rows: that were compared. equal: share of them. largest: difference of numbers; None for ids and lists. ratio:
    median of served over prepared, where they differ; None without one. differs: the verdict."""

    name: str
    rows: int
    equal: float
    largest: float | None
    ratio: float | None
    differs: bool


@dataclass(frozen=True)
class Skew:
    """key: the columns by which rows were matched. rows: that both have. served, prepared: rows of each."""

    key: tuple[str, ...]
    rows: int
    served: int
    prepared: int
    columns: tuple[ColumnSkew, ...]

    @property
    def differing(self) -> list[str]:
        """Names of the columns that differ."""
        return [column.name for column in self.columns if column.differs]

    def text(self) -> str:
        """A line for each column."""
        lines = [["column", "rows", "equal", "largest difference", "served / prepared", "verdict"]]
        for of in self.columns:
            numbers = ["-" if value is None else f"{value:.4g}" for value in (of.largest, of.ratio)]
            lines.append([of.name, f"{of.rows:,}", f"{of.equal:.2%}", *numbers, "DIFFERS" if of.differs else "equal"])
        head = f"{self.rows:,} rows by {', '.join(self.key)}; of {self.served:,} served and {self.prepared:,} prepared"
        return f"{head}\n{text_table(lines, left=1, gap=2)}"


def compare(model: Model, feature_log: Path, prepared: Place, most_differing: float = MOST_DIFFERING) -> Skew:
    """Compares the rows that both have. most_differing: share of rows that may differ in a column.

    Raises ContractError for files that `sidrec score` would not take, and if no row is in both.
    """
    logged_rows, prepared_rows = _read(feature_log), _read(prepared)
    key: tuple[str, ...] = KEYS[0] if REQUEST_ID in prepared_rows.column_names else KEYS[1]
    for path, table in ((feature_log, logged_rows), (prepared, prepared_rows)):
        if missing := [name for name in key if name not in table.column_names]:
            raise ContractError(path, f"the columns {', '.join(key)} to match rows by", f"no {missing[0]}")
    served, made = _matched(logged_rows, prepared_rows, key)
    if not len(served):
        raise ContractError(f"{feature_log} and {prepared}", f"rows with equal {', '.join(key)} in both", "none")
    found = [_verdict(*of, most_differing) for of in _columns(model, served, made)]
    return Skew(key, len(served), len(logged_rows), len(prepared_rows), tuple(found))


def _read(path: Place) -> pa.Table:
    return pa.concat_tables(Input.of(path).chunks(1 << 20), promote_options="permissive")


def _matched(served: pa.Table, prepared: pa.Table, key: tuple[str, ...]) -> tuple[pa.Table, pa.Table]:
    """Rows with equal keys, in the same order; the first of those whose key is there several times."""
    places = []
    for name, table in (("served", served), ("prepared", prepared)):
        keys = {column: pc.cast(table[column], pa.string()) for column in key}
        numbered = pa.table(keys | {name: np.arange(len(table))})
        first = numbered.group_by(list(key)).aggregate([(name, "min")])
        places.append(first.rename_columns([*key, name]))
    both = places[0].join(places[1], list(key), join_type="inner").sort_by("served")
    return served.take(both["served"]), prepared.take(both["prepared"])


Compared = tuple[str, Bools, NDArray[np.float64] | None, NDArray[np.float64] | None]
"""Name, which rows are equal, and numbers as served and as prepared."""


def _columns(model: Model, served: pa.Table, prepared: pa.Table) -> Iterator[Compared]:
    about = model.description
    pair = [
        RowsToScore(model, table, where) for table, where in ((served, "the feature log"), (prepared, "prepared rows"))
    ]
    names = (*about.stats, *about.dense)
    served_NX, prepared_NX = (rows.numbers(names).astype(np.float64) for rows in pair)
    for place, name in enumerate(names):
        one_N, other_N = served_NX[:, place], prepared_NX[:, place]
        most_N = RELATIVE * np.maximum(np.abs(one_N), np.abs(other_N))
        yield name, np.abs(one_N - other_N) <= most_N, one_N, other_N
    one_NT, other_NT = (rows.history(about.history_length) for rows in pair)
    yield HISTORY, _equal_lists(one_NT, other_NT), None, None
    for column in about.context:
        if not column.lists:
            served_ids_N, prepared_ids_N = (rows.ids(column.name, needed=False) for rows in pair)
            yield column.name, served_ids_N == prepared_ids_N, None, None
    same_N = np.asarray(pc.equal(pc.cast(served[VERSION], pa.string()), model.version))
    one_N = served[SCORE].to_numpy().astype(np.float64)[same_N]
    other_N = score_table(model, prepared, "prepared rows")[SCORE].to_numpy().astype(np.float64)[same_N]
    yield SCORE, np.abs(one_N - other_N) <= OF_SCORES, one_N, other_N


def _equal_lists(one_NT: NDArray[np.int64], other_NT: NDArray[np.int64]) -> Bools:
    """Rows of equal ids; the narrower array is padded."""
    width = max(one_NT.shape[1], other_NT.shape[1])
    padded = [np.pad(of_NT, ((0, 0), (0, width - of_NT.shape[1]))) for of_NT in (one_NT, other_NT)]
    return (padded[0] == padded[1]).all(axis=1)


def _verdict(
    name: str,
    equal_N: Bools,
    served_N: NDArray[np.float64] | None,
    prepared_N: NDArray[np.float64] | None,
    most_differing: float,
) -> ColumnSkew:
    equal = float(equal_N.mean()) if len(equal_N) else 1.0
    largest = ratio = None
    if served_N is not None and prepared_N is not None:
        largest = float(np.abs(served_N - prepared_N).max(initial=0))
        with_ratio_N = ~equal_N & (prepared_N != 0)
        ratio = float(np.median(served_N[with_ratio_N] / prepared_N[with_ratio_N])) if with_ratio_N.any() else None
    return ColumnSkew(name, len(equal_N), equal, largest, ratio, 1 - equal > most_differing)
