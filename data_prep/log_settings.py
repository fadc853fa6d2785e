"""The flags that every command for public logs takes: how events become rows, and how rows are split."""

import math
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import pandas as pd

from sidrec.command_line import metavar
from sidrec.errors import ContractError

from .command import refuse_flags
from .events import LATEST
from .ordered_events import NEVER
from .splits import SPLITS, SplitKind, StatedSplit

MOST_WEIGHT = 1e9  # of an item, where one positive weighs 1
SHARE = 0.1  # of the events, in test and in validation


@dataclass(frozen=True)
class LogSettings:
    """How events become rows."""

    history: int = 50
    """Latest positives of the user kept in `history`."""
    recent_days: int = 30
    """Days that the stat_*_recent columns look back (whole UTC days before the row's own day)."""
    split: SplitKind = "global"
    """global: one cut in time. per-user-last: a share of each user's events, the last. last: each user's last event is
    test, the one before it validation. random: each event alone, also without times."""
    test_share: Annotated[float | None, metavar("SHARE", f"{SHARE}")] = None
    """Share of the events in the split `test`."""
    validation_share: Annotated[float | None, metavar("SHARE", f"{SHARE}")] = None
    """Share of the events in the split `validation`, directly before test; 0 leaves it out."""
    train_from: Annotated[str | None, metavar("TIME", "the first event")] = None
    """Begin of train: ISO 8601 or seconds since 1970. Earlier events only feed histories, statistics, impressions."""
    validation_from: Annotated[str | None, metavar("TIME", "no validation, if another time is stated")] = None
    """Begin of the split `validation`. Stated times replace the shares."""
    test_from: Annotated[str | None, metavar("TIME", "no test, if another time is stated")] = None
    """Begin of the split `test`."""
    ids: Annotated[Path | None, metavar("FOLDER", "none")] = None
    """Data folder of an earlier preparation: its users, items and categories keep their ids, new ones follow."""
    after: Annotated[Path | None, metavar("FOLDER", "none")] = None
    """Data folder of an earlier preparation with --keep-state: histories, counts and windows go on from its last event,
    as if its log were read again; its ids are kept as by --ids. The new folder keeps its own state."""
    keep_state: bool = False
    """Write OUT/state, from which the next log can go on (--after OUT)."""
    negatives: int = 1
    """Sampled negatives per positive; only for logs that hold nothing but positives."""
    window_days: int = 30
    """Days before a positive from which its negatives are drawn."""
    floor_weight: float = 0.5
    """Weight of a launched item in that draw; a positive in the window weighs 1."""
    launch_draws: float = 1.4
    """Draws that a newly launched item gets in its first window, per negative per positive."""
    seed: int = 0
    """Seed of all random numbers."""
    partition_rows: int = 1_000_000
    """Events of a part of the log, which has a file for each split (at least one day's events)."""
    engine: Literal["duckdb", "spark"] = "duckdb"
    """What makes rows: DuckDB in this process, or Spark. The rows are the same."""
    master: Annotated[str, metavar("URL")] = "local[*]"
    """Master of --engine spark, such as spark://HOST:7077, yarn or local[2]."""
    memory: Annotated[str, metavar("SIZE")] = "4GB"
    """Memory of the process, such as 2GB or 800MB; what needs more goes to disk, below OUT.partial."""
    threads: Annotated[int, metavar("THREADS", "all cores")] = 0
    """Threads of the engine. Rows do not depend on them."""
    overwrite: bool = False
    """Replace OUT if it exists and holds nothing but what data_prep wrote."""

    def of_rows(self) -> dict[str, object]:
        """The settings that rows depend on."""
        unused = ("overwrite", "memory", "threads", "master")
        return {name: value for name, value in asdict(self).items() if name not in unused}

    @property
    def ids_folder(self) -> Path | None:
        """The folder whose ids are kept."""
        return self.after or self.ids

    @property
    def keeps_state(self) -> bool:
        return self.keep_state or self.after is not None

    @property
    def memory_bytes(self) -> int:
        """Raises ContractError for text that is no size."""
        return size_in_bytes(self.memory, "--memory", LEAST_MEMORY)

    @property
    def threads_or_cores(self) -> int:
        return self.threads or len(os.sched_getaffinity(0))

    def check(self) -> None:
        """Raises ContractError that names the first flag whose value cannot be used."""
        validation, test = self.shares
        rules = {
            "--history": (self.history >= 0, "a length of at least 0", self.history),
            "--recent-days": (self.recent_days >= 1, "at least 1 day", self.recent_days),
            "--window-days": (self.window_days >= 1, "at least 1 day", self.window_days),
            "--negatives": (self.negatives >= 1, "at least 1", self.negatives),
            "--floor-weight": _weight(self.floor_weight),
            "--launch-draws": _weight(self.launch_draws),
            "--seed": (self.seed >= 0, "at least 0", self.seed),
            "--threads": (0 <= self.threads <= 1024, "at least 1 and at most 1,024, or 0 for all cores", self.threads),
            "--partition-rows": (self.partition_rows >= 1, "at least 1", self.partition_rows),
            "--test-share": (0 < test < 1, "a share between 0 and 1", test),
            "--validation-share": (
                0 <= validation < 1 - test,
                "a share that leaves something to train on",
                validation,
            ),
        }
        refuse_flags(rules)
        _ = self.memory_bytes
        if self.after is not None and self.ids not in (None, self.after):
            raise ContractError("--after, --ids", "one of them: --after FOLDER keeps the ids of FOLDER too", "both")
        self._check_stated()
        if self.split == "last" and (self.test_share is not None or self.validation_share is not None):
            raise ContractError("--split last", "no --test-share or --validation-share: each is one event", "a share")

    def _check_stated(self) -> None:
        stated = self.stated_split
        if stated is None:
            return
        flags = "--train-from, --validation-from, --test-from"
        if self.test_share is not None or self.validation_share is not None:
            raise ContractError(f"{flags}, --test-share, --validation-share", "times or shares", "both")
        if self.split != "global":
            raise ContractError(f"{flags}, --split", "times with --split global alone", self.split)
        if list(stated.begins) != sorted(stated.begins):
            raise ContractError(flags, "times in this order", self._stated_in_words)

    @property
    def shares(self) -> tuple[float, float]:
        """Shares of the events in validation and in test."""
        validation, test = (SHARE if share is None else share for share in (self.validation_share, self.test_share))
        return validation, test

    @property
    def stated_split(self) -> StatedSplit | None:
        """The cuts at stated times; None if none is stated. Raises ContractError for text that is no time."""
        times = {f"{split}_from": instant(text, f"--{split}-from") for split, text in self._stated.items()}
        return StatedSplit(**times) if times else None

    @property
    def _stated(self) -> dict[str, str]:
        texts = zip(SPLITS, (self.train_from, self.validation_from, self.test_from), strict=True)
        return {split: text for split, text in texts if text is not None}

    @property
    def _stated_in_words(self) -> str:
        return ", ".join(f"{split} from {text}" for split, text in self._stated.items())

    def check_splits(self, found: set[str], first: int, last: int) -> None:
        """Raises ContractError if a split that must have rows has none.

        Stated times may leave a split empty if its own flag is not given, or equals the next split's time. found: the
        splits with rows. first, last: times of the log's first and last event.
        """
        stated = self.stated_split
        if stated is None:
            needed = [split for split in SPLITS if split != "validation" or self.shares[0] > 0]
            where, got = "", "none (too few events for this share)"
        else:
            ends = (*stated.begins[1:], NEVER + 1)
            spans = zip(SPLITS, stated.begins, ends, strict=True)
            needed = [split for split, begin, end in spans if split in self._stated and begin < end]
            where = f" ({self._stated_in_words})"
            got = f"none: the log's events are from {_text(first)} to {_text(last)}"
        for split in needed:
            if split not in found:
                raise ContractError("the log", f"rows in the split {split}{where}", got)


UNITS = {"MB": 10**6, "MIB": 1 << 20, "GB": 10**9, "GIB": 1 << 30, "TB": 10**12, "TIB": 1 << 40}
LEAST_MEMORY = 900_000_000


def size_in_bytes(text: str, flag: str, least: int) -> int:
    """Bytes of a size such as 2GB, 1.5 GiB or 800MB. Raises ContractError for other text and sizes below `least`."""
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([KMGT]I?B)\s*", text.upper())
    size = round(float(found[1]) * UNITS[found[2]]) if found and found[2] in UNITS else 0
    if not least <= size < 1 << 60:
        raise ContractError(flag, f"a size of at least {least / 10**6:,.0f}MB, such as 2GB", repr(text))
    return size


def _weight(value: float) -> tuple[bool, str, float]:
    """Whether the value can be used, what is expected, the value. Sums over millions of items stay exact enough."""
    if MOST_WEIGHT < value < math.inf:
        return False, f"at most {MOST_WEIGHT:,.0f}", value
    return value >= 0, "at least 0", value


def instant(text: str, flag: str) -> int:
    """Seconds since 1970 of ISO 8601 text (UTC where no zone is given) or of a number of seconds, rounded down.

    Raises ContractError for other text, and for 2024, 202405 and 20240502, which could be either.
    """
    expected = "a time: ISO 8601 such as 2024-05-02 or 2024-05-02T18:00:00Z, or seconds since 1970"
    text = text.strip()
    if re.fullmatch(r"(19|20)[0-9]{2}([01][0-9]([0-3][0-9])?)?", text):
        date = f"{text[:4]}-{text[4:6] or '01'}-{text[6:] or '01'}"
        raise ContractError(flag, expected, f"{text}: write a date as {date}")
    if re.fullmatch(r"[0-9]+(\.[0-9]*)?", text):
        found = int(float(text)) if len(text) < 30 else LATEST
    else:
        time = pd.to_datetime(text, format="ISO8601", utc=True, errors="coerce")
        if not re.match("[0-9]{4}", text) or pd.isna(time):
            raise ContractError(flag, expected, repr(text))
        found = int(time.timestamp() // 1)
    if not 0 <= found < LATEST:
        raise ContractError(flag, f"{expected}, before the year 2100 (milliseconds?)", text)
    return found


def _text(seconds: int) -> str:
    return pd.Timestamp(seconds, unit="s").isoformat()
