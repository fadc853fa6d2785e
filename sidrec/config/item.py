"""How items are represented. Every default cites its source."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, NonNegativeFloat, PositiveFloat, PositiveInt

from sidrec.config.alignment import Alignment, AutoDisAlignment, NoAlignment
from sidrec.config.fusion import AdditiveFusion, ConcatProjectFusion, Fusion
from sidrec.config.gate import Gate, StandardizedStats, Stats, StatsGate
from sidrec.config.granularity import Granularities
from sidrec.config.index import ExactIndex, HidIndex, Index
from sidrec.config.section import section, without_repeats
from sidrec.config.tokens import GranularityTokens, SpmTokens, Tokens

TokenWeights = Literal["off", "multiply", "append", "both"]
"""What becomes of a catalog's token weights (ADC-SID, arXiv 2510.25622, ranking): multiply scales a granularity's
embedding by the product of its tokens' weights, append gives the target's weights to the backbone, both does both."""

Histories = Annotated[tuple[Literal["hid", "sid"], ...], AfterValidator(without_repeats)]


@section
class HashedItem:
    """What all item kinds with HIDs can choose."""

    hid_index: HidIndex = ExactIndex()
    """How item ids become rows of the HID table."""


@section
class HidItem(HashedItem):
    """Items are their hashed ids: the twin that SID-Coord is compared with."""

    kind: Literal["hid"] = "hid"


@section
class SemanticItem:
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


Item = Annotated[
    HidItem | SidItem | HidAndSidItem | SidCoordItem | GateSidItem | ContentItem, Field(discriminator="kind")
]
