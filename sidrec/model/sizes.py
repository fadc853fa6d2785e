"""What the data decides about the model's shape."""

from collections.abc import Mapping
from dataclasses import dataclass

from sidrec.data.item_tables import HID, ItemTable


@dataclass(frozen=True)
class Sizes:
    """item_tables: table name -> rows and features. context_rows: id column -> rows. dense: int_* columns used (X).

    stats_mean, stats_std: moments of log1p(stat_*) over the train split, one per statistic (S).
    content: width V of an item's content vector, 0 where the model uses none.
    rows_per_lane: rows of a batch that come from one lane, the same at any number of ranks; padding included.
    """

    item_tables: Mapping[str, ItemTable]
    context_rows: Mapping[str, int]
    dense: int
    stats_mean: tuple[float, ...]
    stats_std: tuple[float, ...]
    content: int = 0
    rows_per_lane: int = 0

    @property
    def sid_features(self) -> tuple[str, ...]:
        """Names of the item features that are parts of a SID."""
        return tuple(name for table, found in self.item_tables.items() if table != HID for name in found.features)
