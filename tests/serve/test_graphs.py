"""Every alternative of the recipe is exported: the traced graph, of any size, gives the trained modules' logits."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor

from sidrec.data.dataset import Sizes
from sidrec.export.graph import (
    ExplainedRows,
    ScoredRows,
    example_inputs,
    item_inputs,
    traced,
    write_explanation,
    write_graph,
)
from sidrec.model.history import index_history
from sidrec.model.ranker import Ranker
from tests.model.test_ranker import _MODEL, ALTERNATIVES, ROWS, B, V, batch_for, ranker_for, tables_for

REFUSED = {"routes"}
"""Alternatives that `sidrec.export.exporting.refuse` names; managed HIDs are among the graphs, as are all others."""
IN_ONNX = ("SID-Coord", "two views without a mixture", "target attention", "GateSID", "match statistics", "HID only")


def of_one_history(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Inputs of the graph whose rows share the first history: targets of equal SID are aligned once."""
    made = {**inputs, "history": inputs["history"][:1]}
    if "sid" in inputs:
        target_B = inputs["target"].tolist()
        sids = [(tuple(inputs["sid"][item].tolist()), bool(inputs["has_sid"][item])) for item in target_B]
        first = [sids.index(sid) for sid in sids]
        rows = sorted(set(first))
        made["distinct"] = inputs["target"][rows]
        made["same_as"] = torch.tensor([rows.index(row) for row in first])
    return made


def config_and_sizes(model: dict[str, Any]) -> tuple[Any, Sizes]:
    config = _MODEL.validate_python({"embedding_dim": 8, **model})
    context = dict.fromkeys(config.context, ROWS)
    return config, Sizes(tables_for(config.item), context, 2, (1.0, 2.0), (1.0, 0.5), content=V, rows_per_lane=B // 2)


def inputs_and_logits(ranker: Ranker, item: Any) -> tuple[dict[str, Tensor], Tensor]:
    """A batch as inputs of the graph, and the ranker's own logits."""
    batch = batch_for(ranker)
    begun = ranker._begin_lookups(batch)
    found = ranker._look_up(batch, begun)
    read = item_inputs(item)
    values: dict[str, Any] = {
        "hid": found.embedded.get("hid"),
        "sid": ranker.item.semantic.embed(found) if "sid" in read else None,  # type: ignore[operator, union-attr]
        "has_sid": found.has_sid_U,
        "content": ranker.item.embed(found) if "content" in read else None,  # type: ignore[operator]
        "token_weights": found.token_weights_UW,
        "granules": found.granules_UG,
        "updates": None if found.updates_U is None else found.updates_U[:, None],
    }
    inputs = {name: values[name].contiguous() for name in read}
    inputs |= {"target": batch.target_B, "history": batch.history_BT, "stats": batch.stats_BS, "dense": batch.dense_BX}
    if begun.context is not None:
        inputs |= {f"context_{name}": value.contiguous() for name, value in begun.context.to_dict().items()}
    return inputs, ranker.score(batch)


@pytest.mark.parametrize("name", [name for name in ALTERNATIVES if name not in REFUSED])
@torch.no_grad()
def test_the_traced_graph_gives_the_rankers_logits(name: str) -> None:
    config, sizes = config_and_sizes(ALTERNATIVES[name])
    ranker = ranker_for(**ALTERNATIVES[name]).eval()
    inputs, logit_B = inputs_and_logits(ranker, config.item)
    graph = traced(ScoredRows(ranker, shared=False), example_inputs(config, sizes)).module()
    assert torch.allclose(graph(inputs), logit_B, atol=1e-6)


@pytest.mark.parametrize("name", IN_ONNX)
@torch.no_grad()
def test_onnxruntime_gives_the_rankers_logits_with_histories_apart_and_shared(name: str, tmp_path: Path) -> None:
    config, sizes = config_and_sizes(ALTERNATIVES[name])
    ranker = ranker_for(**ALTERNATIVES[name]).eval()
    inputs, logit_B = inputs_and_logits(ranker, config.item)
    same = {**inputs, "history": inputs["history"][:1].expand(B, -1)}
    found = {}
    for shared in (False, True):
        write_graph(ranker, example_inputs(config, sizes), tmp_path / "graph.onnx", shared)
        session = onnxruntime.InferenceSession(tmp_path / "graph.onnx")
        read = {each.name for each in session.get_inputs()}
        given = of_one_history(inputs) if shared else same
        for fed, key in ((given, shared), *(() if shared else ((inputs, "apart"),))):
            arrays = {key: np.ascontiguousarray(value.numpy()) for key, value in fed.items() if key in read}
            found[key] = session.run(None, arrays)[0]
    assert np.abs(found["apart"] - logit_B.numpy()).max() <= 1e-6
    assert np.abs(found[True] - found[False]).max() <= 1e-6


# What explains a logit.

EXPLAINED = (
    "SID-Coord",
    "vector gate",
    "shrinkage",
    "updates for the gate",
    "match statistics",
    "histogram",
    "token weights both ways",
    "without alignment",
    "without gate",
    "SID only",
    "GateSID",
)


def explanation(ranker: Ranker) -> dict[str, np.ndarray]:
    """By the model itself: its gate's values, and logits minus those of an alignment that compares nothing."""
    batch = batch_for(ranker)
    found = {}
    if ranker.gate is not None:
        found["gate"] = ranker.gate_values(batch).numpy()
    if ranker.item.alignment is not None:
        logit_B = ranker.score(batch)
        nothing = lambda _, of: (*of[:2], index_history(torch.zeros_like(of[2].bag_BT)), *of[3:])  # noqa: E731
        with ranker.item.alignment.register_forward_pre_hook(nothing):
            found["alignment"] = (logit_B - ranker.score(batch)).numpy()
    return found


@pytest.mark.parametrize("name", EXPLAINED)
@torch.no_grad()
def test_the_explanation_is_the_trained_modules(name: str, tmp_path: Path) -> None:
    config, sizes = config_and_sizes(ALTERNATIVES[name])
    ranker = ranker_for(**ALTERNATIVES[name]).eval()
    inputs, _ = inputs_and_logits(ranker, config.item)
    expected = explanation(ranker)
    graph = traced(ExplainedRows(ranker), example_inputs(config, sizes)).module()
    found = dict(zip(ExplainedRows(ranker).outputs, graph(inputs), strict=True))
    assert found.keys() == expected.keys()
    for output, values_B in expected.items():
        assert np.abs(values_B).max() > 1e-4
        np.testing.assert_allclose(found[output].numpy(), values_B, atol=1e-6)
    if name == EXPLAINED[0]:
        outputs = write_explanation(ranker, example_inputs(config, sizes), tmp_path / "explain.onnx")
        session = onnxruntime.InferenceSession(tmp_path / "explain.onnx")
        fed = {each.name: np.ascontiguousarray(inputs[each.name].numpy()) for each in session.get_inputs()}
        for output, values_B in zip(outputs, session.run(None, fed), strict=True):
            np.testing.assert_allclose(values_B, expected[output], atol=1e-6)


def test_models_that_nothing_explains_get_no_graph(tmp_path: Path) -> None:
    config, sizes = config_and_sizes(ALTERNATIVES["HID only"])
    made = write_explanation(
        ranker_for(**ALTERNATIVES["HID only"]), example_inputs(config, sizes), tmp_path / "explain"
    )
    assert made == ()
    assert not list(tmp_path.iterdir())
