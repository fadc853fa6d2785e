"""Plain torch.distributed.checkpoint.load with torch's default planner reads a checkpoint, without our model."""

import doctest
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from sidrec.checkpoint import CheckpointReader, dcp_storage
from sidrec.checkpoint.dcp_storage import save_shards
from sidrec.checkpoint.tensor_shard import TensorShard, whole_tensor
from tests.checkpoint.made_up_checkpoint import HID, HID_ROW_SUM, HID_SUM, USER, grid, numbered, write_checkpoint
from tests.ranks import joined, run_on_ranks

DENSE, STEP = "model/dense.weight", "optimizer/dense.weight/step"
ROWS, WIDTH = 12, 6
EXPECTED = {
    HID: numbered(ROWS, WIDTH),
    HID_SUM: numbered(ROWS, WIDTH, 100.0),
    HID_ROW_SUM: numbered(ROWS, 1, 500.0),
    USER: numbered(5, 3).to(torch.bfloat16),
    DENSE: numbered(4, 4, 7.0),
    STEP: torch.tensor(3.0),
}


def write(rank: int, world: int, path: Path, dimension: int) -> None:
    """Tables are cut by rows (dimension 0) or columns (1), layers are replicated."""
    ranks = joined(rank, world)
    shards = []
    for key, values in EXPECTED.items():
        if key in (HID, HID_SUM):
            part = values.tensor_split(world, dim=dimension)[rank]
            offset = [0, 0]
            offset[dimension] = rank * part.shape[dimension]
            shards.append(TensorShard(key, (ROWS, WIDTH), (offset[0], offset[1]), part))
        else:
            shards.append(whole_tensor(key, values, owned=ranks.first))
    save_shards(path, shards, rank, ranks.control)


def empty(reader: CheckpointReader) -> dict[str, torch.Tensor]:
    state = {}
    for key, found in reader.read_metadata().state_dict_metadata.items():
        assert isinstance(found, TensorStorageMetadata)
        state[key] = torch.empty(found.size, dtype=found.properties.dtype)
    return state


@pytest.mark.parametrize(("world", "dimension"), [(1, 0), (2, 0), (2, 1)])
def test_default_planner_reads_whole_tensors(world: int, dimension: int, tmp_path: Path) -> None:
    run_on_ranks(world, write, tmp_path, dimension)
    reader = CheckpointReader(tmp_path)
    state = empty(reader)
    dcp.load(state, storage_reader=reader, no_dist=True)
    assert state.keys() == EXPECTED.keys()
    for key, values in EXPECTED.items():
        assert torch.equal(state[key], values), key
    some = {DENSE: torch.zeros(4, 4)}
    dcp.load(some, storage_reader=CheckpointReader(str(tmp_path)), no_dist=True)
    assert torch.equal(some[DENSE], EXPECTED[DENSE])


def read_on_ranks(rank: int, world: int, path: Path) -> None:
    joined(rank, world)
    reader = CheckpointReader(path)
    state = empty(reader)
    dcp.load(state, storage_reader=reader)
    assert all(torch.equal(state[key], values) for key, values in EXPECTED.items())


def test_other_ranks_read_what_two_wrote(tmp_path: Path) -> None:
    run_on_ranks(2, write, tmp_path, 1)
    run_on_ranks(1, read_on_ranks, tmp_path)
    run_on_ranks(2, read_on_ranks, tmp_path)


ALONE = """
import sys, torch
from torch.distributed import checkpoint as dcp
from sidrec.checkpoint import CheckpointReader
reader = CheckpointReader(sys.argv[1])
stored = reader.read_metadata().state_dict_metadata
state = {key: torch.empty(found.size, dtype=found.properties.dtype) for key, found in stored.items()}
dcp.load(state, storage_reader=reader, no_dist=True)
assert "torchrec" not in sys.modules
print(sorted((key, float(values.sum())) for key, values in state.items()))
"""


def test_a_process_without_torchrec_reads_it(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "step-7", {HID: grid(numbered(13, 4), 3, 2), USER: grid(numbered(5, 3), 1, 1)})
    done = subprocess.run([sys.executable, "-c", ALONE, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(sorted([(HID, float(sum(range(52)))), (USER, float(sum(range(15))))]))


def test_the_example_runs(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "step-7", {HID: grid(numbered(13, 4), 3, 2)})
    (example,) = doctest.DocTestFinder().find(CheckpointReader, "CheckpointReader", dcp_storage, {}, {"path": path})[:1]
    ran = doctest.DocTestRunner().run(example)
    assert ran.failed == 0
    assert ran.attempted > 0
