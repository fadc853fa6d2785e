"""Which backbone ranks. Every default cites its source."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, PositiveInt

from sidrec.config.section import section, without_repeats

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
class DeepFmBackbone:
    """TorchRec's SimpleDeepFMNN (DeepFM, arXiv 1703.04247), its logit in place of its probability.

    TorchRec's factorization machine takes every coordinate of the embeddings for a feature of its own.
    """

    kind: Literal["deepfm"] = "deepfm"
    dense_layer: PositiveInt = 64
    """Hidden width of the dense arch; its last layer has the embedding's width and is added."""
    deep_layer: PositiveInt = 128
    """Width of the deep part's one layer."""


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
