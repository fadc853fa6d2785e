"""The model section: item, context, backbone."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, NonNegativeFloat, PositiveInt

from sidrec.config.item import Item, SidCoordItem
from sidrec.config.section import section, without_repeats

Columns = Annotated[tuple[str, ...], AfterValidator(without_repeats)]


# Which backbone ranks. Every default cites its source.


@section
class DeepFmBackbone:
    """TorchRec's SimpleDeepFMNN (DeepFM, arXiv 1703.04247), its logit in place of its probability.

    TorchRec's factorization machine takes every coordinate of the embeddings for a feature of its own.
    """

    kind: Literal["deepfm"] = "deepfm"
    dense_layer: PositiveInt = 64
    """Hidden width of the dense arch; its last layer has the embedding's width and is added."""
    deep_layer: PositiveInt = 128
    """Width of the deep part's one layer."""


Widths = tuple[PositiveInt, ...]
SomeWidths = Annotated[Widths, Field(min_length=1)]


@section
class DlrmFamily:
    """What TorchRec's DLRM and its kin have in common."""

    dense_layers: Widths = (64,)
    """Hidden widths of the dense arch; its last layer has the embedding's width and is added."""
    over_layers: SomeWidths = (128, 64)
    """Hidden widths of the over arch; its last layer has width 1 and is added."""


@section
class DlrmBackbone(DlrmFamily):
    """TorchRec's DLRM (arXiv 1906.00091): dot products of all pairs of features."""

    kind: Literal["dlrm"] = "dlrm"


@section
class DlrmDcnBackbone(DlrmFamily):
    """TorchRec's DLRM_DCN, the model of MLPerf's DLRM-DCNv2: a low-rank cross network (DCN V2, arXiv 2008.13535)."""

    kind: Literal["dlrm_dcn"] = "dlrm_dcn"
    cross_layers: PositiveInt = 3
    """Cross layers; 3 in MLPerf."""
    low_rank: PositiveInt = 64
    """Rank of a cross layer's matrix; MLPerf has 512 for features of 27 x 128."""


@section
class DlrmProjectionBackbone(DlrmFamily):
    """TorchRec's DLRM_Projection: dot products of two sets of vectors, each made of all features by a network."""

    kind: Literal["dlrm_projection"] = "dlrm_projection"
    branch_layers: Widths = (64,)
    """Hidden widths of both networks."""
    projections: tuple[PositiveInt, PositiveInt] = (8, 8)
    """Vectors, of the embedding's width, that either network makes."""


@section
class PpnetBackbone:
    """PPNet (PEPNet, arXiv 2302.01115): an MLP whose layers are scaled, row by row, by what the priors say."""

    kind: Literal["ppnet"] = "ppnet"
    layers: SomeWidths = (256, 128, 64)
    """Hidden widths of the MLP; a last layer of width 1 is added."""
    gate_hidden: PositiveInt = 64
    """Hidden width of every gate; 64 in FuxiCTR's PPNet."""
    priors: Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(without_repeats)] = ("item", "user_id")
    """Features whose embeddings learn through the gates too: "item", the target's, or columns of model.context."""


Backbone = Annotated[
    DlrmBackbone | DlrmDcnBackbone | DlrmProjectionBackbone | DeepFmBackbone | PpnetBackbone,
    Field(discriminator="kind"),
]


# How a history becomes one vector of the backbone. Every default cites its source.


@section
class MeanPooling:
    """The mean over the history, whatever the target."""

    kind: Literal["mean"] = "mean"


@section
class TargetAttentionPooling:
    """DIN's local activation (arXiv 1706.06978): sum_t a_t h_t, a_t = MLP([h_t; e; h_t - e; h_t * e]) with target e.

    PReLU and no softmax as in the paper; the inputs are those of the authors' code.
    """

    kind: Literal["target_attention"] = "target_attention"
    hidden: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (36,)
    """Hidden widths of the MLP; a last layer of width 1 is added. 36 is the paper's Figure 2."""
    softmax: bool = False
    """Make the weights of a history sum to one. The paper does not, to keep how strong the interest is."""


Pooling = Annotated[MeanPooling | TargetAttentionPooling, Field(discriminator="kind")]


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
