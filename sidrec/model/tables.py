"""Collections of embedding tables: of items and context, beside other people's tables, and as the shape of a model."""

from collections.abc import Mapping

import torch
from torchrec.modules.embedding_configs import DataType, EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from sidrec.data.item_tables import ItemTable

META = torch.device("meta")
NO_INITS: Mapping[str, float | None] = {}


def embedding_tables(
    tables: Mapping[str, ItemTable],
    dim: int,
    inits: Mapping[str, float | None] = NO_INITS,
    data_type: DataType = DataType.FP32,
    device: torch.device | None = META,
) -> EmbeddingBagCollection:
    """One collection with a table of width `dim` per entry, summing the ids of a bag.

    inits: a table's initial range, TorchRec's 1/sqrt(rows) where there is none. On `meta` nothing is allocated.
    """
    return EmbeddingBagCollection(
        tables=[
            EmbeddingBagConfig(
                name=name,
                feature_names=list(table.features),
                num_embeddings=table.rows,
                embedding_dim=dim,
                pooling=PoolingType.SUM,
                data_type=data_type,
                weight_init_min=None if init is None else -init,
                weight_init_max=init,
            )
            for name, table, init in ((name, table, inits.get(name)) for name, table in tables.items())
        ],
        device=device,
    )


def one_feature_each(rows: Mapping[str, int]) -> dict[str, ItemTable]:
    """Name -> a table of so many rows that the feature of the same name is read from."""
    return {name: ItemTable(count, (name,)) for name, count in rows.items()}
