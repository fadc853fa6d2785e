"""Metrics and loss, by hand."""

import math

import numpy as np
import pytest
import torch

from benchmarks.generative.evaluation import metrics_at, popularity_ranks
from benchmarks.generative.training import token_loss


def test_metrics_by_hand() -> None:
    rank_U, group_U = np.array([1, 0, 7, 3]), np.array([1, 2, 1, 4])
    item = metrics_at(rank_U, 1 / group_U, 10)
    assert item["recall@5"] == pytest.approx((1 + 0 + 0 + 1 / 4) / 4)
    assert item["recall@10"] == pytest.approx((1 + 0 + 1 + 1 / 4) / 4)
    assert item["ndcg@5"] == pytest.approx((1 + 0 + 0 + 0.25 / 2) / 4)  # log2(3 + 1) = 2
    assert item["ndcg@10"] == pytest.approx((1 + 0 + 1 / 3 + 0.25 / 2) / 4)  # log2(7 + 1) = 3
    sid = metrics_at(rank_U, np.ones(4), 10)
    assert sid["recall@5"] == pytest.approx(2 / 4)
    assert sid["ndcg@5"] == pytest.approx((1 + 1 / 2) / 4)
    assert "recall@50" not in item


def test_item_recall_is_the_expected_hit_of_a_random_member_of_the_group() -> None:
    random = np.random.default_rng(0)
    shown = random.integers(0, 4, size=100_000)  # the target is member 0 of four that share the SID at rank 2
    expected = metrics_at(np.array([2]), np.array([1 / 4]), 5)["recall@5"]
    assert np.mean(shown == 0) == pytest.approx(expected, abs=0.01)


def test_popularity_by_hand() -> None:
    count_N = np.array([3, 0, 5, 3, 1])
    assert popularity_ranks(count_N, np.arange(5), 10).tolist() == [2, 0, 1, 3, 4]
    assert popularity_ranks(count_N, np.array([3, 0]), 2).tolist() == [0, 2]


def test_token_loss_by_hand() -> None:
    logits = [torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0]]), torch.zeros(2, 4)]
    codes_PL = torch.tensor([[1, 2], [0, 3]])
    loss, weight = token_loss(logits, codes_PL, torch.tensor([[2.0, 0.0], [1.0, 0.5]]))
    expected = 2 * math.log(4 / 3) + math.log(2) + 0.5 * math.log(4)
    assert loss.item() == pytest.approx(expected)
    assert weight.item() == 3.5
    loss, weight = token_loss(logits, codes_PL, None)
    assert loss.item() == pytest.approx(math.log(4 / 3) + math.log(2) + 2 * math.log(4))
    assert weight.item() == 4
