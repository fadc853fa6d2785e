"""The section `model.item`: how items are represented.

In order: index of ids, fusion of a SID's granularities, alignment of target and history, gate between HID and SID, and
the item kinds that combine them. Every default cites its source; [I] marks one of our own. HID: hashed item id.
SID: semantic id, L codes per item. Granularity: adjacent levels of a SID that are looked up as one feature.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, NonNegativeFloat, PositiveFloat, PositiveInt

from sidrec.config.section import Granularities, section, without_repeats

TokenWeights = Literal["off", "multiply", "append", "both"]
Histories = Annotated[tuple[Literal["hid", "sid"], ...], AfterValidator(without_repeats)]


# Index: ids to rows of embedding tables.
@section
class ExactIndex:
    """One row per id, and one table per SID granularity."""

    kind: Literal["exact"] = "exact"
    rows_are_ids: ClassVar[bool] = True


@section
class ManagedCollisionIndex:
    """TorchRec's managed collision, also called zero-collision hashing (ZCH): ids get rows when training meets them,
    and are evicted later. Ids without a row share one.

    Every rank manages its own share of the rows, so results depend on the number of ranks, which must divide `rows`.
    """

    kind: Literal["managed_collision"] = "managed_collision"
    rows_are_ids: ClassVar[bool] = False
    rows: Annotated[int, Field(ge=2)]
    """Rows of the table, at least 2; ids without a row use the last row of each rank."""
    eviction: Literal["lru", "lfu", "distance_lfu"] = "distance_lfu"
    """Which id is evicted: the least recently used (lru), the least frequently used (lfu), or the one with the lowest
    count divided by the steps since its last use (distance_lfu). An id counts once per rank and step. With lfu, a new
    id evicts another if its count in one interval exceeds the other's total count."""
    eviction_interval: PositiveInt = 100
    """Steps between evictions; new ids get rows then. Each eviction sorts the rows of a rank."""


@section
class ModuloIndex:
    """The hashing trick: ids are hashed to the rows of one table, and share rows where they collide. SID granularities
    share one table with a hash function each, as in Meta's prefix n-gram (arXiv 2504.02137)."""

    kind: Literal["modulo"] = "modulo"
    rows_are_ids: ClassVar[bool] = False
    rows: Annotated[int, Field(ge=2)]
    """Rows of the table, at least 2; row 0 is reserved for unknown ids."""


HidIndex = Annotated[ExactIndex | ModuloIndex | ManagedCollisionIndex, Field(discriminator="kind")]


class ItemKind:
    """What the rest of sidrec asks an item kind. Kinds override the answers that differ."""

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

    pools_histories: ClassVar[bool] = True  # by model.history_pooling

    @property
    def least_rows_per_lane(self) -> int:
        """Rows per lane and step that a loss over rows of a lane needs; 0 without such a loss."""
        return 0


@section
class HashedItem(ItemKind):
    """Keys that all item kinds with HIDs share."""

    hid_index: HidIndex = ExactIndex()
    """How item ids become rows of the HID table."""

    @property
    def hids(self) -> HidIndex:
        return self.hid_index


@section
class HidItem(HashedItem):
    """Items are hashed ids (HIDs) only: the baseline that SID-Coord is compared with."""

    kind: Literal["hid"] = "hid"


# Fusion: the embeddings of an item's granularities to one embedding e_sid.
@section
class AdditiveFusion:
    """Weights softmax_k(v . tanh(W e_k + b_k)) from the item alone, so that e_sid can be cached and compared."""

    kind: Literal["additive"] = "additive"
    hidden: PositiveInt = 16
    """Width of the scorer's hidden layer."""


# Alignment: similarity of target and history in the space of SIDs.
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
    """Number of history items with the target's id, per granularity: log1p of the count, and the share.
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
    """Maximum, mean and standard deviation of the similarities: a control for AutoDis."""

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
    """Weights softmax(MLP([e_1; ...; e_G])) over granularities."""

    kind: Literal["concat_mlp"] = "concat_mlp"
    hidden: PositiveInt = 64
    """Width of the hidden layer."""


@section
class ConcatProjectFusion:
    """Linear projection W [e_1; ...; e_G] without attention."""

    kind: Literal["concat_project"] = "concat_project"


@section
class MeanFusion:
    """Equal weights for all granularities: a control for attention."""

    kind: Literal["mean"] = "mean"


@section
class QueryFusion:
    """Weights softmax_k(q . W e_k / sqrt(D)) with one learned query q."""

    kind: Literal["query"] = "query"


@section
class SumFusion:
    """The sum over granularities, as Meta and Google pool the parts of a SID (arXiv 2504.02137, 2306.08121)."""

    kind: Literal["sum"] = "sum"


Fusion = Annotated[
    AdditiveFusion | QueryFusion | ConcatMlpFusion | MeanFusion | SumFusion | ConcatProjectFusion,
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


@section
class SemanticItem(ItemKind):
    """Keys that all item kinds with SIDs share."""

    kind: str
    granularities: Granularities = ("s1", "s2", "s3", "s12", "s23")
    """SID features: s1 is level 1, s12 the pair of levels 1 and 2. With an exact index, each has a table."""
    tokens: Tokens = GranularityTokens()
    """Look up granularities, or subwords instead of them."""
    index: Index = ExactIndex()
    """How the granularities' composed ids become rows."""
    fusion: Fusion = AdditiveFusion()
    """How the embeddings of the granularities become one embedding e_sid."""
    alignment: Alignment = AutoDisAlignment()
    """Similarity features of target and history."""
    token_weights: TokenWeights = "off"
    """Use of the catalog's token weights (ADC-SID, arXiv 2510.25622): multiply scales a granularity's embedding by the
    product of its tokens' weights, append gives the target's weights to the backbone, both does both."""

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
        """Largest number of distinct subwords; None where granularities are looked up."""
        return self.tokens.vocabulary if isinstance(self.tokens, SpmTokens) else None


@section
class SidItem(SemanticItem):
    """Items are their semantic ids; there is no HID table."""

    kind: Literal["sid"] = "sid"


@section
class HidAndSidItem(SemanticItem, HashedItem):
    """HID and SID as separate features, as most published uses of SIDs have them."""

    kind: Literal["hid_and_sid"] = "hid_and_sid"
    alignment: Alignment = NoAlignment()
    history: Histories = ("hid", "sid")
    """Which embeddings of the history are pooled into features of the backbone."""


# Gate: the target's HID and SID to one embedding.
@section
class MeanGate:
    """No gate: e = (e_hid + e_sid) / 2 for every item."""

    kind: Literal["mean"] = "mean"
    needs_statistics: ClassVar[bool] = False


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
class StatsGate:
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
    """Which embeddings of the history are pooled into features of the backbone; the kind hid pools "hid"."""
    gate: Gate = StatsGate()
    """How HID and SID of the target become one embedding."""


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
class GateSidItem(SemanticItem, HashedItem):
    """GateSID (arXiv 2603.22916): HID and SID of the target as separate features; a gate of embedding and statistics
    mixes the attention scores of both histories."""

    kind: Literal["gate_sid"] = "gate_sid"
    pools_histories: ClassVar[bool] = False  # its gate mixes attention over both histories
    granularities: Granularities = ("s1", "s2", "s3")
    """SID features; the paper uses the single levels. With an exact index, each has a table."""
    fusion: Fusion = ConcatProjectFusion()
    alignment: Alignment = NoAlignment()
    stats: Stats = StandardizedStats()
    """Encoding of the target's stat_* counts."""
    hidden: PositiveInt = 64
    """Width of the gate's hidden layer."""
    contrastive: GateContrast | None = None
    """The contrastive loss: `{}` is as published; left out is the ablation "w/o GRCA"."""

    @property
    def least_rows_per_lane(self) -> int:
        return 0 if self.contrastive is None else 2  # negatives come from the same lane


def _some(columns: tuple[str, ...]) -> tuple[str, ...]:
    if not columns:
        raise ValueError("expected at least one vector column, got none")
    return columns


@section
class ContentItem(HashedItem):
    """HID, and a learned projection of the item's frozen content vector as a further feature."""

    kind: Literal["content"] = "content"
    vectors: Annotated[tuple[str, ...], AfterValidator(_some), AfterValidator(without_repeats)] = ("text",)
    """Vector columns of items.parquet; each is scaled to unit length, then they are concatenated."""
    hidden: PositiveInt = 64
    """Width of the projection's hidden layer."""

    @property
    def content_columns(self) -> tuple[str, ...]:
        return self.vectors


Item = Annotated[
    HidItem | SidItem | HidAndSidItem | SidCoordItem | GateSidItem | ContentItem, Field(discriminator="kind")
]
