"""What a recipe's model costs in parameters: for comparisons at equal budgets."""

from dataclasses import dataclass

import torch
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from sidrec.config.model import ModelConfig
from sidrec.model.ranker import Ranker
from sidrec.model.sizes import Sizes


@dataclass(frozen=True)
class Budget:
    """item_rows: rows of all item tables together. item_parameters, context_parameters: rows times D of their tables.

    dense_parameters: everything else that learns. Frozen content vectors and the tokenizer do not.
    """

    item_rows: int
    item_parameters: int
    context_parameters: int
    dense_parameters: int


def parameter_budget(config: ModelConfig, sizes: Sizes) -> Budget:
    """Counts the ranker that `config` and `sizes` make, on `meta`: nothing is allocated or drawn."""
    with torch.device("meta"):
        ranker = Ranker(config, sizes)
    items, context = _parameters(ranker.items), _parameters(ranker.context) if ranker.context is not None else 0
    return Budget(
        item_rows=sum(table.rows for table in sizes.item_tables.values()),
        item_parameters=items,
        context_parameters=context,
        dense_parameters=sum(p.numel() for p in ranker.parameters()) - items - context,
    )


def _parameters(tables: EmbeddingBagCollection) -> int:
    return sum(table.num_embeddings * table.embedding_dim for table in tables.embedding_bag_configs())
