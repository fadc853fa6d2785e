"""Signs that histories or statistics of a log know more than what came before their row.

`stat_steps` compares stat_* columns with the rows of their item between two times that follow one another in a batch;
`history_ends` counts histories that end with the row's own item; `history_warnings` follows sampled users through the
log. They are signs, not proofs: a log may hold only a part of what its statistics count. So they warn, with figures.

Shapes: N rows of a batch; R runs of rows of one item at one time, sorted by item and time.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby

import numpy as np
import pyarrow as pa

from sidrec import schema

EXPOSURES, CLICKS = "stat_exposures", "stat_clicks"  # counts of all earlier rows, and of the positive ones
EXACT = 1 << 24  # float32 holds whole numbers up to this
LEAST = 20  # observations; fewer say nothing
SUSPICIOUS = 0.01  # share of observations that could be an accident of a few events
REPEATS = 5.0  # histories that end with the row's own item: times as often among positives


# Statistics.


def stat_steps(table: pa.Table, stats: Sequence[str]) -> Counter[str]:
    """Counts of a batch, sorted by time, for `stat_warnings`.

    Of each column: "ties" (runs of several rows) and "unequal ties"; "steps" between two times of an item, "falls".
    Of stat_exposures and stat_clicks also: "telling" steps, for which counting before the row and counting up to it
    differ, of which so many are "before" and "up to"; "due" steps, which must grow, and "still" ones that do not.
    """
    time, item = table[schema.TIMESTAMP].to_numpy(), table[schema.ITEM_ID].to_numpy()
    counts: Counter[str] = Counter()
    if not stats or not len(time) or (np.diff(time) < 0).any():
        return counts
    order = np.lexsort((time, item))
    item, time = item[order], time[order]
    starts = np.flatnonzero(np.concatenate([[True], (np.diff(item) != 0) | (np.diff(time) != 0)]))
    rows_R = np.diff(np.append(starts, len(item)))
    clicks_R = np.add.reduceat(table[schema.LABEL].to_numpy()[order] > 0, starts, dtype=np.int64)
    whole_R = (time[starts] > time.min()) & (time[starts] < time.max())  # rows of the edges may lie in other batches
    follows = (item[starts][1:] == item[starts][:-1]) & whole_R[1:] & whole_R[:-1] & (item[starts][1:] > 0)
    for name in stats:
        values = table[name].to_numpy()[order].astype(np.float64)
        low_R, high_R = np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts)
        tied = (rows_R > 1) & (item[starts] > 0)
        steps = follows & (high_R[1:] < EXACT)
        counts[f"{name} ties"] += int(tied.sum())
        counts[f"{name} unequal ties"] += int((tied & (high_R > low_R)).sum())
        counts[f"{name} steps"] += int(steps.sum())
        counts[f"{name} falls"] += int((steps & (low_R[1:] < low_R[:-1])).sum())
        own_R = {EXPOSURES: rows_R, CLICKS: clicks_R}.get(name)
        if own_R is not None:
            counts.update(_growth(name, np.diff(low_R)[steps], own_R[:-1][steps], own_R[1:][steps]))
    return counts


def _growth(name: str, grown: np.ndarray, before: np.ndarray, upto: np.ndarray) -> dict[str, int]:
    """before, upto: what counts of earlier rows, and counts that include their own rows, grow by between two times."""
    telling, due = before != upto, before > 0
    return {
        f"{name} telling": int(telling.sum()),
        f"{name} before": int((telling & (grown == before)).sum()),
        f"{name} up to": int((telling & (grown == upto)).sum()),
        f"{name} due": int(due.sum()),
        f"{name} still": int((due & (grown == 0)).sum()),
    }


def stat_warnings(counts: Mapping[str, int], stats: Sequence[str]) -> list[str]:
    """Warnings about statistics. counts: sum of what `stat_steps` returned."""
    found = []
    for name in stats:
        ties, unequal = counts.get(f"{name} ties", 0), counts.get(f"{name} unequal ties", 0)
        if ties >= LEAST and unequal > SUSPICIOUS * ties:
            found.append(
                f"{name} differs between rows of one item at one time ({unequal:,} of {ties:,} such groups of rows): "
                "it depends on an order that the log does not have; count by a RANGE frame that ends one second before"
            )
        if name in (EXPOSURES, CLICKS):
            found += _growth_warnings(counts, name)
    return found


def _growth_warnings(counts: Mapping[str, int], name: str) -> list[str]:
    what = "rows" if name == EXPOSURES else "positive rows"
    kinds = ("steps", "falls", "telling", "before", "up to", "due", "still")
    steps, falls, telling, before, upto, due, still = (counts.get(f"{name} {kind}", 0) for kind in kinds)
    found = []
    if telling >= LEAST and upto > max(before, telling / 2):
        found.append(
            f"{name} counts the row itself: of {telling:,} steps that tell, {upto:,} grow by the item's {what} up to "
            f"the row's time, {before:,} by those before it; end the frame one second before"
        )
    elif due >= LEAST and still > due / 2:
        found.append(
            f"{name} does not grow in {still:,} of {due:,} steps between which its item had {what}: a count of the "
            "whole log knows the future; one that is brought up to date now and then is stale"
        )
    if steps >= LEAST and falls > SUSPICIOUS * steps:
        found.append(
            f"{name} falls in {falls:,} of {steps:,} steps of an item in time: it is no count of all earlier {what}; "
            "name a column of a window stat_<name>_recent"
        )
    return found


# Histories.


def history_ends(table: pa.Table) -> dict[str, int]:
    """Counts of rows with a history, and of those whose history ends with the row's own item, by label."""
    lists = table[schema.HISTORY].combine_chunks()
    offsets, entries = lists.offsets.to_numpy(), lists.values.to_numpy(zero_copy_only=False)
    has_N = np.diff(offsets) > 0
    own_N = np.zeros(len(has_N), dtype=bool)
    own_N[has_N] = entries[offsets[1:][has_N] - 1] == table[schema.ITEM_ID].to_numpy()[has_N]
    positive_N = table[schema.LABEL].to_numpy() > 0
    return {
        "positives with history": int((has_N & positive_N).sum()),
        "positives in history": int((own_N & positive_N).sum()),
        "negatives with history": int((has_N & ~positive_N).sum()),
        "negatives in history": int((own_N & ~positive_N).sum()),
    }


def history_warnings(numbers: Mapping[str, int], sample: pa.Table) -> list[str]:
    """Warnings about histories. numbers: sum of what `history_ends` returned. sample: all rows of some users."""
    counts = followed_users(sample)
    own, rows = counts["own item"], counts["first positives"]
    later, seen = counts["later items"], counts["rows"]
    found = []
    if rows >= LEAST and own > SUSPICIOUS * rows:
        found.append(
            f"history holds the row's own event in {own:,} of {rows:,} rows with label 1 of sampled users, whose item "
            "was in no earlier row or history of the user: end the frame one second before the row"
        )
    if seen >= LEAST and later > SUSPICIOUS * seen:
        found.append(
            f"history holds items that the user takes only at that time or later in {later:,} of {seen:,} rows of "
            "sampled users: histories know the future"
        )
    kinds = ("positives in", "positives with", "negatives in", "negatives with")
    liked, of_liked, other, of_other = (numbers.get(f"{kind} history", 0) for kind in kinds)
    rates = liked / max(1, of_liked), other / max(1, of_other)
    if not found and of_liked >= LEAST and rates[0] > 0.5 and rates[0] > REPEATS * rates[1]:
        found.append(
            f"history ends with the row's own item in {rates[0]:.1%} of {of_liked:,} rows with label 1, and in "
            f"{rates[1]:.1%} of {of_other:,} others: it may hold the row's own event"
        )
    return found


def followed_users(sample: pa.Table) -> Counter[str]:
    """Follows each user through time, and looks at what is new in a history since the user's row before.

    "rows" that have an earlier row of their user, of which "later items" have a new item that the user took in no row
    before and takes at the row's time or later; "first positives" among them, whose item was in no row or history
    before, of which "own item" hold it already.
    """
    counts: Counter[str] = Counter()
    ordered = sample.sort_by([(schema.USER_ID, "ascending"), (schema.TIMESTAMP, "ascending")])
    rows = zip(*(ordered[name].to_pylist() for name in ordered.column_names), strict=True)
    for _, of_user in groupby(rows, key=lambda row: row[0]):
        _follow([list(at_time) for _, at_time in groupby(of_user, key=lambda row: row[1])], counts)
    return counts


def _follow(moments: list[list[tuple]], counts: Counter[str]) -> None:
    """moments: a user's rows (user, time, item, label, history) by time."""
    latest = {item: time for moment in moments for _, time, item, label, _ in moment if label}
    taken: set[int] = set()
    known: set[int] = set()
    for place, moment in enumerate(moments):
        for _, time, item, label, history in moment if place else ():
            fresh = set(history) - known - taken
            counts["rows"] += 1
            counts["later items"] += any(latest.get(entry, time - 1) >= time for entry in fresh if entry != item)
            if label and item not in known and item not in taken:
                counts["first positives"] += 1
                counts["own item"] += item in fresh
        known = {entry for row in moment for entry in row[4]}
        taken |= {row[2] for row in moment if row[3]}
