"""Ranking metrics for anyone's training loop: GAUC, UAUC and AUC by item slice, in bounded memory, over any ranks."""

from sidrec.metrics.auc import Gauc, SlicedAuc, Uauc
from sidrec.metrics.pairs import Estimate
from sidrec.metrics.streaming import Histograms, Window

__all__ = ["Estimate", "Gauc", "Histograms", "SlicedAuc", "Uauc", "Window"]
