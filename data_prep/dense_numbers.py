"""Numbers of a source (price, duration) as dense columns: log(1 + max(x, 0)), standardised on the train split alone.

`fit_transforms` takes mean and deviation from the events of the train split, before rows are written. It sums whole
numbers of a small unit, so that no order of the sum matters. Numbers of items count once for each train event of the
item. A missing number becomes 0, the
mean, and 1 in the column NAME_missing, which a column without missing numbers does not have.

Shapes: N rows, I item ids (0 included).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction

import numpy as np
import pyarrow as pa

from sidrec.errors import print_warning
from sidrec.schema import Transform

from .log_relations import moments
from .ordered_events import LOG_UNIT, OrderedEvents, log_units

MISSING = "_missing"


@dataclass(frozen=True)
class DenseNumbers:
    """transforms: int_* column -> its constants. flagged: columns that have a column NAME_missing.

    by_item: int_* column -> float64 [I], NaN where missing; the other columns are those of the events.
    """

    transforms: Mapping[str, Transform] = field(default_factory=dict)
    flagged: frozenset[str] = frozenset()
    by_item: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def columns(self) -> tuple[str, ...]:
        """The dense columns that `rows` returns, in order."""
        named = ((name, name + MISSING) if name in self.flagged else (name,) for name in self.transforms)
        return tuple(column for pair in named for column in pair)

    def rows(self, own: Mapping[str, np.ndarray], item_N: np.ndarray) -> dict[str, np.ndarray]:
        """Dense columns float32 [N]. own: columns of the events, by row. item_N: item of each row."""
        found: dict[str, np.ndarray] = {}
        for name, transform in self.transforms.items():
            values_N = self.by_item[name][item_N] if name in self.by_item else own[name]
            missing_N = np.isnan(values_N)
            scaled_N = (_log(values_N) - transform.mean) / (transform.deviation or 1.0)
            found[name] = np.where(missing_N, 0.0, scaled_N).astype(np.float32)
            if name in self.flagged:
                found[name + MISSING] = missing_N.astype(np.float32)
        return found


def fit_transforms(
    log: OrderedEvents,
    sources: Mapping[str, str],
    by_item: Mapping[str, np.ndarray],
    earlier: DenseNumbers | None = None,
) -> DenseNumbers:
    """Constants of the transforms, and counts of missing and negative numbers over all events, with warnings.

    log: with the relation `split_events`. sources: int_* column -> the source's column. by_item: as in DenseNumbers.
    earlier: constants of another preparation, which are kept, so that equal numbers mean the same to its models.
    """
    if not sources:
        return DenseNumbers()
    transforms = {name: _fitted(log, name, source, by_item.get(name)) for name, source in sources.items()}
    flagged = {name for name, found in transforms.items() if found.missing}
    if earlier is not None:
        kept = earlier.transforms
        transforms = {name: _with_constants(now, kept.get(name, now)) for name, now in transforms.items()}
        flagged = {name for name in flagged if name not in kept} | earlier.flagged
    for transform in transforms.values():
        _warn(transform, log.rows)
    return DenseNumbers(transforms, frozenset(flagged), by_item)


def _fitted(log: OrderedEvents, name: str, source: str, value_I: np.ndarray | None) -> Transform:
    if value_I is None:
        column = log.own[name]
        numbers = (
            f"SELECT event, log_{column} AS logs, CASE WHEN {column} < 0 THEN 1 ELSE 0 END AS negative FROM ordered"
        )
        joined = f"({numbers}) AS n JOIN split_events AS s ON s.event = n.event"
    else:
        negative_I = (value_I < 0).astype(np.int64)
        items = {"item_id": np.arange(len(value_I)), "logs": log_units(value_I), "negative": negative_I}
        log.engine.put("item_numbers", pa.table(items))
        joined = "item_numbers AS n JOIN split_events AS s ON s.item_id = n.item_id"
    train = "CASE WHEN s.split = 0 THEN 1 ELSE 0 END AS train"
    count, total, squares, missing, negative = moments(log.engine, f"SELECT n.logs, n.negative, {train} FROM {joined}")
    if not count:
        return Transform(source, 0.0, 0.0, missing, negative)
    variance = Fraction(squares, count) - Fraction(total, count) ** 2
    return Transform(source, total / count / LOG_UNIT, math.sqrt(float(variance)) / LOG_UNIT, missing, negative)


def _with_constants(now: Transform, kept: Transform) -> Transform:
    return replace(now, mean=kept.mean, deviation=kept.deviation)


def _warn(transform: Transform, rows: int) -> None:
    if transform.negative:
        print_warning(f"column {transform.source}: {transform.negative:,} of {rows:,} numbers are below 0, taken as 0")
    if transform.missing:
        print_warning(f"column {transform.source}: {transform.missing:,} of {rows:,} numbers are missing")


def _log(values: np.ndarray) -> np.ndarray:
    return np.asarray(np.log1p(np.maximum(values, 0.0)))
