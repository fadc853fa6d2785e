"""What a plan is made of: a model's tables, and how they are read in a step."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from sidrec.plans.popularity import Popularity


@dataclass(frozen=True)
class TableLoad:
    """How one rank reads a table in a step.

    bags: bags per feature. ids_per_bag: mean ids in a bag, one value per feature of the table.
    popularity: how the ids fall on the table's rows; None where that is not known.
    """

    bags: int
    ids_per_bag: tuple[float, ...]
    popularity: Popularity | None = None


@dataclass(frozen=True)
class Workload:
    """model: any module whose EmbeddingBagCollections are on `meta`. loads: table name -> load, one for every table.

    rows_per_rank: rows that one rank trains on in a step.
    """

    name: str
    model: nn.Module
    loads: Mapping[str, TableLoad]
    rows_per_rank: int

    @cached_property  # a search asks for every layout of every table
    def dense_parameters(self) -> int:
        """Parameters outside of the tables: as many multiplications per row and pass, in layers that are linear."""
        tables = {id(weight) for tables in self.collections.values() for weight in tables.parameters()}
        return sum(weight.numel() for weight in self.model.parameters() if id(weight) not in tables)

    @property
    def tables(self) -> dict[str, EmbeddingBagConfig]:
        """Table name -> TorchRec's description, of all collections, in their order."""
        return tables_of(self.model)

    @property
    def collections(self) -> dict[str, EmbeddingBagCollection]:
        """Path of a collection in the model -> collection."""
        return {
            path: module for path, module in self.model.named_modules() if isinstance(module, EmbeddingBagCollection)
        }


def tables_of(model: nn.Module) -> dict[str, EmbeddingBagConfig]:
    """Table name -> TorchRec's description, of all collections in a model that is not sharded yet, in their order."""
    return {
        table.name: table
        for module in model.modules()
        if isinstance(module, EmbeddingBagCollection)
        for table in module.embedding_bag_configs()
    }
