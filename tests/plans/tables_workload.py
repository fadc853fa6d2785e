"""A workload of tables alone, and hardware to plan it for."""

from collections.abc import Mapping

import torch
from torch import nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from sidrec.config.recipe import AdagradTables, TableOptimizer
from sidrec.parallel.sharding import EveryTypeSharder, fused_params
from sidrec.plans.hardware import GB, Hardware
from sidrec.plans.workload import TableLoad, Workload


class Tables(nn.Module):
    """One collection at path `tables`."""

    def __init__(self, shapes: Mapping[str, tuple[int, int]]) -> None:
        super().__init__()
        self.tables = EmbeddingBagCollection(
            device=torch.device("meta"),
            tables=[
                EmbeddingBagConfig(name=name, num_embeddings=rows, embedding_dim=width, feature_names=[f"f_{name}"])
                for name, (rows, width) in shapes.items()
            ],
        )


def workload(shapes: Mapping[str, tuple[int, int]], ids_per_bag: float = 1.0, rows_per_rank: int = 512) -> Workload:
    """shapes: table -> rows, width."""
    loads = {name: TableLoad(rows_per_rank, (ids_per_bag,)) for name in shapes}
    return Workload("tables", Tables(shapes), loads, rows_per_rank)


def hardware(world: int = 4, local_world: int | None = None, device: str = "cpu", hbm: float = 80 * GB) -> Hardware:
    """Ranks of 1 GB/s between one another and 10 GB/s to their memory."""
    return Hardware(
        name="test",
        device="cpu" if device == "cpu" else "cuda",
        world=world,
        local_world=local_world or world,
        hbm=int(hbm),
        ddr=100 * GB,
        hbm_bandwidth=1000 * GB,
        ddr_bandwidth=10 * GB,
        host_link=10 * GB,
        intra_bandwidth=GB,
        inter_bandwidth=GB / 2,
    )


def sharders(optimizer: TableOptimizer | None = None) -> list[EveryTypeSharder]:
    """As training makes them."""
    return [EveryTypeSharder(fused_params=fused_params(optimizer or AdagradTables()))]
