"""Health of the codebooks: which codes items take, level by level, while a network learns.

Shapes: B items, L levels, K codes of a level.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sidrec.sid.tokenizer import CollapseError


@dataclass(frozen=True)
class Health:
    """One entry per level: share of codes in use, exp of the entropy of their use, and codes that no item took."""

    utilisation: list[float]
    perplexity: list[float]
    dead_codes: list[int]


class Usage:
    """How many items took each code of each level."""

    def __init__(self, codebook_sizes: Sequence[int], device: torch.device | None = None) -> None:
        self._sizes = list(codebook_sizes)
        first = np.cumsum([0, *self._sizes])
        self._total = int(first[-1])
        self._first_L = torch.tensor(first[:-1], device=device)
        self.counts = torch.zeros(self._total, dtype=torch.int64, device=device)

    def count(self, codes_BL: Tensor) -> None:
        """Adds the codes of a batch."""
        self.counts += torch.bincount((codes_BL + self._first_L).flatten(), minlength=self._total)

    def levels(self) -> tuple[Tensor, ...]:
        """int64 [K] counts of every level."""
        return torch.split(self.counts, self._sizes)

    def health(self) -> Health:
        """What the counts say; perplexity 1 at least, 0 where nothing was counted."""
        counts = [counts_K.cpu().numpy() for counts_K in self.levels()]
        return Health(
            utilisation=[float((counts_K > 0).mean()) for counts_K in counts],
            perplexity=[_perplexity(counts_K) for counts_K in counts],
            dead_codes=[int((counts_K == 0).sum()) for counts_K in counts],
        )


def _perplexity(counts_K: np.ndarray) -> float:
    taken = counts_K[counts_K > 0]
    if not len(taken):
        return 0.0
    share = taken / taken.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def refuse_collapse(health: Health, least_utilisation: float) -> None:
    """Raises CollapseError naming the first level of which a smaller share than `least_utilisation` is used."""
    for level, share in enumerate(health.utilisation, start=1):
        if share < least_utilisation:
            raise CollapseError(
                f"level {level}: {share:.1%} of its codes are in use after the training, and least_utilisation asks for"
                f" {least_utilisation:.1%}; try a smaller codebook_size, a lower lr, or revive_until closer to 1"
            )
