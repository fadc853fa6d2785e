"""Token weights: ReMoE's oracle, the controller, its targets, the factor by behaviour norm.

Oracles are worked out by hand from ReMoE (arXiv 2412.14711): f_e = E / (k T) n_e, L = lambda / T sum_e f_e sum_t A_te.
"""

import numpy as np
import pytest
import torch

from sidrec.config.learner_parts import Router
from sidrec.schema import ContractError
from sidrec.sid.networks.token_weights import STRONGEST, WEAKEST, BehaviorNorm, ItemWeights, TokenRouter, norm_range


def router(tokens: int = 4, **settings: object) -> TokenRouter:
    return TokenRouter(Router(**settings), 3, tokens)  # type: ignore[arg-type]


def test_remoe_oracle() -> None:
    """E = 4, k = 2, all of T tokens active with value 1: f_e = 2, so L = 8 lambda; sparsity 0 < .5, so lambda grows."""
    made = router(sparsity=0.5)
    made.strength.fill_(0.25)
    assert float(made.loss(torch.ones(10, 4))) == pytest.approx(8 * 0.25)
    assert made.after_step() == {"router/strength": pytest.approx(0.25 * 1.2), "router/zero_weights": 0.0}


def test_too_many_zeros_weaken_the_loss_and_just_enough_leave_it() -> None:
    made = router(sparsity=0.5)
    made.strength.fill_(0.6)
    weights = torch.zeros(4, 4)
    weights[:, 0] = 1  # three quarters are zero
    made.loss(weights)
    assert made.after_step() == {"router/strength": pytest.approx(0.5), "router/zero_weights": 0.75}
    weights[:, 1] = 1
    made.loss(weights)
    assert made.after_step()["router/strength"] == pytest.approx(0.5)


def test_strength_stays_within_bounds() -> None:
    made = router()
    for weights, bound in ((torch.ones(2, 4), STRONGEST), (torch.zeros(2, 4), WEAKEST)):
        made.loss(weights)
        for _ in range(300):
            made.after_step()
        assert float(made.strength) == pytest.approx(bound)


def test_busy_tokens_are_pressed_harder_unless_balance_is_scalar() -> None:
    """Token 0 active for both items, token 1 for one: f = (2, 1) / (.5 * 2) = (2, 1), or 1.5 for both."""
    weights = torch.tensor([[1.0, 1.0], [1.0, 0.0]], requires_grad=True)
    for balance, expected in (("per_expert", [2.0, 1.0]), ("scalar", [1.5, 1.5])):
        made = router(2, sparsity=0.5, balance=balance, first_strength=1.0)
        (gradient,) = torch.autograd.grad(made.loss(weights), weights)
        assert (gradient[0] * 2).tolist() == pytest.approx(expected)  # the mean over two items halves it


def test_item_norm_asks_less_sparsity_of_popular_items() -> None:
    """sparsity .5 (1 - n): 0 for n = 1 and .5 for n = 0, so f = 2/2 and 2/(.5 * 2); on average .25 are wanted."""
    made = router(2, sparsity=0.5, target="item_norm", first_strength=1.0)
    weights = torch.ones(2, 2, requires_grad=True)
    (gradient,) = torch.autograd.grad(made.loss(weights, torch.tensor([1.0, 0.0])), weights)
    assert (gradient * 2).tolist() == [[1.0, 1.0], [2.0, 2.0]]
    assert float(made.wanted) == 0.25


def test_norm_factor_is_a_sigmoid() -> None:
    made = router()
    inputs = torch.randn(2, 3)
    plain, scaled = made(inputs), made(inputs, torch.tensor([0.0, 1.0]))
    assert torch.allclose(scaled[0], 0.5 * plain[0])
    assert torch.allclose(scaled[1], 0.7310586 * plain[1])


def test_measured_inputs_are_standardised() -> None:
    made = router()
    inputs = np.array([[1, 5, 2], [3, 5, 2]], np.float32)  # the second and third never differ
    made.measure(inputs)
    assert made.mean_V.tolist() == [2, 5, 2]
    assert made.spread_V.tolist() == [1, 1, 1]
    fresh = torch.relu(made._mlp(torch.tensor([[-1.0, 0, 0], [1, 0, 0]])))
    assert torch.equal(made(torch.from_numpy(inputs)), fresh)


def test_ablation_without_sparse_training_has_no_term_and_no_controller() -> None:
    weights = ItemWeights(Router(regularize=False), (("text", 3),), 2)
    vectors = torch.randn(5, 3)
    assert weights.loss(weights(vectors), vectors) == {}
    before = float(weights.router.strength)
    weights.router.after_step()
    assert float(weights.router.strength) == before


def test_norms_scale_over_all_items_with_zeros_left_out() -> None:
    """Norms 0, 1, 2, 5: the range is 1 to 5, and (2 - 1) / 4 = .25. No behaviour counts as 0, beyond 5 as 1."""
    vectors = np.array([[9, 0, 0], [9, 1, 0], [9, 0, 2], [9, 3, 4]], np.float32)
    norm = BehaviorNorm(slice(1, 3))
    norm.measure(vectors)
    assert norm(torch.from_numpy(vectors)).tolist() == [0, 0, 0.25, 1]
    assert norm(torch.tensor([[9.0, 60, 80]])).tolist() == [1]


def test_norm_range_may_leave_outliers_out() -> None:
    norms = np.concatenate([np.zeros(50), np.arange(1, 102)])
    assert norm_range(norms) == (1, 101)
    assert norm_range(norms, 0.1) == (11, 91)
    assert norm_range(np.zeros(3)) == (0, 0)


def test_equal_norms_all_count_in_full() -> None:
    norm = BehaviorNorm(slice(0, 2))
    angles = np.linspace(0, 6, 40)
    unit = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    norm.measure(unit)
    assert set(norm(torch.from_numpy(unit)).tolist()) == {1.0}


def test_item_norm_without_behavior_is_one_message() -> None:
    with pytest.raises(ContractError, match=r"target item_norm: expected behavior among the vector columns, got \['t"):
        ItemWeights(Router(target="item_norm"), (("text", 3),), 2)
