"""Options of tables, the same in every process; plans made of them, and what they cost."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator
from torchrec.distributed.planner.types import ShardingOption

from sidrec.config import ConfigError
from sidrec.config.recipe import AdagradTables, RowwiseAdagradTables, SgdTables, TableOptimizer
from sidrec.plans.cost import TorchRecCost
from sidrec.plans.options import (
    SHARDING_TYPES,
    enumerate_options,
    options_of,
    sharding_plan,
    table_bytes,
    table_constraint,
)
from tests.plans.tables_workload import hardware, sharders, workload

SHAPES = {"wide": (1000, 64), "narrow": (10, 8)}


def placed(kind: str, world: int = 4, local_world: int | None = None) -> list[ShardingOption]:
    """Every table laid out by `kind`, its shards dealt to ranks in their order."""
    options = enumerate_options(
        workload(SHAPES), hardware(world, local_world), sharders(), dict.fromkeys(SHAPES, (kind,))
    )
    chosen = [found[0] for found in options.values()]
    for option in chosen:
        for number, shard in enumerate(option.shards):
            shard.rank = number % world
    return chosen


def test_every_type_is_offered_on_cpu_and_gpu_in_a_fixed_order() -> None:
    for device in ("cpu", "cuda"):
        options = enumerate_options(workload(SHAPES), hardware(device=device), sharders())
        assert list(options) == list(SHAPES)
        for found in options.values():
            assert [option.sharding_type for option in found] == list(SHARDING_TYPES)


def test_estimates_of_equal_shards_equal_torchrecs_one_by_one() -> None:
    load, there = workload(SHAPES, ids_per_bag=3.0), hardware(4, 2)
    constraints = {name: table_constraint(load, there, name) for name in SHAPES}
    enumerator = EmbeddingEnumerator(there.topology(), load.rows_per_rank, constraints)  # TorchRec's own estimators
    theirs = {(o.name, o.sharding_type): o for o in enumerator.enumerate(load.model, sharders())}
    ours = [option for found in enumerate_options(load, there, sharders()).values() for option in found]
    assert len(ours) == len(theirs) == 14
    for option in ours:
        expected = theirs[option.name, option.sharding_type]
        assert [shard.perf for shard in option.shards] == [shard.perf for shard in expected.shards]
        states = table_bytes(option, sharders())
        for shard, whole, size in zip(option.shards, expected.shards, states, strict=True):
            assert shard.storage.ddr == whole.storage.ddr + size.state


@pytest.mark.parametrize("kind", SHARDING_TYPES)
def test_a_plan_comes_back_as_the_options_it_was_made_of(kind: str) -> None:
    options = placed(kind, world=4, local_world=2)
    plan = sharding_plan(options, hardware(4, 2))
    back = options_of(plan, workload(SHAPES), hardware(4, 2), sharders())
    assert [option.name for option in back] == list(SHAPES)
    for ours, theirs in zip(back, options, strict=True):
        assert (ours.sharding_type, ours.compute_kernel) == (theirs.sharding_type, theirs.compute_kernel)
        assert ours.shards == theirs.shards  # sizes, offsets, ranks, estimates of time and of bytes


def test_a_cost_adds_up_shards_on_ranks_and_its_step_is_the_slowest_ranks() -> None:
    options = placed("table_wise")
    options[1].shards[0].rank = 2
    cost = TorchRecCost().rate(options, workload(SHAPES), hardware())
    wide, narrow = (option.shards[0].perf.total for option in options)
    assert cost.tables == {"wide": [wide, 0, 0, 0], "narrow": [0, 0, narrow, 0]}
    assert cost.ranks == [wide, 0, narrow, 0]
    assert cost.step == max(wide, narrow)
    assert sum(value for part, value in cost.parts["wide"].items() if part != "input_dist") == pytest.approx(wide)


@pytest.mark.parametrize(
    ("optimizer", "state"),
    [(SgdTables(), 0), (AdagradTables(), 1000 * 64 * 4), (RowwiseAdagradTables(), 1000 * 4)],
)
def test_optimizer_state_is_part_of_a_tables_bytes(optimizer: TableOptimizer, state: int) -> None:
    load = workload({"wide": (1000, 64)})
    stateless = enumerate_options(load, hardware(), sharders(SgdTables()), {"wide": ("table_wise",)})["wide"][0]
    option = enumerate_options(load, hardware(), sharders(optimizer), {"wide": ("table_wise",)})["wide"][0]
    [size] = table_bytes(option, sharders(optimizer))
    assert (size.weights, size.state) == (1000 * 64 * 4, state)
    assert option.shards[0].storage.ddr - stateless.shards[0].storage.ddr == state


def test_replicated_tables_have_a_dense_gradient_too() -> None:
    option = enumerate_options(workload({"wide": (1000, 64)}), hardware(), sharders())["wide"][0]
    assert option.sharding_type == "data_parallel"
    assert [size.state for size in table_bytes(option, sharders())] == [2 * 1000 * 64 * 4] * 4


def test_columns_are_dealt_to_all_ranks_of_a_cpu_and_stay_wide_on_a_gpu() -> None:
    shapes = {"wide": (100, 256), "even": (100, 64), "odd": (100, 6)}
    widths = {
        device: [
            [shard.size[1] for shard in found[0].shards]
            for found in enumerate_options(
                workload(shapes), hardware(4, device=device), sharders(), dict.fromkeys(shapes, ("column_wise",))
            ).values()
        ]
        for device in ("cpu", "cuda")
    }
    assert widths == {"cpu": [[64] * 4, [16] * 4, [6]], "cuda": [[128] * 2, [64], [6]]}


def test_unknown_types_and_tables_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"table wide: expected one of data_parallel.*got 'rowwise'"):
        enumerate_options(workload(SHAPES), hardware(), sharders(), {"wide": ("rowwise",)})
    with pytest.raises(ConfigError, match="table wid: expected one of wide, narrow"):
        enumerate_options(workload(SHAPES), hardware(), sharders(), {"wid": ("row_wise",)})
    plan = sharding_plan(placed("row_wise")[:1], hardware())
    with pytest.raises(ConfigError, match="expected a layout of table narrow, found none"):
        options_of(plan, workload(SHAPES), hardware(), sharders())


ROOT = Path(__file__).parents[2]
PRINTS = """
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import ParameterConstraints, Topology
from torchrec.distributed.types import ShardingType
from sidrec.plans.options import OrderedEnumerator
table = EmbeddingBagConfig(name="hid", embedding_dim=16, num_embeddings=400, feature_names=["hid"])
constraints = {"hid": ParameterConstraints(sharding_types=[kind.value for kind in ShardingType])}
enumerator = OrderedEnumerator(Topology(world_size=4, compute_device="cpu"), batch_size=16, constraints=constraints)
options = enumerator.enumerate(EmbeddingBagCollection(tables=[table]), [EmbeddingBagCollectionSharder()])
print([(option.sharding_type, option.compute_kernel) for option in options])
"""


def printed(seed: int) -> str:
    environment = os.environ | {"PYTHONHASHSEED": str(seed)}
    command = [sys.executable, "-c", PRINTS]
    return subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True).stdout


def test_options_do_not_depend_on_how_python_orders_sets() -> None:
    first = printed(1)
    assert "table_wise" in first
    assert "column_wise" in first
    assert first == printed(2) == printed(3)
