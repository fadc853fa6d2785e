"""Rows of made-up users for tests of metrics, and what sidrec's own metrics say of them."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sidrec.metrics.exact import Metrics, measure


@dataclass(frozen=True)
class Log:
    """Made-up rows; scores have ties, users are few or many."""

    score: NDArray[np.float32]
    label: NDArray[np.float32]
    user: NDArray[np.int64]
    item: NDArray[np.int64]

    @classmethod
    def drawn(cls, rows: int, users: int, seed: int = 0) -> "Log":
        random = np.random.default_rng(seed)
        user = random.integers(-5, users, rows)
        label = (random.random(rows) < 0.3).astype(np.float32)
        score = (random.normal(size=rows) + label + user % 3).round(1).astype(np.float32)
        return cls(score, label, user, random.integers(1, 21, rows))

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for start in range(0, len(self.score), size):
            chunk = slice(start, start + size)
            score, label, user = (torch.from_numpy(column[chunk]) for column in (self.score, self.label, self.user))
            yield score, label, user

    def measured(self, rows: slice | NDArray[np.bool_] = slice(None)) -> Metrics:
        return measure(self.label[rows], self.score[rows], self.user[rows])


def defined(metrics: Metrics) -> dict[str, float]:
    """The metrics without those that are None."""
    return {name: value for name, value in metrics.items() if value is not None}
