"""The sharder of all tables: every sharding type, and the table optimizer fused into FBGEMM's backward."""

from typing import Any

from fbgemm_gpu.split_embedding_configs import EmbOptimType
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.types import ShardingType

from sidrec.config.tree import AdagradTables, RowwiseAdagradTables, SgdTables, TableOptimizer


class EveryTypeSharder(EmbeddingBagCollectionSharder):
    """TorchRec offers four sharding types on CPU although all seven train there; this one offers all."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        return [kind.value for kind in ShardingType]


def fused_params(optimizer: TableOptimizer) -> dict[str, Any]:
    """FBGEMM's arguments for the optimizer that `optimizer` names."""
    match optimizer:
        case AdagradTables():
            kind = EmbOptimType.EXACT_ADAGRAD
        case RowwiseAdagradTables():
            kind = EmbOptimType.EXACT_ROWWISE_ADAGRAD
        case SgdTables():
            return {"optimizer": EmbOptimType.EXACT_SGD, "learning_rate": optimizer.lr}
    return {
        "optimizer": kind,
        "learning_rate": optimizer.lr,
        "eps": optimizer.eps,
    }
