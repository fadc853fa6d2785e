"""Which granularities the fusion listens to, over the items that evaluation meets; a collapse onto one is named.

Shapes: U item bags, G granularities, D width.
"""

import json
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from sidrec.model.fusion import GranularityFusion
from sidrec.model.items.semantic import SemanticRepresentation
from sidrec.model.ranker import Ranker
from sidrec.parallel.process_group import Ranks
from sidrec.train.run_directory import RunDirectory

COLLAPSED = 0.1
"""Below this share of the largest possible entropy, attention counts as collapsed."""


class AttentionMeter:
    """Sums the attention weights of every item bag that passes the ranker's fusion, between enter and exit."""

    def __init__(self, ranker: nn.Module) -> None:
        """ranker: a Ranker, on this rank; without a fusion there is nothing to measure."""
        assert isinstance(ranker, Ranker), "DistributedModelParallel keeps the ranker it was given"
        self.fusion = ranker.fusion
        self.names = ranker.item.semantic.sids if isinstance(ranker.item, SemanticRepresentation) else ()
        # the last two entries: summed entropy in nats, and the number of bags
        self.sums = torch.zeros(len(self.names) + 2, dtype=torch.float64)

    def __enter__(self) -> "AttentionMeter":
        self._hook = self.fusion.register_forward_pre_hook(self._count) if self.fusion else None
        return self

    def __exit__(self, *_: object) -> None:
        if self._hook:
            self._hook.remove()

    def _count(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        assert isinstance(module, GranularityFusion), "the hook hangs on a fusion"
        granules_UGD: Tensor = inputs[0]
        looked_up = granules_UGD.abs().sum(dim=(1, 2)) > 0  # padding bags are zero
        weights_UG = module.weights(granules_UGD[looked_up]).double()
        entropy = -torch.xlogy(weights_UG, weights_UG).sum()
        bags = torch.tensor([entropy.item(), len(weights_UG)], dtype=torch.float64)
        self.sums += torch.cat([weights_UG.sum(dim=0).cpu(), bags])

    def result(self, ranks: Ranks) -> dict[str, Any] | None:
        """Mean weight per granularity and mean entropy over all ranks' bags; None without fusion. All ranks call it."""
        dist.all_reduce(self.sums, group=ranks.control)
        bags = float(self.sums[-1])
        if self.fusion is None or not bags:
            return None
        weights = (self.sums[:-2] / bags).tolist()
        entropy, largest = float(self.sums[-2]) / bags, math.log(len(self.names))
        return {
            "weights": dict(zip(self.names, weights, strict=True)),
            "entropy_nats": entropy,
            "largest_entropy_nats": largest,
            "collapsed": len(self.names) > 1 and entropy < COLLAPSED * largest,
        }


def attention_report(run: RunDirectory, split: str) -> str | None:
    """A sentence about attention_<split>.json; None for runs without fusion."""
    path = run.attention(split)
    if not path.exists():
        return None
    attention = json.loads(path.read_text())
    weights = ", ".join(f"{name} {weight:.2f}" for name, weight in attention["weights"].items())
    entropy = f"entropy {attention['entropy_nats']:.2f} of {attention['largest_entropy_nats']:.2f} nats"
    collapsed = "; COLLAPSED onto one granularity" if attention["collapsed"] else ""
    return f"attention over granularities on {split}: {weights}; {entropy}{collapsed}"
