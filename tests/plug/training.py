"""How people train: planner, DistributedModelParallel, and a loop or a pipeline of TorchRec's.

Shapes: B rows.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torchrec.datasets.utils import Batch
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from sidrec.parallel.sharding import EveryTypeSharder
from sidrec.plug import dense_parameters, embedding_parameters
from tests.plug.hosts import batch

ROWS, STEPS = 48, 6
CPU = torch.device("cpu")


def sharded(
    model: nn.Module, world: int, sharding: str, device: torch.device = CPU
) -> tuple[DistributedModelParallel, CombinedOptimizer]:
    """The model with its values and one sharding type for all tables.

    Tables learn in backward, where they are not replicated.
    """
    state = {name: value.clone() for name, value in model.state_dict().items()}
    if sharding != "data_parallel":
        apply_optimizer_in_backward(torch.optim.SGD, embedding_parameters(model), {"lr": 1.0})
    collections = [module for module in model.modules() if isinstance(module, EmbeddingBagCollection)]
    names = [table.name for collection in collections for table in collection.embedding_bag_configs()]
    planner = EmbeddingShardingPlanner(
        topology=Topology(world_size=world, compute_device=device.type),
        constraints={name: ParameterConstraints(sharding_types=[sharding]) for name in names},
        debug=False,
    )
    sharders: list[Any] = [EveryTypeSharder()]
    distributed = DistributedModelParallel(model, device=device, plan=planner.plan(model, sharders), sharders=sharders)
    distributed.load_state_dict(state)  # TorchRec fills sharded tables anew
    return distributed, optimizer_of(distributed)


def optimizer_of(model: DistributedModelParallel) -> CombinedOptimizer:
    """SGD for whatever did not get its optimizer in backward: the same for replicated tables as for the others."""
    left = dict(in_backward_optimizer_filter(model.named_parameters()))
    replicated = {name: p for name, p in left.items() if ".embedding_bags." in name}
    others = dict(dense_parameters(model))
    assert {*replicated, *others} == {*left}
    parts = [
        KeyedOptimizerWrapper(parameters, lambda params, lr=lr: torch.optim.SGD(params, lr=lr))
        for parameters, lr in ((replicated, 1.0), (others, 0.5))
        if parameters
    ]
    return CombinedOptimizer([model.fused_optimizer, *parts])


def batches(rank: int, world: int, steps: int = STEPS) -> Iterator[Batch]:
    """This rank's rows of batches that are the same at any world size. Each rank gets another number of history ids."""
    for step in range(steps):
        whole = batch(ROWS, seed=step)
        share = slice(rank * ROWS // world, (rank + 1) * ROWS // world)
        rows = {
            key: [row.tolist() for row in jagged.to_dense()][share]
            for key, jagged in whole.sparse_features.to_dict().items()
        }
        lengths = [len(row) for ids in rows.values() for row in ids]
        values = [value for ids in rows.values() for row in ids for value in row]
        sparse = KeyedJaggedTensor(keys=list(rows), values=torch.tensor(values), lengths=torch.tensor(lengths))
        yield Batch(whole.dense_features[share], sparse, whole.labels[share])


def train_in_loop(model: nn.Module, optimizer: Any, rank: int, world: int, steps: int = STEPS) -> list[torch.Tensor]:
    """The logits [B] of every step."""
    logits = []
    for rows in batches(rank, world, steps):
        optimizer.zero_grad()
        loss, (_, logits_B, _) = model(rows)
        loss.backward()
        optimizer.step()
        logits.append(logits_B)
    return logits


def train_in_pipeline(
    model: DistributedModelParallel,
    optimizer: CombinedOptimizer,
    rank: int,
    world: int,
    postproc: bool,
    device: torch.device = CPU,
) -> tuple[list[torch.Tensor], int]:
    """The logits [B] of every step, and how many collections were pipelined."""
    pipeline = TrainPipelineSparseDist(model, optimizer, device, pipeline_postproc=postproc)
    rows = batches(rank, world)
    logits = [pipeline.progress(rows)[1] for _ in range(STEPS)]
    return logits, len(pipeline._pipelined_modules)
