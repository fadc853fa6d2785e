"""Which plans train something else than the others."""

from sidrec.bench.measure import loss_mismatches


def test_most_plans_are_right_whatever_their_order() -> None:
    losses = {"wrong": [0.7, 0.61], "one": [0.7, 0.6], "two": [0.7, 0.60001], "three": [0.7, 0.6]}
    assert loss_mismatches(losses) == {"wrong": "step 2: expected the loss of one, 0.600000, got 0.610000"}


def test_a_loss_that_is_no_number_agrees_with_nothing() -> None:
    nan = float("nan")
    assert loss_mismatches({"a": [nan], "b": [0.5]}) == {"a": "step 1: expected the loss of b, 0.500000, got nan"}


def test_of_two_that_differ_the_first_is_believed() -> None:
    assert list(loss_mismatches({"a": [0.5], "b": [0.6]})) == ["b"]


def test_one_plan_or_none() -> None:
    assert loss_mismatches({"a": [0.5]}) == {}
    assert loss_mismatches({}) == {}
