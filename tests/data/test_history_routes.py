"""Routes through a long history: by hand, against a loop over items, and in a batch."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from sidrec.config.model import Route
from sidrec.data.batch import packed
from sidrec.data.history_routes import HistoryRoutes, shared_levels
from sidrec.data.rows import Rows
from sidrec.data.worker import BatchArrays, pack
from tests.data.test_collate import HID_ONLY, rows_of

CODES_IL = np.array([[-1, -1, -1], [3, 5, 7], [3, 5, 1], [3, 9, 7], [4, 5, 7], [3, 5, 2]], np.int32)
"""Item 1 is the target of the first test, items 2 to 5 its history, oldest first."""


@pytest.mark.parametrize(("keep", "expected"), [(2, [5, 2]), (4, [5, 2, 3, 0])])
def test_prefixes_by_hand(keep: int, expected: list[int]) -> None:
    rows = rows_of([1], [[2, 3, 4, 5]])
    assert shared_levels(CODES_IL, rows.item_N, rows.history_NT).tolist() == [[2, 1, 0, 2]]
    assert HistoryRoutes(("prefix",), keep, CODES_IL)(rows).tolist() == [expected]


def test_a_target_without_a_sid_shares_no_prefix() -> None:
    codes_IL = np.full((4, 3), -1, np.int32)
    rows = rows_of([1], [[2, 3]])
    assert HistoryRoutes(("prefix",), 2, codes_IL)(rows).tolist() == [[0, 0]]


def slow(routes: tuple[Route, ...], keep: int, codes_IL: np.ndarray, item: int, history: list[int]) -> list[int]:
    """One row; without random."""
    left, found = {t: i for t, i in enumerate(history) if i}, []
    for route in routes:
        ranked = sorted(left, reverse=True)
        if route == "prefix":
            depth = {t: common_levels(codes_IL[item], codes_IL[left[t]]) for t in left}
            ranked = sorted((t for t in ranked if depth[t]), key=lambda t: -depth[t])  # stable: later first
        chosen = [left.pop(t) for t in ranked[:keep]]
        found += chosen + [0] * (keep - len(chosen))
    return found


def common_levels(first_L: np.ndarray, second_L: np.ndarray) -> int:
    level = 0
    while level < len(first_L) and first_L[level] == second_L[level] and first_L[level] >= 0:
        level += 1
    return level


@pytest.mark.parametrize("routes", [("recent",), ("prefix",), ("recent", "prefix"), ("prefix", "recent")])
def test_routes_equal_a_loop(routes: tuple[Route, ...]) -> None:
    rng = np.random.default_rng(0)
    codes_IL = rng.integers(0, 3, (30, 3)).astype(np.int32)
    codes_IL[[0, 7]] = -1
    histories = [rng.integers(1, 30, length).tolist() for length in rng.integers(0, 13, 40)] + [[1] * 12]
    items = rng.integers(1, 30, 41).tolist()
    found = HistoryRoutes(routes, 4, codes_IL)(rows_of(items, histories))
    assert found.tolist() == [slow(routes, 4, codes_IL, i, h) for i, h in zip(items, histories, strict=True)]


def test_a_random_route_draws_from_the_rest_by_row_number() -> None:
    history = list(range(1, 21))
    rows = rows_of([1] * 200, [history] * 200)
    routes = HistoryRoutes(("recent", "random"), 5, np.zeros((0, 0), np.int32))
    found = routes(rows)
    assert (found[:, :5] == [20, 19, 18, 17, 16]).all()
    drawn = found[:, 5:]
    assert drawn.min() >= 1
    assert drawn.max() <= 15
    assert all(len(set(row)) == 5 for row in drawn.tolist())
    counts = np.bincount(drawn.ravel(), minlength=16)[1:]
    assert np.abs(counts - 1000 / 15).max() < 5 * np.sqrt(1000 / 15)
    part = Rows(*(getattr(rows, f.name)[[120, 7]] for f in fields(Rows)))
    assert routes(part).tolist() == found[[120, 7]].tolist()
    other = routes(replace(rows, row_N=rows.row_N + 1000))
    assert (other[:, 5:] != drawn).any()


def test_batches_hold_what_routes_select() -> None:
    codes_IL = np.concatenate([CODES_IL, np.full((24, 3), -1, np.int32)])
    arrays = BatchArrays(HID_ONLY.for_workers(), (), select=HistoryRoutes(("recent", "prefix"), 1, codes_IL))
    batch = packed(pack(arrays(rows_of([1, 4], [[2, 3, 5, 9], [2, 3, 0, 0]]), 2)), HID_ONLY).to(torch.device("cpu"))
    ids = [0, *batch.items.values().tolist()]
    assert ids == [0, 1, 3, 4, 5, 9]  # item 2 is in no route, and is not looked up
    assert [[ids[bag] for bag in row] for row in batch.history_BT.tolist()] == [[9, 5], [3, 0]]
