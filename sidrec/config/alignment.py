"""How alike target and history are in the space of SIDs. Every default cites its source."""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from sidrec.config.section import section


@section
class AutoDisAlignment:
    """[max; mean] over the history of AutoDis(cos(e_sid(target), e_sid(history item))) (SID-Coord, module III)."""

    kind: Literal["autodis"] = "autodis"
    buckets: PositiveInt = 20
    """Soft buckets H."""
    width: PositiveInt = 16
    """Width d_a of a meta-embedding."""
    skip: float = 0.8
    """Weight kappa of the skip connection."""
    temperature: PositiveFloat = 0.1
    """Softmax temperature tau."""
    stop_gradient: bool = False
    """Keep the alignment's gradient out of the SID tables."""


@section
class HistogramAlignment:
    """[max; mean] over the history of fixed Gaussian bins on [-1, 1]."""

    kind: Literal["histogram"] = "histogram"
    bins: PositiveInt = 20
    """Number of bins."""
    stop_gradient: bool = False
    """Keep the alignment's gradient out of the SID tables."""


@section
class RawStatsAlignment:
    """max, mean and standard deviation of the similarities: the control that AutoDis must beat."""

    kind: Literal["raw_stats"] = "raw_stats"
    stop_gradient: bool = False
    """Keep the alignment's gradient out of the SID tables."""


@section
class MatchStatsAlignment:
    """How many items of the history share the target's granule, per granularity: log1p of the count, and the share.
    The match statistics that SID-Coord's paper pairs with DAS's SIDs (arXiv 2508.10584)."""

    kind: Literal["match_stats"] = "match_stats"


@section
class NoAlignment:
    """No alignment features (the ablation "w/o alignment")."""

    kind: Literal["none"] = "none"


Alignment = Annotated[
    AutoDisAlignment | HistogramAlignment | RawStatsAlignment | MatchStatsAlignment | NoAlignment,
    Field(discriminator="kind"),
]
