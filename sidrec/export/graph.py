"""The ranker after its lookups as a graph of ONNX: the modules that were trained, not a copy of them.

Inputs of the graph, by name; each is there if the model reads it:

    hid, sid, content       float32 [U, D]   e_hid, e_sid and the projected content of the items; row 0 is zero
    has_sid                 bool [U]         whether the item has a SID
    token_weights           float32 [U, W]   granules: int64 [U, G]   updates: float32 [U, 1]
    target, history         int64 [B], [B, T]      places of the items among the U; 0 is padding; history [1, T] where
                                             all rows share one
    distinct, same_as       int64 [K], [B]         where all rows share a history: places of targets, one of each SID;
                                             which of these has the SID of each row's target
    stats, dense            float32 [B, S], [B, X]
    context_COLUMN          float32 [B, D]

Shapes: U items, B rows, T history positions, D width, W token weights, G granularities, S statistics, X dense columns.
"""

import logging
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sidrec.config.item import Item
from sidrec.config.item_parts import MatchStatsAlignment
from sidrec.config.model import ModelConfig
from sidrec.data.dataset import Sizes
from sidrec.data.item_tables import HID
from sidrec.model.history import EXPORT
from sidrec.model.ranker import Ranker, RowInputs
from sidrec.model.semantic_part import ItemLookup

LOGIT = "logit"
GATE, ALIGNMENT = "gate", "alignment"
SID, HAS_SID = "sid", "has_sid"


class ScoredRows(nn.Module):
    """The ranker's part that is exported: from the inputs above to logits [B].

    shared: all rows have one history, and the input `history` is [1, T]. knots: as in `Paths`.
    """

    def __init__(self, ranker: Ranker, shared: bool, knots: int = 0) -> None:
        super().__init__()
        self.ranker, self.shared = ranker.eval(), shared
        self.paths = EXPORT._replace(shared=shared, knots=knots)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        return self.ranker.score_rows(self.items(inputs), self.rows(inputs), self.context(inputs))

    def items(self, inputs: dict[str, Tensor]) -> ItemLookup:
        """What was looked up of items."""
        return ItemLookup(
            embedded={HID: inputs[HID]} if HID in inputs else {},
            token_weights_UW=inputs.get("token_weights", inputs["target"].new_zeros(0, 0).float()),
            granules_UG=inputs.get("granules"),
            has_sid_U=inputs.get("has_sid"),
            updates_U=inputs["updates"].squeeze(1) if "updates" in inputs else None,
            paths=self.paths,
            distinct=(inputs["distinct"], inputs["same_as"]) if "distinct" in inputs else None,
            computed={name: inputs[name] for name in ("sid", "content") if name in inputs},
        )

    def rows(self, inputs: dict[str, Tensor]) -> RowInputs:
        """The rows' own values."""
        history_BT = inputs["history"]
        if self.shared:
            history_BT = history_BT.expand(inputs["target"].shape[0], -1)
        return RowInputs(inputs["target"], history_BT, inputs["stats"], inputs["dense"])

    def context(self, inputs: dict[str, Tensor]) -> list[Tensor]:
        """Embeddings of the context columns."""
        return [inputs[f"context_{name}"] for name in self.ranker.context_columns]


class ExplainedRows(ScoredRows):
    """What explains logits: of `outputs`, those that the ranker has.

    gate: `Ranker.gate_of_rows`. alignment: how much the logit [B] exceeds that with an empty alignment.
    """

    def __init__(self, ranker: Ranker, knots: int = 0) -> None:
        super().__init__(ranker, shared=False, knots=knots)
        has = {GATE: ranker.gate is not None, ALIGNMENT: ranker.item.alignment is not None}
        self.outputs = tuple(name for name, is_there in has.items() if is_there)

    def forward(self, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:  # type: ignore[override]
        items, rows, found = self.items(inputs), self.rows(inputs), []
        if GATE in self.outputs:
            updates_B = None if items.updates_U is None else items.updates_U.index_select(0, rows.target_B)
            found.append(self.ranker.gate_of_rows(rows.stats_BS, items.has_sid(rows.target_B), updates_B))
        if ALIGNMENT in self.outputs:
            context = self.context(inputs)
            empty_B = self.ranker.score_rows(replace(items, aligned=False), rows, context)
            found.append(self.ranker.score_rows(items, rows, context) - empty_B)
        return tuple(found)


def item_inputs(item: Item) -> tuple[str, ...]:
    """Names of the inputs that hold rows of items."""
    sids = item.sids
    read = {
        HID: item.hids is not None,
        SID: sids is not None,
        HAS_SID: sids is not None,
        "content": bool(item.content_columns),
        "token_weights": sids is not None and sids.token_weights in ("append", "both"),
        "granules": sids is not None and isinstance(sids.alignment, MatchStatsAlignment),
        "updates": item.reads_updates,
    }
    return tuple(name for name, is_read in read.items() if is_read)


def example_inputs(config: ModelConfig, sizes: Sizes, rows: int = 5, items: int = 7) -> dict[str, Tensor]:
    """Zeros for every input, for tracing. Three history positions."""
    granularities = len(config.item.sids.granularities) if config.item.sids else 0
    dim = config.embedding_dim
    of_items = {
        HID: torch.zeros(items, dim),
        SID: torch.zeros(items, dim),
        HAS_SID: torch.zeros(items, dtype=torch.bool),
        "content": torch.zeros(items, dim),
        "token_weights": torch.zeros(items, granularities),
        "granules": torch.zeros(items, granularities, dtype=torch.int64),
        "updates": torch.zeros(items, 1),
    }
    return {
        **{name: of_items[name] for name in item_inputs(config.item)},
        "target": torch.zeros(rows, dtype=torch.int64),
        "history": torch.zeros(rows, 3, dtype=torch.int64),
        "stats": torch.zeros(rows, len(sizes.stats_mean)),
        "dense": torch.zeros(rows, sizes.dense),
        **{f"context_{name}": torch.zeros(rows, dim) for name in sizes.context_rows},
    }


def write_graph(ranker: Ranker, inputs: dict[str, Tensor], path: Path, shared: bool = False, knots: int = 0) -> None:
    """Writes a graph of ONNX. inputs: as `example_inputs` makes them; ranker: with its layers' trained weights.

    shared: of candidates that share one history. knots: as in `Paths`.
    """
    _write(ScoredRows(ranker, shared, knots), of_one_history(inputs) if shared else inputs, path, (LOGIT,))


def write_explanation(ranker: Ranker, inputs: dict[str, Tensor], path: Path, knots: int = 0) -> tuple[str, ...]:
    """Writes a graph of what explains logits; returns its outputs. None are, and no file is, if nothing does."""
    explained = ExplainedRows(ranker, knots)
    if explained.outputs:
        _write(explained, inputs, path, explained.outputs)
    return explained.outputs


def _write(module: ScoredRows, inputs: dict[str, Tensor], path: Path, outputs: tuple[str, ...]) -> None:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it reports that torchvision is missing
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.export's and onnxscript's own deprecations
        program = traced(module, inputs)
        exported = torch.onnx.export(program, input_names=list(inputs), output_names=list(outputs), verbose=False)
    assert exported is not None, "torch.onnx.export without a file returns the graph"
    exported.save(path)


def of_one_history(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The example's inputs for rows that share the first one's history."""
    made = {**inputs, "history": inputs["history"][:1]}
    if HAS_SID in inputs:
        made |= {"distinct": inputs["target"][:4], "same_as": torch.zeros_like(inputs["target"])}
    return made


def traced(module: ScoredRows, inputs: dict[str, Tensor]) -> torch.export.ExportedProgram:
    """The module's operators, for any number of rows, items and history positions."""
    sizes = {name: _varying(name, module.shared) for name in inputs}
    return torch.export.export(module, (inputs,), dynamic_shapes=(sizes,))


def _varying(name: str, shared: bool) -> dict[int, Any]:
    """The dimensions of an input that vary."""
    varies = torch.export.Dim.DYNAMIC
    if name != "history":
        return {0: varies}
    return {1: varies} if shared else {0: varies, 1: varies}
