"""What a GPU runs, on a CPU's tensors (`Ranks.runs_ahead`): no step waits for itself, and bad steps change nothing."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionAwaitable, ShardedEmbeddingBagCollection

from sidrec.checkpoint.state import state_shards
from sidrec.config import Recipe
from sidrec.config.recipe import AdagradTables, DenseOptimizer, RowwiseAdagradTables, SgdTables
from sidrec.data.batch import Batch, PackedBatch
from sidrec.errors import NonFiniteError, RankError
from sidrec.model.history import CPU, GPU
from sidrec.model.ranker import Ranker
from sidrec.parallel.process_group import HostCopy, Ranks
from sidrec.parallel.sharding import row_updates
from sidrec.schema import ContractError
from sidrec.train.assembly import build_training, open_dataset, open_loader
from sidrec.train.evaluation import AttentionMeter, score_split
from sidrec.train.optimizers import Factory, _dense, _replicated
from sidrec.train.run import train
from sidrec.train.step import StepResult, TrainingStep, bad_on_any_rank
from sidrec.train.stopping import synced_batches
from sidrec.train.trainer import Trainer
from tests.ranks import joined, run_on_ranks
from tests.small_log import small_recipe, write_small_log
from tests.train.host_reads import INPUT_DISTRIBUTION, USED_PARAMETERS, HostReads
from tests.train.refusals import TRAIN, recipe_of
from tests.train.test_non_finite import PLANS, log_with_huge_rows

BAD = [*range(50), *range(200, 250)]
STEADY = 4
"""Steps before the one that is watched: TorchRec, FBGEMM and DDP prepare themselves in the first ones."""


def ahead(rank: int, world: int, runs_ahead: bool = True) -> Ranks:
    return replace(joined(rank, world), runs_ahead=runs_ahead)


class RecordingTrainer(Trainer):
    """Keeps all weights and optimizer states after every step, and which steps were skipped."""

    states: list[dict[str, Tensor]]
    skipped: list[bool]
    order: list[tuple[str, int]]

    def states_now(self) -> dict[str, Tensor]:
        shards = state_shards(self.model, self.optimizer, self.ranks)
        return {shard.name: shard.values.detach().clone() for shard in shards}

    def _ends_at(self, step: int) -> bool:
        self.states.append(self.states_now())
        self.order.append(("trained", step))
        return super()._ends_at(step)

    def _log(self, result: StepResult) -> None:
        self.skipped.append(result.skipped is not None)
        self.order.append(("reported", result.step))
        super()._log(result)


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name in after if not torch.equal(before.get(name, torch.zeros(0)), after[name])}


def trained(rank: int, world: int, recipe: Recipe, runs_ahead: bool) -> dict[str, Any]:
    """Which steps were skipped, which tensors of this rank each step changed, and what the last one left."""
    recorder = RecordingTrainer
    recorder.states, recorder.skipped, recorder.order = [], [], []
    train(recipe, ahead(rank, world, runs_ahead), recorder)
    steps = zip(recorder.states, recorder.states[1:], strict=False)
    return {
        "skipped": recorder.skipped,
        "changed": [changed(before, after) for before, after in steps],
        "last": recorder.states[-1],
        "order": recorder.order,
    }


def both_ways(rank: int, world: int, recipes: dict[bool, Recipe]) -> dict[bool, dict[str, Any]]:
    return {runs_ahead: trained(rank, world, recipe, runs_ahead) for runs_ahead, recipe in recipes.items()}


OPTIMIZERS = {"rowwise": {"tables": {"kind": "rowwise_adagrad"}}, "adagrad": {"dense": {"kind": "adagrad"}}}


@pytest.mark.parametrize(
    ("world", "plan", "optimizer"),
    [(1, "plain", "adagrad"), (2, "row_wise", "rowwise"), (2, "replicated", "rowwise"), (2, "replicated", "adagrad")],
)
def test_a_bad_step_changes_nothing_and_is_reported_during_the_next(
    tmp_path: Path, world: int, plan: str, optimizer: str
) -> None:
    log_with_huge_rows(tmp_path, BAD)
    sections = {"data": {"order": "time"}, "train": {"epochs": 1, "non_finite": "skip"}}
    sections |= PLANS[plan] | {"optimizer": PLANS[plan].get("optimizer", {}) | OPTIMIZERS[optimizer]}
    recipes = {late: recipe_of(tmp_path, name=f"late-{late}", **sections) for late in (False, True)}
    for found in run_on_ranks(world, both_ways, recipes):
        early, late = found[False], found[True]
        assert late["skipped"] == early["skipped"]
        assert late["skipped"][0], "the first step, before optimizers have states"
        assert any(late["skipped"][1:]), "and one after a step that was applied"
        after_the_first = zip(late["skipped"][1:], late["changed"], strict=True)
        for skipped, tensors in after_the_first:
            assert bool(tensors) != skipped
        assert late["last"].keys() == early["last"].keys()
        for name, values in late["last"].items():
            torch.testing.assert_close(values, early["last"][name], rtol=1e-4, atol=1e-5)
        third = [("trained", 3), ("reported", 2)]
        assert late["order"][:5] == [("trained", 1), ("trained", 2), ("reported", 1), *third]
        assert late["order"][-1] == ("reported", len(late["skipped"])), "the last is waited for"
        assert early["order"][:4] == [("trained", 1), ("reported", 1), ("trained", 2), ("reported", 2)]
    skips = [(recipe.run / "skipped.jsonl").read_text().splitlines() for recipe in recipes.values()]
    assert skips[1] == skips[0], "the same steps, values, files and rows"
    logs = [[json.loads(line) for line in (r.run / "metrics.jsonl").read_text().splitlines()] for r in recipes.values()]
    assert [line["step"] for line in logs[1]] == [line["step"] for line in logs[0]]
    for name in ("loss", "lr_factor", "skipped"):
        early_values, late_values = ([line[name] for line in log if name in line] for log in logs)
        np.testing.assert_allclose(late_values, early_values, rtol=1e-4)


def common_flags(rank: int, world: int) -> list[float]:
    bad = torch.tensor([0.0, float(rank == 1)])
    return [float(bad_on_any_rank(flag.clone(), ahead(rank, world, late))) for late in (False, True) for flag in bad]


def test_one_rank_s_flag_is_every_rank_s() -> None:
    """Few values are not finite on one rank alone: DDP sums the layers' gradients."""
    assert run_on_ranks(2, common_flags) == [[0, 1, 0, 1]] * 2


FLAGGED = [_dense(DenseOptimizer(kind="adam", weight_decay=0.1), True), _dense(DenseOptimizer(kind="adamw"), True)]
FLAGGED += [_dense(DenseOptimizer(kind="adagrad", weight_decay=0.1), True)]
FLAGGED += [_replicated(kind(), 4, True) for kind in (AdagradTables, RowwiseAdagradTables, SgdTables)]


@pytest.mark.parametrize("make", FLAGGED)
def test_a_flag_stops_every_optimizer(make: Factory) -> None:
    weight = torch.ones(12)
    optimizer = make([weight])
    kept: list[list[Tensor]] = []
    for flag, gradient in ((0.0, 1.0), (1.0, torch.nan), (0.0, 1.0)):
        weight.grad = torch.full_like(weight, gradient)
        optimizer.found_inf = torch.tensor(flag)  # type: ignore[attr-defined]
        optimizer.step()
        kept.append([value.clone() for value in (weight, *optimizer.state[weight].values()) if value is not None])
    assert all(map(torch.equal, kept[0], kept[1]))
    assert not torch.equal(kept[1][0], kept[2][0])
    assert all(value.isfinite().all() for value in kept[2])


class LastStates(RecordingTrainer):
    """Keeps the states at the error that ends training."""

    at_the_end: dict[str, Tensor]

    def train(self) -> int:
        try:
            return super().train()
        finally:
            type(self).at_the_end = self.states_now()


def stopped(rank: int, world: int, recipe: Recipe) -> tuple[str, int, set[str]]:
    """What is said, the steps before it, and what has changed since the one before the bad one."""
    LastStates.states, LastStates.skipped, LastStates.order = [], [], []
    with pytest.raises((NonFiniteError, RankError)) as refused:
        train(recipe, ahead(rank, world), LastStates)
    bad = int(str(refused.value).partition("step ")[2].partition(":")[0])
    return str(refused.value), bad, changed(LastStates.states[bad - 2], LastStates.at_the_end)


def test_training_stops_before_the_step_after_the_bad_one_is_applied(tmp_path: Path) -> None:
    rows = list(range(420, 430))
    log_with_huge_rows(tmp_path, rows)
    recipe = recipe_of(tmp_path, train={"epochs": 1}, checkpoint={"every": 1})
    for said, bad, tensors in run_on_ranks(2, stopped, recipe):
        assert bad > 1
        assert f"step {bad}: expected a finite loss and finite gradients, got a " in said
        assert f"; {tmp_path / TRAIN}, row" in said
        assert not tensors
        assert max(int(path.name.removeprefix("step-")) for path in recipe.run.glob("checkpoints/step-*")) == bad - 1


# Batches that ranks agree on.


def handed_out(rank: int, world: int, recipe: Recipe, runs_ahead: bool) -> tuple[list[str], list[int], str]:
    """What is read and handed out, in order; the batches' numbers of bags; and how reading ends: on rank 1 the third
    batch is broken."""
    ranks = ahead(rank, world, runs_ahead)
    loader = open_loader(recipe, open_dataset(recipe, ranks), "train", shuffle=True, ranks=ranks)
    order: list[str] = []
    bags: list[int] = []

    def read() -> Iterator[PackedBatch]:
        for number, batch in enumerate(loader.packed_batches(0), start=1):
            order.append(f"read {number}")
            if number == 3 and rank == 1:
                raise ContractError("batch 3", "a sound batch", "a broken one")
            yield batch

    try:
        for batch in synced_batches(read(), loader.steps, ranks):
            bags.append(batch.bags)
            order.append(f"got {len(bags)}")
    except (ContractError, RankError) as error:
        return order, bags, f"{type(error).__name__}: {error}"
    raise AssertionError("the third batch is broken")


@pytest.mark.parametrize("runs_ahead", [False, True])
def test_ranks_agree_on_a_batch_before_its_turn(tmp_path: Path, runs_ahead: bool) -> None:
    write_small_log(tmp_path, rows=400)
    found = run_on_ranks(2, handed_out, small_recipe(tmp_path), runs_ahead)
    for order, _, _ in found:
        if runs_ahead:
            assert order == ["read 1", "read 2", "got 1", "read 3", "got 2", *order[5:]]
        else:
            assert order == ["read 1", "got 1", "read 2", "got 2", "read 3"]
    assert len(found[0][1]) == 2
    assert found[0][1] == found[1][1], "as many bags on both ranks"
    broken = "batch 3: expected a sound batch, got a broken one"
    assert [said for _, _, said in found] == [f"RankError: rank 1 stopped: {broken}", f"ContractError: {broken}"]


# Reads on the host.


ALLOWED = {
    "sidrec/parallel/process_group.py:LargestEach.wait": "numbers that ranks exchanged on the host",
    "sidrec/train/step.py:TrainingStep._decide": "the flag of the step before, which HostCopy has brought to the host",
    "torchrec/distributed/batched_embedding_kernel.py:BaseBatchedEmbeddingBag.forward": "FBGEMM's count of steps and "
    "widths of tables, which lie on the host",
    USED_PARAMETERS: "on the host",
    INPUT_DISTRIBUTION: "waits for ids of the next batch, not for the step",
}


class Events:
    """What happens in a step, in order: forward passes, and what HostCopy sends and receives; and apart from that,
    which lookups begin and are read."""

    def __init__(self, patches: pytest.MonkeyPatch) -> None:
        self.found: list[str] = []
        self.lookups: list[str] = []
        begin, read = ShardedEmbeddingBagCollection.compute_and_output_dist, EmbeddingBagCollectionAwaitable._wait_impl

        def begun(collection: Any, *inputs: Any) -> Any:
            self.lookups.append("begun")
            return begin(collection, *inputs)

        def was_read(awaitable: Any) -> Any:
            self.lookups.append("read")
            return read(awaitable)

        patches.setattr(ShardedEmbeddingBagCollection, "compute_and_output_dist", begun)
        patches.setattr(EmbeddingBagCollectionAwaitable, "_wait_impl", was_read)
        send, receive, forward = HostCopy.send, HostCopy.receive, Ranker.forward

        def sent(copy: HostCopy, *values: Tensor) -> None:
            self.found.append("send")
            send(copy, *values)

        def received(copy: HostCopy) -> list[Tensor]:
            self.found.append("receive")
            return receive(copy)

        def forwarded(ranker: Ranker, batch: Batch) -> Any:
            if isinstance(batch, Batch):  # TorchRec traces the ranker with something else
                self.found.append("forward")
            return forward(ranker, batch)

        patches.setattr(HostCopy, "send", sent)
        patches.setattr(HostCopy, "receive", received)
        patches.setattr(Ranker, "forward", forwarded)


def as_on_a_gpu(model: DistributedModelParallel) -> None:
    model.module.paths = GPU._replace(regions="plain")
    for updates in row_updates(model):
        updates.reads_offsets = False


def reads_of_a_step(rank: int, world: int, recipe: Recipe) -> tuple[Counter[str], list[str], list[str]]:
    """Reads on the host in a steady step, and its events."""
    ranks = ahead(rank, world)
    data = open_dataset(recipe, ranks)
    loader = open_loader(recipe, data, "train", shuffle=True, ranks=ranks)
    read = list(islice(loader.packed_batches(0), STEADY + 4))
    training = build_training(recipe, data, ranks)
    as_on_a_gpu(training.model)
    kind = recipe.parallel.pipeline
    step = TrainingStep(training.model, training.optimizer, loader.reader, recipe.train, kind, 0, ranks)
    batches = synced_batches(iter(read), len(read), ranks)
    for _ in range(STEADY):
        step.run(batches)
    with pytest.MonkeyPatch.context() as patches, HostReads() as reads:
        events = Events(patches)
        step.run(batches)
    return reads.places, events.found, events.lookups


GATED = {"model": {"item": {"kind": "sid_coord", "gate": {"kind": "stats", "updates": True}}}}


@pytest.mark.parametrize("plan", ["table_wise", "row_wise", "data_parallel"])
def test_a_steady_step_reads_nothing_of_its_own(tmp_path: Path, plan: str) -> None:
    write_small_log(tmp_path, rows=800)
    recipe = small_recipe(tmp_path, parallel={"sharding": plan}, **GATED)
    for places, events, lookups in run_on_ranks(2, reads_of_a_step, recipe):
        print(plan, dict(places))
        assert [place for place in places if place not in ALLOWED] == []
        assert places["sidrec/train/step.py:TrainingStep._decide"] == 1
        assert events == ["forward", "receive", "send"], "the flag that is read was sent before this step"
        assert lookups == ["begun", "begun", "read", "read"], "items are exchanged while the context is looked up"


def reads_of_an_evaluation(rank: int, world: int, recipes: list[Recipe]) -> list[tuple[Counter[str], list[str], Any]]:
    """Per recipe: reads on the host in an evaluation, events, scores, and attention."""
    found = []
    for recipe in recipes:
        ranks = ahead(rank, world)
        data = open_dataset(recipe, ranks)
        model = build_training(recipe, data, ranks).model
        as_on_a_gpu(model)
        for _ in range(2):  # the first prepares FBGEMM
            with pytest.MonkeyPatch.context() as patches, HostReads() as reads, AttentionMeter(model.module) as meter:
                events = Events(patches)
                scored = score_split(recipe, data, model, "test", ranks)
        model.module.paths = CPU
        with AttentionMeter(model.module) as of_cpu:
            early = score_split(recipe, data, model, "test", replace(ranks, runs_ahead=False))
        attention = meter.result(ranks), of_cpu.result(ranks)
        found.append((reads.places, events.found, (scored, early, attention)))
    return found


READER = "sidrec/data/"  # reads files
ALLOWED_IN_EVALUATION = {
    **ALLOWED,
    "sidrec/metrics/predictions.py:PredictionCollector.add": "scores of the batch before, which HostCopy has brought",
}


def test_a_steady_batch_of_an_evaluation_reads_nothing_of_its_own(tmp_path: Path) -> None:
    write_small_log(tmp_path, rows=2400)
    recipes = [small_recipe(tmp_path, data={"batch_size": size}, **PLANS["row_wise"], **GATED) for size in (128, 32)]
    for few, many in run_on_ranks(2, reads_of_an_evaluation, recipes):
        grown = {place for place, count in many[0].items() if count > few[0][place]}
        print(dict(many[0]))
        assert [place for place in grown if place not in ALLOWED_IN_EVALUATION and not place.startswith(READER)] == []
        batches = many[1].count("forward")
        assert batches > 2 * few[1].count("forward") > 4
        steady = ["forward", "receive", "send"] * (batches - 1)
        assert many[1] == ["forward", "send", *steady, "receive"], "a batch's scores are read after the next one's work"
        for _, _, (late, early, attention) in (few, many):
            np.testing.assert_allclose(late.score_N, early.score_N, rtol=1e-4, atol=1e-6)
            np.testing.assert_array_equal(late.row_N, early.row_N)
            for name, values in early.extra.items():
                np.testing.assert_allclose(late.extra[name], values, rtol=1e-5)
            gpu, cpu = attention
            assert gpu["weights"] == pytest.approx(cpu["weights"], rel=1e-6)
            assert gpu["entropy_nats"] == pytest.approx(cpu["entropy_nats"], rel=1e-6)
            assert gpu["histogram"] == cpu["histogram"]
