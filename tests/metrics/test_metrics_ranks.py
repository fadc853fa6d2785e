"""Metrics in a plain training loop on gloo ranks: as one process sees them, with uneven rows and without a hang."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from sidrec.metrics import Gauc, Histograms, SlicedAuc, Window
from sidrec.metrics.slices import ItemSlices, slice_items
from tests.metrics.made_up_log import Log
from tests.ranks import run_on_ranks

Form = Window | Histograms
FORMS = [
    pytest.param(Window(5000), id="window"),
    pytest.param(Histograms(users=1000), id="all-users"),
    pytest.param(Histograms(users=60), id="sampled-users"),
]
LOG = Log.drawn(2000, 150)


def _slices() -> ItemSlices:
    return slice_items(np.arange(1, 21), np.arange(20, dtype=np.int64) // 4, head_share=0.2, tail_share=0.5)


def _columns(rows: slice) -> tuple[Tensor, ...]:
    return tuple(torch.from_numpy(column[rows]) for column in (LOG.score, LOG.label, LOG.user, LOG.item))


def _rows_of(rank: int, ranks: int) -> slice:
    """Uneven: with two ranks, the first has 500 rows, the other 1500."""
    return slice(0, 2000) if ranks == 1 else slice(0, 500) if rank == 0 else slice(500, 2000)


def _loop(rank: int, ranks: int, form: Form) -> dict[str, float]:
    """Somebody's training loop: a model of one parameter, batches of 64, metrics after every epoch."""
    model, metric = nn.Linear(1, 1), SlicedAuc(form, _slices())
    nn.init.ones_(model.weight)
    nn.init.zeros_(model.bias)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    feature, label, user, item = _columns(_rows_of(rank, ranks))
    for _ in range(2):
        metric.reset()
        for start in range(0, len(feature), 64):
            rows = slice(start, start + 64)
            logits = model(feature[rows, None])
            nn.functional.binary_cross_entropy_with_logits(logits[:, 0], label[rows]).backward()
            optimizer.step()
            metric.update(logits, label[rows], user[rows], item[rows])
        values = metric.compute()
    return {name: value.item() for name, value in values.items()}


@pytest.mark.parametrize("form", FORMS)
def test_a_training_loop_sees_the_same_metrics_on_any_number_of_ranks(form: Form) -> None:
    alone = SlicedAuc(form, _slices())
    alone.update(*_columns(slice(0, 2000)))
    expected = {name: value.item() for name, value in alone.compute().items()}
    for ranks in (1, 2):
        assert run_on_ranks(ranks, _loop, form) == [expected] * ranks


def _one_rank_has_all(rank: int, ranks: int, form: Form) -> list[float]:
    gauc = Gauc(form)
    values = [gauc.compute().item()]
    if rank == 1:
        gauc.update(*_columns(slice(0, 1000))[:3])
    values.append(gauc.compute().item())
    if rank == 1:
        gauc.update(*_columns(slice(1000, 2000))[:3])
    return [*values, gauc.compute().item(), gauc.estimates()["all/gauc"].value]


@pytest.mark.parametrize("form", FORMS)
def test_a_rank_without_rows_neither_hangs_nor_counts(form: Form) -> None:
    expected = []
    for rows in (1000, 2000, 2000):
        gauc = Gauc(form)
        gauc.update(*_columns(slice(0, rows))[:3])
        expected.append(gauc.compute().item())
    for values in run_on_ranks(2, _one_rank_has_all, form):
        assert np.isnan(values[0])
        assert values[1:] == expected


def _interrupted(rank: int, ranks: int, form: Form) -> float:
    columns = [column[_rows_of(rank, ranks)] for column in _columns(slice(0, 2000))[:3]]
    first, second = Gauc(form), Gauc(form)
    first.update(*(column[:200] for column in columns))
    first.compute()
    second.load_state_dict(first.state_dict())
    second.update(*(column[200:] for column in columns))
    return second.compute().item()


@pytest.mark.parametrize("form", FORMS)
def test_every_rank_resumes_with_its_own_rows(form: Form) -> None:
    alone = Gauc(form)
    alone.update(*_columns(slice(0, 2000))[:3])
    assert run_on_ranks(2, _interrupted, form) == [alone.compute().item()] * 2


def _in_groups(rank: int, ranks: int) -> float:
    groups = [dist.new_group([0]), dist.new_group([1])]
    gauc = Gauc(Window(2000), process_group=groups[rank])
    gauc.update(*_columns(_rows_of(rank, ranks))[:3])
    return gauc.compute().item()


def test_ranks_of_a_group_share_the_metric_and_no_others() -> None:
    expected = [LOG.measured(slice(0, 500))["gauc"], LOG.measured(slice(500, 2000))["gauc"]]
    assert run_on_ranks(2, _in_groups) == expected


def _full_windows(rank: int, ranks: int) -> float:
    gauc = Gauc(Window(300))
    gauc.update(*_columns(_rows_of(rank, ranks))[:3])
    return gauc.compute().item()


def test_each_rank_keeps_a_window_of_its_own_latest_rows() -> None:
    kept = np.isin(np.arange(2000), np.r_[200:500, 1700:2000])
    assert run_on_ranks(2, _full_windows) == [LOG.measured(kept)["gauc"]] * 2
