"""The section `model.item`: how items are represented, by hashed ids (HIDs), semantic ids (SIDs), or both.

A kind combines the parts of `sidrec.config.item_parts`. Every default cites its source; [I] marks one of our own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PositiveInt

from sidrec.config.item_parts import (
    AdditiveFusion,
    Alignment,
    AutoDisAlignment,
    CodeContrast,
    ConcatProjectFusion,
    ExactIndex,
    Fusion,
    Gate,
    GateContrast,
    GranularityTokens,
    HidIndex,
    Index,
    NoAlignment,
    SpmTokens,
    StandardizedStats,
    Stats,
    StatsGate,
    Tokens,
)
from sidrec.config.section import (
    Granularities,
    InRecipe,
    Values,
    changed_keys,
    fill_preset,
    section,
    without_repeats,
)

TokenWeights = Literal["off", "multiply", "append", "both"]
View = Literal["mixed", "hid", "sid"]
Histories = Annotated[tuple[Literal["hid", "sid"], ...], AfterValidator(without_repeats)]


@dataclass(frozen=True)
class HidPart:
    """Where an item kind has what the kind hid has.

    feature: the feature of the backbone that equals e_hid while everything else is new. pooling: the module, in the
    item representation, that pools e_hid of the history into the feature `history_hid`.
    """

    feature: str
    pooling: str


class ItemKind:
    """What the rest of sidrec asks an item kind. Kinds override the answers that differ."""

    @property
    def hid_part(self) -> HidPart | None:
        """For a start from a model of the kind hid (`start.grow`); None where no part of it equals that model."""
        return None

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
    def reads_updates(self) -> bool:
        """Whether the model reads how many updates each HID row has received."""
        return False

    @property
    def pools_histories(self) -> bool:
        """Whether model.history_pooling acts."""
        return True

    pools_no_history: ClassVar[str] = "has no histories to pool"  # the reason, for messages

    @property
    def weighs_by_statistics(self) -> bool:
        """Whether a loss reads the log's stat_* columns."""
        return False

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


Rate = Annotated[float, Field(ge=0, lt=1)]


@section
class DroppedHids(HashedItem):
    """Keys of item kinds that can drop HIDs in training [I].

    A row whose HID is dropped sees zero where the e_hid of its target would be: as a feature of its own, in the
    mixture, as the query of an attention over HIDs; a gate that counts updates sees none. So rows of a known item look
    like those of a new one, and the other features learn to do without its HID. Nothing is scaled, and evaluation
    drops nothing. Rows are drawn anew in every epoch, the same ones at any number of ranks.
    """

    hid_dropout: Rate = 0.0
    """Share of the training rows whose target's HID is dropped."""
    hid_dropout_history: Rate = 0.0
    """Share of the training rows whose history has no HIDs: its pooled HIDs are zero. Up to hid_dropout these are rows
    whose target's HID is dropped too. 0 by default: the history of a new item consists of known ones."""


@section
class HidItem(DroppedHids):
    """Items are hashed ids (HIDs) only: the baseline that SID-Coord is compared with."""

    kind: Literal["hid"] = "hid"

    @property
    def hid_part(self) -> HidPart:
        return HidPart("item", "pooling")


# Kinds with SIDs.


@section
class SemanticItem(ItemKind):
    """Keys that all item kinds with SIDs share."""

    kind: str
    granularities: Granularities = ("s1", "s2", "s3", "s12", "s23")
    """SID features: s1 is level 1, s12 the pair of levels 1 and 2. With an exact index, each has a table. Left out with
    a learner whose levels are independent (opq, adc_sid, multi_vq, mm_rqvae of several columns): s1, s2, .. of all
    levels."""
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
        if self.fusion.needs_counts and (self.subwords is not None or not isinstance(self.index, ExactIndex)):
            raise ValueError("expected tokens of kind granularities and index of kind exact with fusion counted")
        if self.fusion.needs_hid and self.hids is None:
            raise ValueError(f"expected an item kind with HIDs with fusion {self.fusion.kind}, got {self.kind}")

    @property
    def needs_granules(self) -> bool:
        """Whether batches hold the number of each item's granule at every granularity."""
        return self.alignment.needs_granules or self.fusion.needs_counts

    def unused_keys(self) -> dict[str, str]:
        if self.subwords is not None and not self.needs_granules:
            return changed_keys(self, ["granularities"], "with tokens of kind spm, which replace them")
        if len(self.granularities) == 1 and self.subwords is None and self.fusion.weighs:
            return changed_keys(self, ["fusion"], "with one granularity, whose weight is always 1")
        return {}

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
class DroppedHidsAndSids(SemanticItem, DroppedHids):
    """Keys of item kinds with HIDs and SIDs that can drop either in training [I]; see DroppedHids."""

    history: Histories = ()
    """Which embeddings of the history are pooled into features of the backbone."""
    sid_dropout: Rate = 0.0
    """Share of the training rows whose target's SID is dropped: the target is as an item without a SID, whose mixture
    is the HID alone and which takes no part in the alignment. The history keeps its SIDs. No row loses both:
    hid_dropout and sid_dropout add up to at most 1."""

    contrast: CodeContrast | None = None
    """A contrastive loss that aligns HIDs with SIDs: `{}` is H2Rec's; left out, none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sid_dropout + max(self.hid_dropout, self.hid_dropout_history) > 1:
            rates = f"{self.hid_dropout}, {self.hid_dropout_history} and {self.sid_dropout}"
            raise ValueError(
                "expected hid_dropout + sid_dropout, and hid_dropout_history + sid_dropout, of at most 1, as no row "
                f"loses both, got {rates}"
            )

    def unused_keys(self) -> dict[str, str]:
        unused = super().unused_keys()
        if "hid" not in self.history:
            unused |= changed_keys(self, ["hid_dropout_history"], "where history pools no hid")
        return unused

    @property
    def needs_granules(self) -> bool:
        return super().needs_granules or (self.contrast is not None and self.contrast.same_sid)

    @property
    def weighs_by_statistics(self) -> bool:
        return self.contrast is not None and self.contrast.strength is not None

    @property
    def least_rows_per_lane(self) -> int:
        return 0 if self.contrast is None else 2  # negatives come from the same lane

    @property
    def pools_histories(self) -> bool:
        return bool(self.history)


@section
class HidAndSidItem(DroppedHidsAndSids):
    """HID and SID as separate features, as most published uses of SIDs have them."""

    kind: Literal["hid_and_sid"] = "hid_and_sid"
    alignment: Alignment = NoAlignment()
    history: Histories = ("hid", "sid")
    """Which embeddings of the history are pooled into features of the backbone."""

    @property
    def hid_part(self) -> HidPart | None:
        return HidPart("item", "pooling.hid") if "hid" in self.history else None


PUBLISHED: Values = {"views": ["mixed"], "history": ["hid"], "hid_dropout": 0.0, "gate": {"kind": "stats"}}
RECOMMENDED: Values = {"views": ["hid", "sid"], "history": ["hid", "sid"], "hid_dropout": 0.1}
"""Of the forms of benchmarks/studies/claim_choice.yaml, the one with the highest mean of validation's GAUC over four
data sets; frozen before any test split was read. No gate: none earned anything beside both views."""


def _check_some(views: tuple[View, ...]) -> tuple[View, ...]:
    if not views:
        raise ValueError("expected at least one view, got none")
    return views


Views = Annotated[tuple[View, ...], AfterValidator(_check_some), AfterValidator(without_repeats)]


@section
class SidCoordItem(DroppedHidsAndSids):
    """HID and SID, coordinated (SID-Coord, arXiv 2604.10471)."""

    presets: ClassVar[Mapping[str, Values]] = {"published": PUBLISHED, "recommended": RECOMMENDED}
    kind: Literal["sid_coord"] = "sid_coord"
    preset: Annotated[Literal["published", "recommended"] | None, InRecipe] = None
    """Values for keys that the recipe leaves out. published: the paper's, which are the defaults. recommended: the form
    that needs no choice per data set [I]."""
    history: Histories = ("hid",)
    """Which embeddings of the history are pooled into features of the backbone; the kind hid pools "hid"."""
    views: Views = ("mixed",)
    """The target's features of the backbone, in this order: mixed is the gate's e, as published; hid and sid are its
    parts e_hid and e_sid, as features of their own [I]. With F features DLRM has F (F + 1) / 2 products of pairs, the
    dense vector included: against a rival with as many features no view has products that the other lacks."""
    gate: Gate = StatsGate()
    """How HID and SID of the target become one embedding, the view mixed."""

    def unused_keys(self) -> dict[str, str]:
        unused = super().unused_keys()
        if "mixed" not in self.views:
            unused |= changed_keys(self, ["gate"], "without the view mixed")
        return unused

    @property
    def reads_updates(self) -> bool:
        return "mixed" in self.views and self.gate.needs_updates

    @property
    def hid_part(self) -> HidPart | None:
        mixed = "mixed" in self.views and self.gate.starts_as_hid
        feature = "item_hid" if "hid" in self.views else "item" if mixed else None
        return HidPart(feature, "pooling.hid") if feature and "hid" in self.history else None


@section
class GateSidItem(SemanticItem, HashedItem):
    """GateSID (arXiv 2603.22916): HID and SID of the target as separate features; a gate of embedding and statistics
    mixes the attention scores of both histories."""

    kind: Literal["gate_sid"] = "gate_sid"
    pools_no_history: ClassVar[str] = "has its own attention over histories"
    granularities: Granularities = ("s1", "s2", "s3")
    """SID features; the paper uses the single levels. With an exact index, each has a table. Left out with a learner
    whose levels are independent: s1, s2, .. of all levels."""
    fusion: Fusion = ConcatProjectFusion()
    alignment: Alignment = NoAlignment()
    stats: Stats = StandardizedStats()
    """Encoding of the target's stat_* counts."""
    hidden: PositiveInt = 64
    """Width of the gate's hidden layer."""
    contrastive: GateContrast | None = None
    """The contrastive loss: `{}` is as published; left out is the ablation "w/o GRCA"."""

    @property
    def pools_histories(self) -> bool:
        return False  # its gate mixes attention over both histories

    @property
    def least_rows_per_lane(self) -> int:
        return 0 if self.contrastive is None else 2  # negatives come from the same lane


def _check_not_empty(columns: tuple[str, ...]) -> tuple[str, ...]:
    if not columns:
        raise ValueError("expected at least one vector column, got none")
    return columns


@section
class ContentItem(DroppedHids):
    """HID, and a learned projection of the item's frozen content vector as a further feature."""

    kind: Literal["content"] = "content"
    vectors: Annotated[tuple[str, ...], AfterValidator(_check_not_empty), AfterValidator(without_repeats)] = ("text",)
    """Vector columns of items.parquet; each is scaled to unit length, then they are concatenated."""
    hidden: PositiveInt = 64
    """Width of the projection's hidden layer."""

    @property
    def content_columns(self) -> tuple[str, ...]:
        return self.vectors

    @property
    def hid_part(self) -> HidPart:
        return HidPart("item", "hid_pooling")


def _fill_preset(values: Any) -> Any:
    """The mapping of an item with its preset filled in; anything else as it is."""
    return fill_preset(values, {SidCoordItem.kind: SidCoordItem.presets})


Item = Annotated[
    HidItem | SidItem | HidAndSidItem | SidCoordItem | GateSidItem | ContentItem,
    Field(discriminator="kind"),
    BeforeValidator(_fill_preset),
]
