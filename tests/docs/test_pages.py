"""Every code block of README.md and docs/ runs, page by page."""

import contextlib
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from unittest import SkipTest

import pytest
import yaml
from sybil.example import SybilFailure

from sidrec.config.load import parse
from tests.docs.count import blocks_of
from tests.docs.pages import PAGES, ROOT, commands_of, is_block, read_page, start_of

FENCE = re.compile(r"^```(python|bash|console|yaml|csv)\b", re.MULTILINE)


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


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_its_blocks_run(page: Path, folders: Callable[[Path], Path]) -> None:
    folders(page)


def _run_blocks(page: Path) -> None:
    for example in read_page(page).examples():
        try:
            example.evaluate()
        except SkipTest:
            continue
        except SybilFailure as failure:
            pytest.fail(str(failure))


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_no_block_is_overlooked(page: Path) -> None:
    text = (ROOT / page).read_text()
    blocks = [example for example in read_page(page).examples() if is_block(example)]
    assert len(blocks) == len(FENCE.findall(text))
    assert all(re.match(r'next "[^"]{10,}"', rule) for rule in re.findall(r"<!-- skip: (.*) -->", text))


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_parts_of_recipes_are_accepted(page: Path) -> None:
    for block in blocks_of(page):
        if block.treatment == "checked":
            part = yaml.safe_load(block.code)
            if "learner" in part:
                part = {"tokenizer": {"vectors": ["text", "behavior"], **part}}
            parse({"name": "part", "data": {"path": "data", "catalog": "catalog"}, **part}, str(page))


def test_few_blocks_are_skipped() -> None:
    treatments = [block.treatment for page in PAGES for block in blocks_of(page)]
    assert treatments.count("skipped") <= 0.2 * len(treatments)
    assert treatments.count("run") >= 30


def test_a_session_is_cut_into_commands() -> None:
    assert commands_of("$ one \\\n  two\nout\n$ three\n") == [("one \\\n  two", "out\n"), ("three", "")]
