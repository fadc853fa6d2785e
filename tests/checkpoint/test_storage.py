"""Shards written by some ranks and read by others, in other rectangles; files that are not what they were."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from sidrec.checkpoint.dcp_storage import load_shards, save_shards
from sidrec.checkpoint.tensor_shard import INDEX, TensorShard, read_index, whole_tensor
from sidrec.errors import CheckpointError
from sidrec.parallel.process_group import Ranks
from sidrec.schema import crc32_of
from tests.ranks import joined, run_on_ranks

ROWS, WIDTH = 12, 6
TABLE_RD = torch.arange(ROWS * WIDTH, dtype=torch.float32).reshape(ROWS, WIDTH)


def by_rows(ranks: Ranks, values_RD: torch.Tensor) -> list[TensorShard]:
    share = ROWS // ranks.world
    first = ranks.rank * share
    return [TensorShard("table", (ROWS, WIDTH), (first, 0), values_RD[first : first + share])]


def by_columns(ranks: Ranks, values_RD: torch.Tensor) -> list[TensorShard]:
    share = WIDTH // ranks.world
    first = ranks.rank * share
    return [TensorShard("table", (ROWS, WIDTH), (0, first), values_RD[:, first : first + share])]


def copies(ranks: Ranks, values_RD: torch.Tensor) -> list[TensorShard]:
    return [whole_tensor("table", values_RD, owned=ranks.first)]


CUTS: dict[str, Callable[[Ranks, torch.Tensor], list[TensorShard]]] = {
    "rows": by_rows,
    "columns": by_columns,
    "copies": copies,
}


def small(rank: int, owned: bool) -> list[TensorShard]:
    """Tensors without dimensions, without values, of other types, and one of each rank alone."""
    return [
        whole_tensor("step", torch.tensor(7.0), owned),
        whole_tensor("none", torch.zeros(0, 3), owned),
        whole_tensor("ids", torch.tensor([1 << 40, -1]), owned),
        whole_tensor("flags", torch.tensor([True, False, True]), owned),
        whole_tensor("half", torch.tensor([1.5, -2.0], dtype=torch.bfloat16), owned),
        whole_tensor(f"ranks/{rank}/state", torch.full((3,), rank, dtype=torch.uint8)),
    ]


def write(rank: int, world: int, path: Path, cut: str) -> None:
    ranks = joined(rank, world)
    save_shards(path, CUTS[cut](ranks, TABLE_RD) + small(ranks.rank, ranks.first), ranks.rank, ranks.control)


def read(rank: int, world: int, path: Path, cut: str) -> None:
    ranks = joined(rank, world)
    found_RD = torch.full((ROWS, WIDTH), -1.0)
    tables = CUTS[cut](ranks, found_RD)
    others = small(0, ranks.first)
    for shard in others:
        shard.values.zero_()
    load_shards(path, read_index(path), tables + others, ranks.control)
    for shard in tables:
        assert torch.equal(shard.values, CUTS[cut](ranks, TABLE_RD)[0].values)
    for shard, expected in zip(others, small(0, owned=True), strict=True):
        assert torch.equal(shard.values, expected.values), shard.key


@pytest.mark.parametrize("cut", CUTS)
def test_any_rectangles_are_read_as_any_others(cut: str, tmp_path: Path) -> None:
    run_on_ranks(2, write, tmp_path, cut)
    for readers, wanted in ((1, "copies"), (2, "rows"), (2, "columns")):
        run_on_ranks(readers, read, tmp_path, wanted)


def test_files_are_plain_safetensors_with_their_checksum(tmp_path: Path) -> None:
    run_on_ranks(1, write, tmp_path, "copies")
    index = read_index(tmp_path)
    (file,) = index.files.items()
    assert (tmp_path / file[0]).stat().st_size == file[1].size
    assert crc32_of(tmp_path / file[0]) == file[1].crc32
    with safe_open(tmp_path / file[0], framework="pt") as stored:
        assert torch.equal(stored.get_tensor("table@0,0"), TABLE_RD)
    assert sorted(path.name for path in tmp_path.iterdir()) == [INDEX, "rank-0.safetensors"]


def refuse(rank: int, world: int, path: Path, sentence: str) -> None:
    ranks = joined(rank, world)
    with pytest.raises(CheckpointError) as refused:
        load_shards(path, read_index(path), by_rows(ranks, torch.zeros(ROWS, WIDTH)), ranks.control)
    assert sentence in str(refused.value)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda index: index["tensors"].pop("table"), "expected a tensor table, got none of that name"),
        (lambda index: index["tensors"]["table"].update(dtype="F64"), "table: expected F32 [12, 6], got F64 [12, 6]"),
        (lambda index: index["tensors"]["table"]["pieces"].pop(), "expected shards that make up the tensor table"),
        (lambda index: index["tensors"]["table"]["pieces"][0].update(file="../x"), "expected files of this folder"),
        (lambda index: index.update(version=2), "expected an index of version 1, got 2"),
        (lambda index: index["files"].clear(), "expected files of this folder that it lists"),
    ],
)
def test_an_index_that_does_not_fit(change: Callable[[dict], object], sentence: str, tmp_path: Path) -> None:
    run_on_ranks(1, write, tmp_path, "copies")
    index = json.loads((tmp_path / INDEX).read_text())
    change(index)
    (tmp_path / INDEX).write_text(json.dumps(index))
    run_on_ranks(1, refuse, tmp_path, sentence)


def write_holes(rank: int, world: int, path: Path) -> None:
    ranks = joined(rank, world)
    with pytest.raises(CheckpointError, match="table: expected shards of 72 values together, got 36"):
        save_shards(path, by_rows(ranks, TABLE_RD) if ranks.first else [], ranks.rank, ranks.control)


def test_shards_with_holes_are_not_written(tmp_path: Path) -> None:
    run_on_ranks(2, write_holes, tmp_path)
    assert list(tmp_path.iterdir()) == []


def write_nowhere(rank: int, world: int, path: Path) -> None:
    ranks = joined(rank, world)
    with pytest.raises(OSError, match="rank 1: No such file or directory"):
        save_shards(path if ranks.first else path / "gone", by_rows(ranks, TABLE_RD), ranks.rank, ranks.control)


def test_a_rank_that_cannot_write_stops_all(tmp_path: Path) -> None:
    run_on_ranks(2, write_nowhere, tmp_path)
    assert not (tmp_path / INDEX).exists()
