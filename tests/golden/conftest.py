"""A place to work in, for every golden test."""

from pathlib import Path

import pytest
import torch

from tests.golden.artifacts import copy


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the artifacts of 0.1.0. Skips where commands would run on a GPU: the set is a CPU's."""
    if torch.cuda.is_available():
        pytest.skip("the golden set was made on a CPU")
    return copy(tmp_path / "work")
