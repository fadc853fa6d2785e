"""What a recipe's model costs in parameters: for comparisons at equal budgets."""

from dataclasses import dataclass

import torch
from torch import nn

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
    items, context = _parameters(ranker.items, ranker.managed_hids), _parameters(ranker.context)
    return Budget(
        item_rows=sum(table.rows for table in sizes.item_tables.values()),
        item_parameters=items,
        context_parameters=context,
        dense_parameters=_parameters(ranker) - items - context,
    )


def _parameters(*modules: nn.Module | None) -> int:
    return sum(p.numel() for module in modules if module is not None for p in module.parameters())
