"""Which backbone ranks. Every default cites its source."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from sidrec.config.section import section


@section
class DlrmBackbone:
    """TorchRec's DLRM."""

    kind: Literal["dlrm"] = "dlrm"
    dense_layers: tuple[PositiveInt, ...] = (64,)
    """Hidden widths of the dense arch; its last layer has the embedding's width and is added."""
    over_layers: tuple[PositiveInt, ...] = (128, 64)
    """Hidden widths of the over arch; its last layer has width 1 and is added."""


Backbone = Annotated[DlrmBackbone, Field(discriminator="kind")]
