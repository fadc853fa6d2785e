"""How HID and SID of the target become one embedding. Every default cites its source."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from sidrec.config.section import section


@section
class StandardizedStats:
    """log1p of each count, then standardisation with the moments of the train split."""

    kind: Literal["standardize"] = "standardize"


@section
class BucketizedStats:
    """Each count's power-of-two bucket, embedded."""

    kind: Literal["bucketize"] = "bucketize"
    buckets: PositiveInt = 20
    """Buckets per statistic; bucket k holds counts in [2^(k-1), 2^k)."""
    width: PositiveInt = 4
    """Width of a bucket's embedding."""


Stats = Annotated[StandardizedStats | BucketizedStats, Field(discriminator="kind")]


@section
class StatsGate:
    """g = sigmoid(MLP(stats)) decides between HID and SID (SID-Coord, module II)."""

    kind: Literal["stats"] = "stats"
    form: Literal["mix", "residual"] = "mix"
    """mix: e = g * e_hid + (1 - g) * e_sid, as published. residual: e = e_sid + g * e_hid, the HID corrects the SID."""
    stats: Stats = StandardizedStats()
    hidden: PositiveInt = 64
    """Width of the hidden layer."""
    output_bias: float = 0.0
    """Bias of the output layer: 0 starts at g = 0.5, negative values start nearer to the SID."""
    lengths: Literal["as_is", "equal"] = "as_is"
    """equal: both embeddings get one learned length before they are mixed [I]. As published, g decides about trust and
    about the length of e at once, and which way it goes with popularity differs from seed to seed."""
    per_dimension: bool = False
    """One gate value per embedding dimension instead of one per candidate."""
    start: Literal["balanced", "hid_only"] = "balanced"
    """hid_only: e = e_hid at first, and a learned scalar that starts at 0 opens the way to the SID, as in ReZero
    (arXiv 2003.04887) [I]: for a model that goes on from a checkpoint without SIDs. balanced: as published."""

    def __post_init__(self) -> None:
        if self.start == "hid_only" and (self.form, self.lengths) != ("mix", "as_is"):
            got = f"form {self.form} and lengths {self.lengths}"
            raise ValueError(f"expected form mix and lengths as_is with start hid_only, which keeps the HID, got {got}")


@section
class SumGate:
    """No gate: e = e_hid + e_sid (the ablation "w/o gate")."""

    kind: Literal["sum"] = "sum"


@section
class MeanGate:
    """No gate: e = (e_hid + e_sid) / 2, whatever the item."""

    kind: Literal["mean"] = "mean"


Gate = Annotated[StatsGate | SumGate | MeanGate, Field(discriminator="kind")]
