"""Models of torchrec.models as people have them, a catalog for their items, and batches.

Shapes: B rows, T history positions.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn
from torchrec.datasets.utils import Batch
from torchrec.models.deepfm import SimpleDeepFMNN
from torchrec.models.dlrm import DLRM, DLRM_DCN, DLRM_Projection, DLRMTrain
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from sidrec.plug import ItemCounts, attach
from sidrec.sid.catalog import Catalog

ITEMS, CATEGORIES, DIM, DENSE, T = 50, 11, 8, 5, 4
KNOWN = 40
"""Items 1..KNOWN have a SID; the table has rows for more."""


def catalog() -> Catalog:
    """The first code of an item is odd where its id is; the rest is chance."""
    codes_NL = np.random.default_rng(0).integers(0, 4, size=(KNOWN, 3))
    ids_N = np.arange(1, KNOWN + 1)
    codes_NL[:, 0] = codes_NL[:, 0] // 2 * 2 + ids_N % 2
    return Catalog(ids_N, codes_NL, (4, 4, 4))


def counts() -> ItemCounts:
    return ItemCounts(torch.arange(ITEMS).flip(0))


def tables(device: str = "cpu") -> EmbeddingBagCollection:
    """A category, and a table that item and history share."""
    return EmbeddingBagCollection(
        tables=[
            EmbeddingBagConfig(name="t_cat", embedding_dim=DIM, num_embeddings=CATEGORIES, feature_names=["cat"]),
            EmbeddingBagConfig(
                name="t_item", embedding_dim=DIM, num_embeddings=ITEMS, feature_names=["item_id", "history"]
            ),
        ],
        device=torch.device(device),
    )


def dlrm(device: str = "cpu") -> DLRM:
    return DLRM(tables(device), DENSE, [16, DIM], [16, 1])


def deepfm(device: str = "cpu") -> SimpleDeepFMNN:
    return SimpleDeepFMNN(DENSE, tables(device), hidden_layer_size=16, deep_fm_dimension=5)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "DLRM": dlrm,
    "DLRM_DCN": lambda: DLRM_DCN(tables(), DENSE, [16, DIM], [16, 1], dcn_num_layers=2, dcn_low_rank_dim=4),
    "DLRM_Projection": lambda: DLRM_Projection(tables(), DENSE, [16, DIM], [16, 1], [16, 2 * DIM], [16, 2 * DIM]),
    "SimpleDeepFMNN": deepfm,
}


def train_dlrm(device: str = "cpu", seed: int = 0) -> DLRMTrain:
    """The model that the training scripts train, with the same weights for the same seed."""
    torch.manual_seed(seed)
    return DLRMTrain(dlrm(device))


def batch(rows: int = 12, seed: int = 0, with_stats: bool = False) -> Batch:
    """Rows whose label is whether the item id is odd. Some ids have no SID, one history is empty."""
    random = torch.Generator().manual_seed(seed)

    def ids(high: int, count: int) -> torch.Tensor:
        return torch.randint(0, high, (count,), generator=random)

    lengths_B = ids(T + 1, rows)
    lengths_B[0] = 0
    item_B, history_P = ids(ITEMS, rows), ids(ITEMS, int(lengths_B.sum()))
    ones_B = torch.ones(rows, dtype=torch.int64)
    keys, values, lengths = ["cat", "item_id", "history"], [ids(CATEGORIES, rows), item_B, history_P], [ones_B] * 2
    lengths = [*lengths, lengths_B]
    if with_stats:
        keys, values, lengths = [*keys, "exposures"], [*values, ids(1000, rows)], [*lengths, ones_B]
    sparse = KeyedJaggedTensor(keys=keys, values=torch.cat(values), lengths=torch.cat(lengths))
    return Batch(torch.randn(rows, DENSE, generator=random), sparse, (item_B % 2).float())


COUNTS = counts()
M = TypeVar("M", bound=nn.Module)


def plugged(model: M, **options: Any) -> M:
    """With SID-Coord as its defaults have it, or with `options` of `attach`."""
    return attach(model, **{"catalog": catalog(), "history": "history", "statistics": COUNTS, **options})
