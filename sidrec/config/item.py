"""How items are represented. Every default cites its source."""

from typing import Annotated, Literal

from pydantic import Field

from sidrec.config.alignment import Alignment, AutoDisAlignment
from sidrec.config.fusion import AdditiveFusion, Fusion
from sidrec.config.gate import Gate, StatsGate
from sidrec.config.granularity import Granularities
from sidrec.config.section import section

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
