"""Copies of shards in one piece of memory: equal to the shards, apart from them, and reused.

The same code copies from a GPU, where `lock` is `page_lock`.
"""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sidrec.checkpoint.tensor_shard import STAGED_AT, StagingBuffers, TensorShard, whole_tensor

TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32, torch.uint8, torch.bool)


def shards() -> list[TensorShard]:
    """Of every type, and odd sizes: a scalar, nothing, and columns of a matrix."""
    torch.manual_seed(0)
    found = [whole_tensor(f"of {dtype}", (torch.randn(7, 3) * 4).to(dtype)) for dtype in TYPES]
    found += [whole_tensor("scalar", torch.tensor(3.5)), whole_tensor("nothing", torch.zeros(0, 4))]
    return [*found, TensorShard("columns", (5, 9), (0, 4), torch.randn(5, 9)[:, 4:7])]


class Locked:
    """Notes what is locked."""

    def __init__(self) -> None:
        self.memory: list[tuple[int, int]] = []

    def __call__(self, memory: Tensor) -> None:
        self.memory.append((memory.data_ptr(), memory.nbytes))


def inside(copy: Tensor, memory: tuple[int, int]) -> bool:
    start, size = memory
    return not copy.nbytes or (start <= copy.data_ptr() and copy.data_ptr() + copy.nbytes <= start + size)


def test_copies_are_equal_and_apart() -> None:
    lock, taken = Locked(), shards()
    copies = StagingBuffers(lock).take(taken)
    kept = [shard.values.clone() for shard in taken]
    for shard, copy in zip(taken, copies, strict=True):
        assert copy.name == shard.name
        assert copy.values.dtype == shard.values.dtype
        assert copy.values.is_contiguous()
        assert torch.equal(copy.values, shard.values)
        shard.values.zero_()
    for copy, values in zip(copies, kept, strict=True):
        assert torch.equal(copy.values, values), "training goes on while the copy is written"
    for copy in copies:
        copy.values.fill_(1)
    assert all((copy.values == 1).all() for copy in copies), "no copy lies on another"


def test_one_piece_of_memory_of_the_shards_size_serves_every_checkpoint() -> None:
    lock, taken = Locked(), shards()
    staging = StagingBuffers(lock)
    first = staging.take(taken)
    assert len(lock.memory) == 1
    assert all(inside(copy.values, lock.memory[0]) for copy in first)
    assert lock.memory[0][1] < sum(shard.values.nbytes for shard in taken) + STAGED_AT * len(taken)
    for shard in taken:
        shard.values.add_(1) if shard.values.dtype != torch.bool else shard.values.logical_not_()
    again = staging.take(taken[::-1])
    assert all(torch.equal(copy.values, shard.values) for copy, shard in zip(again, taken[::-1], strict=True))
    assert len(lock.memory) == 1
    larger = [*taken, replace(taken[0], key="state of an optimizer")]
    copies = staging.take(larger)
    assert len(lock.memory) == 2
    assert all(inside(copy.values, lock.memory[1]) for copy in copies)


@pytest.mark.parametrize("count", [0, 1])
def test_few_shards(count: int) -> None:
    taken = shards()[:count]
    assert [copy.name for copy in StagingBuffers().take(taken)] == [shard.name for shard in taken]
