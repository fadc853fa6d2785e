"""Batches: every item once per epoch, resident or streamed, alone or shared out; partners; behaviour norms."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sidrec.config.learner_parts import Pairs
from sidrec.schema import ContractError
from sidrec.sid.replicas import SINGLE, Replicas
from sidrec.sid.training.batches import Batches, Partners, epoch_order

VECTORS = np.random.default_rng(0).standard_normal((1003, 6)).astype(np.float32)
PAIRS = np.array([[0, 1], [0, 2], [5, 6]])


STREAMED: dict[str, Any] = {"memory": 1000, "window": 96 * 24, "block": 16}
"""Vectors do not fit: windows of 96 rows of 24 bytes, blocks of 16."""


class RecordedBatches(Batches):
    """read: the rows of every read."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments, **STREAMED)
        self.read: list[np.ndarray] = []

    def _tensor(self, array_NV: np.ndarray, rows_B: np.ndarray) -> torch.Tensor:
        self.read.append(rows_B)
        return super()._tensor(array_NV, rows_B)


def rows_of(batches: Batches, epoch: int = 0) -> np.ndarray:
    return np.stack([batch.rows_B.numpy() for batch in batches.epoch(epoch)])


def test_every_item_once_and_the_last_batch_filled_up_from_the_start() -> None:
    batches = Batches(VECTORS, 100, 0, SINGLE)
    rows = rows_of(batches)
    assert (batches.steps, rows.shape) == (11, (11, 100))
    assert sorted(rows.ravel()[:1003]) == list(range(1003))
    assert rows.ravel()[1003:].tolist() == rows.ravel()[:97].tolist()


def test_a_streamed_epoch_too_has_every_item_once(tmp_path: Path) -> None:
    np.save(tmp_path / "vectors.npy", VECTORS)
    batches = Batches(np.load(tmp_path / "vectors.npy", mmap_mode="r"), 40, 0, SINGLE, **STREAMED)
    seen = [(batch.rows_B.numpy(), batch.vectors_BV.numpy()) for batch in batches.epoch(3)]
    rows = np.concatenate([rows for rows, _ in seen])
    assert sorted(rows[:1003]) == list(range(1003))
    assert all(np.array_equal(vectors, VECTORS[rows]) for rows, vectors in seen)


def test_a_streamed_epoch_never_holds_more_than_a_window() -> None:
    batches = RecordedBatches(VECTORS, 40, 0, SINGLE)
    rows_of(batches)
    assert max(map(len, batches.read)) <= 96
    assert len(batches.read) == 13  # 26 steps of 40, two to a window


def test_partners_and_behavior_are_read_with_their_window_in_the_files_order() -> None:
    """Rows are 24 + 8 bytes, so 72 of them are a window: 3 steps of 12 anchors and 12 partners."""
    behavior = np.random.default_rng(1).standard_normal((1003, 2)).astype(np.float32)
    pairs = np.random.default_rng(2).integers(0, 1003, (500, 2))
    batches = RecordedBatches(VECTORS, 24, 0, SINGLE, pairs, behavior)
    seen = list(batches.epoch(0))
    assert len(batches.read) == 2 * -(-batches.steps // 3)
    assert max(map(len, batches.read)) <= 72
    assert all((np.diff(rows) > 0).all() for rows in batches.read)
    for batch in seen:
        assert np.array_equal(batch.vectors_BV.numpy(), VECTORS[batch.rows_B.numpy()])
        assert batch.behavior_BE is not None
        assert np.array_equal(batch.behavior_BE.numpy(), behavior[batch.rows_B.numpy()])
    assert {row for batch in seen for row in batch.rows_B[:12].tolist()} == set(range(1003))


def test_a_window_of_an_epoch_is_a_few_whole_blocks() -> None:
    order = epoch_order(1000, 50, 0, 0, block=10)
    for start in range(0, 1000, 50):
        window = order[start : start + 50]
        assert len(np.unique(window // 10)) == 5
        assert window.tolist() != sorted(window)
    assert sorted(order) == list(range(1000))


def test_order_is_a_function_of_seed_and_epoch() -> None:
    def rows(seed: int, epoch: int) -> list[int]:
        return rows_of(Batches(VECTORS, 100, seed, SINGLE), epoch).ravel().tolist()

    assert rows(1, 4) == rows(1, 4)
    assert rows(1, 4) != rows(1, 5)
    assert rows(1, 4) != rows(2, 4)


def test_fewer_items_than_a_batch_make_one_batch() -> None:
    rows = rows_of(Batches(VECTORS[:7], 100, 0, SINGLE))
    assert sorted(rows[0]) == list(range(7))
    assert len(rows) == 1


@pytest.mark.parametrize("pairs", [None, PAIRS])
def test_replicas_share_out_the_very_batches_of_one_process(pairs: np.ndarray | None) -> None:
    alone = list(Batches(VECTORS, 100, 0, SINGLE, pairs).epoch(2))
    shared = [list(Batches(VECTORS, 100, 0, Replicas(rank, 2), pairs).epoch(2)) for rank in (0, 1)]
    assert len(alone) == len(shared[0]) == len(shared[1])
    for whole, *parts in zip(alone, *shared, strict=True):
        sides = [slice(None)] if pairs is None else [slice(0, 50), slice(50, 100)]
        own = [slice(None)] if pairs is None else [slice(0, 25), slice(25, 50)]
        for side, part in zip(sides, own, strict=True):
            assert torch.equal(torch.cat([batch.rows_B[part] for batch in parts]), whole.rows_B[side])


def test_partners_go_both_ways_and_stand_in_for_those_without() -> None:
    """0 with 1 and 2, 5 with 6; each direction as listed."""
    partners = Partners(PAIRS, 8)
    rows = np.array([0, 0, 1, 2, 5, 6, 3])
    drawn, known = partners.draw(rows, np.array([0.0, 0.99, 0.5, 0.5, 0.9, 0.0, 0.7]))
    assert drawn.tolist() == [1, 2, 0, 0, 6, 5, 3]
    assert known.tolist() == [True] * 6 + [False]


def test_a_pair_given_twice_is_drawn_twice_as_often() -> None:
    partners = Partners(np.array([[0, 1], [0, 1], [0, 2]]), 3)
    chances = np.arange(300) / 300
    drawn, _ = partners.draw(np.zeros(300, np.int64), chances)
    assert np.bincount(drawn).tolist() == [0, 200, 100]


def test_a_batch_with_pairs_has_anchors_then_partners() -> None:
    batches = Batches(VECTORS[:8], 8, 0, SINGLE, PAIRS)
    seen = list(batches.epoch(0))
    assert batches.steps == 2
    assert sorted(row for batch in seen for row in batch.rows_B[:4].tolist()) == list(range(8))
    for batch in seen:
        assert batch.partners == 4
        assert batch.has_partner_P is not None
        anchors, others = batch.rows_B[:4].tolist(), batch.rows_B[4:].tolist()
        for anchor, other, known in zip(anchors, others, batch.has_partner_P.tolist(), strict=True):
            partners = {0: {1, 2}, 1: {0}, 2: {0}, 5: {6}, 6: {5}}
            assert other in partners.get(anchor, {anchor})
            assert known == (anchor in partners)
        assert np.array_equal(batch.vectors_BV.numpy(), VECTORS[batch.rows_B.numpy()])


def test_behavior_comes_with_norms_scaled_over_all_items() -> None:
    """Norms 0, 1, 3, 5 scale to 0, 0, .5, 1; quantiles .5 of the known put all on one point, so all known count 1."""
    behavior = np.array([[0, 0], [1, 0], [0, 3], [3, 4]], np.float32)
    for quantile, expected in ((0.0, [0, 0, 0.5, 1]), (0.5, [0, 1, 1, 1])):
        (batch,) = Batches(VECTORS[:4], 4, 0, SINGLE, None, behavior, quantile).epoch(0)
        assert batch.behavior_BE is not None
        assert batch.scaled_norm_B is not None
        assert np.array_equal(batch.behavior_BE.numpy(), behavior[batch.rows_B.numpy()])
        assert batch.scaled_norm_B.tolist() == [expected[row] for row in batch.rows_B.tolist()]


def test_bad_pairs_and_too_small_batches_are_one_message_each() -> None:
    with pytest.raises(ContractError, match=r"item pairs: expected row numbers in \[0, 1003\), got 0 to 1003"):
        Batches(VECTORS, 8, 0, SINGLE, np.array([[0, 1003]]))
    with pytest.raises(ContractError, match=r"item pairs: expected int \[pairs, 2\], at least one, got int64 \(0, 2\)"):
        Batches(VECTORS, 8, 0, SINGLE, np.zeros((0, 2), np.int64))
    with pytest.raises(ContractError, match=r"training.batch_size: expected at least 4 for 2 processes, got 3"):
        Batches(VECTORS, 3, 0, Replicas(0, 2), PAIRS)


ANCHOR_PARTNER: dict[tuple[bool, str], dict[tuple[int, int], float]] = {
    (False, "items"): {(0, 1): 1 / 2, (0, 2): 1 / 2, (1, 0): 1, (2, 0): 1, (5, 6): 1, (6, 5): 1, (3, 3): 1},
    (True, "items"): {(0, 1): 1 / 2, (0, 2): 1 / 2, (1, 1): 1, (2, 2): 1, (5, 6): 1, (6, 6): 1, (3, 3): 1},
    (False, "pairs"): {(0, 1): 1, (1, 0): 1, (0, 2): 1, (2, 0): 1, (5, 6): 1, (6, 5): 1},
    (True, "pairs"): {(0, 1): 2, (0, 2): 2, (5, 6): 2},
}
"""Anchor and partner -> how often they occur, relative to each other; an item with itself has no partner."""


@pytest.mark.parametrize(("directed", "draw"), ANCHOR_PARTNER)
@pytest.mark.parametrize("replicas", [1, 2])
def test_how_often_anchors_meet_partners(directed: bool, draw: Any, replicas: int) -> None:
    """8 items of which 0, 1, 2, 5 and 6 are in pairs; 300 epochs of 8 anchors."""
    drawing = Pairs(directed=directed, draw=draw)
    counts: Counter[tuple[int, int]] = Counter()
    for rank in range(replicas):
        batches = Batches(VECTORS[:8], 8, 0, Replicas(rank, replicas), PAIRS, None, 0.0, drawing)
        for batch in (batch for epoch in range(300) for batch in batches.epoch(epoch)):
            assert batch.partners is not None
            assert batch.has_partner_P is not None
            anchors, others = batch.rows_B[: batch.partners].tolist(), batch.rows_B[batch.partners :].tolist()
            counts.update(zip(anchors, others, strict=True))
            assert batch.has_partner_P.tolist() == [a != b for a, b in zip(anchors, others, strict=True)]
            assert np.array_equal(batch.vectors_BV.numpy(), VECTORS[batch.rows_B.numpy()])
    assert counts.total() == 300 * 8
    expected = ANCHOR_PARTNER[directed, draw]
    each = 300 if draw == "items" else 300 * 8 / sum(expected.values())
    for pair, often in expected.items():
        assert counts[pair] == pytest.approx(each * often, rel=0.15), pair
    met = {pair for pair in counts if pair[0] in (0, 1, 2, 3, 5, 6)}
    assert met == set(expected)


def test_streamed_pairs_are_those_of_resident_ones(tmp_path: Path) -> None:
    pairs = np.random.default_rng(2).integers(0, 1003, (500, 2))
    drawing = Pairs(directed=True, draw="pairs")
    seen = [rows_of(Batches(VECTORS, 24, 3, SINGLE, pairs, None, 0.0, drawing, **more)) for more in ({}, STREAMED)]
    assert np.array_equal(seen[0], seen[1])
    given = {(anchor, partner) for anchor, partner in pairs.tolist()}
    assert all((a, b) in given for rows in seen[0] for a, b in zip(rows[:12].tolist(), rows[12:].tolist(), strict=True))
