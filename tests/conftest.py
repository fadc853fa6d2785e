"""Fixtures for every room, and the order of files."""

import os
from pathlib import Path

import pytest

LONG = ["docs/test_pages.py", "bench/test_bench_command.py", "launch/test_wheel.py", "data_prep/test_behavior.py"]
"""Files that take a minute or more. They come first, so that no worker of pytest-xdist is left with one in the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Moves the long files to the front; all others keep their order."""
    here = Path(__file__).parent
    rank = {here / name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: rank.get(item.path, len(rank)))


@pytest.fixture
def real_data() -> Path:
    """The folder of public data sets: $SIDREC_DATA, or shared/data beside the checkout. Skips where there is none."""
    folder = Path(os.environ.get("SIDREC_DATA") or Path(__file__).parents[1] / "../shared/data").resolve()
    if not folder.is_dir():
        pytest.skip(f"no public data sets at {folder} (set SIDREC_DATA)")
    return folder
