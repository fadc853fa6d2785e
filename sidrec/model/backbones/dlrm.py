"""TorchRec's DLRM family: dot products, cross network or projections between a dense arch and an over arch."""

from collections.abc import Sequence

from torchrec.models.dlrm import DLRM, DLRM_DCN, DLRM_Projection

from sidrec.config.backbone import DlrmBackbone, DlrmDcnBackbone, DlrmProjectionBackbone
from sidrec.model.backbones.embedded import EmbeddedFeatures, tables_like


def build_dlrm(
    config: DlrmBackbone | DlrmDcnBackbone | DlrmProjectionBackbone, features: Sequence[str], dim: int, dense_width: int
) -> DLRM:
    """The one that `config` names, taking (dense [B, X], embedded [B, F, D])."""
    tables = tables_like(features, dim)
    dense_layers, over_layers = [*config.dense_layers, dim], [*config.over_layers, 1]
    model: DLRM
    match config:
        case DlrmBackbone():
            model = DLRM(tables, dense_width, dense_layers, over_layers)
        case DlrmDcnBackbone():
            model = DLRM_DCN(tables, dense_width, dense_layers, over_layers, config.cross_layers, config.low_rank)
        case DlrmProjectionBackbone():
            first, second = ([*config.branch_layers, vectors * dim] for vectors in config.projections)
            model = DLRM_Projection(tables, dense_width, dense_layers, over_layers, first, second)
    model.sparse_arch = EmbeddedFeatures(features, dim)
    return model
