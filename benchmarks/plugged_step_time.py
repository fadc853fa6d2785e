"""Cost of plugging SID-Coord into a TorchRec model: CPU time of a training step, compared to the model by hand.

    OMP_NUM_THREADS=1 python -m benchmarks.plugged_step_time [--model dlrm dlrm_dcn deepfm] [--rounds 10] [--write]

Rows are shaped like Criteo's Kaggle log: 13 dense columns, 26 tables of together 1.1 million rows. The item is one of
the columns, its SIDs are random codes, which repeat least; there is no history, as Criteo has none. By hand means what
a TorchRec user has: optimizer in backward, planner, DistributedModelParallel and TrainPipelineSparseDist in a world of
one. Plugged models are the same script with `sidrec.plug.attach`, switched off or on.

All contenders train in this process, on one thread of one core, on the same batches; a round gives each `STEPS` steps,
and the next round begins with another. Models of other libraries (plugged_step_time_peers.py) take part where these can
be imported. --write replaces plugged_step_time.json.

Shapes: B rows, F categorical columns, I items, L levels.
"""

import argparse
import os
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed as dist
from torch import nn
from torch.nn import functional
from torchrec.datasets.utils import Batch
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.models.deepfm import SimpleDeepFMNN
from torchrec.models.dlrm import DLRM, DLRM_DCN, DLRMTrain
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from benchmarks.criteo_rows import CARDINALITIES, COLUMNS, DENSE, CriteoRows, criteo_rows
from benchmarks.plugged_step_time_peers import peers
from benchmarks.sid_speed import Turn, cpu_seconds
from benchmarks.step_time import spread
from benchmarks.tables import markdown_table
from sidrec.config.item import HidItem
from sidrec.io.files import write_json
from sidrec.parallel.process_group import joined_ranks
from sidrec.plug import ItemCounts, attach, embedding_parameters
from sidrec.sid.catalog import Catalog
from sidrec.study.results import conditions

BATCH, BATCHES, STEPS, WARM_UP_TURNS = 4096, 8, 3, 2
DIM, LEVELS, CODES = 16, 3, 256
ITEM = "C3"
LEARNING_RATE = 0.05
HAND = "by hand"
RESULT = Path(__file__).with_suffix(".json")

Steps = Callable[[int], None]
"""Trains a number of steps."""


def dlrm(tables: EmbeddingBagCollection) -> nn.Module:
    return DLRM(tables, DENSE, [512, 256, 64, DIM], [512, 256, 1])


def dlrm_dcn(tables: EmbeddingBagCollection) -> nn.Module:
    return DLRM_DCN(tables, DENSE, [512, 256, 64, DIM], [512, 256, 1], dcn_num_layers=3, dcn_low_rank_dim=64)


def deepfm(tables: EmbeddingBagCollection) -> nn.Module:
    return SimpleDeepFMNN(DENSE, tables, hidden_layer_size=256, deep_fm_dimension=256)


MODELS: dict[str, Callable[[EmbeddingBagCollection], nn.Module]] = {
    "dlrm": dlrm,
    "dlrm_dcn": dlrm_dcn,
    "deepfm": deepfm,
}


def table_configs() -> list[EmbeddingBagConfig]:
    return [
        EmbeddingBagConfig(name=f"t_{column}", feature_names=[column], num_embeddings=rows, embedding_dim=DIM)
        for column, rows in zip(COLUMNS, CARDINALITIES, strict=True)
    ]


def meta_tables() -> EmbeddingBagCollection:
    return EmbeddingBagCollection(tables=table_configs(), device=torch.device("meta"))


def torchrec_batches(batches: Sequence[CriteoRows]) -> Iterator[Batch]:
    """Endless; every batch is made anew, as a loader would, because TorchRec's tensors remember what was derived."""
    for rows in cycle(batches):
        lengths = torch.ones(rows.ids_FB.numel(), dtype=torch.int32)
        yield Batch(
            rows.dense_BX, KeyedJaggedTensor(list(COLUMNS), rows.ids_FB.flatten(), lengths=lengths), rows.label_B
        )


def sharded_training(model: nn.Module, stream: Iterator[Batch], postproc: bool, device: torch.device) -> Steps:
    """Training as TorchRec's users do it; the model's tables are on `meta`."""
    apply_optimizer_in_backward(torch.optim.Adagrad, embedding_parameters(model), {"lr": LEARNING_RATE})
    train_model = DLRMTrain(model)
    sharders = [EmbeddingBagCollectionSharder()]
    planner = EmbeddingShardingPlanner(topology=Topology(world_size=1, compute_device=device.type))
    plan = planner.collective_plan(train_model, sharders, dist.GroupMember.WORLD)
    sharded = DistributedModelParallel(train_model, device=device, plan=plan, sharders=sharders)
    dense = KeyedOptimizerWrapper(
        dict(in_backward_optimizer_filter(sharded.named_parameters())),
        lambda parameters: torch.optim.Adagrad(parameters, lr=LEARNING_RATE),
    )
    optimizer = CombinedOptimizer([sharded.fused_optimizer, dense])
    pipeline = TrainPipelineSparseDist(sharded, optimizer, device, pipeline_postproc=postproc)

    def steps(number: int) -> None:
        for _ in range(number):
            pipeline.progress(stream)

    return steps


def fused_training(batches: Sequence[CriteoRows]) -> Turn:
    """A turn of the DLRM over FusedEmbeddingBagCollection, without sharding and pipeline."""
    model = dlrm(meta_tables())
    model.sparse_arch.embedding_bag_collection = FusedEmbeddingBagCollection(  # type: ignore[union-attr]
        table_configs(), torch.optim.Adagrad, {"lr": LEARNING_RATE}, device=torch.device("cpu")
    )
    dense = [parameter for name, parameter in model.named_parameters() if not name.startswith("sparse_arch")]
    optimizer = torch.optim.Adagrad(dense, lr=LEARNING_RATE)
    stream = torchrec_batches(batches)

    def turn() -> None:
        for _ in range(STEPS):
            batch = next(stream)
            optimizer.zero_grad()
            logits_B = model(batch.dense_features, batch.sparse_features).squeeze(1)
            torch.autograd.backward(functional.binary_cross_entropy_with_logits(logits_B, batch.labels))
            optimizer.step()

    return turn


def plugged(model: nn.Module, on: bool) -> nn.Module:
    """The model with SID-Coord attached, or with the lines there and SID-Coord switched off."""
    random = np.random.default_rng(0)
    items = CARDINALITIES[COLUMNS.index(ITEM)] - 1  # ids 1 to I; 0 is not known
    codes_IL = random.integers(0, CODES, (items, LEVELS))
    catalog = Catalog(np.arange(1, items + 1), codes_IL, (CODES,) * LEVELS)
    if not on:
        return attach(model, catalog, ITEM, config=HidItem())
    counts = torch.from_numpy(random.integers(0, 1000, (items + 1, 2)))
    return attach(model, catalog, ITEM, statistics=ItemCounts(counts))


def contenders(name: str, batches: Sequence[CriteoRows]) -> dict[str, Turn]:
    """By hand first."""
    build = MODELS[name]

    def turn(model: nn.Module, postproc: bool) -> Turn:
        return partial(sharded_training(model, torchrec_batches(batches), postproc, torch.device("cpu")), STEPS)

    turns = {
        HAND: turn(build(meta_tables()), postproc=False),
        "plugged, off": turn(plugged(build(meta_tables()), on=False), postproc=True),
        "plugged, on": turn(plugged(build(meta_tables()), on=True), postproc=True),
    }
    if name == "dlrm":
        turns["FusedEmbeddingBagCollection, plain loop"] = fused_training(batches)
    return turns | peers(name, batches, STEPS)


def summary(seconds: Mapping[str, list[float]]) -> dict[str, dict[str, Any]]:
    """Per contender: CPU ms per step, and ratio to the model by hand in the same round, as [median, least, most]."""
    lines = {}
    for name, own in seconds.items():
        ratios = [mine / hand for mine, hand in zip(own, seconds[HAND], strict=True)]
        lines[name] = {
            "cpu_ms": [round(1000 * value / STEPS, 1) for value in spread(own)],
            "ratio": [round(value, 3) for value in spread(ratios)],
            "rows_per_cpu_second": round(BATCH * STEPS / statistics.median(own)),
        }
    return lines


def table(lines: Mapping[str, Mapping[str, Any]]) -> str:
    rows = []
    for name, line in lines.items():
        (ms, low, high), (ratio, least, most) = line["cpu_ms"], line["ratio"]
        cells = [name, f"{ms:.0f} [{low:.0f}-{high:.0f}]", f"{ratio:.2f} [{least:.2f}-{most:.2f}]"]
        rows.append([*cells, f"{line['rows_per_cpu_second']:,}"])
    return markdown_table(["contender", "CPU ms per step", "ratio to by hand", "rows per CPU second"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--write", action="store_true")
    flags = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    batches = criteo_rows(BATCHES, BATCH)
    result: dict[str, Any] = {"conditions": conditions(), "rounds": flags.rounds, "steps_per_round": STEPS}
    with joined_ranks():
        torch.set_num_threads(1)
        for name in flags.model:
            turns = contenders(name, batches)
            cpu_seconds(turns, WARM_UP_TURNS)
            result[name] = summary(cpu_seconds(turns, flags.rounds))
            print(f"\n{name}\n\n{table(result[name])}", flush=True)
    if flags.write:
        write_json(RESULT, result)


if __name__ == "__main__":
    main()
