"""TorchRec's estimators, asked once for shards that are alike: a table in 128 equal parts is estimated once, not 128
times, which makes planning for 128 ranks several times faster."""

from typing import Any

from torchrec.distributed.planner.types import Shard, ShardEstimator, ShardingOption


class OncePerSize(ShardEstimator):
    """Gives shards of one option that have the same size the same estimate, made once by `estimator`."""

    def __init__(self, estimator: ShardEstimator) -> None:
        self._estimator = estimator

    def estimate(self, sharding_options: list[ShardingOption], *arguments: Any, **named: Any) -> None:
        """Fills shard.perf or shard.storage, as `estimator` does."""
        every = [option.shards for option in sharding_options]
        first: list[dict[tuple[int, ...], Shard]] = []
        try:
            for option in sharding_options:
                first.append({tuple(shard.size): shard for shard in reversed(option.shards)})
                option.shards = list(first[-1].values())
            self._estimator.estimate(sharding_options, *arguments, **named)
        finally:
            for option, shards in zip(sharding_options, every, strict=True):
                option.shards = shards
        for shards, alike in zip(every, first, strict=True):
            for shard in shards:
                shard.perf, shard.storage = alike[tuple(shard.size)].perf, alike[tuple(shard.size)].storage
