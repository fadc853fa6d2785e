"""Numbers of a source (price, duration) as dense columns: log(1 + max(x, 0)), standardised on the train split alone.

`fit_transforms` passes once over the ordered events, before rows are written, and takes mean and deviation from the
events of the train split. Numbers of items count once for each train event of the item. A missing number becomes 0, the
mean, and 1 in the column NAME_missing, which a column without missing numbers does not have.

Shapes: E events of a bucket, N rows of a partition, I item ids (0 included).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa

from sidrec.errors import print_warning
from sidrec.schema import Transform

from .events import ITEM

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

    def rows(self, own: Mapping[str, np.ndarray], place_N: np.ndarray, item_N: np.ndarray) -> dict[str, np.ndarray]:
        """Dense columns float32 [N]. own: columns of the events. place_N: event of each row. item_N: item of each."""
        found: dict[str, np.ndarray] = {}
        for name, transform in self.transforms.items():
            values_N = self.by_item[name][item_N] if name in self.by_item else own[name][place_N]
            missing_N = np.isnan(values_N)
            scaled_N = (_log(values_N) - transform.mean) / (transform.deviation or 1.0)
            found[name] = np.where(missing_N, 0.0, scaled_N).astype(np.float32)
            if name in self.flagged:
                found[name + MISSING] = missing_N.astype(np.float32)
        return found


def fit_transforms(
    events: Iterable[tuple[pa.Table, np.ndarray]],
    sources: Mapping[str, str],
    by_item: Mapping[str, np.ndarray],
    earlier: DenseNumbers | None = None,
) -> DenseNumbers:
    """Constants of the transforms, and counts of missing and negative numbers over all events, with warnings.

    events: buckets of the ordered log, and whether each event is of the train split (bool [E]); read only if there are
    sources. sources: int_* column -> the source's column. by_item: as in DenseNumbers. earlier: constants of another
    preparation, which are kept, so that equal numbers mean the same to its models.
    """
    if not sources:
        return DenseNumbers()
    found = {name: _Moments() for name in sources}
    rows = 0
    for bucket, train_E in events:
        rows += len(bucket)
        item_E = bucket[ITEM].to_numpy()
        for name, moments in found.items():
            moments.add(by_item[name][item_E] if name in by_item else bucket[name].to_numpy(), train_E)
    transforms = {name: moments.transform(sources[name]) for name, moments in found.items()}
    flagged = {name for name, moments in found.items() if moments.missing}
    if earlier is not None:
        kept = earlier.transforms
        transforms = {name: _with_constants(now, kept.get(name, now)) for name, now in transforms.items()}
        flagged = {name for name in flagged if name not in kept} | earlier.flagged
    for transform in transforms.values():
        _warn(transform, rows)
    return DenseNumbers(transforms, frozenset(flagged), by_item)


def _with_constants(now: Transform, kept: Transform) -> Transform:
    return replace(now, mean=kept.mean, deviation=kept.deviation)


def _warn(transform: Transform, rows: int) -> None:
    if transform.negative:
        print_warning(f"column {transform.source}: {transform.negative:,} of {rows:,} numbers are below 0, taken as 0")
    if transform.missing:
        print_warning(f"column {transform.source}: {transform.missing:,} of {rows:,} numbers are missing")


@dataclass
class _Moments:
    """Mean and sum of squared deviations of log(1 + max(x, 0)) so far, in float64 (Chan, Golub and LeVeque 1979)."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    missing: int = 0
    negative: int = 0

    def add(self, values_E: np.ndarray, train_E: np.ndarray) -> None:
        self.missing += int(np.isnan(values_E).sum())
        self.negative += int((values_E < 0).sum())
        logs = _log(values_E[train_E & ~np.isnan(values_E)])
        if not len(logs):
            return
        mean, squares = float(logs.mean()), float(np.square(logs - logs.mean()).sum())
        total, apart = self.count + len(logs), mean - self.mean
        self.squares += squares + apart**2 * self.count * len(logs) / total
        self.mean += apart * len(logs) / total
        self.count = total

    def transform(self, source: str) -> Transform:
        deviation = float(np.sqrt(self.squares / self.count)) if self.count else 0.0
        return Transform(source, self.mean, deviation, self.missing, self.negative)


def _log(values: np.ndarray) -> np.ndarray:
    return np.asarray(np.log1p(np.maximum(values, 0.0)))
