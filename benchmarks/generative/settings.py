"""What decides a run's figures besides the catalog and the log."""

from dataclasses import dataclass
from typing import Literal

from sidrec.schema import ContractError


@dataclass(frozen=True)
class Size:
    """layers: of the encoder, and as many of the decoder. feedforward: hidden width of a layer's network."""

    layers: int
    width: int
    heads: int
    feedforward: int


SIZES = {"small": Size(1, 64, 4, 256), "tiger": Size(4, 128, 8, 512)}


@dataclass(frozen=True)
class Settings:
    """Protocol, model and training."""

    protocol: Literal["log-split", "leave-one-out"] = "log-split"
    """Which events are predicted: each user's first of the test split, or each user's last."""
    size: Literal["small", "tiger"] = "small"
    """small, for a core or two: 1+1 layers, width 64, 4 heads, 256 hidden. tiger, as published: 4+4 layers, width 128,
    8 heads, 512 hidden."""
    history: int = 20
    """Items the model looks back on."""
    epochs: int = 8
    """Passes over all training events, at most."""
    patience: int = 2
    """Epochs without a better validation loss after which training stops; the best epoch's weights are kept."""
    validation_share: float = 0.05
    """Latest share of the events before the test split that stops the training; for log-split."""
    lr: float = 3e-3
    """Learning rate of Adam at the start; it falls linearly to 0 over all epochs."""
    dropout: float = 0.1
    """Dropout of the model."""
    batch_items: int = 256
    """Items of a training batch, padding included."""
    beam: int = 100
    """Beams of the search; metrics at larger cutoffs are left out."""
    token_weights: bool = False
    """Weigh every token's loss with the catalog's weight of it, where the catalog has weights."""
    seed: int = 0
    """Seed of everything random."""
    threads: int = 1
    """Threads. The same seed gives the same figures only with the same number of threads."""

    def check(self) -> None:
        """Raises ContractError naming the flag whose value makes no sense."""
        least_one = ("history", "epochs", "patience", "beam", "threads")
        rules = {name: (getattr(self, name) >= 1, "at least 1") for name in least_one}
        rules["validation_share"] = (0 < self.validation_share < 1, "a share between 0 and 1")
        rules["lr"] = (0 < self.lr < float("inf"), "a positive number")
        rules["dropout"] = (0 <= self.dropout < 1, "a share from 0 to below 1")
        rules["batch_items"] = (self.batch_items >= self.history, f"at least the history's {self.history}")
        rules["seed"] = (self.seed >= 0, "at least 0")
        for name, (fine, expected) in rules.items():
            if not fine:
                raise ContractError(f"--{name.replace('_', '-')}", expected, getattr(self, name))
