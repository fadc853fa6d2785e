"""`sidrec shadow`: what would change if another version answered? Two versions score the same rows.

A column of exposures in the rows separates head, tail and cold items, as bundles hold no exposures: cold items have
none, head items at least the median of the others.

Shapes: N rows, V users.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sidrec.errors import ContractError
from sidrec.io.places import Place
from sidrec.serve.batch_scoring import CHUNK, SCORE, Input, RowsToScore, score_table
from sidrec.serve.scorer import USER, Model
from sidrec.text import text_table

TOP = 10
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Change:
    """How scores of some rows change. spearman, within_users: rank correlation of all rows, and its mean over users
    for whom it is defined; None if undefined. difference: mean absolute difference of probabilities. mean, other_mean:
    of each version's probabilities."""

    items: str
    rows: int
    spearman: float | None
    within_users: float | None
    difference: float | None
    mean: float | None
    other_mean: float | None


@dataclass(frozen=True)
class Shadow:
    """users: with more than `top` rows. changed_tops: share of them whose best `top` rows are others; None without
    such users."""

    version: str
    other: str
    top: int
    users: int
    changed_tops: float | None
    changes: tuple[Change, ...]

    def as_json(self) -> dict[str, Any]:
        """For a file."""
        return asdict(self)

    def text(self) -> str:
        """A line for each group of items."""
        lines = [["items", "rows", "spearman", "within users", "mean difference", "mean", "other mean"]]
        for of in self.changes:
            values = (of.spearman, of.within_users, of.difference, of.mean, of.other_mean)
            lines.append([of.items, f"{of.rows:,}", *("-" if value is None else f"{value:.4f}" for value in values)])
        changed = "undefined" if self.changed_tops is None else f"{self.changed_tops:.2%}"
        tops = f"top {self.top} changes for {changed} of {self.users:,} users with more rows"
        return f"{self.version} and {self.other}\n{text_table(lines, left=1, gap=2)}\n{tops}"


def compare(model: Model, other: Model, rows: Place, exposures: str | None = None, top: int = TOP) -> Shadow:
    """Scores the rows with both. exposures: a column of the rows; None for the model's first statistic, if it has one.

    Raises ContractError for rows that one of them cannot score.
    """
    exposures = exposures or next(iter(model.description.stats), None)
    users: list[pa.ChunkedArray] = []
    columns: list[Floats] = []
    for table in Input.of(rows).chunks(CHUNK):
        where = str(rows)
        one_N, other_N = (score_table(each, table, where)[SCORE].to_numpy() for each in (model, other))
        exposed_N = (
            np.zeros(len(table)) if exposures is None else RowsToScore(model, table, where).numbers([exposures])[:, 0]
        )
        columns.append(np.stack([one_N, other_N, exposed_N]).astype(np.float64))
        users.append(table[USER].cast(pa.string()))
    if not columns:
        raise ContractError(rows, "rows to score", "none")
    user_N = pa.chunked_array([chunk for each in users for chunk in each.chunks]).combine_chunks()
    user_N = user_N.dictionary_encode(null_encoding="encode").indices.to_numpy(zero_copy_only=False).astype(np.int64)
    one_N, other_N, exposed_N = np.concatenate(columns, axis=1)
    masks = {"all": np.ones(len(user_N), dtype=np.bool_)}
    if exposures is not None:
        masks |= _groups(exposed_N)
    changes = tuple(_change(name, user_N[mask_N], one_N[mask_N], other_N[mask_N]) for name, mask_N in masks.items())
    return Shadow(model.version, other.version, top, *changed_tops(user_N, one_N, other_N, top), changes)


def _groups(exposed_N: Floats) -> dict[str, NDArray[np.bool_]]:
    shown_N = exposed_N > 0
    median = np.median(exposed_N[shown_N]) if shown_N.any() else 0.0
    return {"head": shown_N & (exposed_N >= median), "tail": shown_N & (exposed_N < median), "cold": ~shown_N}


def _change(items: str, user_N: Ints, one_N: Floats, other_N: Floats) -> Change:
    rows = len(user_N)
    if not rows:
        return Change(items, 0, None, None, None, None, None)
    (spearman,) = rank_correlations(np.zeros(rows, dtype=np.int64), one_N, other_N)
    within_V = rank_correlations(user_N, one_N, other_N)
    defined_V = within_V[~np.isnan(within_V)]
    return Change(
        items,
        rows,
        None if np.isnan(spearman) else float(spearman),
        float(defined_V.mean()) if len(defined_V) else None,
        float(np.abs(one_N - other_N).mean()),
        float(one_N.mean()),
        float(other_N.mean()),
    )


def rank_correlations(group_N: Ints, one_N: Floats, other_N: Floats) -> Floats:
    """Spearman's correlation within each group, in the order of the groups' numbers; NaN where all values are equal."""
    _, group_N = np.unique(group_N, return_inverse=True)
    count_V = np.bincount(group_N)
    centered = [_ranks(group_N, of_N) - (count_V[group_N] - 1) / 2 for of_N in (one_N, other_N)]
    products = [np.bincount(group_N, a * b) for a, b in (centered, centered[:1] * 2, centered[1:] * 2)]
    with np.errstate(invalid="ignore"):
        return products[0] / np.sqrt(products[1] * products[2])


def _ranks(group_N: Ints, value_N: Floats) -> Floats:
    """Rank of each value within its group, from 0; equal values share their mean rank."""
    order_N = np.lexsort((value_N, group_N))
    group_S, value_S = group_N[order_N], value_N[order_N]
    is_first_S = np.concatenate([[True], (group_S[1:] != group_S[:-1]) | (value_S[1:] != value_S[:-1])])
    first = np.flatnonzero(is_first_S)
    last = np.concatenate([first[1:], [len(value_S)]]) - 1
    begins_V = np.searchsorted(group_S, np.arange(group_S[-1] + 1))
    ranks_N = np.empty(len(value_N))
    ranks_N[order_N] = ((first + last) / 2)[np.cumsum(is_first_S) - 1] - begins_V[group_S]
    return ranks_N


def changed_tops(user_N: Ints, one_N: Floats, other_N: Floats, top: int) -> tuple[int, float | None]:
    """Users with more rows than `top`, and the share of them whose best rows are others. Of equal scores the earlier
    row is better."""
    many_V = np.bincount(user_N) > top
    if not many_V.any():
        return 0, None
    is_top = []
    for of_N in (one_N, other_N):
        order_N = np.lexsort((np.arange(len(of_N)), -of_N, user_N))
        begins_V = np.searchsorted(user_N[order_N], np.arange(len(many_V)))
        place_N = np.empty(len(of_N), dtype=np.int64)
        place_N[order_N] = np.arange(len(of_N)) - begins_V[user_N[order_N]]
        is_top.append(place_N < top)
    changed_V = np.bincount(user_N, is_top[0] != is_top[1], minlength=len(many_V)) > 0
    return int(many_V.sum()), float(changed_V[many_V].mean())
