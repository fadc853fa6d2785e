"""The message when no plan fits: the largest tables, the missing bytes, and changes that were tried and do fit.

Shapes: W ranks, S shards of a table, 2 kinds of memory (device, host).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from torchrec.distributed.planner.types import ShardingOption, Storage

from sidrec.plans.hardware import Hardware
from sidrec.plans.options import (
    ROWWISE,
    STATE_BYTES,
    Sharders,
    enumerate_options,
    in_host_memory,
    optimizer_of,
    table_bytes,
)
from sidrec.plans.placement import Placement, RatedLayout, RatedLayouts, fill, shard_bytes
from sidrec.plans.workload import Workload
from sidrec.text import byte_size

UNBOUNDED = Storage(hbm=2**62, ddr=2**62)
FACTORS = (2, 4, 8, 16)
"""Multiples of the ranks that are tried."""
NAMED = 3
"""Tables that the message names."""


def shortfall(
    options: Mapping[str, Sequence[ShardingOption]],
    memory: Storage,
    workload: Workload,
    hardware: Hardware,
    sharders: Sharders,
) -> str:
    """The message for a search that found nothing. options: all that were tried; memory: of a rank, for tables."""
    layouts = _layouts_by_bytes(options)
    even = fill(layouts, Placement.empty(hardware, UNBOUNDED))
    assert even is not None, "any table fits unbounded memory"
    kind = 1 if hardware.device == "cpu" else 0
    available = (memory.hbm, memory.ddr)[kind]
    used_W2 = np.array([UNBOUNDED.hbm, UNBOUNDED.ddr]) - even.free_W2
    rank = int(used_W2[:, kind].argmax())
    used, cap = int(used_W2[rank, kind]), (hardware.hbm, hardware.ddr)[kind]
    of_rank = {name: int(layout.bytes_S2[rank_S == rank, kind].sum()) for name, (layout, rank_S) in even.tables.items()}
    largest = sorted(of_rank, key=lambda name: -of_rank[name])[:NAMED]
    tables = ", ".join(f"{name} ({_kind(even.tables[name][0])}: {byte_size(of_rank[name])})" for name in largest)
    remedies = _remedies(layouts, memory, workload, hardware, sharders, short=used - available, cap=cap)
    return (
        f"no plan for {workload.name} fits {hardware.name}: the most even one puts {byte_size(used)} of tables on "
        f"rank {rank}, which has {byte_size(available)} for them of its {byte_size(cap)}: {used - available:,} bytes "
        f"short. Largest there: {tables}. It would fit with {'; or with '.join(remedies)}"
    )


def _layouts_by_bytes(options: Mapping[str, Sequence[ShardingOption]]) -> dict[str, list[RatedLayout]]:
    """Layouts that cost their bytes."""
    return {name: [_by_bytes(option, shard_bytes(option)) for option in found] for name, found in options.items()}


def _by_bytes(option: ShardingOption, bytes_S2: np.ndarray) -> RatedLayout:
    return RatedLayout(option, 0.0, bytes_S2.sum(axis=1).astype(float), bytes_S2)


def _remedies(
    layouts: RatedLayouts,
    memory: Storage,
    workload: Workload,
    hardware: Hardware,
    sharders: Sharders,
    short: int,
    cap: int,
) -> list[str]:
    """Changes under which the tables were found to fit, and the memory that would suffice."""
    found = []
    if _fits(_with_rowwise_state(layouts, hardware, sharders), hardware, memory):
        found.append("row-wise Adagrad for the tables (optimizer.tables: {kind: rowwise_adagrad})")
    if _fits(_with_half_weights(layouts, hardware, sharders), hardware, memory):
        found.append("weights in FP16 or half the columns")
    if len({layout.option.sharding_type for layout in next(iter(layouts.values()))}) == 1:
        any_type = enumerate_options(workload, hardware, sharders)
        if _fits(_layouts_by_bytes(any_type), hardware, memory):
            found.append("sharding types that are not forced")
    larger = (replace(hardware, world=hardware.world * factor) for factor in FACTORS)
    enough = next((each for each in larger if _fits_on(each, memory, workload, sharders, layouts)), None)
    if enough is not None:
        found.append(f"{enough.world} ranks")
    return [*found, f"{byte_size(cap + short)} of memory on every rank, {byte_size(short)} more for tables"]


def _fits(layouts: RatedLayouts, hardware: Hardware, memory: Storage) -> bool:
    return fill(layouts, Placement.empty(hardware, memory)) is not None


def _fits_on(
    hardware: Hardware, memory: Storage, workload: Workload, sharders: Sharders, layouts: RatedLayouts
) -> bool:
    """Whether the tables fit other hardware with the same sharding types and kernels."""
    types = {name: sorted({layout.option.sharding_type for layout in found}) for name, found in layouts.items()}
    kernels = sorted({layout.option.compute_kernel for found in layouts.values() for layout in found})
    options = enumerate_options(workload, hardware, sharders, types, kernels)
    return _fits(_layouts_by_bytes(options), hardware, memory)


def _with_rowwise_state(layouts: RatedLayouts, hardware: Hardware, sharders: Sharders) -> RatedLayouts:
    def saved(option: ShardingOption) -> list[int]:
        if optimizer_of(option, sharders) in ROWWISE:
            return [0] * len(option.shards)
        sizes = zip(option.shards, table_bytes(option, sharders), strict=True)
        return [max(0, size.state - shard.size[0] * STATE_BYTES) for shard, size in sizes]

    return _smaller(layouts, hardware, saved)


def _with_half_weights(layouts: RatedLayouts, hardware: Hardware, sharders: Sharders) -> RatedLayouts:
    return _smaller(layouts, hardware, lambda option: [size.weights // 2 for size in table_bytes(option, sharders)])


def _smaller(layouts: RatedLayouts, hardware: Hardware, saved: Callable[[ShardingOption], list[int]]) -> RatedLayouts:
    """The layouts with `saved` bytes less for each shard, in the memory that holds its weights."""
    smaller: dict[str, list[RatedLayout]] = {}
    for name, found in layouts.items():
        smaller[name] = []
        for layout in found:
            bytes_S2 = layout.bytes_S2.copy()
            bytes_S2[:, int(in_host_memory(layout.option, hardware.device))] -= np.array(saved(layout.option))
            smaller[name].append(_by_bytes(layout.option, bytes_S2))
    return smaller


def _kind(layout: RatedLayout) -> str:
    return layout.option.sharding_type if "uvm" not in layout.option.compute_kernel else layout.option.compute_kernel
