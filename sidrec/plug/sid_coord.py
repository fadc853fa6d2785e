"""SID-Coord for anyone's own model: between its embedding collection and whatever eats the KeyedTensor.

Shapes: B rows, A alignment features, D width.
"""

from typing import Any

import torch
from torch import Tensor, fx, nn
from torchrec.modules.embedding_configs import DataType
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from sidrec.config.gate import StatsGate
from sidrec.config.index import ExactIndex
from sidrec.config.item import SidCoordItem
from sidrec.config.tokens import GranularityTokens
from sidrec.model.tables import embedding_tables, one_feature_each
from sidrec.plug.catalog_rows import catalog_rows
from sidrec.plug.coordination import Coordination
from sidrec.plug.sid_join import SidJoin
from sidrec.plug.statistics import Statistics
from sidrec.schema import ContractError
from sidrec.sid.catalog import Catalog

PUBLISHED = SidCoordItem()
"""As the paper has it."""


class SidCoord(nn.Module):
    """Puts gated HID and SID (SID-Coord, arXiv 2604.10471) in the place of an item's embedding.

    The model's own item table is the HID table. SID tables come beside it, in a collection `sid_tables` with one table
    per granularity, called as these (`s1`, `s12`): sharded, planned and trained as the model's own tables are. Item ids
    are the rows of the item table; those that the catalog does not know have no SID, 0 among them.

    catalog: item id -> SID. Checkpoints remember its fingerprint.
    item: the target's feature, one id per row at most, and the key of its embedding. history: the feature of the items
        that a user liked, for the alignment; without one there is none.
    items, dim: rows and width D of the item table.
    statistics: what the gate sees; needed where it sees any, as it does by default.
    alignment_key: key of the alignment features [B, A] in the result; left out, they go into the item's embedding.
    device: of everything here; with `meta`, for models that TorchRec is to shard, of the SID tables alone.
    data_type: of the SID tables.

    Raises ContractError for a catalog that does not fit, for a gate without statistics, and where histories should
    become features: they stay the model's own.
    """

    catalog_fingerprint: Tensor

    def __init__(
        self,
        catalog: Catalog,
        items: int,
        dim: int,
        item: str = "item_id",
        history: str | None = None,
        statistics: Statistics | None = None,
        config: SidCoordItem = PUBLISHED,
        alignment_key: str | None = None,
        device: torch.device | None = None,
        data_type: DataType = DataType.FP32,
    ) -> None:
        super().__init__()
        _check(config, statistics)
        rows = catalog_rows(catalog, config, items)
        self.item, self.alignment_key, self.fingerprint = item, alignment_key, rows.fingerprint
        with torch.device("cpu"):  # a model may be built on `meta` as a whole; these layers have first values already
            self.join = SidJoin(rows, item, history, statistics)
            moments = statistics.moments() if statistics else (torch.zeros(0), torch.zeros(0))
            self.coordination = Coordination(config, dim, *moments, history is not None, alignment_key is None)
            self.register_buffer("catalog_fingerprint", _as_bytes(rows.fingerprint))
        if device is not None and device.type != "meta":
            self.to(device)
        tables = one_feature_each(dict(zip(rows.granularities, rows.table_rows, strict=True)))
        self.sid_tables = embedding_tables(tables, dim, data_type=data_type, device=device)
        self._checked = False

    def forward(self, embedded: KeyedTensor, features: KeyedJaggedTensor) -> KeyedTensor:
        """The same keys, in the same order; the item's embedding is e, all others are as they were.

        embedded: what the model's collection made of `features`, which also hold history and statistics.
        Raises ContractError for a batch without these features, and at the first batch where the dense layers have an
        optimizer in backward, or a checkpoint of another catalog was loaded.
        """
        looked_up = embedded.to_dict()
        target_BD, aligned_BA = self.target(looked_up[self.item], features)
        return _with_target(looked_up, self.item, target_BD, self.alignment_key, aligned_BA)

    def target(self, hid_BD: Tensor, features: KeyedJaggedTensor) -> tuple[Tensor, Tensor]:
        """e [B, D] and the alignment features [B, A]. hid_BD: the item's embedding. Raises as `forward` does."""
        self._check_once()
        joined = self.join(features, not isinstance(self.sid_tables, EmbeddingBagCollection))
        return self.coordination(hid_BD, self.sid_tables(joined.granules), joined)

    def _check_once(self) -> None:
        if self._checked:
            return
        for name, parameter in self.coordination.named_parameters():
            if hasattr(parameter, "_in_backward_optimizers"):
                expected = (
                    "an optimizer of the dense layers; apply_optimizer_in_backward takes embedding_parameters(model)"
                )
                raise ContractError(f"SID-Coord, {name}", expected, "an optimizer in backward")
        found = bytes(self.catalog_fingerprint.tolist()).hex()
        if found != self.fingerprint:
            raise ContractError("checkpoint of a plugged model", f"the catalog {self.fingerprint}", f"{found}")
        self._checked = True

    def _load_from_state_dict(self, *arguments: Any, **options: Any) -> None:
        super()._load_from_state_dict(*arguments, **options)
        self._checked = False


@fx.wrap  # the pipelines trace the model, and fx cannot look into the making of a KeyedTensor
def _with_target(
    looked_up: dict[str, Tensor], item: str, target_BD: Tensor, alignment_key: str | None, aligned_BA: Tensor
) -> KeyedTensor:
    embedded = {**looked_up, item: target_BD} | ({alignment_key: aligned_BA} if alignment_key else {})
    return KeyedTensor.from_tensor_list(list(embedded), list(embedded.values()))


def _check(config: SidCoordItem, statistics: Statistics | None) -> None:
    if isinstance(config.gate, StatsGate) and statistics is None:
        expected = "StatFeatures or ItemCounts for the gate to see, or gate kind sum"
        raise ContractError("SID-Coord, statistics", expected, "none")
    # Histories and the item table are the host's own; hashed and subword tables are choices of sidrec's ranker alone.
    wanted = {"history": ("hid",), "hid_index": ExactIndex(), "tokens": GranularityTokens(), "index": ExactIndex()}
    for name, value in wanted.items():
        if getattr(config, name) != value:
            raise ContractError(f"SID-Coord in another model, config.{name}", f"{value}", getattr(config, name))


def _as_bytes(fingerprint: str) -> Tensor:
    return torch.tensor(list(bytes.fromhex(fingerprint)), dtype=torch.uint8)
