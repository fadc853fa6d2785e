"""Ranking metrics for anyone's training loop: GAUC, UAUC and AUC by item slice, in bounded memory, over any ranks.

Names are imported when they are used: torchmetrics imports pyplot, a second that no command of sidrec needs.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

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


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'sidrec.metrics' has no attribute {name!r}")
