"""Probes that the doctor runs as subprocesses, so that a crash becomes a finding:

python -m sidrec.doctor.probe lookup   one fused embedding lookup, forward, backward, update; prints JSON
torchrun ... -m sidrec.doctor.probe all_reduce  a sum over the ranks, over NCCL where every rank has a GPU, else gloo
"""

import json
import os
import sys
from collections.abc import Sequence
from datetime import timedelta


def main(argv: Sequence[str]) -> int:
    {"lookup": lookup, "all_reduce": all_reduce}[argv[0]]()
    return 0


def lookup() -> None:
    """Two bags, {0, 2} and {2}, of a table whose row r holds r; SGD of rate 1 on the sum of the pooled vectors.

    The pooled sums are 0 + 2 and 2. Row 2 is in both bags, row 0 in one, row 1 in none: they lose 2, 1 and 0.
    """
    import torch
    from fbgemm_gpu.split_embedding_configs import EmbOptimType
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
        ComputeDevice,
        SplitTableBatchedEmbeddingBagsCodegen,
    )

    gpu = torch.cuda.is_available()
    location, device = (
        (EmbeddingLocation.DEVICE, ComputeDevice.CUDA) if gpu else (EmbeddingLocation.HOST, ComputeDevice.CPU)
    )
    table = SplitTableBatchedEmbeddingBagsCodegen(
        [(3, 4, location, device)], optimizer=EmbOptimType.EXACT_SGD, learning_rate=1.0
    )
    (weight,) = table.split_embedding_weights()
    weight.copy_(torch.arange(3.0).unsqueeze(1).expand(3, 4))
    ids, offsets = (torch.tensor(values, device=weight.device) for values in ([0, 2, 2], [0, 2, 3]))
    pooled = table(ids, offsets)
    pooled.sum().backward()
    _expect("the lookup", pooled[:, 0].tolist(), [2.0, 2.0])
    _expect("the update", table.split_embedding_weights()[0][:, 0].tolist(), [-1.0, 1.0, 0.0])
    import torchrec

    print(json.dumps({"torchrec": torchrec.__version__, "gpus": torch.cuda.device_count() if gpu else 0}))


def all_reduce() -> None:
    """Sums rank + 1 over all ranks; expects world * (world + 1) / 2."""
    import torch
    import torch.distributed as dist

    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    gpu = torch.cuda.is_available() and torch.cuda.device_count() >= world
    device = torch.device("cuda", rank) if gpu else torch.device("cpu")
    dist.init_process_group("nccl" if gpu else "gloo", timeout=timedelta(seconds=60))
    total = torch.tensor([rank + 1.0], device=device)
    dist.all_reduce(total)
    dist.destroy_process_group()
    _expect("the sum over the ranks", total.tolist(), [world * (world + 1) / 2])


def _expect(what: str, got: list[float], expected: list[float]) -> None:
    if got != expected:
        raise SystemExit(f"{what}: expected {expected}, got {got}")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
