"""What the data say of a plan that cost models do not: popular ids crowd row-wise shards, tables smaller than what is
exchanged for them could be replicated."""

from collections.abc import Sequence

from torchrec.distributed.planner.types import ShardingOption

from sidrec.plans.hardware import Hardware
from sidrec.plans.work import FLOAT, REPLICATED, ROW_TYPES
from sidrec.plans.workload import TableLoad, Workload

CROWDED = 1.5
"""Times its even share that a shard is looked up before it is worth a sentence."""
SAID = 6
"""Tables that a sentence names, the telling ones first."""


def remarks(
    options: Sequence[ShardingOption], workload: Workload, hardware: Hardware, knows_replicas: bool
) -> list[str]:
    """Sentences on placed options, the telling ones first. knows_replicas: as the cost model says."""
    return [*_crowded(options, workload), *_small(options, workload, hardware, knows_replicas)]


def _crowded(options: Sequence[ShardingOption], workload: Workload) -> list[str]:
    found = []
    for option in options:
        shares = row_shares(option, workload.loads[option.name])
        if option.sharding_type in ROW_TYPES and shares and max(shares) * len(shares) > CROWDED:
            found.append((max(shares) * len(shares), option.name, shares, option.sharding_type))
    if not found:
        return []
    found.sort(reverse=True)
    names = ", ".join(
        f"{name} ({kind}: {max(shares):.0%}, {times:.1f} times an even share)"
        for times, name, shares, kind in found[:SAID]
    )
    more = f" and {len(found) - SAID} more" if found[SAID:] else ""
    return [f"popular ids are neighbours, so that one row shard is looked up for most of a table's ids: {names}{more}"]


def row_shares(option: ShardingOption, load: TableLoad) -> list[float]:
    """Expected share of the ids that each range of rows of the option's shards gets; [] where that is not known."""
    if load.popularity is None:
        return []
    ranges = sorted({(shard.offset[0], shard.offset[0] + shard.size[0]) for shard in option.shards})
    return [load.popularity.share(first, last) for first, last in ranges]


def _small(
    options: Sequence[ShardingOption], workload: Workload, hardware: Hardware, knows_replicas: bool
) -> list[str]:
    """Replicas exchange a gradient as large as the table; shards exchange embeddings and their gradients per bag."""
    found = []
    for option in options:
        load, (rows, width) = workload.loads[option.name], option.tensor.shape
        table = rows * width * FLOAT
        exchanged = load.bags * len(load.ids_per_bag) * width * FLOAT
        if option.sharding_type != REPLICATED and hardware.world > 1 and exchanged > table:
            found.append((exchanged / table, option.name, table, exchanged))
    found.sort(reverse=True)
    names = ", ".join(
        f"{name} ({table / 1e3:,.1f} kB, for which a rank sends {exchanged / 1e3:,.0f} kB of embeddings a step)"
        for _, name, table, exchanged in found[:SAID]
    )
    more = f" and {len(found) - SAID} more" if found[SAID:] else ""
    if not found:
        return []
    unknown = "left out all the same: only a calibration knows what replicas cost on CPU, large ones many times as much"
    known = knows_replicas or hardware.device != "cpu"
    verdict = "what the cost model expects of that stands under DP" if known else unknown
    return [f"smaller than what is exchanged for them, so that replicas would send less: {names}{more}; {verdict}"]
