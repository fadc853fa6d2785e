"""The section `model`: the ranker around the item, that is context, dense features, pooling of histories, backbone.

How items are represented is the chapter `item`. Every default cites its source; [I] marks one of our own.
"""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, NonNegativeFloat, PositiveInt

from sidrec.config.item import Item, SidCoordItem
from sidrec.config.section import changed_keys, section, without_repeats

Columns = Annotated[tuple[str, ...], AfterValidator(without_repeats)]


# Backbones.


@section
class DeepFmBackbone:
    """TorchRec's SimpleDeepFMNN (DeepFM, arXiv 1703.04247), with the logit as output instead of the probability.

    TorchRec's factorization machine treats each coordinate of the embeddings as a feature.
    """

    kind: Literal["deepfm"] = "deepfm"
    dense_layer: PositiveInt = 64
    """Hidden width of the dense arch; an output layer of the embedding width follows."""
    deep_layer: PositiveInt = 128
    """Width of the single layer of the deep part."""


Widths = tuple[PositiveInt, ...]
SomeWidths = Annotated[Widths, Field(min_length=1)]


@section
class DlrmFamily:
    """Keys that all variants of TorchRec's DLRM share."""

    dense_layers: Widths = (64,)
    """Hidden widths of the dense arch; an output layer of the embedding width follows."""
    over_layers: SomeWidths = (128, 64)
    """Hidden widths of the over arch; an output layer of width 1 follows."""


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
    """TorchRec's DLRM_Projection: two networks map all features to a set of vectors each; dot products between both."""

    kind: Literal["dlrm_projection"] = "dlrm_projection"
    branch_layers: Widths = (64,)
    """Hidden widths of both networks."""
    projections: tuple[PositiveInt, PositiveInt] = (8, 8)
    """Number of vectors of the embedding width that each network outputs."""


@section
class PpnetBackbone:
    """PPNet (PEPNet, arXiv 2302.01115): an MLP whose layers are scaled per row by gates on the prior features."""

    kind: Literal["ppnet"] = "ppnet"
    layers: SomeWidths = (256, 128, 64)
    """Hidden widths of the MLP; an output layer of width 1 follows."""
    gate_hidden: PositiveInt = 64
    """Hidden width of every gate; 64 in FuxiCTR's PPNet."""
    priors: Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(without_repeats)] = ("item", "user_id")
    """Prior features: "item" (the target) or columns of model.context. Gradients flow through the gates into them."""


Backbone = Annotated[
    DlrmBackbone | DlrmDcnBackbone | DlrmProjectionBackbone | DeepFmBackbone | PpnetBackbone,
    Field(discriminator="kind"),
]


# Pooling of histories.


class PoolingKind:
    """What the rest of sidrec asks a pooling."""

    @property
    def searches_sids(self) -> bool:
        """Whether the loader compares the SIDs of target and history."""
        return False

    def kept(self, history_length: int) -> int:
        """Most items of a history that a batch holds for a row. history_length: items read from the log."""
        return history_length


@section
class MeanPooling(PoolingKind):
    """The mean over the history, independent of the target."""

    kind: Literal["mean"] = "mean"


@section
class TargetAttentionPooling(PoolingKind):
    """DIN's local activation (arXiv 1706.06978): sum_t a_t h_t, a_t = MLP([h_t; e; h_t - e; h_t * e]) with target e.

    PReLU and no softmax as in the paper; the inputs are those of the authors' code.
    """

    kind: Literal["target_attention"] = "target_attention"
    hidden: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (36,)
    """Hidden widths of the MLP; an output layer of width 1 follows. 36 is from the paper's Figure 2."""
    softmax: bool = False
    """Normalise the weights of a history to sum 1. The paper does not: the sum is the strength of the interest."""


@section
class PmaPooling(PoolingKind):
    """Pooling by multi-head attention of learned queries (PMA; Set Transformer, arXiv 1810.00825), as Meta pools
    histories of SIDs (arXiv 2504.02137, appendix A). Independent of the target. Padding is masked [I]."""

    kind: Literal["pma"] = "pma"
    seeds: PositiveInt = 32
    """Learned queries; the result is the mean over them [I]. 32 in the paper."""
    heads: PositiveInt = 1
    """Attention heads; must divide model.embedding_dim."""
    hidden: PositiveInt | None = None
    """Width of the MLP's hidden layer; left out, four times the embeddings' [I]."""
    positions: bool = True
    """Add sinusoidal positions, counted back from the latest item. Without them the order does not matter."""
    norm: bool = True
    """Layer norms before attention and MLP, as in the paper."""


Route = Literal["recent", "prefix", "random"]


@section
class RoutesPooling(PoolingKind):
    """Several routes through a long history, attention within and among them, after R2LED (arXiv 2602.06622). Of that
    paper only the abstract is public: the routes and the attention are ours [I].

    Each route selects up to `keep` of the last data.history_length items, in the loader, so that tables are read for
    the selected items alone. A later route selects among those that earlier routes left.
    """

    kind: Literal["routes"] = "routes"
    routes: Annotated[tuple[Route, ...], Field(min_length=1), AfterValidator(without_repeats)] = ("recent", "prefix")
    """recent: the latest items. prefix: items that share leading codes of the target's SID, those with most first,
    later ones first among equals. random: a draw, as a control."""
    keep: PositiveInt = 20
    """Most items of a route."""

    @property
    def searches_sids(self) -> bool:
        return "prefix" in self.routes

    def kept(self, history_length: int) -> int:
        return len(self.routes) * self.keep


Pooling = Annotated[MeanPooling | TargetAttentionPooling | PmaPooling | RoutesPooling, Field(discriminator="kind")]


@section
class ModelConfig:
    """The ranker."""

    embedding_dim: Annotated[PositiveInt, Field(multiple_of=4)] = 16
    """Width D of every table; FBGEMM requires a multiple of 4."""
    item: Item = SidCoordItem()
    """How items are represented."""
    history_pooling: Pooling = MeanPooling()
    """How the embeddings of a history become one feature of the backbone. gate_sid has its own attention and accepts
    mean only."""
    context: Columns = ("user_id",)
    """Id columns of the log that get an embedding table each, in addition to the item."""
    dense: Columns | None = None
    """int_* columns to use; left out, all of the log."""
    stats_as_dense: bool = True
    """Add log1p of the stat_* columns to the dense features, so that all item kinds see the same statistics."""
    hid_init: NonNegativeFloat | None = None
    """Initial HID rows are uniform in [-hid_init, hid_init]; left out, TorchRec's default 1/sqrt(rows)."""
    sid_init: NonNegativeFloat | None = None
    """Initial rows of SID tables are uniform in [-sid_init, sid_init]; left out, TorchRec's default 1/sqrt(rows)."""
    backbone: Backbone = DlrmBackbone()
    """Network from features to the logit."""

    def __post_init__(self) -> None:
        if isinstance(self.backbone, PpnetBackbone):
            known = ("item", *self.context)
            strange = [name for name in self.backbone.priors if name not in known]
            if strange:
                raise ValueError(f"expected backbone.priors among {', '.join(known)}, got {strange[0]!r}")
        pooling = self.history_pooling
        if isinstance(pooling, PmaPooling) and self.embedding_dim % pooling.heads:
            expected = f"a divisor of embedding_dim {self.embedding_dim}"
            raise ValueError(f"expected {expected} in history_pooling.heads, got {pooling.heads}")
        if pooling.searches_sids and self.item.sids is None and self.item.pools_histories:
            expected = f"history_pooling.routes without prefix with item kind {self.item.kind}, which has no SIDs"
            raise ValueError(f"expected {expected}")

    def unused_keys(self) -> dict[str, str]:
        """Keys with values that the item kind does not use -> what is expected instead."""
        item, kind = self.item, f"with item kind {self.item.kind}"
        found: dict[str, str] = {}
        if item.hids is None:
            found |= changed_keys(self, ["hid_init"], f"{kind}, which has no HIDs")
        if item.sids is None:
            found |= changed_keys(self, ["sid_init"], f"{kind}, which has no SIDs")
        if not item.pools_histories:
            found |= changed_keys(self, ["history_pooling"], f"{kind}, which {item.pools_no_history}")
        return found
