"""Every code block of README.md and docs/ runs, page by page."""

import os
import re
from pathlib import Path
from unittest import SkipTest

import pytest
from sybil.example import SybilFailure

from tests.docs.pages import PAGES, ROOT, commands_of, is_block, read_page

FENCE = re.compile(r"^```(python|bash|console|yaml|csv)\b", re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_its_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for example in read_page(page).examples():
        try:
            example.evaluate()
        except SkipTest:
            continue
        except SybilFailure as failure:
            pytest.fail(str(failure))
        os.chdir(tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_no_block_is_overlooked(page: Path) -> None:
    text = (ROOT / page).read_text()
    blocks = [example for example in read_page(page).examples() if is_block(example)]
    assert len(blocks) == len(FENCE.findall(text))
    assert all(re.match(r'next "[^"]{10,}"', rule) for rule in re.findall(r"<!-- skip: (.*) -->", text))


def test_a_session_is_cut_into_commands() -> None:
    assert commands_of("$ one \\\n  two\nout\n$ three\n") == [("one \\\n  two", "out\n"), ("three", "")]
