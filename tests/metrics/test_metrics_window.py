"""Metrics of a window of rows against derivations on paper and against sidrec's own metrics."""

import numpy as np
import pytest
import torch
from torch import Tensor

from sidrec.metrics import Estimate, Gauc, SlicedAuc, Uauc, Window
from sidrec.metrics.slices import slice_items
from tests.metrics.made_up_log import Log


def _rows(*rows: tuple[int, int, float]) -> tuple[Tensor, Tensor, Tensor]:
    """rows: (user, label, score); returned as update takes them."""
    user, label, score = (torch.tensor(column) for column in zip(*rows, strict=True))
    return score, label, user


# user 1: pairs (2, 1) won, (2, 0) won, (1, 1) tied, (1, 0) won; user 2: (3, 5) lost; users 3 and 4: one class
FOUR_USERS = _rows(
    (1, 1, 2.0), (1, 0, 1.0), (1, 1, 1.0), (1, 0, 0.0), (2, 0, 5.0), (2, 1, 3.0), (3, 1, 9.0), (4, 0, 9.0), (4, 0, 1.0)
)


def test_gauc_weighs_users_by_rows_and_leaves_out_users_of_one_class() -> None:
    gauc = Gauc(Window(100))
    gauc.update(*FOUR_USERS)
    assert gauc.compute().item() == (4 * 3.5 / 4 + 2 * 0.0) / (4 + 2)


def test_uauc_gives_users_equal_weight() -> None:
    uauc = Uauc(Window(100))
    uauc.update(*FOUR_USERS)
    assert uauc.compute().item() == (3.5 / 4 + 0.0) / 2
    assert uauc.estimates()["all/uauc"] == Estimate(3.5 / 8, ties=0.0, sampling=0.0)


def test_without_a_user_of_both_classes_the_value_is_nan() -> None:
    gauc = Gauc(Window(4))
    assert gauc.compute().isnan()
    gauc.update(*_rows((1, 1, 0.5), (2, 0, 0.1)))
    assert gauc.compute().isnan()
    assert gauc.estimates()["all/auc"].value == 1.0


def test_scores_of_every_floating_type_tie_only_where_they_are_equal() -> None:
    gauc = Gauc(Window(4))
    scores = torch.tensor([1.0, 1.0 + 2**-40], dtype=torch.float64)
    gauc.update(scores, torch.tensor([0, 1]), torch.tensor([7, 7]))
    assert gauc.compute().item() == 1.0


def test_equal_to_own_metrics_to_the_last_bit() -> None:
    log, metric = Log.drawn(3000, 200), Gauc(Window(4096))
    for batch in log.batches(257):
        metric.update(*batch)
    expected, estimates = log.measured(), metric.estimates()
    for name in ("auc", "gauc", "uauc"):
        assert estimates[f"all/{name}"].value == expected[name]


@pytest.mark.parametrize("batch", [1, 7, 64, 100, 101, 350])
def test_a_full_window_forgets_the_oldest_rows(batch: int) -> None:
    log, gauc = Log.drawn(350, 20), Gauc(Window(100))
    for rows in log.batches(batch):
        gauc.update(*rows)
    assert gauc.compute().item() == log.measured(slice(250, 350))["gauc"]


def test_compute_does_not_disturb_the_state() -> None:
    log, gauc = Log.drawn(350, 20), Gauc(Window(1000))
    for rows in log.batches(100):
        gauc.update(*rows)
        gauc.compute()
    assert gauc.compute().item() == gauc.compute().item() == log.measured()["gauc"]


def test_reset_forgets_all_rows() -> None:
    gauc = Gauc(Window(10))
    gauc.update(*_rows((1, 1, 0.0), (1, 0, 1.0)))
    gauc.reset()
    assert gauc.compute().isnan()
    gauc.update(*_rows((2, 1, 1.0), (2, 0, 0.0)))
    assert gauc.compute().item() == 1.0


def test_a_reset_within_inference_mode_leaves_updates_outside_possible() -> None:
    gauc = Gauc(Window(10))
    with torch.inference_mode():
        gauc.update(*_rows((1, 1, 0.0), (1, 0, 1.0)))
        gauc.reset()
    gauc.update(*_rows((2, 1, 1.0), (2, 0, 0.0)))
    assert gauc.compute().item() == 1.0


def test_forward_returns_the_value_of_its_batch_alone() -> None:
    gauc = Gauc(Window(10))
    assert gauc(*_rows((1, 1, 0.0), (1, 0, 1.0))).item() == 0.0
    assert gauc(*_rows((1, 1, 2.0), (1, 0, 1.5))).item() == 1.0
    assert gauc.compute().item() == 2 / 4


def test_resume_from_a_state_dict_equals_uninterrupted_training() -> None:
    log, whole = Log.drawn(350, 20), Gauc(Window(100))
    batches = list(log.batches(30))
    for rows in batches[:6]:
        whole.update(*rows)
    saved = whole.state_dict()
    resumed = Gauc(Window(100))
    resumed.update(*batches[0])  # forgotten
    resumed.load_state_dict(saved)
    assert resumed.compute() == whole.compute()
    for rows in batches[6:]:
        resumed.update(*rows)
    assert resumed.compute().item() == log.measured(slice(250, 350))["gauc"]
    again = Gauc(Window(100))
    again.load_state_dict(saved)
    assert again.compute() == whole.compute(), "updates after a resume wrote into the saved state"


def test_columns_and_rows_and_empty_batches_are_taken() -> None:
    gauc = Gauc(Window(10))
    scores, labels, users = FOUR_USERS
    gauc.update(scores[:, None], labels.bool(), users.int())
    gauc.update(scores[:0], labels[:0], users[:0])
    assert gauc.compute().item() == 3.5 / 6


def test_slices_hold_the_rows_of_their_items() -> None:
    log = Log.drawn(2000, 100)
    impressions = np.arange(20, dtype=np.int64) // 4
    slices = slice_items(np.arange(1, 21), impressions, head_share=0.2, tail_share=0.5)
    item = np.where(np.arange(2000) % 50 == 0, 0, log.item)  # some are unknown
    metric = SlicedAuc(Window(2000), slices)
    metric.update(*(torch.from_numpy(column) for column in (log.score, log.label, log.user, item)))
    values = metric.compute()
    assert [name for name in values if name.endswith("/auc")] == [
        "all/auc", "head/auc", "torso/auc", "tail/auc", "cold/auc"
    ]  # fmt: skip
    for name, mask in slices.masks(item):
        expected = log.measured(mask)
        for metric_name in ("auc", "gauc", "uauc"):
            assert values[f"{name}/{metric_name}"].item() == expected[metric_name]
