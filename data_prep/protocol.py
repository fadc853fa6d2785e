"""How rows and labels came to be, in words and numbers, for manifest.protocol."""

from collections import Counter

from data_prep.events import Items, Source
from data_prep.log_pass import LogPass
from data_prep.negatives import ATTEMPTS
from data_prep.settings import LogSettings
from data_prep.splits import SPLITS

_NEGATIVES = (
    "Every positive gets per_positive rows of the same user and timestamp with label 0. An item is launched at "
    "the time of its first positive minus a seeded uniform(0, window_days) days. A negative's item is drawn "
    "either from the items launched in the last window_days, all alike and so often that each gets about "
    "launch_draws * per_positive draws in that time, or from all launched items in proportion to floor_weight "
    "plus their positives in the window_days whole UTC days before the positive's own day. Never an item that the"
    f" user took at or before that time: after {ATTEMPTS} such draws the negative is given up. Negatives count as "
    "exposures. The launch time, and nothing else, is taken from the item's own future."
)


def protocol(
    source: Source, settings: LogSettings, items: Items, log_pass: LogPass, counts: Counter[str], cold_rows: int
) -> dict[str, object]:
    """counts: LogWriter.counts. cold_rows: test rows on items without a train impression."""
    rows = sum(counts[f"{split} rows"] for split in SPLITS)
    positives = sum(counts[f"{split} positives"] for split in SPLITS)
    facts: dict[str, object] = {
        "labels": source.labels,
        "events": log_pass.events_seen,
        "rows": rows,
        "positive_rate": _rate(positives, rows),
        "splits": {
            split: {
                "rows": counts[f"{split} rows"],
                "positive_rate": _rate(counts[f"{split} positives"], counts[f"{split} rows"]),
            }
            for split in SPLITS
            if counts[f"{split} rows"]
        },
        "split": log_pass.split.protocol(),
        "cold_share_of_test_rows": _rate(cold_rows, counts["test rows"]),
        "as_of": "history and stat_* columns count rows with a strictly smaller timestamp; *_recent count the "
        f"{settings.recent_days} whole UTC days before the row's own day. Rows of every split count.",
        "novelty": {
            "words": "if the label could be told from what an item has not had yet, these rates would be far "
            "from the overall one",
            "never_shown": _novelty(counts, "new"),
            "taken_before_but_not_lately": _novelty(counts, "idle"),
        },
        "items": dict(items.notes),
    }
    if log_pass.sampler is not None:
        facts["negatives"] = {
            "words": _NEGATIVES,
            "per_positive": settings.negatives,
            "window_days": settings.window_days,
            "floor_weight": settings.floor_weight,
            "launch_draws": settings.launch_draws,
            "given_up": log_pass.given_up,
        }
    return facts


def _novelty(counts: Counter[str], kind: str) -> dict[str, object]:
    return {"rows": counts[f"{kind} rows"], "positive_rate": _rate(counts[f"{kind} positives"], counts[f"{kind} rows"])}


def _rate(part: int, whole: int) -> float:
    return round(part / whole, 6) if whole else 0.0
