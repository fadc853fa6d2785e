"""Pooling by attention of seeds, and by routes: by hand, against loops over positions, and what padding may not do.

Shapes: B rows, U item bags, T history positions, D width, S seeds, J routes, K positions of a route.
"""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from sidrec.config.model import PmaPooling
from sidrec.model.history import index_history
from sidrec.model.pooling import PoolingByAttention, RoutesAttention
from tests.model.test_pooling import B, D, U, embeddings, histories


def seeds_pooling(**keys: object) -> PoolingByAttention:
    torch.manual_seed(2)
    config = PmaPooling(**{"seeds": 3, "heads": 2, "hidden": 5, "positions": False, **keys})  # type: ignore[arg-type]
    return PoolingByAttention(config, D).double()


def without_mlp(module: PoolingByAttention) -> PoolingByAttention:
    for parameter in module.mlp.parameters():
        nn.init.zeros_(parameter)
    return module


def test_seeds_of_zero_take_the_mean() -> None:
    module = without_mlp(seeds_pooling(norm=False))
    nn.init.zeros_(module.seeds_SD)
    nn.init.eye_(module.value.weight)
    items_UD, target_BD = embeddings()
    history_BT = histories()
    found_BD = module(items_UD, target_BD, index_history(history_BT))
    means = [items_UD[row[row > 0]].mean(dim=0) if (row > 0).any() else torch.zeros(D) for row in history_BT]
    torch.testing.assert_close(found_BD, torch.stack(means).double())


def slow_pma(module: PoolingByAttention, items_UD: Tensor, history_BT: Tensor) -> Tensor:
    """Row by row, seed by seed and head by head."""
    pooled, width = [], D // module.heads
    for bags in history_BT.tolist():
        chosen = [items_UD[bag] for bag in bags if bag]
        if not chosen:
            pooled.append(torch.zeros(D, dtype=torch.double))
            continue
        if module.position_scale is not None:
            chosen = [x + module.position_scale * position(len(chosen) - 1 - t) for t, x in enumerate(chosen)]
        x_TD = module.item_norm(torch.stack(chosen))
        outputs = []
        for seed_D in module.seeds_SD:
            query_D, heads = module.query(module.seed_norm(seed_D)), []
            for head in range(module.heads):
                part = slice(head * width, (head + 1) * width)
                score_T = module.key(x_TD)[:, part] @ query_D[part] / math.sqrt(width)
                heads.append(torch.softmax(score_T, dim=0) @ module.value(x_TD)[:, part])
            found_D = seed_D + torch.cat(heads)
            outputs.append(found_D + module.mlp(module.mlp_norm(found_D)))
        pooled.append(torch.stack(outputs).mean(dim=0))
    return torch.stack(pooled)


def position(number: int) -> Tensor:
    """sin and cos of number / 10000^(2i / D), in turn."""
    pairs = [(math.sin(number / 10_000 ** (i / D)), math.cos(number / 10_000 ** (i / D))) for i in range(0, D, 2)]
    return torch.tensor(pairs, dtype=torch.double).flatten()


@pytest.mark.parametrize("positions", [False, True])
@pytest.mark.parametrize("norm", [False, True])
def test_seeds_attend_as_the_formula_says(positions: bool, norm: bool) -> None:
    module, history_BT = seeds_pooling(positions=positions, norm=norm), histories()
    outcomes = []
    for fast in (True, False):
        module.zero_grad()
        items_UD, target_BD = (tensor.requires_grad_() for tensor in embeddings())
        found = (
            module(items_UD, target_BD, index_history(history_BT)) if fast else slow_pma(module, items_UD, history_BT)
        )
        found.backward(torch.randn(B, D, dtype=torch.double, generator=torch.Generator().manual_seed(3)))
        assert items_UD.grad is not None
        outcomes.append((found.detach(), items_UD.grad[1:], *(p.grad for p in module.parameters())))
    torch.testing.assert_close(outcomes[0], outcomes[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("positions", [False, True])
def test_order_matters_with_positions_alone(positions: bool) -> None:
    module, history_BT = seeds_pooling(positions=positions), histories()[:1]
    items_UD, target_BD = embeddings()
    turned = module(items_UD, target_BD[:1], index_history(history_BT.flip(1)))
    same = torch.allclose(turned, module(items_UD, target_BD[:1], index_history(history_BT)))
    assert same != positions


def test_more_padding_changes_nothing() -> None:
    module, history_BT = seeds_pooling(positions=True), histories()
    items_UD, target_BD = embeddings()
    longer_BT = functional.pad(history_BT, (0, 3))
    found_BD = module(items_UD, target_BD, index_history(history_BT))
    torch.testing.assert_close(module(items_UD, target_BD, index_history(longer_BT)), found_BD)
    assert not found_BD[1].any()
    assert found_BD[0].any()


# Routes: positions 0..K-1 are the first route's, the next K the second's.

K = 3


def routes() -> tuple[RoutesAttention, Tensor]:
    """The module, and histories of two routes: both, none, one alone, one with an item twice."""
    torch.manual_seed(2)
    history_BT = torch.randint(1, U, (B, 2 * K), generator=torch.Generator().manual_seed(0))
    history_BT[1] = 0
    history_BT[2, K:] = 0
    history_BT[3, :K] = 0
    history_BT[4] = torch.tensor([4, 4, 0, 2, 0, 0])
    return RoutesAttention(2, D).double(), history_BT


def route_vectors(module: RoutesAttention, items_UD: Tensor, target_D: Tensor, bags: list[int]) -> list[Tensor]:
    """r_j of the routes that are not empty."""
    found = []
    for route in (bags[:K], bags[K:]):
        items = [items_UD[bag] for bag in route if bag]
        if items:
            scores = torch.stack([module.query(target_D) @ module.key(item) for item in items]) / math.sqrt(D)
            found.append(torch.softmax(scores, dim=0) @ torch.stack(items))
    return found


def slow_routes(module: RoutesAttention, items_UD: Tensor, target_BD: Tensor, history_BT: Tensor) -> Tensor:
    pooled = []
    for target_D, bags in zip(target_BD, history_BT.tolist(), strict=True):
        vectors = route_vectors(module, items_UD, target_D, bags)
        if not vectors:
            pooled.append(torch.zeros_like(target_D))
            continue
        scores = torch.stack([module.route_query(target_D) @ module.route_key(r) for r in vectors]) / math.sqrt(D)
        pooled.append(torch.softmax(scores, dim=0) @ torch.stack(vectors))
    return torch.stack(pooled)


def test_routes_attend_as_the_formula_says() -> None:
    module, history_BT = routes()
    outcomes = []
    for fast in (True, False):
        module.zero_grad()
        items_UD, target_BD = (tensor.requires_grad_() for tensor in embeddings())
        pool = module if fast else lambda *inputs: slow_routes(module, *inputs)
        found = pool(items_UD, target_BD, index_history(history_BT) if fast else history_BT)
        found.backward(torch.randn(B, D, dtype=torch.double, generator=torch.Generator().manual_seed(3)))
        assert items_UD.grad is not None
        outcomes.append((found.detach(), items_UD.grad[1:], target_BD.grad, *(p.grad for p in module.parameters())))
    torch.testing.assert_close(outcomes[0], outcomes[1])


def test_one_route_alone_is_the_result_and_no_route_is_zero() -> None:
    module, history_BT = routes()
    items_UD, target_BD = embeddings()
    found_BD = module(items_UD, target_BD, index_history(history_BT))
    assert not found_BD[1].any()
    for row in (2, 3):
        (vector_D,) = route_vectors(module, items_UD, target_BD[row], history_BT[row].tolist())
        torch.testing.assert_close(found_BD[row], vector_D)


def test_weights_of_positions_sum_to_one() -> None:
    module, history_BT = routes()
    weights_BT = module.weights(*embeddings(), index_history(history_BT))
    assert not weights_BT[history_BT == 0].any()
    torch.testing.assert_close(weights_BT.sum(dim=1), (history_BT > 0).any(dim=1).double())
