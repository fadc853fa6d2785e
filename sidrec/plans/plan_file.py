"""Sharding plans as JSON files, to read, compare, edit and train with.

A file names the ranks that the plan is for and, for every table, its size, sharding type, kernel and ranks. It has no
shards: TorchRec's own functions cut them, so that a file edited by hand cannot contradict itself. Its text has one form
(collections and tables sorted, three lines per table), so that plans can be compared line by line.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, PositiveFloat, PositiveInt, TypeAdapter, ValidationError
from torch import Tensor, nn
from torch.distributed._shard.sharding_spec import EnumerableShardingSpec, ShardMetadata
from torchrec.distributed.sharding_plan import calculate_shard_sizes_and_offsets, placement
from torchrec.distributed.types import (
    CacheParams,
    EmbeddingModuleShardingPlan,
    ModuleSharder,
    ModuleShardingPlan,
    ParameterSharding,
    ShardingPlan,
)

from sidrec.config.recipe import ShardingKind
from sidrec.errors import ContractError
from sidrec.io.files import read_json, write_text
from sidrec.text import did_you_mean, short_repr

Kernel = Literal["dense", "fused", "fused_uvm", "fused_uvm_caching"]
KERNELS: dict[str, tuple[Kernel, ...]] = {
    "cpu": ("dense", "fused"),
    "cuda": ("dense", "fused", "fused_uvm", "fused_uvm_caching"),
}
"""Device -> kernels that train on it. Kernels of key-value stores need settings that a plan file does not keep."""
COLUMNS_TOGETHER = 4  # FBGEMM's kernels and TorchRec's sharding split columns in multiples of four
VERSION: Literal[1] = 1


@dataclass(frozen=True)
class World:
    """The ranks that a plan is for: world in all, local_world on each machine, numbered machine by machine."""

    world: int
    local_world: int
    device: str

    def machine(self, rank: int) -> list[int]:
        """The ranks on the machine of `rank`."""
        first = rank - rank % self.local_world
        return list(range(first, first + self.local_world))

    def __str__(self) -> str:
        return f"{self.world} rank(s), {self.local_world} of them on a machine, on {self.device}"


@dataclass(frozen=True, kw_only=True)
class TableLayout:
    """How a table of rows x width (the whole table) is sharded.

    ranks: one per shard, in order:
        table_wise: one. column_wise: one per equal block of columns. table_column_wise: the same, on one machine.
        row_wise, data_parallel: all. table_row_wise: all of one machine.
        grid_shard: all of a machine for each equal block of columns.
    cache_load_factor: share of the rows that fused_uvm_caching keeps on the device; None: TorchRec's default.
    """

    rows: PositiveInt
    width: PositiveInt
    sharding_type: ShardingKind
    compute_kernel: Kernel
    ranks: tuple[int, ...]
    cache_load_factor: PositiveFloat | None = None

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    def check_ranks(self, world: World, where: str) -> None:
        """Raises ContractError if the ranks do not exist in `world` or do not suit the sharding type."""
        if not all(0 <= rank < world.world for rank in self.ranks):
            raise ContractError(where, f"ranks from 0 to {world.world - 1}", list(self.ranks))
        expected = _expected_ranks(self.sharding_type, list(self.ranks), world)
        if expected is not None:
            raise ContractError(where, f"{expected} for {self.sharding_type}", f"the ranks {list(self.ranks)}")
        blocks = self.blocks(world)
        if blocks > 1 and self.width % (blocks * COLUMNS_TOGETHER):
            counted = f"that {blocks} shards split evenly into multiples of {COLUMNS_TOGETHER}"
            raise ContractError(where, f"columns {counted} for {self.sharding_type}", f"{self.width} columns")

    def blocks(self, world: World) -> int:
        """Number of blocks that the columns are split into."""
        match self.sharding_type:
            case "column_wise" | "table_column_wise":
                return len(self.ranks)
            case "grid_shard":
                return len(self.ranks) // world.local_world
        return 1

    def parameter_sharding(self, weight: Tensor, world: World) -> ParameterSharding:
        """TorchRec's description. weight: the whole table, possibly on `meta`. Call `check_ranks` first."""
        sizes, offsets = calculate_shard_sizes_and_offsets(
            weight,
            world.world,
            world.local_world,
            self.sharding_type,
            col_wise_shard_dim=self.width // self.blocks(world),
        )
        shards = [
            ShardMetadata(offset, size, placement(world.device, rank, world.local_world))
            for offset, size, rank in zip(offsets, sizes, self.ranks, strict=True)
        ]
        return ParameterSharding(
            sharding_type=self.sharding_type,
            compute_kernel=self.compute_kernel,
            ranks=list(self.ranks),
            sharding_spec=None if self.sharding_type == "data_parallel" else EnumerableShardingSpec(shards),
            cache_params=CacheParams(load_factor=self.cache_load_factor) if self.cache_load_factor else None,
        )


def _expected_ranks(sharding_type: ShardingKind, ranks: Sequence[int], world: World) -> str | None:
    """The ranks that the sharding type needs, in words; None if `ranks` are such."""
    machine = world.machine(ranks[0]) if ranks else []
    match sharding_type:
        case "data_parallel" | "row_wise":
            valid, expected = ranks == list(range(world.world)), f"all {world.world} rank(s) in their order"
        case "table_wise":
            valid, expected = len(ranks) == 1, "one rank"
        case "column_wise":
            valid, expected = bool(ranks), "at least one rank"
        case "table_column_wise":
            valid, expected = bool(ranks) and set(ranks) <= set(machine), "ranks of one machine"
        case "table_row_wise":
            valid = bool(ranks) and ranks == machine
            expected = f"the {world.local_world} rank(s) of one machine in their order"
        case "grid_shard":
            groups = [list(ranks[start : start + len(machine)]) for start in range(0, len(ranks), len(machine) or 1)]
            valid = bool(ranks) and all(group == world.machine(group[0]) for group in groups)
            expected = f"the {world.local_world} rank(s) of a machine in their order for each block of columns"
    return None if valid else expected


@dataclass(frozen=True, kw_only=True)
class PlanFile:
    """A plan: collection's path in the model -> table -> layout. world: ranks in all; local_world: per machine."""

    version: Literal[1] = VERSION
    world: PositiveInt
    local_world: PositiveInt
    device: Literal["cpu", "cuda"]
    tables: Mapping[str, Mapping[str, TableLayout]]

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    @property
    def made_for(self) -> World:
        """The ranks that the plan is for."""
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


# Files.

_PLAN: TypeAdapter[PlanFile] = TypeAdapter(PlanFile)
_LAYOUT: TypeAdapter[TableLayout] = TypeAdapter(TableLayout)


def read_plan(path: Path) -> PlanFile:
    """Reads a plan file. Raises ContractError naming the first mistake and its table."""
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
        expected = "a world that is a multiple of local_world"
        raise ContractError(where, expected, f"{plan.world} of {plan.local_world}")
    return plan


def _refusal(where: str, mistakes: ValidationError) -> ContractError:
    """The first mistake as an error that names its table."""
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
        case "literal_error":
            found += did_you_mean(str(mistake["input"]), re.findall(r"'(\w+)'", mistake["msg"]))
    return ContractError(place, mistake["msg"].removeprefix("Input should be "), found)


def is_plan(path: Path) -> bool:
    """Whether a file is a sharding plan of any version. Raises ContractError for a file that is not JSON."""
    raw = read_json(path, "a sharding plan")
    return isinstance(raw, dict) and {"version", "world", "tables"} <= set(raw)


def write_plan(path: Path, plan: PlanFile) -> None:
    """Writes a plan in one step: a reader sees the old file or the new one."""
    write_text(path, plan.as_text())


# From TorchRec's plan to a file.


def plan_file_of(plan: ShardingPlan, model: nn.Module, world: int, local_world: int, device: str) -> PlanFile:
    """A plan to keep. model: before it is sharded. Raises ContractError for a plan that a file cannot describe.

    Such are uneven column shards, kernels of key-value stores, and cache settings other than the load factor.
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


# From a file to TorchRec's plan: it must cover exactly the model's tables, with their sizes.

NAMED = 5  # tables that a message names


@dataclass(frozen=True)
class Collection:
    """A module that is sharded, by its path in the model. weights: table name -> the whole table."""

    path: str
    sharder: ModuleSharder[nn.Module]
    weights: Mapping[str, nn.Parameter]


def sharding_plan_of(
    plan: PlanFile,
    model: nn.Module,
    world: int,
    local_world: int,
    device: str,
    sharders: Sequence[ModuleSharder[nn.Module]],
    where: str = "sharding plan",
) -> ShardingPlan:
    """TorchRec's plan for the tables of `model` that `sharders` shard.

    model: before it is sharded; tables may be on `meta`. where: names the plan in errors. Raises ContractError if the
    plan is for other ranks, or if a table is missing, unknown, of another size, or has an impossible layout.
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


def collections_of(
    model: nn.Module, sharders: Sequence[ModuleSharder[nn.Module]], path: str = ""
) -> Iterator[Collection]:
    """Every module that has a sharder; modules inside of another such module are skipped, as in TorchRec's planner."""
    sharder = next((sharder for sharder in sharders if sharder.module_type is type(model)), None)
    if sharder is not None:
        yield Collection(path, sharder, sharder.shardable_parameters(model))
        return
    for name, child in model.named_children():
        yield from collections_of(child, sharders, f"{path}.{name}" if path else name)


def check_names(
    planned: Mapping[str, Mapping[str, TableLayout]], collections: Sequence[Collection], where: str
) -> None:
    """Raises ContractError if `planned` (path -> table -> layout) lacks a table of the model or has another one."""
    paths = [collection.path for collection in collections]
    for path in planned:
        if path not in paths:
            raise ContractError(where, "collections of the model", f"{path}{did_you_mean(path, paths)}")
    for collection in collections:
        tables = planned.get(collection.path, {})
        missing = [name for name in collection.weights if name not in tables]
        for name in tables:
            if name not in collection.weights:
                found = f"{name}{did_you_mean(name, missing)}"
                raise ContractError(f"{where}, {collection.path}", "tables of the model", found)
        if missing:
            listed = ", ".join(missing[:NAMED]) + (f" and {len(missing) - NAMED} more" if missing[NAMED:] else "")
            raise ContractError(f"{where}, {collection.path}", "every table of the model", f"none called {listed}")


def check_table(
    layout: TableLayout, weight: Tensor, sharder: ModuleSharder[nn.Module], device: str, where: str
) -> None:
    """Raises ContractError if the table has another size, or the sharder does not support the layout on `device`."""
    rows, width = weight.shape
    if (layout.rows, layout.width) != (rows, width):
        raise ContractError(where, f"{rows} rows of width {width}, as in the model", f"{layout.rows} of {layout.width}")
    types = sharder.sharding_types(device)
    if layout.sharding_type not in types:
        raise ContractError(where, f"one of the sharding types {', '.join(types)}", layout.sharding_type)
    offered = sharder.compute_kernels(layout.sharding_type, device)
    kernels = [kernel for kernel in KERNELS[device] if kernel in offered]
    if layout.compute_kernel not in kernels:
        expected = f"the kernel {' or '.join(kernels)} for {layout.sharding_type} on {device}"
        raise ContractError(where, expected, layout.compute_kernel)
