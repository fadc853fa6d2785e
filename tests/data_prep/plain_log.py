"""The specification of a log, in plain loops: what rows every engine has to make of events.

No relation, window function or batch: events in order of time, then one row after another with all that is strictly
earlier in dictionaries. Slow, but fast enough for 20,000 events.
"""

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from data_prep.build import LogSettings
from data_prep.draws import uniforms
from data_prep.negatives import ATTEMPTS, LAUNCH_KEY
from data_prep.ordered_events import NEVER
from data_prep.splits import SPLITS

DAY = 86_400


class Raw(NamedTuple):
    """An event of the source."""

    user: str
    item: str
    second: int
    label: int


class Row(NamedTuple):
    """A row before its counts. event: the number of its event in time. drawn: number of the negative, attempt."""

    second: int
    user: int
    item: int
    label: int
    event: int
    drawn: tuple[int, int] = (-1, -1)


def numbered(texts: Sequence[str]) -> dict[str, int]:
    """Ids in order of first appearance."""
    return {text: place for place, text in enumerate(dict.fromkeys(texts), 1)}


def plain_rows(
    events: Sequence[Raw], settings: LogSettings, *, implicit: bool, later: Sequence[int] = ()
) -> list[dict[str, Any]]:
    """The rows of a log with a global split, in order.

    later: times from which later preparations go on (--after). Negatives are drawn without the events of later ones.
    """
    users, items = numbered([event.user for event in events]), numbered([event.item for event in events])
    in_time = sorted(events, key=lambda event: event.second)  # stable: ties keep the source's order
    rows = [
        Row(event.second, users[event.user], items[event.item], 1 if implicit else event.label, place)
        for place, event in enumerate(in_time)
    ]
    cuts = _cuts([row.second for row in rows], settings)
    if implicit:
        rows += [
            negative
            for begin, end in pairwise((-1, *later, NEVER))
            for negative in _negatives([row for row in rows if row.second < end], settings)
            if negative.second >= begin
        ]
        rows.sort(key=lambda row: (row.second, row.user, row.item, row.drawn[1], row.event, row.drawn[0]))
    return _with_counts(rows, settings, cuts)


def _cuts(seconds: list[int], settings: LogSettings) -> tuple[int, int]:
    validation, test = settings.shares
    test_from = seconds[int(len(seconds) * (1 - test))]
    return min(seconds[int(len(seconds) * (1 - test - validation))], test_from), test_from


def _negatives(rows: list[Row], settings: LogSettings) -> list[Row]:
    window, seed = settings.window_days, settings.seed
    first: dict[tuple[int, int], int] = {}
    first_of_item: dict[int, int] = {}
    of_day: dict[int, list[int]] = defaultdict(list)
    for row in rows:
        first.setdefault((row.user, row.item), row.second)
        first_of_item.setdefault(row.item, row.second)
        of_day[row.second // DAY].append(row.item)
    launches = sorted(
        (int(np.floor((second - float(uniforms(seed, item, LAUNCH_KEY)) * window * DAY) / DAY)), item)
        for item, second in first_of_item.items()
    )
    found = []
    for day in sorted(of_day):
        popular = [item for before in range(day - window, day) for item in of_day.get(before, ())]
        launched = [item for launch, item in launches if launch <= day]
        fresh = [item for launch, item in launches if day - window <= launch <= day]
        for row in (row for row in rows if row.second // DAY == day):
            for which in range(settings.negatives):
                for attempt in range(ATTEMPTS):
                    number = float(uniforms(seed, row.event, which, attempt))
                    item = _draw(number, fresh, popular, launched, settings)
                    if item is not None and first.get((row.user, item), row.second + 1) > row.second:
                        found.append(Row(row.second, row.user, item, 0, row.event, (which, attempt)))
                        break
    return found


def _draw(
    number: float, fresh: list[int], popular: list[int], launched: list[int], settings: LogSettings
) -> int | None:
    weight = len(popular) + settings.floor_weight * len(launched)
    share = min(0.5, settings.launch_draws * len(fresh) / max(len(popular), 1)) if weight else 1.0
    if number < share:
        return fresh[min(int(number / share * len(fresh)), len(fresh) - 1)] if fresh else None
    if not weight:
        return None
    point = (number - share) / (1 - share) * weight
    if point < len(popular):
        return popular[int(point)]
    rest = (point - len(popular)) / (weight - len(popular))
    return launched[min(int(rest * len(launched)), len(launched) - 1)]


def _with_counts(rows: list[Row], settings: LogSettings, cuts: tuple[int, int]) -> list[dict[str, Any]]:
    of_user: dict[int, list[Row]] = defaultdict(list)
    of_item: dict[int, list[Row]] = defaultdict(list)
    found: list[dict[str, Any]] = []
    waiting: list[Row] = []  # rows of the present second, which do not see each other
    for row in rows:
        if waiting and waiting[0].second < row.second:
            for earlier in waiting:
                of_user[earlier.user].append(earlier)
                of_item[earlier.item].append(earlier)
            waiting = []
        waiting.append(row)
        own, item, today = of_user[row.user], of_item[row.item], row.second // DAY
        lately = [other for other in item if today - settings.recent_days <= other.second // DAY < today]
        liked = [other.item for other in own if other.label]
        gap = (row.second - own[-1].second) / DAY if own else 0.0
        values = {
            "int_user_events": np.log1p(len(own)),
            "int_user_click_rate": (len(liked) + 1) / (len(own) + 2),
            "int_days_since_last": np.log1p(gap),
            "stat_exposures": len(item),
            "stat_clicks": sum(other.label for other in item),
            "stat_exposures_recent": len(lately),
            "stat_clicks_recent": sum(other.label for other in lately),
        }
        found.append(
            {
                "split": SPLITS[(row.second >= cuts[0]) + (row.second >= cuts[1])],
                "label": float(row.label),
                "timestamp": row.second,
                "user_id": row.user,
                "item_id": row.item,
                "history": liked[max(0, len(liked) - settings.history) :],
                **{name: float(np.float32(value)) for name, value in values.items()},
            }
        )
    return found
