"""A TorchRec training script: a sharded DLRM on made-up rows shaped like Criteo's, with an item and a history.

    torchrun --nproc-per-node 2 examples/plain_dlrm.py
    torchrun --nproc-per-node 2 examples/plugged_dlrm.py --catalog demo/catalog

The first script does not use semantic IDs; the second is the same script with SID-Coord plugged in.
"""

import argparse
from collections.abc import Iterator

import torch
from torch import distributed as dist
from torchrec.datasets.utils import Batch
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.models.dlrm import DLRM, DLRMTrain
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

DENSE, CATEGORIES, ROWS, DIM = 13, 4, 1000, 16
ITEMS, LONGEST_HISTORY = 5000, 10
KEYS = [*(f"cat_{column}" for column in range(CATEGORIES)), "item_id", "history"]


def batches(rows: int, steps: int, seed: int) -> Iterator[Batch]:
    """Made-up rows: item i is liked after items of the same parity."""
    random = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        item = (torch.rand(rows, generator=random).pow(3) * (ITEMS - 1)).long() + 1
        lengths = torch.randint(0, LONGEST_HISTORY + 1, (rows,), generator=random)
        history = torch.randint(1, ITEMS, (int(lengths.sum()),), generator=random)
        same = torch.segment_reduce((history % 2).float(), "mean", lengths=lengths, unsafe=True).nan_to_num(0.5)
        liked = torch.where(item % 2 == 1, same, 1 - same)
        ids = [*torch.randint(0, ROWS, (CATEGORIES, rows), generator=random), item, history]
        ones = torch.ones(rows, dtype=torch.int64)
        sparse = KeyedJaggedTensor(KEYS, torch.cat(ids), lengths=torch.cat([ones] * (CATEGORIES + 1) + [lengths]))
        labels = torch.rand(rows, generator=random) < liked
        yield Batch(torch.randn(rows, DENSE, generator=random), sparse, labels.float())


def tables() -> EmbeddingBagCollection:
    """One table per category, and one that item and history share; on `meta`: DistributedModelParallel fills them."""
    configs = [
        EmbeddingBagConfig(name=f"t_{key}", embedding_dim=DIM, num_embeddings=ROWS, feature_names=[key])
        for key in KEYS[:CATEGORIES]
    ]
    configs.append(
        EmbeddingBagConfig(name="t_item", embedding_dim=DIM, num_embeddings=ITEMS, feature_names=["item_id", "history"])
    )
    return EmbeddingBagCollection(tables=configs, device=torch.device("meta"))


def main() -> float:
    """Trains, prints the mean loss of the last ten steps on this rank, and returns it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=512, help="rows per rank")
    args = parser.parse_args()

    cuda = torch.cuda.is_available()
    dist.init_process_group("nccl" if cuda else "gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    device = torch.device("cuda", rank) if cuda else torch.device("cpu")

    torch.manual_seed(0)
    model = DLRM(tables(), DENSE, dense_arch_layer_sizes=[64, DIM], over_arch_layer_sizes=[64, 1])
    apply_optimizer_in_backward(torch.optim.Adagrad, model.sparse_arch.parameters(), {"lr": 0.05})
    train_model = DLRMTrain(model)
    planner = EmbeddingShardingPlanner(topology=Topology(world_size=world, compute_device=device.type))
    sharders = [EmbeddingBagCollectionSharder()]
    plan = planner.collective_plan(train_model, sharders, dist.GroupMember.WORLD)
    sharded = DistributedModelParallel(train_model, device=device, plan=plan, sharders=sharders)
    dense = KeyedOptimizerWrapper(
        dict(in_backward_optimizer_filter(sharded.named_parameters())), lambda params: torch.optim.Adam(params, lr=1e-3)
    )
    optimizer = CombinedOptimizer([sharded.fused_optimizer, dense])
    pipeline = TrainPipelineSparseDist(sharded, optimizer, device)

    rows = batches(args.batch_size, args.steps, seed=1 + rank)
    losses = []
    for _ in range(args.steps):
        loss, _, _ = pipeline.progress(rows)
        losses.append(float(loss))
    last = losses[-10:]
    mean = sum(last) / len(last)
    print(f"rank {rank}: mean loss of the last {len(last)} steps {mean:.4f}")
    dist.destroy_process_group()
    return mean


if __name__ == "__main__":
    main()
