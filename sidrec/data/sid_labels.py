"""Whether having a SID tells the label of rows that a ranker trains on.

Vectors that were learned from the clicks of the training rows exist for items that were clicked there: their rows hold
all positives, and a ranker learns that an item without a SID is never clicked. Later rows are free of that, so the
ranker is confidently wrong about new items. The rates of positives of both kinds of rows show it: they differ in
training, and not later.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sidrec.io.files import readable
from sidrec.io.parquet_places import open_parquet
from sidrec.io.places import Place
from sidrec.schema import ITEM_ID, Manifest

LEAST_ROWS = 100  # of each kind, for a statement about it
MOST_ROWS = 1_000_000  # read of a split, from files at equal distances
ODDS = 3.0
"""Factor on the odds of a positive with a SID over those without, in training against later."""
LATER = ("validation", "test")


@dataclass
class Rates:
    """Rows, and positives among them, on items with a SID and on items without one."""

    rows: NDArray[np.int64]
    positives: NDArray[np.int64]

    @property
    def log_odds(self) -> float:
        """Of a positive with a SID over one without."""
        odds = np.log((self.positives + 0.5) / (self.rows - self.positives + 0.5))
        return float(odds[1] - odds[0])

    def __str__(self) -> str:
        without, having = self.positives / self.rows
        return f"{without:.1%} of {self.rows[0]:,} rows without a SID are positive and {having:.1%} with one"


def sid_label_warning(
    log: Place, manifest: Manifest, trained: Sequence[str], label: str, with_sid: NDArray[np.int64]
) -> str | None:
    """What to tell a user whose SIDs give labels away; None if they do not, or the rows are too few to tell.

    log: the folder of the manifest. trained: the splits that the recipe trains on. label: the label's column. with_sid:
    ids of items with a SID. Raises ContractError for a file that cannot be read.
    """
    later = next((split for split in LATER if split in manifest.splits and split not in trained), None)
    before = _rates(log, manifest, trained, label, with_sid)
    if before is None or later is None:
        return None
    after = _rates(log, manifest, [later], label, with_sid)
    if after is None or abs(before.log_odds - after.log_odds) < math.log(ODDS):
        return None
    return (
        f"having a SID tells the label in training: there {before}; in {later} {after}. Vectors that were learned from "
        "these rows' own clicks do that: learn them from earlier clicks (sidrec prep behavior --earliest-share)"
    )


def _rates(
    log: Place, manifest: Manifest, splits: Sequence[str], label: str, with_sid: NDArray[np.int64]
) -> Rates | None:
    """None if there are too few rows of one kind."""
    files = [file for split in splits for file in manifest.files(split) if file.rows]
    rows = sum(file.rows for file in files)
    found = Rates(np.zeros(2, np.int64), np.zeros(2, np.int64))
    for file in files[:: max(1, math.ceil(rows / MOST_ROWS))]:
        with readable(log / file.path, "a readable parquet file"):
            table = open_parquet(log / file.path).read([ITEM_ID, label])
        kind_N = np.isin(table[ITEM_ID].to_numpy(), with_sid).astype(np.int64)
        found.rows += np.bincount(kind_N, minlength=2)
        found.positives += np.bincount(kind_N, weights=table[label].to_numpy() > 0, minlength=2).astype(np.int64)
    return found if found.rows.min() >= LEAST_ROWS else None
