"""Every code block of README.md and docs/ runs, page by page; those of the shop in test_shop_pages.py."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from sidrec.config.load import parse
from tests.docs.count import blocks_of
from tests.docs.pages import PAGES, ROOT, SHOP_PAGES, commands_of, is_block, read_page

FENCE = re.compile(r"^```(python|bash|console|yaml|csv)\b", re.MULTILINE)


@pytest.mark.parametrize("page", [page for page in PAGES if page not in SHOP_PAGES], ids=str)
def test_its_blocks_run(page: Path, folders: Callable[[Path], Path]) -> None:
    folders(page)


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
