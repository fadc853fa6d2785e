"""Fixtures for every room."""

import os
from pathlib import Path

import pytest


@pytest.fixture
def real_data() -> Path:
    """The folder of public data sets: $SIDREC_DATA, or shared/data beside the checkout. Skips where there is none."""
    folder = Path(os.environ.get("SIDREC_DATA") or Path(__file__).parents[1] / "../shared/data").resolve()
    if not folder.is_dir():
        pytest.skip(f"no public data sets at {folder} (set SIDREC_DATA)")
    return folder
