"""Plans as files: a planner's comes back equal; what is edited by hand is taken, or refused in a sentence."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import nn
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.distributed.types import BoundsCheckMode, CacheParams, ParameterSharding, ShardingPlan
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from sidrec.config.recipe import ShardingKind
from sidrec.parallel.sharding import EveryTypeSharder
from sidrec.plans.plan_file import PlanFile, plan_file_of, read_plan, sharding_plan_of, write_plan
from sidrec.schema import ContractError

TYPES = get_args(ShardingKind)
WORLDS = ((1, 1), (2, 2), (4, 4), (8, 4))
SHARDERS = [EveryTypeSharder()]
TABLES = {"items": {"hid": (1001, 256), "s1": (3, 16)}, "context.users": {"user_id": (40, 64)}}
WHERE = "p.json"


def model() -> nn.Module:
    """Two collections, one of them inside of another module."""
    whole = nn.Module()
    for path, tables in TABLES.items():
        configs = [
            EmbeddingBagConfig(name=name, num_embeddings=rows, embedding_dim=width, feature_names=[name])
            for name, (rows, width) in tables.items()
        ]
        *parents, name = path.split(".")
        parent = whole
        for child in parents:
            parent.add_module(child, nn.Module())
            parent = parent.get_submodule(child)
        parent.add_module(name, EmbeddingBagCollection(tables=configs, device=torch.device("meta")))
    return whole


def planned(world: int, local_world: int, types: tuple[str, ...], device: str = "cpu", **more: Any) -> ShardingPlan:
    """What TorchRec's planner makes of the model."""
    constraints = {
        name: ParameterConstraints(sharding_types=list(types), min_partition=64 if width == 256 else None, **more)
        for tables in TABLES.values()
        for name, (_, width) in tables.items()
    }
    topology = Topology(world_size=world, local_world_size=local_world, compute_device=device)
    return EmbeddingShardingPlanner(topology=topology, constraints=constraints, debug=False).plan(model(), SHARDERS)


def imported(plan: PlanFile, world: int, local_world: int, device: str = "cpu") -> ShardingPlan:
    return sharding_plan_of(plan, model(), world, local_world, device, SHARDERS, WHERE)


EVERY_WORLD = [(types, *world, "cpu") for types in (*((kind,) for kind in TYPES), TYPES) for world in WORLDS]
TWO_MACHINES_OF_GPUS = [((kind,), 8, 4, "cuda") for kind in TYPES]


@pytest.mark.parametrize(("types", "world", "local_world", "device"), EVERY_WORLD + TWO_MACHINES_OF_GPUS)
def test_a_planners_plan_comes_back_equal(
    types: tuple[str, ...], world: int, local_world: int, device: str, tmp_path: Path
) -> None:
    plan = planned(world, local_world, types, device)
    write_plan(tmp_path / "plan.json", plan_file_of(plan, model(), world, local_world, device))
    again = imported(read_plan(tmp_path / "plan.json"), world, local_world, device)
    assert again == plan
    if types == ("column_wise",):
        assert len(again.plan["items"]["hid"].ranks) == 4, "min_partition should have cut the columns"


def test_kernels_and_cache_of_a_gpu_come_back(tmp_path: Path) -> None:
    constraint = {"compute_kernels": ["fused_uvm_caching"], "cache_params": CacheParams(load_factor=0.3)}
    plan = planned(2, 2, ("row_wise",), "cuda", **constraint)
    write_plan(tmp_path / "plan.json", plan_file_of(plan, model(), 2, 2, "cuda"))
    assert '"cache_load_factor": 0.3' in (tmp_path / "plan.json").read_text()
    assert imported(read_plan(tmp_path / "plan.json"), 2, 2, "cuda") == plan


TEXT = """{
 "version": 1,
 "world": 4,
 "local_world": 2,
 "device": "cpu",
 "tables": {
  "context.users": {
   "user_id": {"rows": 40, "width": 64,
    "sharding_type": "table_wise", "compute_kernel": "fused",
    "ranks": [3]}
  },
  "items": {
   "hid": {"rows": 1001, "width": 256,
    "sharding_type": "grid_shard", "compute_kernel": "fused",
    "ranks": [2, 3, 0, 1]},
   "s1": {"rows": 3, "width": 16,
    "sharding_type": "data_parallel", "compute_kernel": "dense",
    "ranks": [0, 1, 2, 3]}
  }
 }
}
"""


def test_a_file_has_one_form_and_its_shards_follow_from_it(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(json.loads(TEXT), indent=None, sort_keys=False))
    write_plan(path, read_plan(path))
    assert path.read_text() == TEXT
    assert [file.name for file in tmp_path.iterdir()] == ["plan.json"]
    hid = imported(read_plan(path), 4, 2).plan["items"]["hid"]
    shards = [(s.shard_offsets, s.shard_sizes, str(s.placement)) for s in hid.sharding_spec.shards]
    assert shards == [  # 1001 rows as 501 + 500 on each machine, 256 columns as 128 + 128
        ([0, 0], [501, 128], "rank:2/cpu"),
        ([501, 0], [500, 128], "rank:3/cpu"),
        ([0, 128], [501, 128], "rank:0/cpu"),
        ([501, 128], [500, 128], "rank:1/cpu"),
    ]


def test_the_plan_in_the_docs_is_one(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs/sharding_plans.md").read_text()
    path = tmp_path / "plan.json"
    path.write_text(page.split("```json\n")[1].split("```")[0])
    assert read_plan(path).as_text() == path.read_text()


def lay(name: str = "hid", **changes: object) -> Callable[[dict[str, Any]], object]:
    """An edit of one table."""

    def change(plan: dict[str, Any]) -> None:
        for tables in plan["tables"].values():
            if name in tables:
                tables[name].update(changes)

    return change


def rename(before: str, after: str) -> Callable[[dict[str, Any]], object]:
    def change(plan: dict[str, Any]) -> None:
        for tables in (plan["tables"], *plan["tables"].values()):
            if before in tables:
                tables[after] = tables.pop(before)

    return change


def placed(sharding_type: str, *ranks: int) -> Callable[[dict[str, Any]], object]:
    kernel = "dense" if sharding_type == "data_parallel" else "fused"
    return lay(sharding_type=sharding_type, compute_kernel=kernel, ranks=list(ranks))


TAKEN = {
    "columns on one rank": placed("column_wise", 1, 1, 1, 0),
    "columns on one machine": placed("table_column_wise", 3, 2),
    "one block of columns": placed("column_wise", 2),
    "both blocks on one machine": placed("grid_shard", 2, 3, 2, 3),
    "second machine": placed("table_row_wise", 2, 3),
    "all": placed("row_wise", 0, 1, 2, 3),
    "replicated": placed("data_parallel", 0, 1, 2, 3),
}


@pytest.mark.parametrize("edit", TAKEN)
def test_an_edit_is_taken(edit: str, tmp_path: Path) -> None:
    plan = json.loads(TEXT)
    TAKEN[edit](plan)
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    hid: ParameterSharding = imported(read_plan(tmp_path / "plan.json"), 4, 2).plan["items"]["hid"]
    assert hid.ranks == plan["tables"]["items"]["hid"]["ranks"]
    if hid.sharding_spec is not None:
        assert sum(s.shard_sizes[0] * s.shard_sizes[1] for s in hid.sharding_spec.shards) == 1001 * 256


HID = "table hid of items"
REFUSED: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "table misspelt": (
        rename("hid", "hidd"),
        "p.json, items: expected tables of the model, got hidd; did you mean hid?",
    ),
    "table too many": (
        lambda plan: plan["tables"]["items"].update(other=plan["tables"]["items"]["s1"]),
        "p.json, items: expected tables of the model, got other",
    ),
    "table missing": (
        lambda plan: plan["tables"]["items"].pop("hid"),
        "p.json, items: expected every table of the model, got none called hid",
    ),
    "collection misspelt": (
        rename("items", "item"),
        "p.json: expected collections of the model, got item; did you mean items?",
    ),
    "collection missing": (
        lambda plan: plan["tables"].pop("items"),
        "p.json, items: expected every table of the model, got none called hid, s1",
    ),
    "rows": (lay(rows=1000), f"p.json, {HID}: expected 1001 rows of width 256, as in the model, got 1000 of 256"),
    "width": (lay(width=128), f"p.json, {HID}: expected 1001 rows of width 256, as in the model, got 1001 of 128"),
    "world": (
        lambda plan: plan.update(world=8),
        "p.json: expected a plan for 4 rank(s), 2 of them on a machine, on cpu, got one for 8 rank(s), "
        "2 of them on a machine, on cpu",
    ),
    "machine": (
        lambda plan: plan.update(local_world=4),
        "p.json: expected a plan for 4 rank(s), 2 .*, got one for 4 rank(s), 4 of them on a machine, on cpu",
    ),
    "device": (
        lambda plan: plan.update(device="cuda"),
        "p.json: expected a plan for .* on cpu, got one for .* on cuda",
    ),
    "type": (
        lay(sharding_type="row_wize"),
        f"F, {HID}, sharding_type: expected 'data_parallel', 'table_wise', .* or 'grid_shard', got 'row_wize'; "
        "did you mean row_wise?",
    ),
    "kernel": (lay(compute_kernel="fast"), f"F, {HID}, compute_kernel: expected 'dense', 'fused', .*, got 'fast'"),
    "kernel of a type": (
        lay(compute_kernel="dense"),
        f"p.json, {HID}: expected the kernel fused for grid_shard on cpu, got dense",
    ),
    "kernel of a device": (
        lay(compute_kernel="fused_uvm"),
        f"p.json, {HID}: expected the kernel fused for grid_shard on cpu, got fused_uvm",
    ),
    "kernel of replicas": (
        lay("s1", compute_kernel="fused"),
        "p.json, table s1 of items: expected the kernel dense for data_parallel on cpu, got fused",
    ),
    "no such rank": (placed("table_wise", 4), f"p.json, {HID}: expected ranks from 0 to 3, got [4]"),
    "negative rank": (placed("column_wise", 0, -1), f"p.json, {HID}: expected ranks from 0 to 3, got [0, -1]"),
    "two ranks": (
        placed("table_wise", 0, 1),
        f"p.json, {HID}: expected one rank for table_wise, got the ranks [0, 1]",
    ),
    "no rank": (placed("column_wise"), f"p.json, {HID}: expected at least one rank for column_wise, got the ranks []"),
    "columns": (
        placed("column_wise", 0, 1, 2),
        f"p.json, {HID}: expected columns that 3 shards split evenly into multiples of 4 for column_wise, "
        "got 256 columns",
    ),
    "narrow columns": (
        lay("s1", sharding_type="column_wise", compute_kernel="fused", ranks=[0, 1, 2, 3, 0, 1, 2, 3]),
        "p.json, table s1 of items: expected columns that 8 shards .*, got 16 columns",
    ),
    "not all rows": (
        placed("row_wise", 0, 1),
        f"p.json, {HID}: expected all 4 rank(s) in their order for row_wise, got the ranks [0, 1]",
    ),
    "rows out of order": (
        placed("row_wise", 1, 0, 2, 3),
        f"p.json, {HID}: expected all 4 .*, got the ranks [1, 0, 2, 3]",
    ),
    "two machines": (
        placed("table_row_wise", 1, 2),
        f"p.json, {HID}: expected the 2 rank(s) of one machine in their order for table_row_wise, got the ranks [1, 2]",
    ),
    "columns of two machines": (
        placed("table_column_wise", 1, 2),
        f"p.json, {HID}: expected ranks of one machine for table_column_wise, got the ranks [1, 2]",
    ),
    "half a grid": (
        placed("grid_shard", 0, 1, 2),
        f"p.json, {HID}: expected the 2 rank(s) of a machine in their order for each block of columns for grid_shard, "
        "got the ranks [0, 1, 2]",
    ),
    "no grid": (placed("grid_shard"), f"p.json, {HID}: expected the 2 rank(s) .* for grid_shard, got the ranks []"),
    "cache": (lay(cache_load_factor=0), f"F, {HID}, cache_load_factor: expected greater than 0, got 0"),
    "key": (lay(shards=[]), f"F, {HID}, shards: expected no such key, got []"),
    "no rows": (
        lambda plan: plan["tables"]["items"]["hid"].pop("rows"),
        f"F, {HID}, rows: expected a value, got none",
    ),
    "version": (lambda plan: plan.update(version=2), "F: expected a sharding plan of version 1, got version 2"),
    "not a plan": (lambda plan: plan.clear(), "F: expected a sharding plan with the key version, got dict"),
    "uneven machines": (
        lambda plan: plan.update(local_world=3),
        "F: expected a world that is a multiple of local_world, got 4 of 3",
    ),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_a_plan_that_exceeds_memory_is_refused_in_one_message(fault: str, tmp_path: Path) -> None:
    breaks, expected = REFUSED[fault]
    plan = json.loads(TEXT)
    breaks(plan)
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan))
    with pytest.raises(ContractError) as refusal:
        imported(read_plan(path), 4, 2)
    pattern = re.escape(expected.replace("F", str(path), 1)).replace(re.escape(".*"), ".*")
    assert re.fullmatch(pattern, str(refusal.value)), refusal.value


FILES = {
    "nothing": (None, "expected a readable sharding plan, got no such file"),
    "half a file": (TEXT[:100], "expected valid JSON, got .*"),
    "a list": ("[1]", "expected a sharding plan with the key version, got list"),
    "a table twice": (TEXT.replace('"s1"', '"hid"'), "expected every key once, got hid twice"),
}


@pytest.mark.parametrize("fault", FILES)
def test_a_file_that_is_no_plan(fault: str, tmp_path: Path) -> None:
    content, expected = FILES[fault]
    path = tmp_path / "plan.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ContractError) as refusal:
        read_plan(path)
    assert re.fullmatch(f"{re.escape(str(path))}: {expected}", str(refusal.value)), refusal.value


def test_what_a_file_cannot_say_is_not_exported() -> None:
    plan = planned(2, 2, ("row_wise",))
    sharding = plan.plan["items"]["hid"]
    plan.plan["items"]["hid"] = replace(sharding, bounds_check_mode=BoundsCheckMode.FATAL)
    with pytest.raises(ContractError, match=r"table hid of items: expected sharding type, kernel, .* alone, .*FATAL"):
        plan_file_of(plan, model(), 2, 2, "cpu")
    plan.plan["items"]["hid"] = replace(sharding, compute_kernel="key_value")
    with pytest.raises(ContractError, match=r"table hid of items, compute_kernel: .*, got 'key_value'"):
        plan_file_of(plan, model(), 2, 2, "cpu")
