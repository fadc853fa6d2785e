"""The gate by popularity: mean g per exposure decile, as SID-Coord's authors show it (arXiv 2604.10471, figure 3)."""

import json
import math
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib import pyplot as plt
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch import distributed as dist

from sidrec.metrics.predictions import load_predictions
from sidrec.model.fusion_and_gate import GranularityFusion
from sidrec.model.ranker import Ranker
from sidrec.parallel.process_group import Ranks
from sidrec.train.run_directory import RunDirectory, write_json

matplotlib.use("Agg")


EXPOSURES = "stat_exposures"
GATE = "gate"
DECILES = 10


def gate_by_decile(exposures_N: NDArray[np.float32], gate_N: NDArray[np.float32]) -> dict[str, list[float]]:
    """Mean gate per decile of the rows' exposure counts, lowest first.

    Equal counts stay together, so fewer than ten groups can come out. Each list has one entry per group:
    exposures (median), gate (mean), half_interval (95% of the mean), rows.
    """
    edges = np.unique(np.quantile(exposures_N, np.linspace(0, 1, DECILES + 1)[1:-1]))
    group_N = np.searchsorted(edges, exposures_N, side="right")
    groups = [np.flatnonzero(group_N == group) for group in np.unique(group_N)]
    return {
        "exposures": [float(np.median(exposures_N[rows])) for rows in groups],
        "gate": [float(gate_N[rows].mean()) for rows in groups],
        "half_interval": [float(1.96 * gate_N[rows].std() / np.sqrt(len(rows))) for rows in groups],
        "rows": [float(len(rows)) for rows in groups],
    }


def gate_report(run: RunDirectory, split: str) -> str | None:
    """Writes gate_<split>.json and .png. Returns a sentence; None without gate, exposures or predictions."""
    path = run.predictions(split)
    extra = load_predictions(path, split).extra if path.exists() else {}
    if GATE not in extra or EXPOSURES not in extra or not len(extra[GATE]):
        return None
    deciles = gate_by_decile(extra[EXPOSURES], extra[GATE])
    rank = rank_correlation(deciles["gate"])
    write_json(run.path / f"gate_{split}.json", {"spearman_of_deciles": rank, **deciles})
    picture = run.path / f"gate_{split}.png"
    _draw(deciles, rank, f"{run.path}, split {split}", str(picture))
    least, most = deciles["gate"][0], deciles["gate"][-1]
    return (
        f"gate by exposure decile on {split}: Spearman {rank_text(rank)}, "
        f"from {least:.3f} (least exposed) to {most:.3f} (most); {picture}"
    )


def rank_correlation(gate: Sequence[float]) -> float | None:
    """Spearman correlation of the gate with the decile's number; None for a constant gate, which has no order."""
    if len(set(gate)) < 2:
        return None
    return float(spearmanr(np.arange(len(gate)), gate).statistic)


def rank_text(rank: float | None) -> str:
    """The correlation for people."""
    return "undefined (constant gate)" if rank is None else f"{rank:.2f}"


def _draw(deciles: dict[str, list[float]], rank: float | None, title: str, path: str) -> None:
    figure, axes = plt.subplots(figsize=(6.4, 4), layout="constrained")
    positions = np.arange(len(deciles["gate"]))
    axes.errorbar(positions, deciles["gate"], yerr=deciles["half_interval"], fmt="o-", color="#0072b2", capsize=3)
    axes.set_xticks(positions, [f"{value:,.0f}" for value in deciles["exposures"]])
    axes.set_xlabel("median exposures of the target so far, by decile of rows")
    axes.set_ylabel("mean gate g (1: HID, 0: SID)")
    axes.set_ylim(0, 1)
    axes.grid(axis="y", alpha=0.3)
    axes.set_title(f"{title}\nSpearman over deciles {rank_text(rank)}; bars: 95% of the mean", fontsize=9)
    figure.savefig(path, dpi=120)
    plt.close(figure)


# Which granularities the fusion listens to, over the items that evaluation meets; a collapse onto one is named.
#
# Shapes: U item bags, G granularities, D width.


COLLAPSED = 0.1
"""Below this share of the largest possible entropy, attention counts as collapsed."""


class AttentionMeter:
    """Sums the attention weights of every item bag that passes the ranker's fusion, between enter and exit."""

    def __init__(self, ranker: nn.Module) -> None:
        """ranker: a Ranker, on this rank; without a fusion there is nothing to measure."""
        assert isinstance(ranker, Ranker), "DistributedModelParallel keeps the ranker it was given"
        self.fusion = ranker.fusion
        self.names = ranker.item.sids
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
