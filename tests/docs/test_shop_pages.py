"""The tutorial's blocks run, and those of the pages that start from its shop. These take longest."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.docs.pages import SHOP_PAGES


@pytest.mark.parametrize("page", SHOP_PAGES, ids=str)
def test_its_blocks_run(page: Path, folders: Callable[[Path], Path]) -> None:
    folders(page)
