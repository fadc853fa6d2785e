"""The model section: item, context, backbone."""

from typing import Annotated

from pydantic import AfterValidator, Field, NonNegativeFloat, PositiveInt

from sidrec.config.backbone import Backbone, DlrmBackbone, PpnetBackbone
from sidrec.config.item import Item, SidCoordItem
from sidrec.config.pooling import MeanPooling, Pooling
from sidrec.config.section import section, without_repeats

Columns = Annotated[tuple[str, ...], AfterValidator(without_repeats)]


@section
class ModelConfig:
    """The ranker."""

    embedding_dim: Annotated[PositiveInt, Field(multiple_of=4)] = 16
    """Width D of every table, a multiple of 4 as FBGEMM wants it."""
    item: Item = SidCoordItem()
    history_pooling: Pooling = MeanPooling()
    """How histories become features of the backbone, whatever the item kind."""
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

    def __post_init__(self) -> None:
        if isinstance(self.backbone, PpnetBackbone):
            known = ("item", *self.context)
            strange = [name for name in self.backbone.priors if name not in known]
            if strange:
                raise ValueError(f"expected backbone.priors among {', '.join(known)}, got {strange[0]!r}")
