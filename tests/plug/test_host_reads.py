"""A steady step of a plugged model on the paths of a GPU: what the host reads, and what each read waits for.

On a CPU's tensors, as in tests/train/test_running_ahead.py. With `pipeline_postproc=True` TorchRec joins the SIDs of
the next batch before the forward pass of this one, in the stream of its input distribution, which waits for the copy of
the batch alone. What the join reads there has no step to wait for.
"""

from collections import Counter
from typing import Any

import pytest
from torch import distributed as dist
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from sidrec.model.history import GPU
from sidrec.plug import StatFeatures
from sidrec.plug.sid_coord import Coordination
from sidrec.plug.sid_join import SidJoin, _hosts, _most_on_any_rank
from tests.plug.hosts import batch, plugged, train_dlrm
from tests.plug.test_sequences import sharded_by_rows
from tests.plug.training import CPU, batches, sharded
from tests.ranks import run_on_ranks
from tests.train.host_reads import INPUT_DISTRIBUTION, USED_PARAMETERS, HostReads

STEADY = 4
"""Steps before the one that is watched: TorchRec, FBGEMM and DDP prepare themselves in the first ones."""

SIZES = "sidrec/plug/sid_join.py:SidJoin._sizes"
EXCHANGE = "sidrec/plug/sid_join.py:_most_on_any_rank"
OF_THE_NEXT_BATCH = {
    SIZES: "how many bags a batch has, and its longest history",
    EXCHANGE: "a number that ranks exchange on the host",
    INPUT_DISTRIBUTION: "how many ids ranks exchange",
}
ALLOWED = {
    **OF_THE_NEXT_BATCH,
    "torchrec/distributed/batched_embedding_kernel.py:BaseBatchedEmbeddingBag.forward": "FBGEMM's count of steps and "
    "widths of tables, which lie on the host",
    "torchrec/distributed/batched_embedding_kernel.py:BaseBatchedEmbedding.forward": "the same",
    USED_PARAMETERS: "on the host",
}


def watched(pipeline: TrainPipelineSparseDist[Any, Any], rows: Any, model: Any) -> tuple[Counter[str], list[str]]:
    """Reads of a steady step by place, and its joins and forward passes in order."""
    for module in model.modules():
        if isinstance(module, Coordination):
            module.paths = GPU._replace(regions="plain")
    for _ in range(STEADY):
        pipeline.progress(rows)
    order: list[str] = []
    join, coordinate = SidJoin.forward, Coordination.forward

    def joined(module: SidJoin, features: KeyedJaggedTensor, same_on_ranks: bool) -> Any:
        order.append("join")
        return join(module, features, same_on_ranks)

    def coordinated(module: Coordination, *inputs: Any) -> Any:
        order.append("forward")
        return coordinate(module, *inputs)

    with pytest.MonkeyPatch.context() as patches, HostReads() as reads:
        patches.setattr(SidJoin, "forward", joined)
        patches.setattr(Coordination, "forward", coordinated)
        pipeline.progress(rows)
    return reads.places, order


def in_a_dlrm(rank: int, world: int, sharding: str) -> tuple[Counter[str], list[str]]:
    model, optimizer = sharded(plugged(train_dlrm()), world, sharding)
    pipeline = TrainPipelineSparseDist(model, optimizer, CPU, pipeline_postproc=True)
    return watched(pipeline, iter(list(batches(rank, world, STEADY + 4))), model)


def with_sequences(rank: int, world: int, sharding: str) -> tuple[Counter[str], list[str]]:
    model, optimizer = sharded_by_rows(world)
    pipeline = TrainPipelineSparseDist(model, optimizer, CPU, pipeline_postproc=True)
    return watched(pipeline, iter(list(batches(rank, world, STEADY + 4))), model)


@pytest.mark.parametrize(
    ("train", "sharding"),
    [(in_a_dlrm, "row_wise"), (in_a_dlrm, "table_wise"), (in_a_dlrm, "data_parallel"), (with_sequences, "row_wise")],
)
def test_a_steady_step_reads_sizes_of_the_next_batch_alone(train: Any, sharding: str) -> None:
    for places, order in run_on_ranks(2, train, sharding):
        print(train.__name__, sharding, dict(places))
        assert [place for place in places if place not in ALLOWED] == []
        assert places[SIZES] == places[EXCHANGE] == 1
        assert order == ["join", "forward"], "the next batch's SIDs are joined before this step's work is queued"


def exchanged(rank: int, world: int) -> tuple[int, bool]:
    """With a process group as NCCL's, which has no collectives for tensors on the host."""
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(dist, "get_backend_config", lambda group: "cuda:nccl")
        most = _most_on_any_rank(3 + rank)
    return most, _hosts(dist.group.WORLD) is dist.group.WORLD


def test_hosts_exchange_through_gloo_where_the_group_is_of_gpus() -> None:
    assert run_on_ranks(2, exchanged) == [(4, False)] * 2


@pytest.mark.parametrize("history", [None, "history"])
def test_a_step_without_a_pipeline_reads_them_once(history: str | None) -> None:
    """Where nothing is sharded; TorchRec itself reads the lengths of features."""
    model = plugged(train_dlrm(), history=history, statistics=StatFeatures(("exposures",)))
    rows = batch(with_stats=True)
    model(rows)
    with HostReads() as reads:
        loss, _ = model(rows)
        loss.backward()
    print(dict(reads.places))
    assert [place for place in reads.places if not place.startswith("torchrec/")] == [SIZES]
    assert reads.places[SIZES] == 1
