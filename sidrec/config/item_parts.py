"""Parts of the section `model.item`: index of ids, tokens, fusion, alignment, gate, contrastive loss.

Every default cites its source; [I] marks one of our own. HID: hashed item id. SID: semantic id, L codes per item.
Granularity: adjacent levels of a SID that are looked up as one feature.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from sidrec.config.section import section

IndexRows = Annotated[int, Field(ge=2)]


# Index: ids to rows of embedding tables.


class IndexKind:
    """What the rest of sidrec asks an index."""

    rows_are_ids: ClassVar[bool] = False  # whether row i belongs to id i, before and after training


@section
class ExactIndex(IndexKind):
    """One row per id, and one table per SID granularity."""

    kind: Literal["exact"] = "exact"
    rows_are_ids: ClassVar[bool] = True


@section
class ManagedCollisionIndex(IndexKind):
    """TorchRec's managed collision, also called zero-collision hashing (ZCH): ids get rows when training meets them,
    and are evicted later. Ids without a row share one.

    Every rank manages its own share of the rows, so results depend on the number of ranks, which must divide `rows`.
    """

    kind: Literal["managed_collision"] = "managed_collision"
    rows: IndexRows
    """Rows of the table, at least 2; ids without a row use the last row of each rank."""
    eviction: Literal["lru", "lfu", "distance_lfu"] = "distance_lfu"
    """Which id is evicted: the least recently used (lru), the least frequently used (lfu), or the one with the lowest
    count divided by the steps since its last use (distance_lfu). An id counts once per rank and step. With lfu, a new
    id evicts another if its count in one interval exceeds the other's total count."""
    eviction_interval: PositiveInt = 100
    """Steps between evictions; new ids get rows then. Each eviction sorts the rows of a rank."""


@section
class ModuloIndex(IndexKind):
    """The hashing trick: ids are hashed to the rows of one table, and share rows where they collide. SID granularities
    share one table with a hash function each, as in Meta's prefix n-gram (arXiv 2504.02137)."""

    kind: Literal["modulo"] = "modulo"
    rows: IndexRows
    """Rows of the table, at least 2; row 0 is reserved for unknown ids."""


HidIndex = Annotated[ExactIndex | ModuloIndex | ManagedCollisionIndex, Field(discriminator="kind")]


# Fusion: the embeddings of an item's granularities to one embedding e_sid.


class FusionKind:
    """What the rest of sidrec asks a fusion."""

    weighs: ClassVar[bool] = False  # whether its parameters are weights of granularities that sum to 1
    needs_counts: ClassVar[bool] = False  # whether it reads how often the train split shows a granule
    needs_hid: ClassVar[bool] = False  # whether it reads the item's HID


@section
class AdditiveFusion(FusionKind):
    """Weights softmax_k(v . tanh(W e_k + b_k)) from the item alone, so that e_sid can be cached and compared."""

    kind: Literal["additive"] = "additive"
    weighs: ClassVar[bool] = True
    hidden: PositiveInt = 16
    """Width of the scorer's hidden layer."""


@section
class ConcatMlpFusion(FusionKind):
    """Weights softmax(MLP([e_1; ...; e_G])) over granularities."""

    kind: Literal["concat_mlp"] = "concat_mlp"
    weighs: ClassVar[bool] = True
    hidden: PositiveInt = 64
    """Width of the hidden layer."""


@section
class ConcatProjectFusion(FusionKind):
    """Linear projection W [e_1; ...; e_G] without attention."""

    kind: Literal["concat_project"] = "concat_project"


@section
class CountedFusion(FusionKind):
    """The additive attention, with counts: v . tanh(W e_k + b_k) + a_k log(m / (m + kappa)), m = n_k + 1 [I].

    n_k is the number of train impressions of all items with this granule, so that a rare s12 leaves its weight to s1.
    The counts are frozen statistics of the train split, kept in the checkpoint; granules that a catalog's extension
    brings have the counts of the log that the training starts with.
    """

    kind: Literal["counted"] = "counted"
    weighs: ClassVar[bool] = True
    needs_counts: ClassVar[bool] = True
    hidden: PositiveInt = 16
    """Width of the scorer's hidden layer."""
    strength: PositiveFloat = 10.0
    """kappa: impressions at which a granule's score is a_k log(1/2)."""
    learned: bool = True
    """Whether kappa and the factors a_k, initially 1, are trained."""


@section
class HidQueryFusion(FusionKind):
    """Weights by the item's HID, level after level: softmax_k(q_k . e_k / sqrt(D)), q_1 = h, q_k = MLP_k([e_(k-1); h]),
    h = W e_hid. IntRR's recursion (arXiv 2602.20704) over the item's own granules in the order listed [I]."""

    kind: Literal["hid_query"] = "hid_query"
    weighs: ClassVar[bool] = True
    needs_hid: ClassVar[bool] = True
    hidden: PositiveInt = 32
    """Width of the MLPs' hidden layers; IntRR has twice the embedding width."""
    detach_hid: bool = False
    """Keep the fusion's gradient out of the HID table."""
    hid_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the items of a step whose h is zero in training, as new items' HIDs are untrained. Drawn per rank."""


@section
class MeanFusion(FusionKind):
    """Equal weights for all granularities: a control for attention."""

    kind: Literal["mean"] = "mean"


@section
class QueryFusion(FusionKind):
    """Weights softmax_k(q . W e_k / sqrt(D)) with one learned query q."""

    kind: Literal["query"] = "query"
    weighs: ClassVar[bool] = True


@section
class SumFusion(FusionKind):
    """The sum over granularities, as Meta and Google pool the parts of a SID (arXiv 2504.02137, 2306.08121)."""

    kind: Literal["sum"] = "sum"


Fusion = Annotated[
    AdditiveFusion
    | CountedFusion
    | QueryFusion
    | HidQueryFusion
    | ConcatMlpFusion
    | MeanFusion
    | SumFusion
    | ConcatProjectFusion,
    Field(discriminator="kind"),
]


# Alignment: similarity of target and history in the space of SIDs.


class AlignmentKind:
    """What the rest of sidrec asks an alignment."""

    needs_granules: ClassVar[bool] = False  # whether it compares ids of granularities, not embeddings


@section
class CosineAlignment(AlignmentKind):
    """Keys that all alignments of embeddings share."""

    kind: str
    stop_gradient: bool = False
    """Keep the alignment's gradient out of the SID tables."""


@section
class AutoDisAlignment(CosineAlignment):
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
    grid: Annotated[PositiveInt, Field(multiple_of=2)] | None = None
    """Compute a at the ends of this many equal intervals of [-1, 1] and interpolate between them, at about a third of
    the cost; left out, at every similarity. With 512, untrained features differ by less than 1e-6 [I]."""


@section
class HistogramAlignment(CosineAlignment):
    """[max; mean] over the history of fixed Gaussian bins on [-1, 1]."""

    kind: Literal["histogram"] = "histogram"
    bins: PositiveInt = 20
    """Number of bins."""


@section
class MatchStatsAlignment(AlignmentKind):
    """Number of history items with the target's id, per granularity: log1p of the count, and the share.
    The match statistics that SID-Coord's paper pairs with DAS's SIDs (arXiv 2508.10584)."""

    kind: Literal["match_stats"] = "match_stats"
    needs_granules: ClassVar[bool] = True


@section
class NoAlignment(AlignmentKind):
    """No alignment features (the ablation "w/o alignment")."""

    kind: Literal["none"] = "none"


@section
class RawStatsAlignment(CosineAlignment):
    """Maximum, mean and standard deviation of the similarities: a control for AutoDis."""

    kind: Literal["raw_stats"] = "raw_stats"


Alignment = Annotated[
    AutoDisAlignment | HistogramAlignment | RawStatsAlignment | MatchStatsAlignment | NoAlignment,
    Field(discriminator="kind"),
]


# Tokens: the features of a SID that are looked up.


@section
class GranularityTokens:
    """The item's `granularities`."""

    kind: Literal["granularities"] = "granularities"


Index = Annotated[ExactIndex | ModuloIndex, Field(discriminator="kind")]


@section
class SpmTokens:
    """Subwords of SIDs, learned by SentencePiece (Google, arXiv 2306.08121): frequent runs of codes get a row each,
    rare SIDs are split into shared parts. Trained on the SIDs of the train split's impressions."""

    kind: Literal["spm"] = "spm"
    vocabulary: PositiveInt
    """Most rows of the table: one per subword, and row 0 for items without a SID."""


Tokens = Annotated[GranularityTokens | SpmTokens, Field(discriminator="kind")]


# Gate: the target's HID and SID to one embedding.


class GateKind:
    """What the rest of sidrec asks a gate."""

    needs_statistics: ClassVar[bool] = False  # whether it reads the log's stat_* columns

    @property
    def needs_updates(self) -> bool:
        """Whether it reads how many updates the target's HID row has received."""
        return False

    @property
    def starts_as_hid(self) -> bool:
        """Whether e = e_hid before the first step."""
        return False


@section
class MeanGate(GateKind):
    """No gate: e = (e_hid + e_sid) / 2 for every item."""

    kind: Literal["mean"] = "mean"


@section
class StandardizedStats:
    """log1p of each count, standardised with the moments of the train split."""

    kind: Literal["standardize"] = "standardize"


@section
class BucketizedStats:
    """An embedding of each count's power-of-two bucket."""

    kind: Literal["bucketize"] = "bucketize"
    buckets: PositiveInt = 20
    """Buckets per statistic; bucket k holds counts in [2^(k-1), 2^k)."""
    width: PositiveInt = 4
    """Width of a bucket's embedding."""


Stats = Annotated[StandardizedStats | BucketizedStats, Field(discriminator="kind")]


@section
class StatsGate(GateKind):
    """Gate g = sigmoid(MLP(stats)) between HID and SID (SID-Coord, module II)."""

    kind: Literal["stats"] = "stats"
    needs_statistics: ClassVar[bool] = True
    form: Literal["mix", "residual"] = "mix"
    """mix: e = g * e_hid + (1 - g) * e_sid, as published. residual: e = e_sid + g * e_hid."""
    stats: Stats = StandardizedStats()
    """Encoding of the target's stat_* counts."""
    hidden: PositiveInt = 64
    """Width of the hidden layer."""
    output_bias: float = 0.0
    """Initial bias of the output layer: 0 gives g = 0.5, negative values favour the SID."""
    lengths: Literal["as_is", "equal"] = "as_is"
    """as_is: as published; g then also sets the length of e, and its trend with popularity differs between seeds.
    equal: both embeddings are scaled to one learned length before they are mixed [I]."""
    per_dimension: bool = False
    """One gate value per embedding dimension instead of one per target."""
    start: Literal["balanced", "hid_only"] = "balanced"
    """balanced: as published. hid_only: e = e_hid initially; a learned scalar, initially 0, scales the SID's part, as
    in ReZero (arXiv 2003.04887) [I]. For a warm start from a model without SIDs."""
    updates: bool = False
    """Add log(1 + n) to the inputs, n the training steps that have updated the target's HID row: an item may have been
    shown often and its HID not be trained, in evaluation above all [I]."""

    @property
    def needs_updates(self) -> bool:
        return self.updates

    def __post_init__(self) -> None:
        if self.start == "hid_only" and (self.form, self.lengths) != ("mix", "as_is"):
            got = f"form {self.form} and lengths {self.lengths}"
            raise ValueError(f"expected form mix and lengths as_is with start hid_only, which keeps the HID, got {got}")

    @property
    def starts_as_hid(self) -> bool:
        return self.start == "hid_only"


@section
class ShrinkageGate(GateKind):
    """e = e_sid + n / (n + k) * e_hid, n the training steps that have updated the target's HID row [I].

    The HID is what is left to say beyond the SID, and counts as far as it has been trained, as an effect is shrunk in a
    hierarchical model. An item without updates has e_sid; the HID's share grows with n by construction. Counts are kept
    in the checkpoint and do not change in evaluation.
    """

    kind: Literal["shrinkage"] = "shrinkage"
    strength: PositiveFloat = 10.0
    """Initial k: the updates after which half of e_hid counts."""
    learned: bool = True
    """Learn log(k), with the optimizer of the layers; false keeps k."""

    @property
    def needs_updates(self) -> bool:
        return True


@section
class SumGate(GateKind):
    """No gate: e = e_hid + e_sid (the ablation "w/o gate")."""

    kind: Literal["sum"] = "sum"


Gate = Annotated[StatsGate | ShrinkageGate | SumGate | MeanGate, Field(discriminator="kind")]


@section
class GateContrast:
    """InfoNCE from the SID to the HID of a row's target, weighted by the gate w (GateSID's GRCA, arXiv 2603.22916):
    strong for new items, weak for mature items.

    A row's negatives are the other items of its lane in the step: data.batch_size / data.lanes rows, so that a recipe
    trains the same at any world size [I]."""

    weight: NonNegativeFloat = 0.1
    """Weight of the mean over rows of w * InfoNCE, which is added to the ranking loss."""
    temperature: PositiveFloat = 0.07
    """Temperature tau of the cosines [I]."""
    teaches_gate: bool = False
    """Whether the gate gets this loss's gradient, as the formula literally says. The loss is then least at w = 0: on
    Amazon Beauty w ended under .02 for all items (two seeds), while the paper reports over .8 for new and under .5 for
    mature items. The default is our reading [I]."""


@section
class CodeContrast:
    """Symmetric InfoNCE between the HIDs and the SIDs of a step's target items: H2Rec's code-guided alignment (arXiv
    2512.10388), from its official code.

    Over the distinct target items of a lane, S_ij = cos(e_sid_i, e_hid_j) / temperature and L_i = -log of the
    positives' share of sum_j exp(S_ij), and the same from HIDs to SIDs; the mean of both. In the official code an item
    that is in a batch twice is its own negative; here it counts once [I].
    """

    weight: NonNegativeFloat = 0.1
    """Weight of the mean over items, which is added to the ranking loss."""
    temperature: PositiveFloat = 0.5
    """Temperature tau of the cosines."""
    same_sid: bool = True
    """Items that share all granules with the anchor are positives too, as H2Rec's code recommends; else negatives."""
    detach_sid: bool = False
    """HIDs alone learn from this loss: no gradient reaches e_sid [I]."""
    strength: PositiveFloat | None = None
    """k: weigh a row's item by k / (n + k), n its first stat_* column, so that rare items' HIDs follow their SIDs and
    popular ones are left alone [I]; left out, all items weigh the same."""
