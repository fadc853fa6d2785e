"""The reader: rows of an epoch by step, decoding and quarantine; and where rows lie in their files."""

import math
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow.parquet import ParquetFile

from sidrec.config import ConfigError
from sidrec.data.rows import Columns, RowGroup, Rows, decode, row_places
from sidrec.schema import ContractError
from tests.data.log_files import flat, log_of, row_numbers


@pytest.mark.parametrize("rows", [1, 3, 4, 5, 100, 129])
@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("order", ["shuffled", "time", "file"])
def test_every_row_once_per_epoch_in_equally_many_steps(tmp_path: Path, rows: int, world: int, order: str) -> None:
    log = log_of(tmp_path, rows)
    shuffle = order != "file"
    wish: dict[str, Any] = {"order": order} if shuffle else {}
    loaders = [log.loader(rank=rank, world=world, shuffle=shuffle, **wish) for rank in range(world)]
    assert {(loader.steps, loader.rows) for loader in loaders} == {(math.ceil(rows / 16), rows)}
    for epoch in (0, 1):
        dealt = [row_numbers(loader.batches(epoch)) for loader in loaders]
        assert {len(batches) for batches in dealt} == {loaders[0].steps}
        assert {len(batch) for batches in dealt for batch in batches} == {16 // world}
        assert sorted(row for batches in dealt for row in flat(batches)) == list(range(rows))


@pytest.mark.parametrize("world", [2, 4])
def test_global_batches_do_not_depend_on_the_number_of_ranks(tmp_path: Path, world: int) -> None:
    log = log_of(tmp_path, 109)
    one = row_numbers(log.loader().batches(epoch=2))
    ranks = [row_numbers(log.loader(rank=rank, world=world).batches(epoch=2)) for rank in range(world)]
    assert [[row for batch in step for row in batch] for step in zip(*ranks, strict=True)] == one


def test_rows_per_rank_counts_the_rows_of_all_ranks(tmp_path: Path) -> None:
    log = log_of(tmp_path, 19)  # lanes of 4, 5, 5, 5 rows: the second step has three rows left
    for rank in range(2):
        loader = log.loader(rank=rank, world=2)
        assert [float(batch.rows_per_rank) for batch in loader.batches(0)] == [16 / 2, 3 / 2]


def test_in_time_order_all_lanes_walk_through_time_together(tmp_path: Path) -> None:
    log = log_of(tmp_path, 96)  # twelve groups of eight rows: three for each of four lanes
    steps = row_numbers(log.loader(order="time", shuffle_rows=8).batches(0))
    # A buffer of eight rows may reach into a lane's next group, never further: a third of the log at each end is apart.
    assert max(flat(steps[:2])) < 64
    assert min(flat(steps[4:])) >= 32
    assert sorted(flat(steps)) == list(range(96))
    assert steps[0] != sorted(steps[0])


def test_without_shuffle_lanes_run_through_the_files_in_order(tmp_path: Path) -> None:
    batches = row_numbers(log_of(tmp_path, 40).loader(shuffle=False).batches(0))  # four lanes of ten rows
    assert batches[0] == [0, 1, 2, 3, 10, 11, 12, 13, 20, 21, 22, 23, 30, 31, 32, 33]
    assert batches[2] == [8, 9, -1, -1, 18, 19, -1, -1, 28, 29, -1, -1, 38, 39, -1, -1]


def test_seeds_and_epochs_give_other_orders_and_the_same_ones_again(tmp_path: Path) -> None:
    log = log_of(tmp_path, 100)
    orders = [row_numbers(log.loader(seed=seed).batches(epoch)) for seed, epoch in ((0, 0), (0, 1), (1, 0), (0, 0))]
    assert orders[0] == orders[3]
    assert orders[0] != orders[1] != orders[2] != orders[0]


def test_a_batch_mixes_rows_from_the_whole_log(tmp_path: Path) -> None:
    # 48 row groups of 40 rows: each of four lanes holds 12 groups, 480 rows, mixed whole. A batch of 40 takes ten rows
    # of every lane at random and misses a group with probability C(440, 10) / C(480, 10) = 0.415: it sees 28 on
    # average. In file order it would see four.
    loader = log_of(tmp_path, 1920, group_rows=40).loader(batch_size=40, shuffle_rows=480)
    batches = row_numbers(loader.batches(0))
    expected = 48 * (1 - math.comb(440, 10) / math.comb(480, 10))
    assert np.mean([len({row // 40 for row in rows}) for rows in batches]) == pytest.approx(expected, abs=1)
    # Neighbours that stay neighbours: Poisson with mean 1 in each lane; more than 20 has probability 1e-9.
    assert sum(b - a == 1 for rows in batches for a, b in pairwise(rows)) <= 20


@pytest.mark.parametrize("first_step", [0, 1, 5, 8, 9])
def test_starting_at_a_step_gives_the_tail(tmp_path: Path, first_step: int) -> None:
    loader = log_of(tmp_path, 129).loader(history_length=3)
    assert loader.steps == 9
    whole, tail = list(loader.batches(1)), list(loader.batches(1, first_step))
    assert len(tail) == 9 - first_step
    for expected, found in zip(whole[first_step:], tail, strict=True):
        assert found.row_B.tolist() == expected.row_B.tolist()
        assert found.items.values().tolist() == expected.items.values().tolist()
        assert found.rows_per_rank == expected.rows_per_rank


@pytest.mark.parametrize("first_step", [-1, 10])
def test_a_step_outside_the_epoch_is_refused(tmp_path: Path, first_step: int) -> None:
    loader = log_of(tmp_path, 129).loader()
    with pytest.raises(ValueError, match=rf"^first_step: expected a step in \[0, 9\], got {first_step}$"):
        next(loader.batches(0, first_step))


def test_row_groups_are_decoded_once_per_lane_and_not_at_all_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[RowGroup] = []

    def counted(file: ParquetFile, group: RowGroup, columns: Columns, *, refuse: bool) -> tuple[Rows, list[str]]:
        decoded.append(group)
        return decode(file, group, columns, refuse=refuse)

    monkeypatch.setattr("sidrec.data.reader.decode", counted)
    # 40 row groups of 8 rows; lanes of 80 rows hold 10 groups each and mix 10 rows at a time
    loader = log_of(tmp_path, 320).loader()
    list(loader.batches(0))
    assert Counter(Counter(decoded).values()) == {1: 40}
    decoded.clear()
    list(loader.batches(0, loader.steps - 1))
    assert len(decoded) <= 4 * 3  # a buffer of ten rows lies in two or three groups


def test_lanes_that_do_not_fit_the_ranks_are_refused_at_opening(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^data\.lanes: .* ranks = 3, got 4$"):
        log_of(tmp_path, 10).loader(world=3)


def test_an_unknown_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=r"expected one of the splits \['train'\], got 'test'"):
        log_of(tmp_path, 10).manifest.files("test")


def test_rows_are_found_in_their_files() -> None:
    one, two = Path("one"), Path("two")
    groups = (RowGroup(one, 0, 0, 0, 3, 0, 0), RowGroup(one, 1, 3, 3, 2, 0, 0), RowGroup(two, 0, 5, 0, 4, 0, 0))
    assert row_places(groups, [8, 2, 3, 5]) == {one: [2, 3], two: [0, 3]}
    assert row_places(groups, []) == {}
