"""Runs a page's blocks, once for all pages of a module that start from it."""

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path
from unittest import SkipTest

import pytest
from sybil.example import SybilFailure

from tests.docs.pages import read_page, start_of


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """Runs a page, once, and returns the folder that it leaves."""
    left: dict[Path, Path] = {}

    def run(page: Path) -> Path:
        if page not in left:
            folder = tmp_path_factory.mktemp(page.stem)
            start = start_of(page)
            if start:
                shutil.copytree(run(start), folder, dirs_exist_ok=True)
            with contextlib.chdir(folder):
                _run_blocks(page)
            left[page] = folder
        return left[page]

    return run


def _run_blocks(page: Path) -> None:
    for example in read_page(page).examples():
        try:
            example.evaluate()
        except SkipTest:
            continue
        except SybilFailure as failure:
            pytest.fail(str(failure))
