"""The whole ranker: every alternative of the recipe learns and can be pipelined, and the loss counts real rows."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torchrec.distributed.train_pipeline.tracing import Tracer
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from sidrec.config.item import HashedItem, Item, SemanticItem
from sidrec.config.item_parts import ManagedCollisionIndex, ModuloIndex, SpmTokens
from sidrec.config.model import ModelConfig
from sidrec.data.batch import Batch
from sidrec.data.dataset import Sizes
from sidrec.data.item_tables import ItemTable
from sidrec.model.fusion_and_gate import TargetAwareGate
from sidrec.model.history import CPU, GPU
from sidrec.model.ranker import Budget, Ranker, parameter_budget
from sidrec.model.tables import managed_table

B, U, T, V, ROWS = 6, 9, 4, 3, 20
_MODEL: TypeAdapter[ModelConfig] = TypeAdapter(ModelConfig)


def ranker_for(**model: Any) -> Ranker:
    """A ranker with real tables in this process."""
    config = _MODEL.validate_python({"embedding_dim": 8, **model})
    torch.manual_seed(0)
    context = dict.fromkeys(config.context, ROWS)
    sizes = Sizes(tables_for(config.item), context, 2, (1.0, 2.0), (1.0, 0.5), content=V, rows_per_lane=B // 2)
    ranker = Ranker(config, sizes)
    if ranker.managed_hids is not None:
        ranker.managed_hids = managed_table(
            "hid", sizes.item_tables["hid"], 8, None, torch.device("cpu"), rows=ranker.updates is not None
        )
    if ranker.updates is not None:
        ranker.updates.counts_R.copy_(torch.arange(ROWS + 1))
    for collection in (ranker.items, ranker.context):
        if collection is not None:
            collection.to_empty(device="cpu")
            for table in collection.parameters():
                torch.nn.init.normal_(table, std=0.3)
    return ranker


def tables_for(item: Item) -> dict[str, ItemTable]:
    """Tables as `item_tables` names them."""
    tables = {}
    if isinstance(item, HashedItem):
        managed = item.hid_index if isinstance(item.hid_index, ManagedCollisionIndex) else None
        tables["hid"] = ItemTable(ROWS, ("hid",), managed)
    if isinstance(item, SemanticItem):
        if isinstance(item.tokens, SpmTokens):
            return tables | {"sid": ItemTable(ROWS, ("spm_1", "spm_2", "spm_3"))}
        if isinstance(item.index, ModuloIndex):
            return tables | {"sid": ItemTable(ROWS, item.granularities)}
        tables |= {name: ItemTable(ROWS, (name,)) for name in item.granularities}
    return tables


def batch_for(ranker: Ranker, weight_B: torch.Tensor | None = None) -> Batch:
    generator = torch.Generator().manual_seed(1)

    def ids(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(0, high, shape, generator=generator)

    managed = ranker.managed_hids._embedding_module if ranker.managed_hids is not None else None
    collections = [collection for collection in (managed, ranker.items) if collection is not None]
    configs = [config for collection in collections for config in collection.embedding_bag_configs()]
    keys = [name for config in configs for name in config.feature_names]
    lengths = torch.tensor([0] + [1] * (U - 1), dtype=torch.int32).repeat(len(keys))
    items = KeyedJaggedTensor(keys=keys, values=ids(ROWS, (U - 1) * len(keys)), lengths=lengths)
    columns = list(ranker.context_columns)
    context = KeyedJaggedTensor(
        keys=columns, values=ids(ROWS, B * len(columns)), lengths=torch.ones(B * len(columns), dtype=torch.int32)
    )
    weights = torch.ones(B) if weight_B is None else weight_B
    return Batch(
        items=items,
        context=context,
        token_weights_UW=torch.cat([torch.zeros(1, 5), torch.rand(U - 1, 5, generator=generator)]),
        granules_UG=torch.arange(U)[:, None] % torch.tensor([2, 3, 4, 5, 6]),
        content_UV=torch.arange(U)[:, None] * torch.tensor([0.1, -0.2, 0.3]),
        target_B=ids(U - 1, B) + 1,
        history_BT=ids(U, B, T),
        dense_BX=torch.randn(B, 2, generator=generator),
        stats_BS=torch.rand(B, 2, generator=generator) * 100,
        label_B=ids(2, B).float(),
        weight_B=weights,
        row_B=torch.arange(B),
        user_B=ids(ROWS, B),
        item_B=ids(ROWS, B),
        rows_per_rank=weights.sum(),
        chance_B=torch.arange(B) / B,
    )


_BOTH_HISTORIES = {"kind": "sid_coord", "history": ["hid", "sid"]}
ALTERNATIVES: dict[str, dict[str, Any]] = {
    "SID-Coord": {},
    "HID only": {"item": {"kind": "hid"}},
    "SID only": {"item": {"kind": "sid"}},
    "without multi-resolution": {
        "item": {"kind": "sid_coord", "granularities": ["s1", "s2", "s3"], "fusion": {"kind": "mean"}}
    },
    "without gate": {"item": {"kind": "sid_coord", "gate": {"kind": "sum"}}},
    "without alignment": {"item": {"kind": "sid_coord", "alignment": {"kind": "none"}}},
    "query attention": {"item": {"kind": "sid_coord", "fusion": {"kind": "query"}}},
    "MLP attention": {"item": {"kind": "sid_coord", "fusion": {"kind": "concat_mlp"}}},
    "bucketised statistics": {"item": {"kind": "sid_coord", "gate": {"kind": "stats", "stats": {"kind": "bucketize"}}}},
    "vector gate": {"item": {"kind": "sid_coord", "gate": {"kind": "stats", "per_dimension": True}}},
    "equal lengths": {"item": {"kind": "sid_coord", "gate": {"kind": "stats", "lengths": "equal"}}},
    "histogram": {"item": {"kind": "sid_coord", "alignment": {"kind": "histogram"}}},
    "raw statistics": {"item": {"kind": "sid_coord", "alignment": {"kind": "raw_stats"}}},
    "both histories": {"item": _BOTH_HISTORIES},
    "three views": {"item": {"kind": "sid_coord", "views": ["mixed", "hid", "sid"]}},
    "three views, PPNet": {
        "item": {"kind": "sid_coord", "views": ["sid", "hid", "mixed"]},
        "backbone": {"kind": "ppnet"},
    },
    "two views without a mixture": {"item": {"kind": "sid_coord", "views": ["hid", "sid"]}},
    "three views with dropout": {
        "item": {
            **_BOTH_HISTORIES,
            "views": ["mixed", "hid", "sid"],
            "hid_dropout": 0.4,
            "hid_dropout_history": 0.2,
            "sid_dropout": 0.2,
        }
    },
    "dropout of HIDs alone": {"item": {"kind": "hid", "hid_dropout": 0.5, "hid_dropout_history": 0.2}},
    "dropout beside content": {"item": {"kind": "content", "hid_dropout": 0.5, "hid_dropout_history": 0.2}},
    "token weights multiply": {"item": {"kind": "sid_coord", "token_weights": "multiply"}},
    "token weights appended": {"item": {"kind": "sid", "token_weights": "append"}},
    "token weights both ways": {"item": {"kind": "sid_coord", "token_weights": "both"}},
    "target attention": {"history_pooling": {"kind": "target_attention"}, "item": _BOTH_HISTORIES},
    "target attention, softmax, two layers": {
        "history_pooling": {"kind": "target_attention", "softmax": True, "hidden": [8, 4]},
        "item": _BOTH_HISTORIES,
    },
    "target attention over HIDs": {"history_pooling": {"kind": "target_attention"}, "item": {"kind": "hid"}},
    "target attention over SIDs": {"history_pooling": {"kind": "target_attention"}, "item": {"kind": "sid"}},
    "counts in the attention": {"item": {"kind": "sid_coord", "fusion": {"kind": "counted"}}},
    "attention by the HID": {"item": {"kind": "sid_coord", "fusion": {"kind": "hid_query"}}},
    "HIDs aligned with SIDs": {"item": {"kind": "sid_coord", "contrast": {}}},
    "attention of seeds": {"history_pooling": {"kind": "pma", "seeds": 3, "heads": 2}, "item": _BOTH_HISTORIES},
    "routes": {"history_pooling": {"kind": "routes", "keep": 2}, "item": _BOTH_HISTORIES},
    "interpolated AutoDis": {"item": {"kind": "sid_coord", "alignment": {"kind": "autodis", "grid": 64}}},
    "DLRM_DCN": {"backbone": {"kind": "dlrm_dcn"}},
    "DLRM_Projection": {"backbone": {"kind": "dlrm_projection"}},
    "DeepFM": {"backbone": {"kind": "deepfm"}},
    "PPNet": {"backbone": {"kind": "ppnet"}},
    "PPNet on HIDs": {"item": {"kind": "hid"}, "backbone": {"kind": "ppnet"}},
    "HID and SID side by side": {"item": {"kind": "hid_and_sid"}},
    "mean of HID and SID": {"item": {"kind": "sid_coord", "gate": {"kind": "mean"}, "fusion": {"kind": "mean"}}},
    "sum of granularities": {"item": {"kind": "hid_and_sid", "fusion": {"kind": "sum"}}},
    "granularities concatenated": {"item": {"kind": "sid", "fusion": {"kind": "concat_project"}}},
    "prefixes in one table": {
        "item": {"kind": "hid_and_sid", "granularities": ["s1", "s12"], "index": {"kind": "modulo", "rows": 99}}
    },
    "subwords": {
        "item": {"kind": "hid_and_sid", "tokens": {"kind": "spm", "vocabulary": 9}, "fusion": {"kind": "sum"}}
    },
    "match statistics": {"item": {"kind": "hid_and_sid", "alignment": {"kind": "match_stats"}}},
    "GateSID": {"item": {"kind": "gate_sid", "contrastive": {}}},
    "GateSID without its contrastive loss": {"item": {"kind": "gate_sid"}},
    "content vectors": {"item": {"kind": "content"}},
    "target attention over content": {"history_pooling": {"kind": "target_attention"}, "item": {"kind": "content"}},
    "PPNet on both": {"item": {"kind": "hid_and_sid", "history": ["sid"]}, "backbone": {"kind": "ppnet"}},
    "shrinkage": {"item": {"kind": "sid_coord", "gate": {"kind": "shrinkage"}}},
    "updates for the gate": {"item": {"kind": "sid_coord", "gate": {"kind": "stats", "updates": True}}},
    "shrinkage of managed HIDs": {
        "item": {
            "kind": "sid_coord",
            "gate": {"kind": "shrinkage"},
            "hid_index": {"kind": "managed_collision", "rows": 20},
        }
    },
    "managed HIDs": {"item": {"kind": "hid", "hid_index": {"kind": "managed_collision", "rows": 20}}},
    "managed HIDs and SIDs": {"item": {"kind": "sid_coord", "hid_index": {"kind": "managed_collision", "rows": 20}}},
    "no context": {"context": []},
    "statistics for the gate alone": {"stats_as_dense": False},
}


@pytest.mark.parametrize("name", ALTERNATIVES)
def test_every_alternative_learns_in_all_its_parameters(name: str) -> None:
    ranker = ranker_for(**ALTERNATIVES[name])
    loss, (terms, logits_B) = ranker(batch_for(ranker))
    assert logits_B.shape == (B,)
    assert terms["loss"] == loss
    assert not any(detached.requires_grad for detached in (*terms.values(), logits_B))
    loss.backward()
    still = [name for name, p in ranker.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == [], "parameters that the loss does not reach"


@pytest.mark.parametrize("name", ALTERNATIVES)
def test_the_pipeline_sees_every_collection(name: str) -> None:
    ranker = ranker_for(**ALTERNATIVES[name])
    names = ["items", "managed_hids", "context"]
    graph = Tracer(leaf_modules=names).trace(ranker)
    called = {node.target for node in graph.nodes if node.op == "call_module"}
    assert {name for name in names if getattr(ranker, name) is not None} <= called


@pytest.mark.parametrize("name", ALTERNATIVES)
def test_the_operators_of_a_gpu_compute_the_same(name: str) -> None:
    ranker = ranker_for(**ALTERNATIVES[name])
    batch, outcomes = batch_for(ranker), []
    for paths in (CPU, GPU._replace(regions="plain")):
        torch.manual_seed(3)  # some kinds draw in training
        ranker.paths = paths
        ranker.zero_grad()
        loss, _ = ranker(batch)
        loss.backward()
        gradients = {name: p.grad.clone() for name, p in ranker.named_parameters() if p.grad is not None}
        outcomes.append((loss.detach(), gradients))
    torch.testing.assert_close(outcomes[0], outcomes[1])
    Tracer(leaf_modules=["items", "context", "managed_hids"]).trace(ranker)


def test_loss_is_the_mean_over_real_rows() -> None:
    ranker = ranker_for()
    batch = batch_for(ranker, torch.tensor([1.0, 1, 1, 1, 0, 0]))
    loss, (_, logits_B) = ranker(batch)
    probability = torch.sigmoid(logits_B)
    slow = [
        -math.log(p if y == 1 else 1 - p) for p, y in zip(probability.tolist(), batch.label_B.tolist(), strict=True)
    ]
    assert loss.item() == pytest.approx(sum(slow[:4]) / 4, rel=1e-5)


def test_padding_rows_move_nothing() -> None:
    ranker = ranker_for()
    gradients = []
    for label in (0.0, 1.0):
        batch = batch_for(ranker, torch.tensor([1.0, 1, 1, 1, 1, 0]))
        label_B = batch.label_B.clone()
        label_B[5] = label
        ranker.zero_grad()
        ranker(replace(batch, label_B=label_B))[0].backward()
        gradients.append([p.grad.clone() for p in ranker.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_the_gate_moves_the_target_between_hid_and_sid() -> None:
    ranker = ranker_for()
    assert isinstance(ranker.gate, TargetAwareGate)
    assert ranker.items is not None
    batch = batch_for(ranker)
    scores = []
    for bias in (-50.0, 50.0):
        torch.nn.init.constant_(ranker.gate.mlp.get_parameter("2.bias"), bias)
        before = ranker.score(batch)
        with torch.no_grad():
            ranker.items.embedding_bags["hid"].weight.mul_(3)
        scores.append((before - ranker.score(batch)).abs().max().item())
        with torch.no_grad():
            ranker.items.embedding_bags["hid"].weight.div_(3)
    only_history, with_target = scores
    assert with_target > only_history


def test_a_token_of_weight_zero_is_masked() -> None:
    ranker = ranker_for(item={"kind": "sid", "token_weights": "multiply", "fusion": {"kind": "mean"}})
    batch = batch_for(ranker)
    batch.token_weights_UW[:, 2] = 0
    ranker(batch)[0].backward()
    assert ranker.items is not None
    masked, heard = (ranker.items.embedding_bags[name].weight.grad for name in ("s3", "s1"))
    assert not masked.any()
    assert heard.any()


def test_multiplied_weights_of_one_change_nothing() -> None:
    torch.manual_seed(0)
    plain = ranker_for(item={"kind": "sid_coord"})
    torch.manual_seed(0)
    weighted = ranker_for(item={"kind": "sid_coord", "token_weights": "multiply"})
    batch = batch_for(plain)
    batch.token_weights_UW.fill_(1)
    torch.testing.assert_close(weighted(batch)[1][1], plain(batch)[1][1], rtol=0, atol=0)


# dense layers: 2 int_* columns, 1 history length, 2 statistics = 5 inputs
BOTTOM = (5 * 64 + 64) + (64 * 8 + 8)


def top(features: int) -> int:
    """DLRM's upper layers: pairs of features and of each with the dense vector, beside it."""
    inputs = 8 + (features + 1) * features // 2
    return (inputs * 128 + 128) + (128 * 64 + 64) + (64 + 1)


def budget_of(**model: Any) -> Budget:
    config = TypeAdapter(ModelConfig).validate_python({"embedding_dim": 8, **model})
    context = dict.fromkeys(config.context, ROWS)
    return parameter_budget(config, Sizes(tables_for(config.item), context, 2, (1.0, 2.0), (1.0, 0.5), content=3))


def test_a_model_counted_by_hand() -> None:
    found = budget_of(item={"kind": "hid"})
    assert found == Budget(20, 20 * 8, 20 * 8, BOTTOM + top(3))  # item, history, user


def test_a_shared_table_counts_once() -> None:
    item = {"kind": "hid_and_sid", "granularities": ["s1", "s12"], "fusion": {"kind": "sum"}}
    assert budget_of(item=item).item_rows == 60
    shared = budget_of(item={**item, "index": {"kind": "modulo", "rows": 20}})
    assert shared == Budget(40, 40 * 8, 20 * 8, BOTTOM + top(5))


def test_managed_rows_count_as_others_do() -> None:
    managed = {"hid_index": {"kind": "managed_collision", "rows": ROWS}}
    for kind in ("hid", "sid_coord"):
        assert budget_of(item={"kind": kind, **managed}) == budget_of(item={"kind": kind})


@pytest.mark.parametrize("kind", ["sid", "sid_coord", "hid_and_sid", "gate_sid", "content"])
def test_counts_are_those_of_the_ranker(kind: str) -> None:
    found, ranker = budget_of(item={"kind": kind}), ranker_for(item={"kind": kind})
    counted = found.item_parameters + found.context_parameters + found.dense_parameters
    assert counted == sum(p.numel() for p in ranker.parameters())


def test_counting_draws_no_random_number() -> None:
    before = torch.get_rng_state()
    budget_of()
    assert torch.equal(torch.get_rng_state(), before)
