"""Sequences of an EmbeddingCollection: targets and histories mixed of HID and SID, id by id.

Shapes: B rows, P ids of a sequence in one line, D width.
"""

import re
from collections.abc import Mapping
from itertools import chain
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchrec.datasets.utils import Batch
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor

from sidrec.parallel.sharding import EveryTypeSharder
from sidrec.plug import ItemCounts, SidCoord, StatFeatures, dense_parameters, embedding_parameters, load_without_sids
from sidrec.schema import ContractError
from tests.plug.hosts import DIM, ITEMS, KNOWN, T, batch, catalog, counts
from tests.plug.test_sid_coord import gate_of, slow_sid, unknown
from tests.plug.training import CPU, batches
from tests.ranks import run_on_ranks

SEQUENCES = ("item_id", "history")
CARTS = ("item_id", "history", "carts")


def collection(*features: str, **options: Any) -> EmbeddingCollection:
    torch.manual_seed(1)
    names = list(features or SEQUENCES)
    table = EmbeddingConfig(name="t_item", embedding_dim=DIM, num_embeddings=ITEMS, feature_names=names)
    return EmbeddingCollection(tables=[table], **options)


def sid_coord(**options: Any) -> SidCoord:
    torch.manual_seed(0)
    options = {"catalog": catalog(), "history": "history", "statistics": counts(), "sequences": SEQUENCES, **options}
    module = SidCoord(items=ITEMS, dim=DIM, **options)
    if module.coordination.project is not None and not options.get("warm_start"):
        nn.init.normal_(module.coordination.project.weight)
    return module


def kjt(
    rows: Mapping[str, list[list[int]]], kind: torch.dtype = torch.int64, weighted: bool = False
) -> KeyedJaggedTensor:
    lengths = [len(row) for ids in rows.values() for row in ids]
    values = [value for ids in rows.values() for row in ids for value in row]
    weights = torch.rand(len(values)) if weighted else None
    return KeyedJaggedTensor(list(rows), torch.tensor(values, dtype=kind), weights, torch.tensor(lengths))


def slow_vector(module: SidCoord, hid_D: Tensor, item: int) -> Tensor:
    """e of one item, without alignment features."""
    gate = gate_of(module).value(torch.tensor([[float(ITEMS - 1 - item)]]))[0]
    return hid_D if unknown(item) else gate * hid_D + (1 - gate) * slow_sid(module, item)


BEYOND = KNOWN + 3
INPUTS: dict[str, dict[str, list[list[int]]]] = {
    "jagged histories": {"item_id": [[3], [7], [9]], "history": [[1, 2, 5], [], [4]]},
    "empty histories": {"item_id": [[3], [7]], "history": [[], []]},
    "items beyond the catalog": {"item_id": [[BEYOND], [7]], "history": [[BEYOND, 2], [BEYOND]]},
    "the unknown item": {"item_id": [[0], [7]], "history": [[0, 2, 0], [0]]},
    "rows without a target": {"item_id": [[], [7], []], "history": [[1], [2, 3], []]},
    "no target at all": {"item_id": [[], []], "history": [[1], [2, 3]]},
    "the same item many times": {"item_id": [[5], [5]], "history": [[5, 5, 5], [5]]},
    "one row": {"item_id": [[12]], "history": [[12, 13, 14, 15]]},
    "several features of a table": {"item_id": [[3], [7]], "history": [[1], [2, 4]], "carts": [[8, 9, BEYOND], []]},
    "a feature that nothing mixes": {"item_id": [[3], [7]], "history": [[1], [2]], "cat": [[1], [2]]},
}


@pytest.mark.parametrize("name", INPUTS)
def test_each_id_has_its_own_mixture(name: str) -> None:
    rows = INPUTS[name]
    sequences = CARTS if "carts" in rows else SEQUENCES
    module, features = sid_coord(sequences=sequences), kjt(rows)
    hids = collection(*sequences)(features)
    found = module.sequences(hids, features)
    assert list(found) == list(hids)
    _, aligned_BA = module.target(torch.zeros(len(rows["item_id"]), DIM), features)
    assert module.coordination.project is not None
    added_BD = aligned_BA @ module.coordination.project.weight.t()
    for feature in sequences:
        assert torch.equal(found[feature].lengths(), hids[feature].lengths())
        ids = [(row, item) for row, items in enumerate(rows[feature]) for item in items]
        assert len(found[feature].values()) == len(ids)
        for place, (row, item) in enumerate(ids):
            expected_D = slow_vector(module, hids[feature].values()[place], item)
            expected_D = expected_D + added_BD[row] if feature == "item_id" else expected_D
            torch.testing.assert_close(found[feature].values()[place], expected_D)


def test_sid_tables_change_attended_histories() -> None:
    """And only of items that have a SID."""
    module, rows = sid_coord(), {"item_id": [[3], [7]], "history": [[1, BEYOND, 2], [0, 9]]}
    features = kjt(rows)
    hids = collection()(features)
    before = module.sequences(hids, features)["history"].values()
    with torch.no_grad():
        for table in module.sid_tables.parameters():
            table.add_(torch.randn(table.shape))
    after = module.sequences(hids, features)["history"].values()
    assert (before != after).all(dim=1).tolist() == [True, False, True, False, True]
    assert torch.equal(after[[1, 3]], hids["history"].values()[[1, 3]])


VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "int32 ids": ({}, {"kind": torch.int32}),
    "weighted ids": ({}, {"weighted": True}),
    "indices in the result": ({"need_indices": True}, {}),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_of_batch_and_collection(name: str) -> None:
    options, kind = VARIANTS[name]
    module, rows = sid_coord(), INPUTS["jagged histories"]
    plain, features = kjt(rows), kjt(rows, **kind)
    expected = module.sequences(collection()(plain), plain)
    found = module.sequences(collection(**options)(features), features)
    for feature in SEQUENCES:
        torch.testing.assert_close(found[feature].values(), expected[feature].values())


def test_ids_beyond_the_table_have_no_sid() -> None:
    """A host's own collection refuses or remaps them; SID-Coord leaves their vectors as they are."""
    module, features = sid_coord(), kjt({"item_id": [[ITEMS + 5], [3]], "history": [[-1, 10**9], [1]]})
    lengths = {name: features[name].lengths() for name in SEQUENCES}
    hids = {name: JaggedTensor(torch.randn(int(lengths[name].sum()), DIM), lengths=lengths[name]) for name in SEQUENCES}
    found = module.sequences(hids, features)["history"].values()
    assert torch.equal(found[:2], hids["history"].values()[:2])
    assert not torch.equal(found[2], hids["history"].values()[2])


def test_under_autocast_they_are_as_exact() -> None:
    module, features = sid_coord(), kjt(INPUTS["jagged histories"])
    hids = collection()(features)
    exact = module.sequences(hids, features)
    half = {name: JaggedTensor(found.values().bfloat16(), lengths=found.lengths()) for name, found in hids.items()}
    with torch.autocast("cpu", torch.bfloat16):
        mixed, of_half = module.sequences(hids, features), module.sequences(half, features)
    for name in SEQUENCES:
        assert torch.equal(mixed[name].values(), exact[name].values())
        assert of_half[name].values().dtype == torch.bfloat16
        torch.testing.assert_close(of_half[name].values().float(), exact[name].values(), atol=0.05, rtol=0.05)


@pytest.mark.parametrize("pooling", [PoolingType.SUM, PoolingType.MEAN])
def test_bags_and_sequences_in_one_call(pooling: PoolingType) -> None:
    """The target in a bag, whatever its pooling; the history in a sequence. The call equals one of each kind."""
    table = EmbeddingBagConfig(
        name="t_bag", embedding_dim=DIM, num_embeddings=ITEMS, feature_names=["item_id"], pooling=pooling
    )
    bags, items = EmbeddingBagCollection(tables=[table]), collection()
    module, features = sid_coord(alignment_key="alignment"), batch(8).sparse_features
    embedded, found = module(bags(features), features, items(features))
    alone = module(bags(features), features)
    assert embedded.keys() == alone.keys() == ["item_id", "alignment"]
    torch.testing.assert_close(embedded.values(), alone.values())
    sequences = module.sequences(items(features), features)
    assert sorted(sequences) == ["alignment", *sorted(found)]
    torch.testing.assert_close(sequences["alignment"].values(), alone["alignment"])
    for name, jagged in found.items():
        torch.testing.assert_close(jagged.values(), sequences[name].values())


def test_a_history_in_a_sequence_and_the_target_in_a_bag() -> None:
    """With and without alignment features; the collection of sequences does not read the target."""
    table = EmbeddingBagConfig(name="t", embedding_dim=DIM, num_embeddings=ITEMS, feature_names=["item_id"])
    features, bags = kjt(INPUTS["items beyond the catalog"]), EmbeddingBagCollection(tables=[table])
    hids = collection("history")(features)
    ids = INPUTS["items beyond the catalog"]["history"]
    for history in ("history", None):
        module = sid_coord(history=history, sequences=("history",))
        embedded, found = module(bags(features), features, hids)
        assert list(found) == ["history"]
        for vector_D, hid_D, item in zip(found["history"].values(), hids["history"].values(), chain(*ids), strict=True):
            torch.testing.assert_close(vector_D, slow_vector(module, hid_D, item))
        assert not torch.equal(embedded["item_id"][1], bags(features)["item_id"][1])


def test_a_warm_start_begins_at_the_old_model() -> None:
    """A state dict of the same model without SID-Coord fits, and sequences are the HIDs, bit by bit."""
    torch.manual_seed(0)
    model, features = AttentionRanker(warm_start=True), batch(8).sparse_features
    old = {name: torch.randn(value.shape) for name, value in model.state_dict().items() if "sid_coord" not in name}
    load_without_sids(model, old)
    hids = model.items(features)
    found = model.sid_coord.sequences(hids, features)
    for name in SEQUENCES:
        assert torch.equal(found[name].values(), hids[name].values())
    assert torch.equal(model.items.embeddings["t_item"].weight, old["items.embeddings.t_item.weight"])


def test_tables_that_start_at_0() -> None:
    """Id i is the catalog's item i + 1: all as in a table that is shifted by one row."""
    shown = torch.arange(ITEMS + 1).float()
    at_0 = sid_coord(first_id=0, statistics=ItemCounts(shown[1:]))
    at_1 = SidCoord(catalog(), ITEMS + 1, DIM, "item_id", "history", ItemCounts(shown), sequences=SEQUENCES)
    rows = {"item_id": [[0], [], [KNOWN - 1], [KNOWN]], "history": [[0, 1, 0], [2], [], [ITEMS - 1, 5]]}
    later = {name: [[item + 1 for item in row] for row in ids] for name, ids in rows.items()}
    state = at_0.state_dict()
    state |= {name: value for name, value in at_1.state_dict().items() if name.endswith(("mean_S", "std_S"))}
    at_0.load_state_dict(state)
    at_1.load_state_dict(state)
    hids = collection()(kjt(rows))
    found, expected = at_0.sequences(hids, kjt(rows)), at_1.sequences(hids, kjt(later))
    for name in SEQUENCES:
        torch.testing.assert_close(found[name].values(), expected[name].values())
        assert not torch.equal(found[name].values()[0], hids[name].values()[0]), "id 0 has a SID"


def test_counts_of_each_id_in_the_batch() -> None:
    shown = counts().counts_IS[:, 0]
    rows = INPUTS["jagged histories"]
    stats = {f"shown_{name}": [[int(shown[item]) for item in row] for row in rows[name]] for name in SEQUENCES}
    features = kjt({**rows, **stats})
    statistics = StatFeatures(("shown_item_id",), sequences={"history": ("shown_history",)})
    by_batch, by_item = sid_coord(statistics=statistics), sid_coord()
    state = by_item.state_dict()
    by_batch.load_state_dict(state)
    hids = collection()(features)
    found, expected = (module.sequences(hids, features) for module in (by_batch, by_item))
    for name in SEQUENCES:
        torch.testing.assert_close(found[name].values(), expected[name].values())


# What cannot be.


def refused(sentence: str) -> Any:
    return pytest.raises(ContractError, match=re.escape(sentence))


def test_refusals() -> None:
    features = kjt({**INPUTS["jagged histories"], "shown": [[1], [2], [3]]})
    hids = collection()(features)
    with refused(
        "SID-Coord, sequences: expected the sequences of SidCoord(sequences=(...)), such as the target and the"
    ):
        sid_coord(sequences=()).sequences(hids, features)
    with refused("SID-Coord, sequences: expected a key item_id; did you mean item?, got ['history', 'item']"):
        sid_coord().sequences({"item": hids["item_id"], "history": hids["history"]}, features)
    short = JaggedTensor(hids["history"].values()[1:], lengths=hids["history"].lengths())
    with refused("SID-Coord, sequences, history: expected a vector for each of its 4 ids, got 3"):
        sid_coord().sequences({**hids, "history": short}, features)
    with refused("SID-Coord, statistics: expected counts of the items in history: StatFeatures(sequences={'history': "):
        sid_coord(statistics=StatFeatures(("shown",)))
    with refused("StatFeatures, sequences, history: expected one feature for each of ('a', 'b'), got ('c',)"):
        StatFeatures(("a", "b"), sequences={"history": ("c",)})
    short_counts = StatFeatures(("shown",), sequences={"history": ("shown",)})
    with refused("batch, feature shown: expected a count for each of the 4 ids of history, got 3"):
        sid_coord(statistics=short_counts).sequences(hids, features)
    with refused("SID-Coord, sequences: expected a key carts, got ['history', 'item_id']"):
        sid_coord(sequences=CARTS).sequences(hids, features)
    with refused("expected the features ['item_id', 'history', 'carts'], got none called carts"):
        sid_coord(sequences=CARTS).target(torch.zeros(3, DIM), features)
    with refused("SID-Coord, first_id: expected the row of the catalog's item 1, at least 0, got -1"):
        sid_coord(first_id=-1)
    with refused("catalog, item ids: expected ids below 40, the rows of the item table, with item 1 in row 11, got 40"):
        sid_coord(first_id=11)


# Two ranks, all tables by rows.


class AttentionRanker(nn.Module):
    """Logits [B]: a bag of a category, the target, and what the target attends to in the history."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        table = EmbeddingBagConfig(name="t_cat", embedding_dim=DIM, num_embeddings=11, feature_names=["cat"])
        self.sid_coord = sid_coord(**options)
        self.bags, self.items = EmbeddingBagCollection(tables=[table]), collection()
        self.out = nn.Linear(3 * DIM, 1)

    def forward(self, features: KeyedJaggedTensor) -> Tensor:
        items = self.sid_coord.sequences(self.items(features), features)
        target_BD = items["item_id"].values()
        history_BTD = items["history"].to_padded_dense(T)
        weight_BT = torch.sigmoid(torch.einsum("btd,bd->bt", history_BTD, target_BD))
        attended_BD = torch.einsum("bt,btd->bd", weight_BT, history_BTD)
        return self.out(torch.cat([self.bags(features).values(), target_BD, attended_BD], dim=1)).squeeze(1)


STEPS = 4


class Training(nn.Module):
    """Loss and logits [B] of a batch, as TorchRec's pipelines want them."""

    def __init__(self) -> None:
        super().__init__()
        self.ranker = AttentionRanker()

    def forward(self, rows: Batch) -> tuple[Tensor, Tensor]:
        logits_B = self.ranker(rows.sparse_features)
        return functional.binary_cross_entropy_with_logits(logits_B, rows.labels), logits_B.detach()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, rank: int, world: int) -> list[Tensor]:
    """The logits of every step."""
    found = []
    for rows in batches(rank, world, STEPS):
        optimizer.zero_grad()
        loss, logits_B = model(rows)
        loss.backward()
        optimizer.step()
        found.append(logits_B)
    return found


def sharded_by_rows(world: int) -> tuple[DistributedModelParallel, torch.optim.Optimizer]:
    model = Training()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    apply_optimizer_in_backward(torch.optim.SGD, embedding_parameters(model), {"lr": 1.0})
    names = ["t_cat", "t_item", *(table.name for table in model.ranker.sid_coord.sid_tables.embedding_bag_configs())]
    planner = EmbeddingShardingPlanner(
        topology=Topology(world_size=world, compute_device="cpu"),
        constraints={name: ParameterConstraints(sharding_types=["row_wise"]) for name in names},
        debug=False,
    )
    sharders: list[Any] = [EveryTypeSharder(), EmbeddingCollectionSharder()]
    plan = planner.plan(model, sharders)
    sharded = DistributedModelParallel(model, device=CPU, plan=plan, sharders=sharders)
    sharded.load_state_dict(state)
    return sharded, torch.optim.SGD([parameter for _, parameter in dense_parameters(sharded)], lr=0.5)


def train_sharded(rank: int, world: int) -> tuple[list[Tensor], list[Tensor], int]:
    """In a loop, and in a pipeline with the number of its collections."""
    looped = train(*sharded_by_rows(world), rank, world)
    pipeline = TrainPipelineSparseDist(*sharded_by_rows(world), CPU, pipeline_postproc=True)
    rows = batches(rank, world, STEPS)
    return looped, [pipeline.progress(rows) for _ in range(STEPS)], len(pipeline._pipelined_modules)


def test_two_ranks_equal_one_process() -> None:
    model = Training()
    groups = [{"params": list(embedding_parameters(model)), "lr": 1.0}]
    groups += [{"params": [parameter for _, parameter in dense_parameters(model)], "lr": 0.5}]
    alone = train(model, torch.optim.SGD(groups), 0, 1)
    assert (alone[0] - alone[-1]).abs().max() > 0.05
    first, second = run_on_ranks(2, train_sharded)
    for way in (0, 1):
        for step in range(STEPS):
            found_B = torch.cat([first[way][step], second[way][step]])
            torch.testing.assert_close(found_B, alone[step], rtol=0, atol=1e-5)
    assert first[2] == second[2] == 3, "bags, items and SID tables"
