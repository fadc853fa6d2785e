"""What the metrics refuse, in which words, and that nothing of it is taken in."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from sidrec.metrics import Gauc, Histograms, SlicedAuc, Window
from sidrec.metrics.slices import slice_items
from sidrec.schema import ContractError

SLICES = slice_items(np.array([3, 5, 9]), np.array([4, 2, 0]), head_share=0.3, tail_share=0.3)
GOOD = {
    "scores": torch.tensor([0.5, 0.1]),
    "labels": torch.tensor([1, 0]),
    "users": torch.tensor([1, 1]),
    "items": torch.tensor([3, 0]),
}


@pytest.mark.parametrize(
    ("argument", "value", "sentence"),
    [
        ("scores", torch.tensor([1, 0]), "scores: expected floating point, got torch.int64"),
        ("scores", torch.tensor([0.5, float("nan")]), "scores: expected finite numbers, got nan in row 1 of the batch"),
        ("scores", torch.ones(1, 2), "scores: expected shape [N] or [N, 1], got [1, 2]"),
        ("scores", torch.tensor(0.5), "scores: expected shape [N] or [N, 1], got []"),
        ("labels", torch.tensor([1.0, 0.5]), "labels: expected 0 or 1, got 0.5 in row 1 of the batch"),
        ("labels", torch.tensor([1]), "labels: expected 2 rows, as many as scores, got 1"),
        ("users", torch.tensor([1.0, 1.0]), "users: expected integers, got torch.float32"),
        ("users", torch.tensor([1, 1, 1]), "users: expected 2 rows, as many as scores, got 3"),
        ("items", torch.tensor([3.0, 5.0]), "items: expected integers, got torch.float32"),
        ("items", torch.tensor([3, 4]), "items: expected items of the slices, got 4"),
        ("items", torch.tensor([3, 11]), "items: expected items of the slices, got 11"),
        ("items", torch.tensor([3]), "items: expected 2 rows, as many as scores, got 1"),
    ],
)
def test_a_bad_batch_is_refused_whole(argument: str, value: Tensor, sentence: str) -> None:
    metric = SlicedAuc(Window(10), SLICES)
    with pytest.raises(ContractError) as error:
        metric.update(**{**GOOD, argument: value})
    assert str(error.value) == f"SlicedAuc.update, {sentence}"
    assert metric.seen == 0


@pytest.mark.parametrize(
    ("item_I", "members", "sentence"),
    [
        ([1, 2], {}, "slices: expected 1 to 8 slices, got 0"),
        ([1, 2], {str(n): [True, False] for n in range(9)}, "slices: expected 1 to 8 slices, got 9"),
        ([], {"head": []}, "slices, item_I: expected at least one item, got none"),
        ([2, 1], {"head": [True, False]}, "slices, item_I: expected ids in ascending order, each once"),
        ([1, 1], {"head": [True, False]}, "slices, item_I: expected ids in ascending order, each once"),
        ([1, 2], {"head": [True]}, "slices, head: expected bool [2], got bool [1]"),
    ],
)
def test_slices_that_do_not_fit_their_items_are_refused(
    item_I: list[int], members: dict[str, list[bool]], sentence: str
) -> None:
    slices = SimpleNamespace(
        item_I=np.array(item_I, dtype=np.int64),
        members={name: np.array(member, dtype=bool) for name, member in members.items()},
    )
    with pytest.raises(ContractError, match="SlicedAuc") as error:
        SlicedAuc(Window(10), slices)
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    ("form", "sentence"),
    [
        (lambda: Window(0), "Window: expected at least 1 row, got rows=0"),
        (lambda: Histograms(users=0), "Histograms: expected users of at least 1, got 0"),
        (lambda: Histograms(bins=0), "Histograms: expected bins of at least 1, got 0"),
        (lambda: Histograms(low=1.0, high=1.0), "Histograms: expected finite low < high, got low=1.0, high=1.0"),
        (lambda: Histograms(high=float("inf")), "Histograms: expected finite low < high, got low=-8.0, high=inf"),
    ],
)
def test_forms_without_room_are_refused(form: object, sentence: str) -> None:
    assert callable(form)
    with pytest.raises(ValueError, match="expected") as error:
        form()
    assert str(error.value) == sentence


@pytest.mark.parametrize("saved", [Gauc(Window(5)), Gauc(Histograms())])
def test_a_state_of_another_form_is_refused_whole(saved: Gauc) -> None:
    gauc = Gauc(Window(10))
    gauc.update(GOOD["scores"], GOOD["labels"], GOOD["users"])
    with pytest.raises(RuntimeError, match=r"expected shape \[10\] for Window\(rows=10\), got \[5\]|Missing key"):
        gauc.load_state_dict(saved.state_dict())
    assert gauc.compute() == 1.0
    assert gauc.seen == 2


def test_torchrecs_metric_module_shows_the_values_among_its_own() -> None:
    from torchrec.metrics.metric_module import RecMetricModule  # takes seconds

    gauc, sliced = Gauc(Window(10)), SlicedAuc(Window(10), SLICES)
    gauc.update(GOOD["scores"], GOOD["labels"], GOOD["users"])
    sliced.update(**GOOD)
    module = RecMetricModule(batch_size=2, world_size=1, state_metrics={"ranking": gauc, "slices": sliced})
    values = dict(module.compute())
    assert values["ranking|gauc"] == 1.0
    assert values["slices|all/gauc"] == 1.0
    assert values["slices|head/auc"].isnan()
