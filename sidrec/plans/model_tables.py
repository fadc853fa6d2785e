"""The tables of a model that a plan must be about: all of them, no others, of these sizes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from torch import Tensor, nn
from torchrec.distributed.types import ModuleSharder

from sidrec.plans.table_layout import KERNELS, TableLayout
from sidrec.schema import ContractError

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
