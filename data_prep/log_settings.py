"""The flags that every command for public logs takes: how events become rows, and how rows are split."""

from dataclasses import dataclass

from .command import refuse_flags
from .event_order import SplitKind


@dataclass(frozen=True)
class LogSettings:
    """How events become rows."""

    history: int = 50
    """Latest positives of the user kept in `history`."""
    recent_days: int = 30
    """Days that the stat_*_recent columns look back (whole UTC days before the row's own day)."""
    split: SplitKind = "global"
    """global: one cut in time for all users. per-user-last: the last events of each user are test."""
    test_share: float = 0.1
    """Share of the events in the split `test`."""
    validation_share: float = 0.1
    """Share of the events in the split `validation`, directly before test; 0 leaves it out."""
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
    """Events in memory at a time (at least one day's events)."""
    overwrite: bool = False
    """Replace OUT if it exists and holds nothing but what data_prep wrote."""

    def check(self) -> None:
        """Raises ContractError that names the first flag whose value cannot be used."""
        rules = {
            "--history": (self.history >= 0, "a length of at least 0", self.history),
            "--recent-days": (self.recent_days >= 1, "at least 1 day", self.recent_days),
            "--window-days": (self.window_days >= 1, "at least 1 day", self.window_days),
            "--negatives": (self.negatives >= 1, "at least 1", self.negatives),
            "--floor-weight": (self.floor_weight >= 0, "at least 0", self.floor_weight),
            "--launch-draws": (self.launch_draws >= 0, "at least 0", self.launch_draws),
            "--seed": (self.seed >= 0, "at least 0", self.seed),
            "--partition-rows": (self.partition_rows >= 1, "at least 1", self.partition_rows),
            "--test-share": (0 < self.test_share < 1, "a share between 0 and 1", self.test_share),
            "--validation-share": (
                0 <= self.validation_share < 1 - self.test_share,
                "a share that leaves something to train on",
                self.validation_share,
            ),
        }
        refuse_flags(rules)
