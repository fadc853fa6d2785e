"""What all item kinds with SIDs share: what is looked up of items, its dropout, e_sid, and the alignment with it.

Shapes: B rows, U items, T history positions, G SID features, W weighted and V content columns of an item, D width,
K distinct SIDs of the rows' targets.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torchrec.sparse.jagged_tensor import KeyedTensor

from sidrec.config.item import SemanticItem
from sidrec.data.dataset import Sizes
from sidrec.data.item_tables import HID
from sidrec.model.alignment import Alignment, build_alignment
from sidrec.model.cpu_fusion import fuse_on_cpu
from sidrec.model.fused import FUSION, FUSION_WITH_UNIT
from sidrec.model.fusion_and_gate import GranularityFusion, build_fusion
from sidrec.model.history import HistoryIndex, Paths, index_history, paths_of
from sidrec.model.regions import is_traced


@dataclass(frozen=True)
class ItemLookup:
    """What is looked up for the unique items of a batch.

    embedded: item feature -> [U, D]. All features are split from the KeyedTensor in one call: a slice of it would have
    a gradient as wide as the whole tensor. token_weights_UW, granules_UG, content_UV: as in Batch. has_sid_U: bool;
    None if all bags but bag 0 have a SID. chance_B: as in Batch, for dropout; None outside training. updates_U: updates
    that each bag's HID row has received, float32; None where the item kind reads none. paths: None for those of the
    tensors' device. distinct: of rows with one history, a target of each SID, [K], and which of them every row's target
    is aligned as, [B]; None to align them all. aligned: False to align targets as with empty histories.
    computed: results that forward and losses share.
    """

    embedded: dict[str, Tensor]
    token_weights_UW: Tensor
    granules_UG: Tensor | None = None
    content_UV: Tensor | None = None
    has_sid_U: Tensor | None = None
    chance_B: Tensor | None = None
    updates_U: Tensor | None = None
    paths: Paths | None = None
    distinct: tuple[Tensor, Tensor] | None = None
    aligned: bool = True
    computed: dict[str, Tensor] = field(default_factory=dict)

    @property
    def regions(self) -> str:
        """As in `Paths`; none while a pipeline of TorchRec traces the model, which only looks for lookups."""
        if is_traced(self.embedded):
            return "none"
        paths = self.paths or paths_of(next(iter(self.embedded.values())).device)
        return paths.regions

    @property
    def on_cpu(self) -> bool:
        """Whether a CPU computes, by functions that may have a gradient of their own."""
        if is_traced(self.embedded):
            return False
        device = next(iter(self.embedded.values())).device
        return device.type == "cpu" and not (self.paths or paths_of(device)).inline

    def columns_before(self, features: Sequence[str]) -> int:
        """Columns of the lookup's output in front of these features', if they are its last ones; else 0."""
        return _columns_before(self.embedded, features)

    def index(self, history_BT: Tensor) -> HistoryIndex:
        """The index of the batch's histories."""
        return index_history(history_BT, self.paths)

    # An item without a SID has an e_sid of zero. Wherever SIDs are mixed in or compared, it is left out:

    def has_sid(self, bags: Tensor) -> Tensor:
        """Whether the item of each bag has a SID; False at padding."""
        if self.has_sid_U is None:
            return bags > 0
        return self.has_sid_U.index_select(0, bags.flatten()).view_as(bags)  # a third of the time of indexing

    def with_sids(self, history: HistoryIndex) -> HistoryIndex:
        """The history without its items that have no SID."""
        return history if self.has_sid_U is None else history.where(self.has_sid(history.own_BT))


# The parts of a lookup's output.


def split_lookup(found: Any) -> dict[str, Tensor]:
    """Feature -> embeddings [U, D], from what a collection of tables gives; waits for other ranks.

    found: has `to_dict` or, being TorchRec's awaitable, what it waits for has. Backward joins the parts' gradients: by
    completing the tensor that those of the fusion lie in, or else by a copy of all.
    """
    keyed = found.wait() if hasattr(found, "wait") else found
    if not isinstance(keyed, KeyedTensor) or not torch.is_grad_enabled() or not keyed.values().requires_grad:
        return dict(keyed.to_dict())
    parts = _Split.apply(keyed.values(), keyed.length_per_key())  # type: ignore[no-untyped-call]
    return dict(zip(keyed.keys(), parts, strict=True))


class _Split(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values_UF: Tensor, widths: Sequence[int]) -> tuple[Tensor, ...]:
        ctx.widths = widths
        return torch.split(values_UF, list(widths), dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        columns = sum(ctx.widths)
        first = [sum(ctx.widths[:k]) for k in range(len(gradients))]
        last = gradients[-1]
        start = last.storage_offset() - first[-1]  # of a joint gradient, if the last part is in one
        joined = [
            gradient.untyped_storage().data_ptr() == last.untyped_storage().data_ptr()
            and gradient.storage_offset() == start + column
            and gradient.stride() == (columns, 1)
            for gradient, column in zip(gradients, first, strict=True)
        ]
        room = last.untyped_storage().nbytes() // last.element_size() == len(last) * columns
        if start != 0 or not room or not joined[-1] or sum(joined) < len(joined) - 1:
            return torch.cat(gradients, dim=1), None
        joint_UF = last.as_strided((len(last), columns), (columns, 1), 0)
        for gradient, column, there in zip(gradients, first, joined, strict=True):
            if not there:
                joint_UF[:, column : column + gradient.shape[1]].copy_(gradient)
        return joint_UF, None


def _columns_before(embedded: Mapping[str, Tensor], features: Sequence[str]) -> int:
    if is_traced(embedded):
        return 0
    names = list(embedded)
    before = len(names) - len(features)
    return sum(embedded[name].shape[1] for name in names[:before]) if names[before:] == list(features) else 0


# Dropout of HIDs and SIDs in training, row by row (`sidrec.config.item.DroppedHids`).


def hids_dropped(items: ItemLookup, rate: float) -> Tensor | None:
    """Rows that drop HIDs, bool [B]; None if none does. Of two rates, the rows of the lower are among the higher's."""
    return None if items.chance_B is None or not rate else items.chance_B < rate


def sids_dropped(items: ItemLookup, rate: float) -> Tensor | None:
    """Rows whose target drops its SID, bool [B]; None if none does. They drop no HIDs if both rates add up to 1."""
    return None if items.chance_B is None or not rate else items.chance_B >= 1 - rate


def zero_where(dropped_B: Tensor | None, embedded_BD: Tensor) -> Tensor:
    """The embeddings, with zeros in the rows that drop them."""
    return embedded_BD if dropped_B is None else embedded_BD.masked_fill(dropped_B.unsqueeze(1), 0.0)


# e_sid and its alignment.


class SemanticPart(nn.Module):
    """Fuses an item's SID features to e_sid (SID-Coord, module I) and aligns target and history (module III).

    sids: names of the G features that are looked up; None for the config's granularities.
    multiply, append: uses of the catalog's token weights (ADC-SID, arXiv 2510.25622): scale the embeddings by them, or
    append the target's to the dense features. width: number of dense features.
    """

    def __init__(
        self,
        config: SemanticItem,
        dim: int,
        sids: tuple[str, ...] | None = None,
        impressions: Mapping[str, Tensor] | None = None,
    ) -> None:
        """impressions: as `build_fusion` takes them."""
        super().__init__()
        self.sids = config.granularities if sids is None else sids
        self.counted, self.guided = config.fusion.needs_counts, config.fusion.needs_hid
        self.multiply = config.token_weights in ("multiply", "both")
        self.append = config.token_weights in ("append", "both")
        self.fusion = build_fusion(config.fusion, len(self.sids), dim, impressions)
        self.alignment = build_alignment(config.alignment, len(config.granularities))
        self.width = (self.alignment.width if self.alignment else 0) + self.append * len(config.granularities)

    def embed(self, items: ItemLookup) -> Tensor:
        """e_sid [U, D]; computed once for a batch, and where a region does it, scaled to unit length too."""
        if "sid" not in items.computed:
            self._fuse(items)
        return items.computed["sid"]

    def _fuse(self, items: ItemLookup) -> None:
        granules = [items.embedded[name] for name in self.sids]
        if self.multiply:
            granules = [granule_UD * items.token_weights_UW[:, k : k + 1] for k, granule_UD in enumerate(granules)]
        if isinstance(self.fusion, GranularityFusion):
            with_unit = self.alignment is not None and self.alignment.compares_units
            found = fused(
                self.fusion, granules, items.regions, with_unit, items.on_cpu, items.columns_before(self.sids)
            )
            items.computed.update(zip(("sid", "unit"), found, strict=False))
        if "sid" not in items.computed:
            rows_UG, hid_UD = items.granules_UG if self.counted else None, items.embedded[HID] if self.guided else None
            items.computed["sid"] = self.fusion(torch.stack(granules, dim=1), rows_UG, hid_UD)

    def dense(
        self,
        sid_UD: Tensor,
        items: ItemLookup,
        target_B: Tensor,
        history: HistoryIndex,
        without_sid_B: Tensor | None = None,
    ) -> Tensor:
        """Alignment features and the target's token weights, where the recipe has them: [B, width].

        history: that of `items.with_sids`. without_sid_B: rows whose target is to be as an item without a SID.
        """
        features = []
        if self.alignment is not None:
            features.append(self._aligned(self.alignment, sid_UD, items, target_B, history, without_sid_B))
        if self.append:
            features.append(zero_where(without_sid_B, functional.embedding(target_B, items.token_weights_UW)))
        return torch.cat(features, dim=1) if features else target_B.to(sid_UD.dtype).unsqueeze(1)[:, :0]

    def _aligned(
        self,
        alignment: Alignment,
        sid_UD: Tensor,
        items: ItemLookup,
        target_B: Tensor,
        history: HistoryIndex,
        without_sid_B: Tensor | None,
    ) -> Tensor:
        """Features of the alignment, [B, width]."""
        compared, unit_UD = items.granules_UG if alignment.compares_granules else sid_UD, items.computed.get("unit")
        assert compared is not None, "batches have granules where the alignment needs them"
        history = history if items.aligned else history.emptied()
        if items.distinct is not None:
            return _aligned_once(alignment, compared, items, items.distinct, history)
        with_sid_B = items.has_sid(target_B)
        with_sid_B = with_sid_B if without_sid_B is None else with_sid_B & ~without_sid_B
        comparable = history.where(history.valid_BT & with_sid_B.unsqueeze(1))
        return alignment(compared, target_B, comparable, unit_UD)


def _aligned_once(
    alignment: Alignment, compared: Tensor, items: ItemLookup, distinct: tuple[Tensor, Tensor], history: HistoryIndex
) -> Tensor:
    """Features of the alignment, [B, width], for rows that share a history: computed once for each SID.

    A target without a SID is compared with nothing, which is computed once too.
    """
    target_K, row_B = distinct
    aligned_KE = alignment(compared, target_K, history.shared_by(target_K.shape[0]))
    none_1T = torch.zeros_like(history.valid_BT)
    alone_1E = alignment(compared, target_K[:1], history.shared_by(1).where(none_1T))
    return torch.where(items.has_sid(target_K).unsqueeze(1), aligned_KE, alone_1E).index_select(0, row_B)


def fused(
    fusion: GranularityFusion,
    granules: Sequence[Tensor],
    regions: str,
    with_unit: bool,
    on_cpu: bool = False,
    before: int = 0,
) -> tuple[Tensor, ...]:
    """e_sid [U, D], and e_sid / |e_sid| if with_unit, by a region, or without regions by a function for CPUs; nothing
    for kinds that have neither.

    granules: G embeddings [U, D]. regions: as in `Paths`. on_cpu: as in `ItemLookup`. before: columns in
    front of the granules' in the lookup's output, whose gradients theirs leave room for (`split_lookup`).
    """
    weights = fusion.region_weights() if regions != "none" or on_cpu else ()
    if not weights:
        return ()
    if fusion.watcher is not None:
        fusion.watcher(torch.stack(list(granules), dim=1))
    if regions == "none":
        return fuse_on_cpu(torch.stack(list(granules), dim=1), weights, with_unit, before)
    return (FUSION_WITH_UNIT if with_unit else FUSION)(regions, *granules, *weights, options=[float(before)])


def granule_impressions(config: SemanticItem, sizes: Sizes) -> dict[str, Tensor] | None:
    """Granularity -> train impressions of each row of its table [R, 1]; None if the fusion needs no counts."""
    if not config.fusion.needs_counts:
        return None
    found = {}
    for name in config.granularities:
        found[name] = torch.zeros(sizes.item_tables[name].rows, 1)
        if name in sizes.impressions:
            found[name][:, 0] = torch.as_tensor(sizes.impressions[name], dtype=torch.float32)
    return found
