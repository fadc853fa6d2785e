"""Sharding plans as files: JSON to read, compare, edit and train with.

A file says of every table its size, sharding type, kernel and ranks, and for which ranks it is; no shards, which follow
from these. It has one form (collections and tables sorted, a table on three lines), so that two plans can be compared
line by line.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, PositiveInt, TypeAdapter, ValidationError
from torch import Tensor, nn
from torchrec.distributed.types import (
    EmbeddingModuleShardingPlan,
    ModuleSharder,
    ModuleShardingPlan,
    ParameterSharding,
    ShardingPlan,
)

from sidrec.plans.table_layout import TableLayout, World, check_names, check_table, collections_of
from sidrec.schema import ContractError, read_json
from sidrec.text import short_repr

VERSION: Literal[1] = 1


@dataclass(frozen=True, kw_only=True)
class PlanFile:
    """A plan: for which ranks, and collection's path in the model -> table -> layout.

    world: ranks in all. local_world: ranks on each machine.
    """

    version: Literal[1] = VERSION
    world: PositiveInt
    local_world: PositiveInt
    device: Literal["cpu", "cuda"]
    tables: Mapping[str, Mapping[str, TableLayout]]

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    @property
    def made_for(self) -> World:
        return World(self.world, self.local_world, self.device)

    def as_json(self) -> dict[str, Any]:
        """Plain data, as `parse_plan` reads it."""
        plain = asdict(self)
        for tables in plain["tables"].values():
            for layout in tables.values():
                layout["ranks"] = list(layout["ranks"])
                if layout["cache_load_factor"] is None:
                    del layout["cache_load_factor"]
        return plain

    def as_text(self) -> str:
        """The file's content: equal for equal plans."""
        head = [f' "{key}": {json.dumps(getattr(self, key))},' for key in ("version", "world", "local_world", "device")]
        collections = [
            f"  {json.dumps(path)}: {{\n" + ",\n".join(_lines(name, tables[name]) for name in sorted(tables)) + "\n  }"
            for path, tables in sorted(self.as_json()["tables"].items())
        ]
        return "\n".join(["{", *head, ' "tables": {', ",\n".join(collections), " }", "}"]) + "\n"


def _lines(name: str, layout: Mapping[str, Any]) -> str:
    how = [key for key in layout if key not in ("rows", "width", "ranks")]
    lines = [
        ", ".join(f'"{key}": {json.dumps(layout[key])}' for key in keys) for keys in (["rows", "width"], how, ["ranks"])
    ]
    return f"   {json.dumps(name)}: {{" + ",\n    ".join(lines) + "}"


_PLAN: TypeAdapter[PlanFile] = TypeAdapter(PlanFile)
_LAYOUT: TypeAdapter[TableLayout] = TypeAdapter(TableLayout)


def read_plan(path: Path) -> PlanFile:
    """Reads a plan file. Raises ContractError for what is not one, naming the table and what is wrong with it."""
    return parse_plan(read_json(path, "a readable sharding plan"), str(path))


def parse_plan(raw: object, where: str) -> PlanFile:
    """A plan from plain data; `where` names its source in errors. Raises ContractError."""
    if not isinstance(raw, dict) or "version" not in raw:
        raise ContractError(where, "a sharding plan with the key version", type(raw).__name__)
    if raw["version"] != VERSION:
        raise ContractError(where, f"a sharding plan of version {VERSION}", f"version {short_repr(raw['version'])}")
    try:
        plan = _PLAN.validate_python(raw)
    except ValidationError as error:
        raise _refusal(where, error) from None
    if plan.world % plan.local_world:
        expected = "a world that the ranks of one machine divide"
        raise ContractError(where, expected, f"{plan.world} of {plan.local_world}")
    return plan


def _refusal(where: str, mistakes: ValidationError) -> ContractError:
    """The first mistake, its place in words."""
    mistake = mistakes.errors(include_url=False)[0]
    steps = [str(step) for step in mistake["loc"]]
    if steps[0] == "tables" and len(steps) > 2:
        steps[:3] = [f"table {steps[2]} of {steps[1]}"]
    place, found = ", ".join([where, *steps]), short_repr(mistake["input"])
    match mistake["type"]:
        case "missing":
            return ContractError(place, "a value", "none")
        case "unexpected_keyword_argument":
            return ContractError(place, "no such key", found)
    return ContractError(place, mistake["msg"].removeprefix("Input should be "), found)


def is_plan(path: Path) -> bool:
    """Whether a file is a sharding plan of any version. Raises ContractError for what is no JSON."""
    raw = read_json(path, "a sharding plan")
    return isinstance(raw, dict) and {"version", "world", "tables"} <= set(raw)


def write_plan(path: Path, plan: PlanFile) -> None:
    """Writes a plan in one step: a reader sees the old file or the new one."""
    partial = path.with_name(f"{path.name}.partial{os.getpid()}")
    partial.write_text(plan.as_text())
    partial.replace(path)


def plan_file_of(plan: ShardingPlan, model: nn.Module, world: int, local_world: int, device: str) -> PlanFile:
    """A plan to keep. model: before it is sharded. Raises ContractError for what a file cannot say.

    That is: shards of uneven columns, kernels of key-value stores, and settings beside the cache's load factor.
    """
    made_for = World(world, local_world, device)
    tables: dict[str, dict[str, TableLayout]] = {}
    for path, of_collection in plan.plan.items():
        assert isinstance(of_collection, EmbeddingModuleShardingPlan), "only embedding collections are sharded"
        weights = _weights(model, path)
        tables[path] = {
            name: _layout_of(f"sharding plan, table {name} of {path}", table, weights[name], made_for)
            for name, table in of_collection.items()
        }
    return _PLAN.validate_python({"world": world, "local_world": local_world, "device": device, "tables": tables})


def _weights(model: nn.Module, path: str) -> dict[str, Tensor]:
    """Table name -> weight, of the collection at `path`."""
    return {name.split(".")[-2]: weight for name, weight in model.get_submodule(path).named_parameters()}


def _layout_of(where: str, sharding: ParameterSharding, weight: Tensor, world: World) -> TableLayout:
    rows, width = weight.shape
    assert sharding.ranks is not None, "a planner places every table"
    cache = sharding.cache_params
    try:
        layout = _LAYOUT.validate_python(
            {
                "rows": rows,
                "width": width,
                "sharding_type": sharding.sharding_type,
                "compute_kernel": sharding.compute_kernel,
                "ranks": sharding.ranks,
                "cache_load_factor": cache.load_factor if cache is not None else None,
            }
        )
    except ValidationError as error:
        raise _refusal(where, error) from None
    layout.check_ranks(world, where)
    if layout.parameter_sharding(weight, world) != sharding:
        kept = "sharding type, kernel, ranks, even shards and a cache load factor alone, which is what a file keeps"
        raise ContractError(where, kept, sharding)
    return layout


def sharding_plan_of(
    plan: PlanFile,
    model: nn.Module,
    world: int,
    local_world: int,
    device: str,
    sharders: Sequence[ModuleSharder[nn.Module]],
    where: str = "sharding plan",
) -> ShardingPlan:
    """The plan as TorchRec shards by it; for the tables of `model` that `sharders` shard, all of them and no others.

    model: before it is sharded; tables may be on `meta`. where: names the plan in errors. Raises ContractError where
    the plan is for other ranks, or a table is missing, unknown, of another size, or laid out as it cannot be.
    """
    ranks = World(world, local_world, device)
    if plan.made_for != ranks:
        raise ContractError(where, f"a plan for {ranks}", f"one for {plan.made_for}")
    collections = list(collections_of(model, sharders))
    check_names(plan.tables, collections, where)
    sharded: dict[str, ModuleShardingPlan] = {}
    for collection in collections:
        sharded[collection.path] = of_collection = EmbeddingModuleShardingPlan()
        for name, weight in collection.weights.items():
            layout, place = plan.tables[collection.path][name], f"{where}, table {name} of {collection.path}"
            check_table(layout, weight, collection.sharder, device, place)
            layout.check_ranks(ranks, place)
            of_collection[name] = layout.parameter_sharding(weight, ranks)
    return ShardingPlan(sharded)
