"""The loss and its parts between two reports."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch import distributed as dist

from sidrec.checkpoint.position import Position
from sidrec.parallel.process_group import Ranks


class LossTerms:
    """Sums this rank's terms over steps; goes on from a checkpoint that was saved between two reports."""

    def __init__(self, position: Position, ranks: Ranks) -> None:
        """Of other ranks than it was saved by, each goes on from their mean: the mean over ranks stays what it was."""
        self._ranks = ranks
        self.steps = position.term_steps
        self._sums: dict[str, Tensor] = {}
        for name, sums in position.terms.items():
            own = sums[ranks.rank] if len(sums) == ranks.world else sum(sums) / len(sums)
            self._sums[name] = torch.tensor(own, dtype=torch.float32, device=ranks.device)

    def add(self, terms: Mapping[str, Tensor]) -> None:
        """Adds a step: `loss` and its parts by name, means over this rank's rows."""
        self._sums = {name: term + self._sums.get(name, 0) for name, term in terms.items()}
        self.steps += 1

    def sums(self) -> dict[str, tuple[float, ...]]:
        """Every rank's sums, for a checkpoint. Every rank calls it and gets the same."""
        own = {name: float(value) for name, value in self._sums.items()}
        found: list[dict[str, float]] = [{} for _ in range(self._ranks.world)]
        dist.all_gather_object(found, own, group=self._ranks.control)
        return {name: tuple(of_rank[name] for of_rank in found) for name in own}

    def mean(self) -> dict[str, float]:
        """The mean over ranks and steps, the same on every rank, and empty where no step was added; what follows is
        summed anew."""
        if not self.steps:
            return {}
        means = torch.stack(list(self._sums.values())).cpu() / self.steps
        dist.all_reduce(means, group=self._ranks.control)
        named = {name: mean / self._ranks.world for name, mean in zip(self._sums, means.tolist(), strict=True)}
        self._sums, self.steps = {}, 0
        return named
