"""SID-Coord in your own TorchRec model. Batches, planners, sharders, optimizers and pipelines stay yours.

Models of torchrec.models take one call. This example runs as it is::

    import torch
    from torchrec.models.dlrm import DLRM, DLRMTrain
    from torchrec.modules.embedding_configs import EmbeddingBagConfig
    from torchrec.modules.embedding_modules import EmbeddingBagCollection

    from sidrec.plug import ItemCounts, attach, dense_parameters, embedding_parameters
    from sidrec.sid.catalog import Catalog

    ids = torch.arange(1, 1000)  # row 0 of the item table stays free
    codes = torch.stack([ids % 4, ids % 8, ids % 16], dim=1)
    catalog = Catalog(ids.numpy(), codes.numpy(), codebook_sizes=(4, 8, 16))  # or the folder that `sidrec fit` wrote

    tables = [
        EmbeddingBagConfig(name="t_user", num_embeddings=500, embedding_dim=16, feature_names=["user_id"]),
        EmbeddingBagConfig(name="t_item", num_embeddings=1000, embedding_dim=16, feature_names=["item_id", "history"]),
    ]
    model = DLRM(EmbeddingBagCollection(tables=tables), 13, [64, 16], [64, 1])
    counts = torch.zeros(1000)  # how often each item was shown before training began
    attach(model, catalog, item="item_id", history="history", statistics=ItemCounts(counts))

    table_optimizer = torch.optim.Adagrad(embedding_parameters(model), lr=0.05)
    dense_optimizer = torch.optim.Adam([parameter for _, parameter in dense_parameters(model)], lr=1e-3)
    train_model = DLRMTrain(model)

For any other model over KeyedTensors see `SidCoord`.
"""

from sidrec.plug.attach import attach as attach
from sidrec.plug.attach import dense_parameters as dense_parameters
from sidrec.plug.attach import embedding_parameters as embedding_parameters
from sidrec.plug.attach import load_without_sids as load_without_sids
from sidrec.plug.refit import carry_sids as carry_sids
from sidrec.plug.sid_coord import SidCoord as SidCoord
from sidrec.plug.statistics import ItemCounts as ItemCounts
from sidrec.plug.statistics import StatFeatures as StatFeatures
