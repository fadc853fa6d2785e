"""Target attention over histories: against a loop over positions, its gradient, and what a mean cannot learn.

Shapes: B rows, U item bags, T history positions, D width.
"""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from sidrec.config.model import MeanPooling, Pooling, TargetAttentionPooling
from sidrec.model.history import Paths, index_history
from sidrec.model.pooling import TargetAttention, build_pooling

B, U, T, D = 7, 9, 5, 4


def histories() -> Tensor:
    """Full histories, an empty one, one of one item, one with an item twice; bag 8 is in none."""
    history_BT = torch.randint(1, 8, (B, T), generator=torch.Generator().manual_seed(0))
    history_BT[1] = 0
    history_BT[2, 1:] = 0
    history_BT[3] = torch.tensor([4, 4, 2, 0, 0])
    return history_BT


def embeddings() -> tuple[Tensor, Tensor]:
    """items_UD, target_BD."""
    generator = torch.Generator().manual_seed(1)
    items_UD = torch.randn(U, D, dtype=torch.double, generator=generator)
    items_UD[0] = 0
    return items_UD, torch.randn(B, D, dtype=torch.double, generator=generator)


def attention(hidden: tuple[int, ...], softmax: bool) -> TargetAttention:
    torch.manual_seed(2)
    module = TargetAttention(D, hidden, softmax).double()
    for slope in module.slopes:
        nn.init.constant_(slope, 0.3)
    return module


def naive(module: TargetAttention, items_UD: Tensor, target_BD: Tensor, history_BT: Tensor) -> Tensor:
    """Row by row and position by position, as the paper writes it."""
    pooled = []
    for target_D, bag_T in zip(target_BD, history_BT, strict=True):
        items = [items_UD[bag] for bag in bag_T if bag > 0]
        if not items:
            pooled.append(torch.zeros_like(target_D))
            continue
        scores = []
        for h in items:
            x = torch.cat([h, target_D, h - target_D, h * target_D])
            for layer, slope in zip(module.layers[:-1], module.slopes, strict=True):
                x = layer(x)
                x = torch.where(x > 0, x, slope * x)
            scores.append(module.layers[-1](x))
        weights = torch.softmax(torch.cat(scores), dim=0) if module.softmax else torch.cat(scores)
        pooled.append(sum((w * h for w, h in zip(weights, items, strict=True)), torch.zeros_like(target_D)))
    return torch.stack(pooled)


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("rows", [2, 100])
@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("hidden", [(3,), (5, 3)])
def test_attention_in_chunks_equals_the_naive_loop(
    hidden: tuple[int, ...], softmax: bool, rows: int, balanced: bool
) -> None:
    module, history_BT = attention(hidden, softmax), histories()
    outcomes = []
    for fast in (True, False):
        module.zero_grad()
        items_UD, target_BD = (tensor.requires_grad_() for tensor in embeddings())
        found = (
            module(items_UD, target_BD, index_history(history_BT, Paths(rows, balanced)))
            if fast
            else naive(module, items_UD, target_BD, history_BT)
        )
        found.backward(torch.randn(B, D, dtype=torch.double, generator=torch.Generator().manual_seed(3)))
        assert items_UD.grad is not None
        gradients = [items_UD.grad[1:], target_BD.grad, *(p.grad for p in module.parameters())]
        outcomes.append((found.detach(), gradients))
    torch.testing.assert_close(outcomes[0], outcomes[1])


@pytest.mark.parametrize("softmax", [False, True])
def test_gradient_is_that_of_small_differences(softmax: bool) -> None:
    module, history = attention((3,), softmax), index_history(histories())
    items_UD, target_BD = (tensor.requires_grad_() for tensor in embeddings())
    empty_bag = torch.zeros(1, D, dtype=torch.double)
    assert torch.autograd.gradcheck(
        lambda items_VD, target_BD, *_: module(torch.cat([empty_bag, items_VD]), target_BD, history),
        (items_UD.detach()[1:].requires_grad_(), target_BD, *module.parameters()),
    )


@pytest.mark.parametrize("softmax", [False, True])
def test_padding_weighs_nothing_and_an_empty_history_is_zero(softmax: bool) -> None:
    module, history = attention((3,), softmax), index_history(histories())
    items_UD, target_BD = embeddings()
    weights_BT = module.weights(items_UD, target_BD, history)
    assert not weights_BT[~history.valid_BT].any()
    if softmax:
        expected_B = history.valid_BT.any(dim=1).double()
        torch.testing.assert_close(weights_BT.sum(dim=1), expected_B)
    assert not module(items_UD, target_BD, history)[1].any()


def test_weights_by_hand() -> None:
    module = TargetAttention(2, (1,), softmax=False)
    with torch.no_grad():
        # pre = h_1 + 10 e_2 + 100 (h_1 - e_1) + 1000 h_2 e_2 + 5; score = 2 PReLU(pre) + 1, with slope 1/4 below zero
        (first_weight, first_bias), (last_weight, last_bias) = (layer.parameters() for layer in module.layers)
        first_weight[0] = torch.tensor([1.0, 0, 0, 10, 100, 0, 0, 1000])
        first_bias.fill_(5)
        last_weight.fill_(2)
        last_bias.fill_(1)
    items_UD = torch.tensor([[0.0, 0], [3, 2], [-1, 0]])
    found = module.weights(items_UD, torch.tensor([[1.0, 1]]), index_history(torch.tensor([[1, 2, 0]])))
    # h = (3, 2): 3 + 10 + 200 + 2000 + 5 = 2218, so 4437; h = (-1, 0): -1 + 10 - 200 + 0 + 5 = -186, so -92
    assert found.tolist() == [[4437, -92, 0]]


KINDS, PER_KIND, ROWS, LENGTH, WIDTH = 6, 4, 1500, 6, 8


def world(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Target items, histories and labels of a world in which only history items of the target's kind matter.

    Items 1..24 are of six kinds, half of each kind good. Every history has one item of the target's kind, somewhere:
    the row is positive where that one is good. The five others are noise.
    """
    generator = torch.Generator().manual_seed(seed)
    kind_B = torch.randint(KINDS, (ROWS,), generator=generator)
    noise_BT = torch.randint(1, KINDS, (ROWS, LENGTH), generator=generator)
    kind_BT = (kind_B.unsqueeze(1) + noise_BT) % KINDS
    place_B = torch.randint(LENGTH, (ROWS,), generator=generator)
    kind_BT[torch.arange(ROWS), place_B] = kind_B
    within_BT = torch.randint(PER_KIND, (ROWS, LENGTH), generator=generator)
    history_BT = 1 + kind_BT * PER_KIND + within_BT
    label_B = (within_BT[torch.arange(ROWS), place_B] < PER_KIND // 2).float()
    target_B = 1 + kind_B * PER_KIND + torch.randint(PER_KIND, (ROWS,), generator=generator)
    return target_B, history_BT, label_B


def accuracy_on_new_rows(config: Pooling) -> float:
    """Of item embeddings, pooling and a logistic regression on [target; pooled], trained together."""
    torch.manual_seed(0)
    table = nn.Embedding(1 + KINDS * PER_KIND, WIDTH, padding_idx=0)
    module, head = build_pooling(config, WIDTH), nn.Linear(2 * WIDTH, 1)

    def logits(target_B: Tensor, history_BT: Tensor) -> Tensor:
        target_BD = functional.embedding(target_B, table.weight)
        pooled_BD = module(table.weight, target_BD, index_history(history_BT))
        return head(torch.cat([target_BD, pooled_BD], dim=1)).squeeze(1)

    optimizer = torch.optim.Adam([*table.parameters(), *module.parameters(), *head.parameters()], lr=0.02)
    target_B, history_BT, label_B = world(seed=0)
    for _ in range(150):
        optimizer.zero_grad()
        functional.binary_cross_entropy_with_logits(logits(target_B, history_BT), label_B).backward()
        table.weight.grad[0] = 0  # type: ignore[index]  # the empty bag is not a row of the table
        optimizer.step()
    target_B, history_BT, label_B = world(seed=1)
    return float(((logits(target_B, history_BT) > 0) == (label_B > 0)).float().mean())


def test_attention_finds_the_one_kind_that_matters_and_a_mean_does_not() -> None:
    # The best that a sum over six items can do is to count the good ones. Where the one that matters is good, the five
    # others have at least three good ones in half of the cases, and two, a tie in all, in 10 of 32.
    assert math.isclose(accuracy_on_new_rows(MeanPooling()), 1 / 2 + 10 / 32 / 2, abs_tol=0.04)
    assert accuracy_on_new_rows(TargetAttentionPooling()) > 0.95
