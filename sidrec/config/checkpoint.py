"""When a run is saved, what is kept of it, and by what the best of it is chosen."""

from typing import Literal

from pydantic import NonNegativeInt, PositiveInt

from sidrec.config.section import section


@section
class BestConfig:
    """By what the best checkpoint is chosen. It is kept beside the newest ones, and the run's metrics are its."""

    split: str = "validation"
    """Split of the log that is evaluated while training goes on. One that is also reported flatters the report."""
    metric: Literal["auc", "gauc", "uauc", "ne", "log_loss"] = "auc"
    """Metric over all rows of the split; of ne and log_loss the lowest value is the best."""
    every: NonNegativeInt = 0
    """Steps between evaluations; 0 evaluates at the end of each epoch."""

    def better(self, value: float, than: float | None) -> bool:
        """Whether `value` beats `than`, None where there is none so far."""
        if than is None:
            return True
        return value < than if self.metric in ("ne", "log_loss") else value > than


@section
class CheckpointConfig:
    """Checkpoints. A run may be continued with other values than it was begun with."""

    every: NonNegativeInt = 0
    """Steps between checkpoints; 0 saves at the end of each epoch only, which is saved in any case."""
    keep: PositiveInt = 2
    """Newest checkpoints kept."""
    background: bool = True
    """Train on while a checkpoint is written, from a copy in memory: a rank's tables and their optimizer's state take
    their room twice."""
    failures: PositiveInt = 3
    """Checkpoints in a row that may fail to be written before training stops. The last of a run must be written."""
    best: BestConfig | None = None
    """Keep the best checkpoint too; left out, none is chosen."""
