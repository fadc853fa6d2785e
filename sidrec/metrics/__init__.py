"""Ranking metrics for anyone's training loop: GAUC, UAUC and AUC by item slice, in bounded memory, over any ranks.

Names are imported when they are used: torchmetrics imports pyplot, a second that no command of sidrec needs.
"""

from typing import TYPE_CHECKING

from sidrec import imported_when_used

if TYPE_CHECKING:
    from sidrec.metrics.auc import Gauc, SlicedAuc, Uauc
    from sidrec.metrics.pairs import Estimate
    from sidrec.metrics.streaming import Histograms, Window

__all__ = ["Estimate", "Gauc", "Histograms", "SlicedAuc", "Uauc", "Window"]

_HOMES = {
    "Estimate": "sidrec.metrics.pairs",
    "Gauc": "sidrec.metrics.auc",
    "Histograms": "sidrec.metrics.streaming",
    "SlicedAuc": "sidrec.metrics.auc",
    "Uauc": "sidrec.metrics.auc",
    "Window": "sidrec.metrics.streaming",
}

__getattr__ = imported_when_used(__name__, _HOMES)
