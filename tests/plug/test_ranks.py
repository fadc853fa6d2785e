"""Sharded, pipelined and switched off: a plugged model among ranks.

Shapes: B rows.
"""

from functools import partial

import pytest
import torch
from torch import Tensor

from sidrec.config.item import HidItem, Item, SidCoordItem
from sidrec.plug import attach
from tests.plug.hosts import catalog, counts, train_dlrm
from tests.plug.training import STEPS, sharded, train_in_loop, train_in_pipeline
from tests.ranks import run_on_ranks

TYPES = ("table_wise", "row_wise", "column_wise", "data_parallel")


def plugged(config: Item, history: str | None) -> torch.nn.Module:
    return attach(train_dlrm(), catalog(), history=history, statistics=counts(), config=config)


def train_all_ways(
    rank: int, world: int, history: str | None, types: tuple[str, ...]
) -> dict[str, tuple[list[Tensor], int]]:
    """Way of training -> logits of this rank's rows, and the number of pipelined collections."""
    found: dict[str, tuple[list[Tensor], int]] = {}
    for sharding in types:
        found[sharding] = train_in_loop(*sharded(plugged(SidCoordItem(), history), world, sharding), rank, world), 0
    for name, postproc in (("pipeline", False), ("pipeline with postproc", True)):
        model, optimizer = sharded(plugged(SidCoordItem(), history), world, "row_wise")
        found[name] = train_in_pipeline(model, optimizer, rank, world, postproc)
    return found


@pytest.mark.parametrize("history", ["history", None])
def test_two_ranks_equal_one_process_in_loops_and_pipelines(history: str | None) -> None:
    torch.manual_seed(0)
    model = plugged(SidCoordItem(), history)
    tables = [p for name, p in model.named_parameters() if ".embedding_bags." in name]
    dense = [p for name, p in model.named_parameters() if ".embedding_bags." not in name]
    optimizer = torch.optim.SGD([{"params": tables, "lr": 1.0}, {"params": dense, "lr": 0.5}])
    alone = train_in_loop(model, optimizer, 0, 1)
    assert (alone[0] - alone[-1]).abs().max() > 0.1, "an untrained model would make this test pass for nothing"
    first, second = run_on_ranks(2, train_all_ways, history, TYPES if history else ("row_wise",))
    for way in first:
        for step in range(STEPS):
            logits_B = torch.cat([first[way][0][step], second[way][0][step]])
            torch.testing.assert_close(logits_B, alone[step], rtol=0, atol=1e-5, msg=partial("{}: {}".format, way))
    assert [ranks["pipeline"][1] for ranks in (first, second)] == [1, 1]  # the model's own
    assert [ranks["pipeline with postproc"][1] for ranks in (first, second)] == [2, 2]


def train_off_and_untouched(rank: int, world: int) -> list[list[Tensor]]:
    """Logits of every step: TorchRec's DLRM, and the same with SID-Coord switched off; in a loop and in a pipeline."""
    found = []
    for off in (False, True):
        for pipelined in (False, True):
            model = plugged(HidItem(), "history") if off else train_dlrm()
            arguments = (*sharded(model, world, "row_wise"), rank, world)
            found.append(train_in_pipeline(*arguments, postproc=True)[0] if pipelined else train_in_loop(*arguments))
    return found


@pytest.mark.parametrize("world", [1, 2])
def test_switched_off_it_is_torchrec_s_dlrm_to_the_last_bit(world: int) -> None:
    for loop, pipeline, loop_off, pipeline_off in run_on_ranks(world, train_off_and_untouched):
        assert (loop[0] - loop[-1]).abs().max() > 0.05, "an untrained model would make this test pass for nothing"
        for step in range(STEPS):
            assert torch.equal(loop[step], loop_off[step])
            assert torch.equal(pipeline[step], pipeline_off[step])
