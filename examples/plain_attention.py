"""A TorchRec training script with two collections: bags of categories, and a history that the target attends to.

    torchrun --nproc-per-node 2 examples/plain_attention.py
    torchrun --nproc-per-node 2 examples/plugged_attention.py

The first script does not use semantic IDs. The second is the same script with SID-Coord plugged in: target and history
are mixed of HID and SID before the target attends to the history. It reads the catalog in `demo/catalog`.
"""

import argparse

import torch
from plain_dlrm import CATEGORIES, DENSE, DIM, ITEMS, KEYS, LONGEST_HISTORY, ROWS, batches
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor


class AttentionRanker(nn.Module):
    """Logits [B] of the dense columns, the categories, the target, and the history by attention of the target."""

    def __init__(self) -> None:
        super().__init__()
        categories = [
            EmbeddingBagConfig(name=f"t_{key}", embedding_dim=DIM, num_embeddings=ROWS, feature_names=[key])
            for key in KEYS[:CATEGORIES]
        ]
        items = EmbeddingConfig(
            name="t_item", embedding_dim=DIM, num_embeddings=ITEMS, feature_names=["item_id", "history"]
        )
        self.bags = EmbeddingBagCollection(tables=categories)
        self.items = EmbeddingCollection(tables=[items])
        self.query = nn.Linear(DIM, DIM, bias=False)
        self.layers = nn.Sequential(nn.Linear(DENSE + (CATEGORIES + 2) * DIM, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, dense: Tensor, features: KeyedJaggedTensor) -> Tensor:
        bags = self.bags(features)
        items = self.items(features)
        target = items["item_id"].values()
        history = items["history"].to_padded_dense(LONGEST_HISTORY)
        padding = torch.arange(LONGEST_HISTORY, device=dense.device) >= features["history"].lengths().unsqueeze(1)
        scores = torch.einsum("btd,bd->bt", history, self.query(target)) / DIM**0.5
        weights = scores.masked_fill(padding, -1e9).softmax(dim=1)
        attended = torch.einsum("bt,btd->bd", weights, history)
        return self.layers(torch.cat([dense, bags.values(), target, attended], dim=1)).squeeze(1)


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
    model = AttentionRanker()
    kinds = EmbeddingBagCollection | EmbeddingCollection
    collections = [module for module in model.modules() if isinstance(module, kinds)]
    for collection in collections:
        apply_optimizer_in_backward(torch.optim.Adagrad, collection.parameters(), {"lr": 0.05})
    planner = EmbeddingShardingPlanner(topology=Topology(world_size=world, compute_device=device.type))
    sharders = [EmbeddingBagCollectionSharder(), EmbeddingCollectionSharder()]
    plan = planner.collective_plan(model, sharders, dist.GroupMember.WORLD)
    sharded = DistributedModelParallel(model, device=device, plan=plan, sharders=sharders)
    dense = KeyedOptimizerWrapper(
        dict(in_backward_optimizer_filter(sharded.named_parameters())), lambda params: torch.optim.Adam(params, lr=1e-3)
    )
    optimizer = CombinedOptimizer([sharded.fused_optimizer, dense])

    losses = []
    for batch in batches(args.batch_size, args.steps, seed=1 + rank):
        rows = batch.to(device)
        optimizer.zero_grad()
        loss = functional.binary_cross_entropy_with_logits(
            sharded(rows.dense_features, rows.sparse_features), rows.labels
        )
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    last = losses[-10:]
    mean = sum(last) / len(last)
    print(f"rank {rank}: mean loss of the last {len(last)} steps {mean:.4f}")
    dist.destroy_process_group()
    return mean


if __name__ == "__main__":
    main()
