"""How one table lies over the ranks: a sharding type, a kernel and ranks, checked, and TorchRec's terms for them.

Nothing else is kept: TorchRec's own functions cut the shards, so what is edited by hand cannot contradict itself.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import ClassVar, Literal

from pydantic import ConfigDict, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.distributed._shard.sharding_spec import EnumerableShardingSpec, ShardMetadata
from torchrec.distributed.sharding_plan import calculate_shard_sizes_and_offsets, placement
from torchrec.distributed.types import CacheParams, ModuleSharder, ParameterSharding

from sidrec.config.recipe import ShardingKind
from sidrec.schema import ContractError

Kernel = Literal["dense", "fused", "fused_uvm", "fused_uvm_caching"]


KERNELS: dict[str, tuple[Kernel, ...]] = {
    "cpu": ("dense", "fused"),
    "cuda": ("dense", "fused", "fused_uvm", "fused_uvm_caching"),
}
"""Device -> kernels that train on it. Those of key-value stores want more settings than a plan file keeps."""


COLUMNS_TOGETHER = 4  # FBGEMM's kernels and TorchRec's cutting take columns in fours


@dataclass(frozen=True)
class World:
    """For which ranks a plan is: world in all, local_world of them on each machine, numbered machine by machine."""

    world: int
    local_world: int
    device: str

    def machine(self, rank: int) -> list[int]:
        """The ranks of the machine that `rank` is on."""
        first = rank - rank % self.local_world
        return list(range(first, first + self.local_world))

    def __str__(self) -> str:
        return f"{self.world} rank(s), {self.local_world} of them on a machine, on {self.device}"


@dataclass(frozen=True, kw_only=True)
class TableLayout:
    """A table of rows x width (whole), and who holds it.

    ranks: of its shards, in their order. table_wise: one. column_wise: one for each of as many equal blocks of columns;
    table_column_wise: the same, of one machine. row_wise, data_parallel: all. table_row_wise: those of one machine.
    grid_shard: those of a machine for each of as many equal blocks of columns.
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
        """Raises ContractError where the ranks are not of `world`, or not as many or not those the type wants."""
        if not all(0 <= rank < world.world for rank in self.ranks):
            raise ContractError(where, f"ranks from 0 to {world.world - 1}", list(self.ranks))
        expected = _misplaced(self.sharding_type, list(self.ranks), world)
        if expected is not None:
            raise ContractError(where, f"{expected} for {self.sharding_type}", f"the ranks {list(self.ranks)}")
        blocks = self.blocks(world)
        if blocks > 1 and self.width % (blocks * COLUMNS_TOGETHER):
            counted = f"that {blocks} shards split evenly into multiples of {COLUMNS_TOGETHER}"
            raise ContractError(where, f"columns {counted} for {self.sharding_type}", f"{self.width} columns")

    def blocks(self, world: World) -> int:
        """Blocks that the columns are cut into."""
        match self.sharding_type:
            case "column_wise" | "table_column_wise":
                return len(self.ranks)
            case "grid_shard":
                return len(self.ranks) // world.local_world
        return 1

    def parameter_sharding(self, weight: Tensor, world: World) -> ParameterSharding:
        """What TorchRec shards by. weight: the whole table, which may be on `meta`; the ranks are checked before."""
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


def _misplaced(sharding_type: ShardingKind, ranks: Sequence[int], world: World) -> str | None:
    """What the sharding type expects of its ranks, where these are not that."""
    machine = world.machine(ranks[0]) if ranks else []
    match sharding_type:
        case "data_parallel" | "row_wise":
            return None if ranks == list(range(world.world)) else f"all {world.world} rank(s) in their order"
        case "table_wise":
            return None if len(ranks) == 1 else "one rank"
        case "column_wise":
            return None if ranks else "at least one rank"
        case "table_column_wise":
            return None if ranks and set(ranks) <= set(machine) else "ranks of one machine"
        case "table_row_wise":
            return (
                None if ranks and ranks == machine else f"the {world.local_world} rank(s) of one machine in their order"
            )
        case "grid_shard":
            groups = [list(ranks[start : start + len(machine)]) for start in range(0, len(ranks), len(machine) or 1)]
            whole = ranks and all(group == world.machine(group[0]) for group in groups)
            return (
                None
                if whole
                else f"the {world.local_world} rank(s) of a machine in their order for each block of columns"
            )


# The tables of a model that a plan must be about: all of them, no others, of these sizes.


NAMED = 5  # names in a sentence


@dataclass(frozen=True)
class Collection:
    """A module that is sharded, by its path in the model. weights: table name -> the whole table."""

    path: str
    sharder: ModuleSharder[nn.Module]
    weights: Mapping[str, nn.Parameter]


def collections_of(
    model: nn.Module, sharders: Sequence[ModuleSharder[nn.Module]], path: str = ""
) -> Iterator[Collection]:
    """Every module that has a sharder, as TorchRec's planner finds them: not those inside of another."""
    sharder = next((sharder for sharder in sharders if sharder.module_type is type(model)), None)
    if sharder is not None:
        yield Collection(path, sharder, sharder.shardable_parameters(model))
        return
    for name, child in model.named_children():
        yield from collections_of(child, sharders, f"{path}.{name}" if path else name)


def check_names(
    planned: Mapping[str, Mapping[str, TableLayout]], collections: Sequence[Collection], where: str
) -> None:
    """Raises ContractError where `planned` (path -> table -> layout) lacks a table or names one that is not there."""
    paths = [collection.path for collection in collections]
    for path in planned:
        if path not in paths:
            raise ContractError(where, "collections of the model", _misspelt(path, paths))
    for collection in collections:
        tables = planned.get(collection.path, {})
        missing = [name for name in collection.weights if name not in tables]
        for name in tables:
            if name not in collection.weights:
                raise ContractError(f"{where}, {collection.path}", "tables of the model", _misspelt(name, missing))
        if missing:
            listed = ", ".join(missing[:NAMED]) + (f" and {len(missing) - NAMED} more" if missing[NAMED:] else "")
            raise ContractError(f"{where}, {collection.path}", "every table of the model", f"none called {listed}")


def _misspelt(name: str, meant: Sequence[str]) -> str:
    """The name, and what it may have been meant for."""
    close = get_close_matches(name, meant, n=1)
    return f"{name}; did you mean {close[0]}?" if close else name


def check_table(
    layout: TableLayout, weight: Tensor, sharder: ModuleSharder[nn.Module], device: str, where: str
) -> None:
    """Raises ContractError where the table has another size, or the sharder cannot lay it out so on `device`."""
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
