"""Do all plans train the same? A plan that computes something else is not a faster way to the same end.

Shapes: S steps.
"""

from collections.abc import Mapping, Sequence

TOLERANCE = 1e-3
"""Largest relative difference between two plans' losses of the same step. Other orders of summation differ by 1e-6."""


def dissenters(losses: Mapping[str, Sequence[float]]) -> dict[str, str]:
    """Plans that lose otherwise than most, and the sentence that says so.

    losses: plan -> [S] mean loss over all ranks. The plan that most others agree with is taken to be right; of several
    such the first.
    """
    if not losses:
        return {}
    friends = {
        name: sum(_first_difference(own, other) is None for other in losses.values()) for name, own in losses.items()
    }
    right = max(losses, key=lambda name: friends[name])
    sentences = {}
    for name, own in losses.items():
        step = _first_difference(losses[right], own)
        if step is not None:
            expected, got = losses[right][step], own[step]
            sentences[name] = f"step {step + 1}: expected the loss of {right}, {expected:.6f}, got {got:.6f}"
    return sentences


def _first_difference(losses: Sequence[float], others: Sequence[float]) -> int | None:
    for step, (one, other) in enumerate(zip(losses, others, strict=True)):
        if not abs(one - other) <= TOLERANCE * max(abs(one), abs(other)):  # also where one is not a number
            return step
    return None
