"""What a plan is expected to cost: TorchRec's own cost model, and the contract that others of ours fulfil."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torchrec.distributed.planner.types import Shard, ShardingOption

from sidrec.plans.hardware import Hardware
from sidrec.plans.workload import Workload

PARTS = ("fwd_compute", "fwd_comms", "bwd_compute", "bwd_comms", "input_dist")


@dataclass(frozen=True)
class Cost:
    """Expected milliseconds of one training step.

    step: all of it, as the slowest rank sees it. ranks: [world] each rank's own. tables: table -> [world] what it costs
    each rank. parts: table -> part (PARTS) -> what it costs the rank that it costs most.
    """

    step: float
    ranks: list[float]
    tables: dict[str, list[float]]
    parts: dict[str, dict[str, float]]


class CostModel(Protocol):
    """Rates placed options, that is, plans."""

    @property
    def name(self) -> str:
        """How reports call the model."""

    @property
    def knows_replicas(self) -> bool:
        """Whether it knows what replicated tables cost on CPU: a dense gradient, and an update of every row."""

    def margin(self, world: int) -> float:
        """Share of a step by which two plans must differ for the model to tell which is faster on so many ranks."""

    def rate(self, options: Sequence[ShardingOption], workload: Workload, hardware: Hardware) -> Cost:
        """Expects every shard of every option to have a rank. The options need not hold all tables of the workload."""


class TorchRecCost:
    """TorchRec's estimates (planner.shard_estimators), added up on each rank; a step takes as long as the slowest
    rank's sum. As TorchRec itself does, the input distribution is estimated but not added: pipelines hide it."""

    name = "torchrec"
    knows_replicas = False

    def margin(self, world: int) -> float:
        """Nobody has measured it: taken at its word."""
        return 0.0

    def rate(self, options: Sequence[ShardingOption], workload: Workload, hardware: Hardware) -> Cost:
        """Milliseconds from shard.perf, which `enumerate_options` and `options_of` fill."""
        tables = {option.name: _by_rank(option, hardware.world) for option in options}
        ranks = [sum((table[rank] for table in tables.values()), 0.0) for rank in range(hardware.world)]
        return Cost(max(ranks), ranks, tables, {option.name: _parts(option) for option in options})


def _by_rank(option: ShardingOption, world: int) -> list[float]:
    ranks = [0.0] * world
    for shard in option.shards:
        ranks[_rank(option, shard)] += shard.perf.total
    return ranks


def _rank(option: ShardingOption, shard: Shard) -> int:
    assert shard.rank is not None, f"table {option.name} is rated before its shards are placed"
    return int(shard.rank)


def _parts(option: ShardingOption) -> dict[str, float]:
    by_rank: dict[int, dict[str, float]] = {}
    for shard in option.shards:
        parts = by_rank.setdefault(_rank(option, shard), dict.fromkeys(PARTS, 0.0))
        for part, value in _shard_parts(shard).items():
            parts[part] += value
    return max(by_rank.values(), key=lambda parts: sum(parts.values()))


def _shard_parts(shard: Shard) -> Mapping[str, float]:
    perf = shard.perf
    return {
        "fwd_compute": perf.fwd_compute + getattr(perf, "prefetch_compute", 0.0),
        "fwd_comms": perf.fwd_comms,
        "bwd_compute": perf.bwd_compute,
        "bwd_comms": perf.bwd_comms,
        "input_dist": getattr(perf, "input_dist_comms", 0.0),
    }
