"""ADC-SID's alignment controller: the published formula's values."""

import pytest
import torch

from sidrec.config.sid_losses import AlignmentController
from sidrec.sid.losses.attraction import alignment_strength

NORMS = torch.tensor([0, 0.25, 0.5, 0.75, 0.9, 1], dtype=torch.float64)


@pytest.mark.parametrize(
    ("alpha", "beta", "expected"),
    [
        (10, 9, [1.69e-4, 2.05e-3, 0.0246, 0.250, 0.684, 1]),
        (20, 14, [8.3e-7, 1.24e-4, 0.018, 0.733, 0.984, 1]),
    ],
)
def test_strength_by_norm(alpha: float, beta: float, expected: list[float]) -> None:
    found = alignment_strength(NORMS, AlignmentController(alpha=alpha, beta=beta))
    assert found.tolist() == pytest.approx(expected, rel=5e-3)
    assert found[-1].item() == 1
