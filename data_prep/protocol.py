"""How rows and labels came to be, in words and numbers, for manifest.protocol."""

from collections import Counter

from data_prep.events import Items, Source
from data_prep.log_pass import LogPass
from data_prep.negatives import ATTEMPTS
from data_prep.settings import LogSettings
from data_prep.splits import SPLITS


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
        "first_exposure": {
            "words": "rows whose item was never shown before (stat_exposures == 0); a positive rate far from the overall "
            "one would mean that novelty gives the label away",
            "rows": counts["first rows"],
            "positive_rate": _rate(counts["first positives"], counts["first rows"]),
        },
        "items": dict(items.notes),
    }
    if log_pass.sampler is not None:
        facts["negatives"] = {
            "words": f"per positive {settings.negatives} row(s) of the same user and timestamp with label 0. Items are drawn in "
            f"proportion to their positives in the {settings.window_days} whole UTC days before the positive's own day, plus a "
            f"launch weight of {settings.launch_weight:g} for items launched in that window; an item's launch is the time of its first "
            f"positive minus a seeded uniform(0, {settings.window_days}) days (so an item may be shown before its first positive: the "
            "launch time, and nothing else, is taken from the item's own future). Never an item that the user took at or "
            f"before that time; after {ATTEMPTS} such draws the negative is given up. Negatives count as exposures.",
            "per_positive": settings.negatives,
            "window_days": settings.window_days,
            "launch_weight": settings.launch_weight,
            "given_up": log_pass.given_up,
        }
    return facts


def _rate(part: int, whole: int) -> float:
    return round(part / whole, 6) if whole else 0.0
