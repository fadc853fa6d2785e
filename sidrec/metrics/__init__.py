"""Ranking metrics for anyone's training loop: GAUC, UAUC and AUC by item slice, in bounded memory, over any ranks."""

from sidrec.metrics.auc import Gauc, SlicedAuc, Uauc
from sidrec.metrics.estimate import Estimate
from sidrec.metrics.histograms import Histograms
from sidrec.metrics.window import Window

__all__ = ["Estimate", "Gauc", "Histograms", "SlicedAuc", "Uauc", "Window"]
