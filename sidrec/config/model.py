"""The model section: how items are represented, and which backbone ranks them. Every default cites its source."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, NonNegativeFloat, PositiveFloat, PositiveInt

from sidrec.config.granularity import Granularities
from sidrec.config.section import section, without_repeats

Columns = Annotated[tuple[str, ...], AfterValidator(without_repeats)]


@section
class AdditiveFusion:
    """softmax_k(v . tanh(W e_k + b_k)): of the item alone, so that e_sid can be cached and compared by cosine."""

    kind: Literal["additive"] = "additive"
    hidden: PositiveInt = 16
    """Width of the scorer's hidden layer."""


@section
class QueryFusion:
    """softmax_k(q . W e_k / sqrt(D)) with one learned query q."""

    kind: Literal["query"] = "query"


@section
class ConcatMlpFusion:
    """softmax(MLP([e_1; ...; e_G]))."""

    kind: Literal["concat_mlp"] = "concat_mlp"
    hidden: PositiveInt = 64
    """Width of the hidden layer."""


@section
class MeanFusion:
    """The same weight for every granularity: the control that attention must beat."""

    kind: Literal["mean"] = "mean"


Fusion = Annotated[AdditiveFusion | QueryFusion | ConcatMlpFusion | MeanFusion, Field(discriminator="kind")]


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


@section
class SumGate:
    """No gate: e = e_hid + e_sid (the ablation "w/o gate")."""

    kind: Literal["sum"] = "sum"


Gate = Annotated[StatsGate | SumGate, Field(discriminator="kind")]


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
class NoAlignment:
    """No alignment features (the ablation "w/o alignment")."""

    kind: Literal["none"] = "none"


Alignment = Annotated[
    AutoDisAlignment | HistogramAlignment | RawStatsAlignment | NoAlignment, Field(discriminator="kind")
]


TokenWeights = Literal["off", "multiply", "append", "both"]
"""What becomes of a catalog's token weights (ADC-SID, arXiv 2510.25622, ranking): multiply scales a granularity's
embedding by the product of its tokens' weights, append gives the target's weights to the backbone, both does both."""


@section
class HidItem:
    """Items are their hashed ids: the twin that SID-Coord is compared with."""

    kind: Literal["hid"] = "hid"


@section
class SidItem:
    """Items are their semantic ids; there is no HID table."""

    kind: Literal["sid"] = "sid"
    granularities: Granularities = ("s1", "s2", "s3", "s12", "s23")
    """SID features, each with its own table."""
    fusion: Fusion = AdditiveFusion()
    alignment: Alignment = AutoDisAlignment()
    token_weights: TokenWeights = "off"
    """How the catalog's token weights are used."""


@section
class SidCoordItem:
    """HID and SID, coordinated (SID-Coord, arXiv 2604.10471)."""

    kind: Literal["sid_coord"] = "sid_coord"
    granularities: Granularities = ("s1", "s2", "s3", "s12", "s23")
    """SID features, each with its own table."""
    fusion: Fusion = AdditiveFusion()
    history: tuple[Literal["hid", "sid"], ...] = ("hid",)
    """Which embeddings of the history are averaged into features of the backbone; "hid" is what the twin has."""
    gate: Gate = StatsGate()
    alignment: Alignment = AutoDisAlignment()
    token_weights: TokenWeights = "off"
    """How the catalog's token weights are used."""


Item = Annotated[HidItem | SidItem | SidCoordItem, Field(discriminator="kind")]


@section
class DlrmBackbone:
    """TorchRec's DLRM."""

    kind: Literal["dlrm"] = "dlrm"
    dense_layers: tuple[PositiveInt, ...] = (64,)
    """Hidden widths of the dense arch; its last layer has the embedding's width and is added."""
    over_layers: tuple[PositiveInt, ...] = (128, 64)
    """Hidden widths of the over arch; its last layer has width 1 and is added."""


Backbone = Annotated[DlrmBackbone, Field(discriminator="kind")]


@section
class ModelConfig:
    """The ranker."""

    embedding_dim: Annotated[PositiveInt, Field(multiple_of=4)] = 16
    """Width D of every table, a multiple of 4 as FBGEMM wants it."""
    item: Item = SidCoordItem()
    context: Columns = ("user_id",)
    """Id columns of the log that get a table of their own, beside the item."""
    dense: Columns | None = None
    """int_* columns to use; left out, all that the log has."""
    stats_as_dense: bool = True
    """Give log1p of the stat_* columns to the backbone too, whatever the item kind: equal knowledge for all."""
    hid_init: NonNegativeFloat | None = None
    """HID rows start uniform in [-hid_init, hid_init]; left out, TorchRec's default 1/sqrt(rows)."""
    sid_init: NonNegativeFloat | None = None
    """The same for SID rows."""
    backbone: Backbone = DlrmBackbone()
