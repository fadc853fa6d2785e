"""Operators of one step: the same number whatever the batch size, as each one costs a GPU a launch.

Counted on a CPU, on the sharded ranker of one rank: forward, loss, backward into the tables. Views, allocations and
profiler marks launch nothing and are left out; so are values that are read on the host, which do not compute. A fused
region counts as one: tests/model/test_regions.py compares each with the operators that it replaces.

Shapes: B rows, U item bags, T history positions.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torchrec.distributed import DistributedModelParallel
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from sidrec.config.item import SemanticItem
from sidrec.config.model import ModelConfig
from sidrec.config.recipe import OptimizerConfig, ParallelConfig
from sidrec.data.batch import Batch
from sidrec.data.dataset import Sizes
from sidrec.data.item_tables import HID, ItemTable
from sidrec.model.history import GPU
from sidrec.model.ranker import Ranker
from sidrec.parallel.planning import make_plan
from sidrec.parallel.process_group import joined_ranks
from sidrec.parallel.sharding import shard, sharders_of
from sidrec.plans.workload import Workload

SMALL, LARGE, U, T, ROWS = 2048, 65_536, 100, 3, 200
COUNTED = GPU._replace(regions="plain")
MODEL: TypeAdapter[ModelConfig] = TypeAdapter(ModelConfig)
ATTENTION = {"history_pooling": {"kind": "target_attention"}}
SID_COORD, RECOMMENDED = {"kind": "sid_coord"}, {"kind": "sid_coord", "preset": "recommended"}
GRID = {"alignment": {"kind": "autodis", "grid": 64}}
TWINS: dict[str, dict[str, Any]] = {
    "HID": {"item": {"kind": "hid"}},
    "HID, attention": {"item": {"kind": "hid"}, **ATTENTION},
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "SID-Coord without alignment": ("HID", {"item": {**SID_COORD, "alignment": {"kind": "none"}}}),
    "SID-Coord": ("HID", {"item": SID_COORD}),
    "SID-Coord, interpolated": ("HID", {"item": {**SID_COORD, **GRID}}),
    "recommended": ("HID", {"item": RECOMMENDED}),
    "SID-Coord, attention": ("HID, attention", {"item": SID_COORD, **ATTENTION}),
    "recommended, attention": ("HID, attention", {"item": RECOMMENDED, **ATTENTION}),
}
"""Model -> its twin with HIDs alone and the same pooling, and its recipe."""
MOST_OF_TWINS = {"HID": 120, "HID, attention": 125}
"""Operators of a step: a bound a little above what torch 2.13 and TorchRec 1.8 need."""
MOST_TIMES_ITS_TWIN = 1.6
ALLOCATIONS = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
HOST_READS = {"_local_scalar_dense"}


class Operators(TorchDispatchMode):
    """Counts operators that compute, by name. They are leaves: an operator made of others is seen as these."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        namespace, _, name = function._schema.name.partition("::")
        view = any(argument.alias_info and not argument.alias_info.is_write for argument in function._schema.arguments)
        if not view and namespace != "profiler" and name not in ALLOCATIONS | HOST_READS:
            self.counts[name] += 1
        return function(*args, **(kwargs or {}))


def ranker(config: ModelConfig) -> Ranker:
    """With the operators that run on CUDA, here on a CPU's tensors."""
    names = [HID, *(config.item.granularities if isinstance(config.item, SemanticItem) else ())]
    tables = {name: ItemTable(ROWS, (name,)) for name in names}
    context = dict.fromkeys(config.context, ROWS)
    return Ranker(config, Sizes(tables, context, 2, (1.0, 2.0), (1.0, 0.5), content=0, rows_per_lane=SMALL), COUNTED)


def batch(model: Ranker, size: int) -> Batch:
    """Random rows: padding and empty histories among them, and an item in a third of all places."""
    generator = torch.Generator().manual_seed(0)

    def ids(high: int, *shape: int) -> Tensor:
        return torch.randint(0, high, shape, generator=generator)

    names, columns = [HID, *model.item.sids], list(model.context_columns)
    ones_FU = torch.tensor([0] + [1] * (U - 1), dtype=torch.int32).repeat(len(names))
    history_BT = torch.where(ids(3, size, T) == 0, 7, ids(U, size, T))
    history_BT[::5] = 0
    return Batch(
        items=KeyedJaggedTensor(names, ids(ROWS, (U - 1) * len(names)), lengths=ones_FU, stride=U),
        context=KeyedJaggedTensor(
            columns, ids(ROWS, size * len(columns)), lengths=torch.ones(size * len(columns), dtype=torch.int32)
        ),
        token_weights_UW=torch.zeros(U, 0),
        granules_UG=torch.zeros(U, 0, dtype=torch.int64),
        content_UV=torch.zeros(U, 0),
        target_B=ids(U - 1, size) + 1,
        history_BT=history_BT,
        dense_BX=torch.rand(size, 2, generator=generator),
        stats_BS=torch.rand(size, 2, generator=generator) * 100,
        label_B=ids(2, size).float(),
        weight_B=torch.ones(size),
        row_B=torch.arange(size),
        user_B=ids(ROWS, size),
        item_B=ids(ROWS, size),
        rows_per_rank=torch.tensor(float(size)),
        chance_B=torch.zeros(size),
    )


@contextmanager
def sharded(model: Ranker) -> Iterator[DistributedModelParallel]:
    """The ranker on one rank, with FBGEMM's tables."""
    with joined_ranks() as ranks:
        optimizer = OptimizerConfig()
        workload = Workload("operators", model, {}, SMALL)
        sharders = sharders_of(model, optimizer, 0)
        plan = make_plan(model, sharders, ParallelConfig(), lambda: workload, ranks)
        yield shard(model, plan, sharders, 0, ranks)


def operators(model: Ranker) -> list[Counter[str]]:
    """Those of a step of SMALL and of LARGE rows, after three in which FBGEMM and DDP prepare themselves."""
    counts = []
    with sharded(model) as parallel:
        for size in (SMALL, SMALL, SMALL, SMALL, LARGE):
            rows = batch(model, size)
            parallel.zero_grad()
            with Operators() as found:
                loss, _ = parallel(rows)
                loss.backward()
            counts.append(found.counts)
    return counts[3:]


def model_of(recipe: dict[str, Any]) -> Ranker:
    return ranker(MODEL.validate_python({"embedding_dim": 4, **recipe}))


@cache
def operators_of_twin(name: str) -> int:
    small, large = operators(model_of(TWINS[name]))
    print(f"{name}: {small.total()} operators at batch {SMALL}, {large.total()} at {LARGE}")
    assert small == large
    return small.total()


@pytest.mark.parametrize("name", TWINS)
def test_operators_of_hid_alone(name: str) -> None:
    assert operators_of_twin(name) <= MOST_OF_TWINS[name]


@pytest.mark.parametrize("name", MODELS)
def test_operators_do_not_grow_with_the_batch(name: str) -> None:
    twin, recipe = MODELS[name]
    small, large = operators(model_of(recipe))
    ratio = small.total() / operators_of_twin(twin)
    print(f"{name}: {small.total()} operators at batch {SMALL}, {large.total()} at {LARGE}, {ratio:.2f} of {twin}")
    assert small == large
    assert ratio <= MOST_TIMES_ITS_TWIN
