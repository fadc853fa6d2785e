"""A run's checkpoints: sound ones, and the ways in which the product reads them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import distributed as dist

from sidrec.checkpoint.checkpoint_store import CheckpointWriter, chosen_checkpoint
from sidrec.checkpoint.dcp_storage import load_shards
from sidrec.checkpoint.tensor_shard import TensorShard, read_index, whole_tensor
from sidrec.checkpoint.train_state import Best, Position, read_position
from sidrec.cli.runs import table as table_command
from sidrec.parallel.process_group import Ranks
from tests.soak.fuzz import entries

RUN, CHECKPOINTS = "run", "run/checkpoints"
TABLE = "model/items.embedding_bags.hid.weight"
STEPS = (7, 9)


@contextmanager
def alone() -> Iterator[Ranks]:
    """A world of one."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield Ranks(0, 1, torch.device("cpu"), 1, dist.new_group(backend="gloo"))
    finally:
        dist.destroy_process_group()


def pieces() -> list[TensorShard]:
    """A table with its optimizer's state, a dense layer, a number, and random state."""
    table_RD = torch.arange(80, dtype=torch.float32).reshape(20, 4)
    return [
        TensorShard(TABLE, (20, 4), (0, 0), table_RD[:10]),
        TensorShard(TABLE, (20, 4), (10, 0), table_RD[10:]),
        whole_tensor("optimizer/items.embedding_bags.hid.weight/sum", table_RD + 1),
        whole_tensor("model/dense.weight", torch.ones(3, 5, dtype=torch.bfloat16)),
        whole_tensor("optimizer/dense.weight/step", torch.tensor(7.0)),
        whole_tensor("ranks/0/random", torch.zeros(16, dtype=torch.uint8)),
    ]


def make(folder: Path) -> None:
    """Two checkpoints, the older one the best."""
    best = Best("test", "auc", 0.7, STEPS[0])
    (folder / CHECKPOINTS).mkdir(parents=True)
    with alone() as ranks:
        writer = CheckpointWriter(folder / CHECKPOINTS, 2, {"plan.json": "{}\n"}, ranks)
        for step in STEPS:
            writer.write(pieces(), Position(step, 0, step, "fingerprint", terms={"loss": (0.5,)}, best=best))


def chosen_one(folder: Path) -> None:
    """What evaluation reads: the best, or the newest where the run keeps no best."""
    with alone() as ranks:
        _read(chosen_checkpoint(folder / CHECKPOINTS, None, ranks), ranks)


def unchecked(folder: Path) -> None:
    """The same without a look at the checksums, which keep most damage from everything that comes after."""
    with alone() as ranks:
        _read(folder / CHECKPOINTS / f"step-{STEPS[0]}", ranks)


def _read(path: Path, ranks: Ranks) -> None:
    read_position(path)
    load_shards(path, read_index(path), pieces(), ranks.control)


def tables(folder: Path) -> None:
    """What `sidrec table` reads, unchecked too."""
    source = str(folder / CHECKPOINTS / f"step-{STEPS[0]}")
    table_command(["list", source])
    out = folder / f"{entries.OUT}.safetensors"
    table_command(["export", source, "hid", str(out), "--optimizer", "--no-check"])
