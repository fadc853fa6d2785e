"""Load a checkpoint into a new model: tables may have more rows than when saved, and tables may be left out.

Shapes: R rows of a table, D its width.
"""

from collections.abc import Collection, Iterable

from torchrec.distributed import DistributedModelParallel
from torchrec.optim.keyed import KeyedOptimizer

from sidrec.checkpoint.dcp_storage import load_shards
from sidrec.checkpoint.rowwise_adagrad_reshard import RowwiseAdagradReshard
from sidrec.checkpoint.state import init_optimizer_states, invalidate_caches, optimizer_shards, state_shards
from sidrec.checkpoint.stored_tables import StoredCheckpoint
from sidrec.checkpoint.tensor_shard import CheckpointIndex, TensorShard
from sidrec.parallel.process_group import Ranks, run_on_all_ranks


def load_partially(
    found: StoredCheckpoint,
    model: DistributedModelParallel,
    optimizer: KeyedOptimizer | None,
    without: Collection[str],
    ranks: Ranks,
) -> None:
    """Reads a checkpoint into a model that has its first values, and into its optimizer if given.

    Rows that a table has beyond the checkpoint's keep their first values, and no state. without: tables that keep
    theirs altogether. All ranks call it once `check_compatible` has passed. Raises CheckpointError, on all ranks,
    where the checkpoint cannot be read.
    """
    index = found.index
    shards = _old(state_shards(model, None, ranks), index, without)
    reshard = None
    if optimizer is not None:
        init_optimizer_states(optimizer, index.tensors)
        weights = {name: value for name, value in model.state_dict().items() if not belongs_to(name, without)}
        states = _old(optimizer_shards(optimizer, model.state_dict(), ranks.first), index, without)
        reshard = run_on_all_ranks(ranks, lambda: RowwiseAdagradReshard(found.path, index, weights, states))
        shards += reshard.shards
        if ranks.first:
            reshard.say()
    load_shards(found.path, index, shards, ranks.control)
    if reshard is not None:
        reshard.convert()
    invalidate_caches(model)


def belongs_to(name: str, tables: Collection[str]) -> bool:
    """Whether a tensor of model or optimizer belongs to one of the tables, the slots of a managed one among them."""
    owners = ("embedding_bags", "_managed_collision_modules")
    return any(f".{owner}.{table}." in name for table in tables for owner in owners)


def _old(shards: Iterable[TensorShard], index: CheckpointIndex, without: Collection[str]) -> list[TensorShard]:
    return [part for shard in shards if not belongs_to(shard.key, without) for part in _old_rows(shard, index)]


def _old_rows(shard: TensorShard, index: CheckpointIndex) -> list[TensorShard]:
    """The rows of a shard that the checkpoint's tensor has too: the first ones, as ids are numbered as they come."""
    stored = index.tensors.get(shard.key)
    if stored is None or len(stored.shape) != 2 or stored.shape[0] >= shard.shape[0]:
        return [shard]
    rows = min(len(shard.values), stored.shape[0] - shard.offset[0])
    shape = (stored.shape[0], *shard.shape[1:])
    return [TensorShard(shard.key, shape, shard.offset, shard.values[:rows], shard.owned)] if rows > 0 else []
