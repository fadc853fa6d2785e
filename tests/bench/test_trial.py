"""A plan's model: steps in parts train as whole ones do, ids and bytes are what can be counted by hand."""

from pathlib import Path

import pytest
from torch.optim import Optimizer
from torchrec.distributed import DistributedModelParallel
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from sidrec.bench.candidate_plans import candidate_plans
from sidrec.bench.result import PHASES
from sidrec.bench.subject import Subject, meta_model, workload_of
from sidrec.bench.trial import PARTS, SplitStep, StepCounts, Trial, Visit, sharded_collections
from sidrec.parallel.process_group import Ranks
from sidrec.parallel.sharding import shard, sharders_of
from sidrec.train.optimizers import build_optimizer
from tests.bench.subjects import small_subject
from tests.ranks import joined, run_on_ranks
from tests.small_log import write_small_log

TYPES = ("data_parallel", "table_wise", "row_wise", "grid_shard")


def sharded(subject: Subject, name: str, ranks: Ranks) -> tuple[DistributedModelParallel, Optimizer]:
    plan = candidate_plans(subject, [name], workload_of(subject, ranks), None, ranks)[0].plan
    assert plan is not None
    ranker = subject.model()
    model = shard(ranker, plan, sharders_of(ranker, subject.optimizer, subject.seed), subject.seed, ranks)
    return model, build_optimizer(model, subject.optimizer, dim=8)


def losses_whole_and_in_parts(rank: int, world: int, folder: Path) -> dict[str, tuple[list[float], list[float]]]:
    ranks = joined(rank, world)
    subject = small_subject(folder, ranks)
    found = {}
    for name in TYPES:
        model, optimizer = sharded(subject, name, ranks)
        whole = []
        for batch in subject.batches:
            optimizer.zero_grad()
            loss, _ = model(batch)
            loss.backward()
            optimizer.step()
            whole.append(float(loss))
        model, optimizer = sharded(subject, name, ranks)
        forwards = [module.forward for module in sharded_collections(model)]
        parted = SplitStep(model, optimizer, ranks)
        for batch in subject.batches[:-1]:
            milliseconds, _ = parted(batch)
            assert set(milliseconds) == set(PARTS)
            assert min(milliseconds.values()) > 0
        assert [module.forward for module in sharded_collections(model)] == forwards
        found[name] = (whole, [float(model(subject.batches[-1])[0])])
    return found


def test_steps_in_parts_train_as_whole_ones_do(tmp_path: Path) -> None:
    write_small_log(tmp_path, rows=500)
    for found in run_on_ranks(2, losses_whole_and_in_parts, tmp_path):
        for name, (whole, (after_parts,)) in found.items():
            assert after_parts == pytest.approx(whole[-1], rel=1e-5), name
            assert abs(whole[-1] - whole[0]) > 1e-3, "nothing was learned, so that nothing was compared"


def visits(rank: int, world: int, folder: Path) -> tuple[dict[str, Visit], list[int], int]:
    """With the ids in each of this rank's batches, and the weights in all tables."""
    ranks = joined(rank, world)
    subject = small_subject(folder, ranks, batches=5)
    found = {}
    for candidate in candidate_plans(subject, TYPES, workload_of(subject, ranks), None, ranks):
        assert candidate.plan is not None
        found[candidate.name] = Trial(subject, candidate.plan, ranks).visit(StepCounts(warm_up=1, timed=2))
    ids = [batch.items.values().numel() + batch.context.values().numel() for batch in subject.batches]
    tables = [table for module in collections_of(subject) for table in module.embedding_bag_configs()]
    return found, ids, sum(table.num_embeddings * table.embedding_dim for table in tables)


def collections_of(subject: Subject) -> list[EmbeddingBagCollection]:
    return [module for module in meta_model(subject).modules() if isinstance(module, EmbeddingBagCollection)]


def test_ids_and_bytes(tmp_path: Path) -> None:
    write_small_log(tmp_path, rows=500)
    (first, ids_first, weights), (second, ids_second, _) = run_on_ranks(2, visits, tmp_path)
    # The pipeline has fetched two batches beyond its three steps: those taken apart are the sixth and seventh of five.
    mean = [sum(ids[:2]) / 2 for ids in (ids_first, ids_second)]
    adagrad = 2 * 4  # bytes of a weight and of its state
    for name in TYPES:
        visited = first[name], second[name]
        assert sum(visit.ids for visit in visited) == sum(mean), name
        if name != "data_parallel":
            assert sum(visit.memory for visit in visited) == weights * adagrad
        for visit in visited:
            assert {phase: len(spent) for phase, spent in visit.milliseconds.items()} == dict.fromkeys(PHASES, 2)
            assert (len(visit.losses), len(visit.cpu)) == (3, 2)
        assert visited[0].losses == pytest.approx(first["table_wise"].losses, rel=1e-5)
    assert [first["data_parallel"].ids, second["data_parallel"].ids] == mean
    assert first["data_parallel"].memory == weights * adagrad + 8 * 4, (
        "torch's Adagrad also counts the steps of 8 tables"
    )
