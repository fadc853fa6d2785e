"""Health of codebooks, by hand."""

import numpy as np
import pytest
import torch

from sidrec.errors import CollapseError
from sidrec.sid.quality import code_quality
from sidrec.sid.training.trainer import CodeUsage, Health, check_utilisation


def test_usage_by_hand() -> None:
    """Level 1: codes 0, 0, 1, 1 of 4, so two even codes; level 2: always 2 of 3."""
    usage = CodeUsage((4, 3))
    usage.count(torch.tensor([[0, 2], [1, 2]]))
    usage.count(torch.tensor([[0, 2], [1, 2]]))
    assert [counts.tolist() for counts in usage.levels()] == [[2, 2, 0, 0], [0, 0, 4]]
    health = usage.health()
    assert health.utilisation == [0.5, pytest.approx(1 / 3)]
    assert health.perplexity == [pytest.approx(2), pytest.approx(1)]
    assert health.dead_codes == [2, 2]


def test_health_equals_the_quality_report() -> None:
    codes = np.random.default_rng(0).integers(0, 9, size=(100, 3))
    usage = CodeUsage((9, 12, 9))
    usage.count(torch.from_numpy(codes))
    quality, health = code_quality(codes, (9, 12, 9)), usage.health()
    assert health.utilisation == pytest.approx(quality.utilisation)
    assert health.perplexity == pytest.approx(quality.perplexity)
    assert health.dead_codes == quality.dead_codes


def test_a_collapse_names_level_share_bound_and_remedy() -> None:
    health = Health([0.5, 0.04, 0.01], [], [])
    check_utilisation(Health([0.5, 0.04], [], []), 0.04)
    with pytest.raises(
        CollapseError, match=r"level 2: 4.0% .* least_utilisation asks for 5.0%; try a smaller codebook"
    ):
        check_utilisation(health, 0.05)
