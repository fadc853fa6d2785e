"""Runs the code blocks of Markdown pages as a reader would: in order, in one folder for each page.

python    executed; names stay from block to block of a page
bash      executed by bash, which stops at the first command that fails
console   lines that begin with "$ " are executed; the lines below them are the expected output, "..." stands for
          anything
yaml, csv written to the file that a comment in the first line names ("# recipe.yaml"), if one does

`<!-- skip: next "why" -->` before a block leaves it out; the reason is required.
`<!-- starts from: PAGE -->` somewhere in a page: its folder begins as the one that docs/PAGE.md left.
"""

import os
import re
import subprocess
from collections.abc import Callable, Iterable
from doctest import ELLIPSIS, NORMALIZE_WHITESPACE, OutputChecker
from pathlib import Path

from sybil import Document, Example, Region, Sybil
from sybil.parsers.myst import CodeBlockParser, PythonCodeBlockParser, SkipParser

from tests.warm_processes import warm_environment

ROOT = Path(__file__).parents[2]
PAGES = sorted(page.relative_to(ROOT) for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
LONGEST = 900  # seconds of one command: only a hang takes that long


def read_page(page: Path) -> Document:
    """The page with the blocks that are to be run."""
    parsers: list[Callable[[Document], Iterable[Region]]] = [
        PythonCodeBlockParser(),
        CodeBlockParser("bash", _run_bash),
        CodeBlockParser("console", _run_session),
        CodeBlockParser("yaml", _write_file),
        CodeBlockParser("csv", _write_file),
        SkipParser(),
    ]
    return Sybil(parsers).parse(ROOT / page)


def start_of(page: Path) -> Path | None:
    """The page whose folder this one starts from."""
    named = re.search(r"<!-- starts from: (\w+) -->", (ROOT / page).read_text())
    return Path("docs", f"{named[1]}.md") if named else None


TUTORIAL = Path("docs/getting_started.md")
SHOP_PAGES = [TUTORIAL, *(page for page in PAGES if start_of(page) == TUTORIAL)]
"""The tutorial, and the pages that start from the shop that it makes."""


def is_block(example: Example) -> bool:
    """Whether the example is a block of code, and not a comment that tells how to run others."""
    return isinstance(example.parsed, str)


def _run_bash(example: Example) -> None:
    _shell(example.parsed, example)


def _run_session(example: Example) -> None:
    for command, expected in commands_of(example.parsed):
        output = _shell(command, example)
        if not OutputChecker().check_output(expected, output, ELLIPSIS | NORMALIZE_WHITESPACE):
            raise AssertionError(f"line {example.line}: $ {command}\nexpected:\n{expected}\ngot:\n{output}")


def commands_of(session: str) -> list[tuple[str, str]]:
    """Commands of a console block and the output shown below each; a command goes on behind a backslash."""
    found: list[tuple[str, str]] = []
    for part in re.split(r"^\$ ", session, flags=re.MULTILINE)[1:]:
        command, *rest = part.splitlines()
        while command.endswith("\\") and rest:
            command = f"{command}\n{rest.pop(0)}"
        found.append((command, "".join(f"{line}\n" for line in rest)))
    return found


def _shell(script: str, example: Example) -> str:
    environment = {**os.environ, **warm_environment(), "COLUMNS": "120"}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        timeout=LONGEST,
    )
    if done.returncode:
        raise AssertionError(f"line {example.line}: exit status {done.returncode} of\n{script}\n{done.stdout}")
    return done.stdout


def _write_file(example: Example) -> None:
    name = re.match(r"# (\S+\.\w+)\n", example.parsed)
    if name:
        path = Path(name[1])
        path.parent.mkdir(parents=True, exist_ok=True)
        text = str(example.parsed)
        path.write_text(text[name.end() :] if path.suffix == ".csv" else text)
