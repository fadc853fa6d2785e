"""Metrics against derivations on paper, a slow reference and scikit-learn."""

from math import log

import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from sidrec.metrics.exact import measure, reasons
from sidrec.metrics.pairs import Ints, Reals

RANKING_AND_NE = ("auc", "gauc", "uauc", "ne")


def _measure(*rows: tuple[int, int, float]) -> dict[str, float | int | None]:
    """rows: (user, label, score)."""
    user, label, score = (np.array(column) for column in zip(*rows, strict=True))
    return measure(label.astype(np.float32), score.astype(np.float32), user.astype(np.int64))


def test_auc_counts_pairs_and_half_of_the_ties() -> None:
    metrics = _measure((1, 1, 2.0), (1, 0, 1.0), (1, 1, 1.0), (1, 0, 0.0))
    # pairs (positive, negative): (2, 1) won, (2, 0) won, (1, 1) tied, (1, 0) won
    assert metrics["auc"] == (1 + 1 + 1 / 2 + 1) / 4


def test_auc_is_one_half_when_all_scores_tie() -> None:
    assert _measure((1, 1, 0.3), (1, 0, 0.3), (2, 0, 0.3))["auc"] == 1 / 2


def test_scores_that_differ_by_the_last_float32_bit_are_no_tie() -> None:
    assert _measure((1, 1, float(np.nextafter(np.float32(1), np.float32(2)))), (1, 0, 1.0))["auc"] == 1.0


def test_users_count_by_their_rows_in_gauc_and_equally_in_uauc() -> None:
    metrics = _measure(
        *[(7, 1, 2.0), (7, 0, 1.0), (7, 1, 1.0), (7, 0, 0.0)],  # 4 rows, AUC 3.5 / 4 as above
        *[(3, 1, 0.0), (3, 0, 5.0)],  # 2 rows, AUC 0
        *[(9, 1, 8.0), (9, 1, 9.0), (9, 1, 9.0)],  # one class: not covered
        *[(4, 0, 8.0)],  # one class: not covered
    )
    assert metrics["gauc"] == (4 * (3.5 / 4) + 2 * 0) / (4 + 2)
    assert metrics["uauc"] == (3.5 / 4 + 0) / 2
    # pooled: positives 2, 1, 0, 8, 9, 9 against negatives 1, 0, 5, 8
    # 2 beats 1 and 0: 2; 1 ties 1 and beats 0: 1.5; 0 ties 0: 0.5; 8 beats 1, 0, 5 and ties 8: 3.5; 9 and 9 beat all: 8
    assert metrics["auc"] == (2 + 1.5 + 0.5 + 3.5 + 8) / (6 * 4)
    assert (metrics["users"], metrics["covered_users"]) == (4, 2)
    assert (metrics["rows"], metrics["positives"], metrics["covered_rows"]) == (10, 6, 6)


def test_equal_scores_of_different_users_do_not_meet_in_gauc() -> None:
    metrics = _measure((1, 1, 0.5), (2, 0, 0.5), (2, 1, 0.5), (1, 0, 0.2))
    assert metrics["gauc"] == (2 * 1 + 2 * (1 / 2)) / 4
    assert metrics["auc"] == (1 / 2 + 1 + 1 / 2 + 1) / 4


def test_log_loss_ne_and_calibration() -> None:
    # sigmoid(ln 3) = 3/4, sigmoid(0) = 1/2
    metrics = _measure((1, 1, log(3)), (1, 0, log(3)), (1, 0, 0.0), (1, 0, 0.0))
    expected_loss = -(log(3 / 4) + log(1 / 4) + log(1 / 2) + log(1 / 2)) / 4
    entropy = -(1 / 4 * log(1 / 4) + 3 / 4 * log(3 / 4))
    assert metrics["log_loss"] == pytest.approx(expected_loss, rel=1e-7)  # the scores are float32
    assert metrics["ne"] == pytest.approx(expected_loss / entropy, rel=1e-7)
    assert metrics["calibration"] == pytest.approx(((3 / 4 + 3 / 4 + 1 / 2 + 1 / 2) / 4) / (1 / 4), rel=1e-7)


def test_a_constant_score_at_the_base_rate_has_ne_one_and_calibration_one() -> None:
    metrics = _measure((1, 1, -log(3)), (1, 0, -log(3)), (2, 0, -log(3)), (2, 0, -log(3)))
    assert metrics["ne"] == pytest.approx(1.0, rel=1e-7)
    assert metrics["calibration"] == pytest.approx(1.0, rel=1e-7)


@pytest.mark.filterwarnings("error")
def test_huge_logits_neither_overflow_nor_lose_the_loss() -> None:
    metrics = _measure((1, 1, 1e4), (1, 0, 1e4), (1, 1, -1e4), (1, 0, -1e4))
    assert metrics["log_loss"] == (0 + 1e4 + 1e4 + 0) / 4
    assert metrics["calibration"] == (1 + 1 + 0 + 0) / 2


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("label", "why"), [(0, "no positive row"), (1, "no negative row")])
def test_one_class_leaves_ranking_and_ne_undefined_with_the_reason(label: int, why: str) -> None:
    metrics = _measure((1, label, 0.0), (2, label, 0.0))
    assert [metrics[name] for name in RANKING_AND_NE] == [None] * 4
    assert metrics["log_loss"] == pytest.approx(log(2))
    assert metrics["calibration"] == (None if label == 0 else 1 / 2)
    named = "auc, gauc, uauc, ne" if label else "auc, gauc, uauc, ne, calibration"
    assert reasons(metrics) == {why: named}


def test_no_user_with_both_classes_leaves_only_user_metrics_undefined() -> None:
    metrics = _measure((1, 1, 3.0), (1, 1, 0.0), (2, 0, 1.0))
    assert metrics["auc"] == 1 / 2
    assert (metrics["gauc"], metrics["uauc"], metrics["covered_users"], metrics["covered_rows"]) == (None, None, 0, 0)
    assert reasons(metrics) == {"no user has both classes": "gauc, uauc"}


@pytest.mark.filterwarnings("error")
def test_no_rows_at_all() -> None:
    nothing = np.zeros(0, dtype=np.float32)
    metrics = measure(nothing, nothing, np.zeros(0, dtype=np.int64))
    assert [name for name, value in metrics.items() if value is None] == [
        *("auc", "gauc", "uauc", "ne", "log_loss", "calibration")
    ]
    assert list(reasons(metrics)) == ["no rows"]


def test_a_single_user_has_equal_auc_gauc_and_uauc() -> None:
    metrics = _measure((5, 1, 0.1), (5, 0, 0.2), (5, 0, 0.0), (5, 1, 0.2))
    # (.1, .2) lost, (.1, 0) won, (.2, .2) tied, (.2, 0) won
    assert metrics["auc"] == metrics["gauc"] == metrics["uauc"] == (0 + 1 + 1 / 2 + 1) / 4


def _random_rows(seed: int, rows: int, scores: int, users: int) -> tuple[Reals, Reals, Ints]:
    random = np.random.default_rng(seed)
    label = (random.random(rows) < 0.3).astype(np.float32)
    score = (random.integers(0, scores, rows) / scores).astype(np.float32)
    return label, score, random.integers(0, users, rows) - 2**40


@pytest.mark.parametrize("scores", [2, 7, 1000])
@pytest.mark.parametrize("seed", range(3))
def test_equal_to_scikit_learn_with_heavy_ties(seed: int, scores: int) -> None:
    label, score, user = _random_rows(seed, rows=3000, scores=scores, users=400)
    metrics = measure(label, score, user)
    per_user = {
        int(u): (int((user == u).sum()), roc_auc_score(label[user == u], score[user == u]))
        for u in np.unique(user)
        if len(set(label[user == u])) == 2
    }
    assert metrics["auc"] == pytest.approx(roc_auc_score(label, score), abs=1e-12)
    assert metrics["uauc"] == pytest.approx(np.mean([auc for _, auc in per_user.values()]), abs=1e-12)
    weighted = sum(rows * auc for rows, auc in per_user.values()) / sum(rows for rows, _ in per_user.values())
    assert metrics["gauc"] == pytest.approx(weighted, abs=1e-12)
    assert metrics["covered_users"] == len(per_user)
    probability = 1 / (1 + np.exp(-score.astype(np.float64)))
    assert metrics["log_loss"] == pytest.approx(log_loss(label, probability), rel=1e-9)


def test_the_order_of_rows_does_not_change_a_rank_metric_by_a_bit() -> None:
    label, score, user = _random_rows(3, rows=2000, scores=50, users=100)
    shuffled = np.random.default_rng(0).permutation(2000)
    straight, mixed = measure(label, score, user), measure(label[shuffled], score[shuffled], user[shuffled])
    assert [straight[name] for name in ("auc", "gauc", "uauc")] == [mixed[name] for name in ("auc", "gauc", "uauc")]
