"""How items are represented. Every default cites its source."""

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, NonNegativeFloat, PositiveFloat, PositiveInt

from sidrec.config.section import Granularities, section, without_repeats

TokenWeights = Literal["off", "multiply", "append", "both"]
"""What becomes of a catalog's token weights (ADC-SID, arXiv 2510.25622, ranking): multiply scales a granularity's
embedding by the product of its tokens' weights, append gives the target's weights to the backbone, both does both."""
Histories = Annotated[tuple[Literal["hid", "sid"], ...], AfterValidator(without_repeats)]


# How ids become rows of embedding tables.


@section
class ExactIndex:
    """Every id that occurs has a row of its own, and every SID granularity a table of its own."""

    kind: Literal["exact"] = "exact"
    rows_are_ids: ClassVar[bool] = True


@section
class ManagedCollisionIndex:
    """Ids get rows of their own as training meets them and lose them to others: TorchRec's managed collision, also
    called zero-collision hashing (ZCH). An id without a row reads one that all such ids share.

    Every rank deals out its share of the rows: results depend on the number of ranks, which must divide `rows`.
    """

    kind: Literal["managed_collision"] = "managed_collision"
    rows_are_ids: ClassVar[bool] = False
    rows: Annotated[int, Field(ge=2)]
    """Rows of the table; the last of each rank is that of ids without one of their own."""
    eviction: Literal["lru", "lfu", "distance_lfu"] = "distance_lfu"
    """Who loses rows: the id not met for longest (lru), the one met least often (lfu), or the one with the fewest
    meetings for each step since the last (distance_lfu). An id is met once per rank and step. With lfu, a new id takes
    a row by more meetings in one interval than another id had in all."""
    eviction_interval: PositiveInt = 100
    """Steps after which ids met in them get rows, and others lose theirs; each time costs a sort of a rank's rows."""


@section
class ModuloIndex:
    """Ids are hashed to the rows of one table and share them where they collide: the hashing trick, and of SIDs the
    table that all granularities share in Meta's prefix n-gram (arXiv 2504.02137), each hashed in a way of its own."""

    kind: Literal["modulo"] = "modulo"
    rows_are_ids: ClassVar[bool] = False
    rows: Annotated[int, Field(ge=2)]
    """Rows of the table; row 0 is kept for what is not known."""


HidIndex = Annotated[ExactIndex | ModuloIndex | ManagedCollisionIndex, Field(discriminator="kind")]


class ItemKind:
    """What an item kind needs, as the rest of sidrec asks for it. Each kind overrides what differs."""

    @property
    def hids(self) -> HidIndex | None:
        """How item ids become rows of the HID table; None for kinds without one."""
        return None

    @property
    def hid_rows_are_ids(self) -> bool:
        """Whether row i of the HID table belongs to item id i, before and after training."""
        return self.hids is not None and self.hids.rows_are_ids

    @property
    def sids(self) -> "SemanticItem | None":
        """The choices about SIDs; None for kinds that need no catalog."""
        return None

    @property
    def content_columns(self) -> tuple[str, ...]:
        """Vector columns of items.parquet that the model reads."""
        return ()

    @property
    def least_rows_per_lane(self) -> int:
        """Rows that each lane must give to a step, for losses that compare rows of a lane; 0 without such a loss."""
        return 0


@section
class HashedItem(ItemKind):
    """What all item kinds with HIDs can choose."""

    hid_index: HidIndex = ExactIndex()
    """How item ids become rows of the HID table."""

    @property
    def hids(self) -> HidIndex:
        return self.hid_index


@section
class HidItem(HashedItem):
    """Items are their hashed ids: the twin that SID-Coord is compared with."""

    kind: Literal["hid"] = "hid"


# How the embeddings of an item's granularities become one. Every default cites its source.


@section
class AdditiveFusion:
    """softmax_k(v . tanh(W e_k + b_k)): of the item alone, so that e_sid can be cached and compared by cosine."""

    kind: Literal["additive"] = "additive"
    hidden: PositiveInt = 16
    """Width of the scorer's hidden layer."""


# How alike target and history are in the space of SIDs. Every default cites its source.


@section
class AutoDisAlignment:
    """[max; mean] over the history of AutoDis(cos(e_sid(target), e_sid(history item))) (SID-Coord, module III)."""

    kind: Literal["autodis"] = "autodis"
    needs_granules: ClassVar[bool] = False
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
    needs_granules: ClassVar[bool] = False
    bins: PositiveInt = 20
    """Number of bins."""
    stop_gradient: bool = False
    """Keep the alignment's gradient out of the SID tables."""


@section
class MatchStatsAlignment:
    """How many items of the history share the target's granule, per granularity: log1p of the count, and the share.
    The match statistics that SID-Coord's paper pairs with DAS's SIDs (arXiv 2508.10584)."""

    kind: Literal["match_stats"] = "match_stats"
    needs_granules: ClassVar[bool] = True


@section
class NoAlignment:
    """No alignment features (the ablation "w/o alignment")."""

    kind: Literal["none"] = "none"
    needs_granules: ClassVar[bool] = False


@section
class RawStatsAlignment:
    """max, mean and standard deviation of the similarities: the control that AutoDis must beat."""

    kind: Literal["raw_stats"] = "raw_stats"
    needs_granules: ClassVar[bool] = False
    stop_gradient: bool = False
    """Keep the alignment's gradient out of the SID tables."""


Alignment = Annotated[
    AutoDisAlignment | HistogramAlignment | RawStatsAlignment | MatchStatsAlignment | NoAlignment,
    Field(discriminator="kind"),
]


@section
class ConcatMlpFusion:
    """softmax(MLP([e_1; ...; e_G]))."""

    kind: Literal["concat_mlp"] = "concat_mlp"
    hidden: PositiveInt = 64
    """Width of the hidden layer."""


@section
class ConcatProjectFusion:
    """W [e_1; ...; e_G]: no attention, all of every part."""

    kind: Literal["concat_project"] = "concat_project"


@section
class MeanFusion:
    """The same weight for every granularity: the control that attention must beat."""

    kind: Literal["mean"] = "mean"


@section
class QueryFusion:
    """softmax_k(q . W e_k / sqrt(D)) with one learned query q."""

    kind: Literal["query"] = "query"


@section
class SumFusion:
    """The plain sum, as Meta and Google pool the parts of a SID (arXiv 2504.02137, 2306.08121)."""

    kind: Literal["sum"] = "sum"


Fusion = Annotated[
    AdditiveFusion | QueryFusion | ConcatMlpFusion | MeanFusion | SumFusion | ConcatProjectFusion,
    Field(discriminator="kind"),
]


# What an item's SID is cut into: the features that are looked up.


@section
class GranularityTokens:
    """The granularities that the item section names."""

    kind: Literal["granularities"] = "granularities"


Index = Annotated[ExactIndex | ModuloIndex, Field(discriminator="kind")]


@section
class SpmTokens:
    """Subwords of SIDs that SentencePiece learns (Google, arXiv 2306.08121): frequent runs of codes get a row of their
    own, rare SIDs fall apart into what they share with others. Trained on the SIDs of the train split's impressions."""

    kind: Literal["spm"] = "spm"
    vocabulary: PositiveInt
    """Rows of the table at most: one per subword, and row 0 for items without a SID."""


Tokens = Annotated[GranularityTokens | SpmTokens, Field(discriminator="kind")]


@section
class SemanticItem(ItemKind):
    """What all item kinds with SIDs can choose."""

    kind: str
    granularities: Granularities = ("s1", "s2", "s3", "s12", "s23")
    """SID features, each with its own table where the index is exact."""
    tokens: Tokens = GranularityTokens()
    """What a SID is looked up by: its granularities, or subwords in their place."""
    index: Index = ExactIndex()
    """How the granularities' composed ids become rows."""
    fusion: Fusion = AdditiveFusion()
    alignment: Alignment = AutoDisAlignment()
    token_weights: TokenWeights = "off"
    """How the catalog's token weights are used."""

    def __post_init__(self) -> None:
        if isinstance(self.tokens, SpmTokens):
            if self.token_weights != "off":
                raise ValueError(f"expected token_weights: off with tokens of kind spm, got {self.token_weights}")
            if not isinstance(self.index, ExactIndex):
                raise ValueError(f"expected index: {{kind: exact}} with tokens of kind spm, got {self.index.kind}")

    @property
    def sids(self) -> "SemanticItem":
        return self

    @property
    def subwords(self) -> int | None:
        """Most subwords that SIDs are cut into; None where granularities are looked up."""
        return self.tokens.vocabulary if isinstance(self.tokens, SpmTokens) else None


@section
class SidItem(SemanticItem):
    """Items are their semantic ids; there is no HID table."""

    kind: Literal["sid"] = "sid"


@section
class HidAndSidItem(SemanticItem, HashedItem):
    """HID and SID as features side by side: what most rivals of SID-Coord do with the SIDs that they make."""

    kind: Literal["hid_and_sid"] = "hid_and_sid"
    alignment: Alignment = NoAlignment()
    history: Histories = ("hid", "sid")
    """Which embeddings of the history are pooled into features of the backbone."""


# How HID and SID of the target become one embedding. Every default cites its source.


@section
class MeanGate:
    """No gate: e = (e_hid + e_sid) / 2, whatever the item."""

    kind: Literal["mean"] = "mean"
    needs_statistics: ClassVar[bool] = False


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
    needs_statistics: ClassVar[bool] = True
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
    needs_statistics: ClassVar[bool] = False


Gate = Annotated[StatsGate | SumGate | MeanGate, Field(discriminator="kind")]


@section
class SidCoordItem(SemanticItem, HashedItem):
    """HID and SID, coordinated (SID-Coord, arXiv 2604.10471)."""

    kind: Literal["sid_coord"] = "sid_coord"
    history: Histories = ("hid",)
    """Which embeddings of the history are pooled into features of the backbone; "hid" is what the twin has."""
    gate: Gate = StatsGate()


@section
class GateContrast:
    """InfoNCE from the SID to the HID of a row's target, as strong as the gate w says: new items' embeddings are drawn
    together, mature items' HIDs keep what they have learned (GateSID's GRCA, arXiv 2603.22916).

    A row's negatives are the other items in its lane of the step: data.batch_size / data.lanes rows, so that the recipe
    trains the same at any world size [I]."""

    weight: NonNegativeFloat = 0.1
    """Of the rows' mean of w * InfoNCE, beside the ranking loss."""
    temperature: PositiveFloat = 0.07
    """tau of the cosines [I]."""
    teaches_gate: bool = False
    """Whether the gate learns from this loss too, as a plain reading of the formula has it. The loss then falls fastest
    with w itself: on Amazon Beauty w ended under .02 for items of any exposure (two seeds), where the paper has over .8
    for new items and under .5 for mature ones. So the default is a reading of ours [I]."""


@section
class GateSidItem(SemanticItem, HashedItem):
    """GateSID (arXiv 2603.22916): HID and SID of the target side by side, and a gate of embedding and statistics that
    mixes the attention scores of both histories."""

    kind: Literal["gate_sid"] = "gate_sid"
    granularities: Granularities = ("s1", "s2", "s3")
    """SID features, each with its own table where the index is exact; the paper's are the levels alone."""
    fusion: Fusion = ConcatProjectFusion()
    alignment: Alignment = NoAlignment()
    stats: Stats = StandardizedStats()
    hidden: PositiveInt = 64
    """Width of the gate's hidden layer."""
    contrastive: GateContrast | None = None
    """The contrastive loss; left out, its ablation "w/o GRCA". `{}` is as published."""

    @property
    def least_rows_per_lane(self) -> int:
        return 0 if self.contrastive is None else 2  # negatives come from the same lane


def _some(columns: tuple[str, ...]) -> tuple[str, ...]:
    if not columns:
        raise ValueError("expected at least one vector column, got none")
    return columns


@section
class ContentItem(HashedItem):
    """HID, and beside it a learned projection of the item's frozen content vector: the dense way to use content."""

    kind: Literal["content"] = "content"
    vectors: Annotated[tuple[str, ...], AfterValidator(_some), AfterValidator(without_repeats)] = ("text",)
    """Vector columns of items.parquet, each scaled to unit length, concatenated."""
    hidden: PositiveInt = 64
    """Width of the projection's hidden layer."""

    @property
    def content_columns(self) -> tuple[str, ...]:
        return self.vectors


Item = Annotated[
    HidItem | SidItem | HidAndSidItem | SidCoordItem | GateSidItem | ContentItem, Field(discriminator="kind")
]
