"""The rules of this repository that a program can check: sizes of modules and functions, their names, plain words."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PRODUCT = ("sidrec", "data_prep", "launch")
MOST_MODULES = 262
"""Files of the product, `__init__` apart: 160, the 60 that later rooms may add, 24 more of export and serve, 6 that
adopt logs of other programs, 7 of engines and days, and 5 of object stores and fused gradients."""
MOST_LINES, MOST_LINES_OF_A_FUNCTION, MOST_LINES_OF_THE_README = 450, 60, 200
VAGUE_NAMES = {"utils", "util", "helpers", "common", "misc", "base"}
UNCLEAR = re.compile(
    r"\b(is told|are told|was told|what .{1,30} is made of|in peace|whoever|as .{1,20} has it|stands beside"
    r"|which one is meant|says so)\b"
)
"""Phrases of sentences that had to be read twice."""


def files(*suffixes: str) -> list[Path]:
    """Files of the checkout with these suffixes, but for recorded ones."""
    command = ["git", "ls-files", "-co", "--exclude-standard", "-z", *(f"*{suffix}" for suffix in suffixes)]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    recorded = ("tests/golden/v", "benchmarks/results/")
    paths = [ROOT / name for name in listed if name and not name.startswith(recorded)]
    return [path for path in paths if path.is_file()]


def modules() -> list[Path]:
    """Modules of the product, `__init__` apart."""
    inside = [path for path in files(".py") if path.relative_to(ROOT).parts[0] in PRODUCT]
    return [path for path in inside if path.name != "__init__.py"]


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """Name and number of lines of every function of a module."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            yield node.name, node.end_lineno - node.lineno + 1


def unclear_lines(path: Path) -> list[str]:
    lines = enumerate(path.read_text().splitlines(), start=1)
    return [f"{path.relative_to(ROOT)}:{number}: {line.strip()}" for number, line in lines if UNCLEAR.search(line)]


def test_number_of_modules() -> None:
    assert 100 <= len(modules()) <= MOST_MODULES


def test_lines_of_modules_and_functions() -> None:
    lines = {path: len(path.read_text().splitlines()) for path in files(".py")}
    assert {path: count for path, count in lines.items() if count > MOST_LINES} == {}
    found = [(path, *function) for path in files(".py") for function in functions(path)]
    assert len(found) > 1000
    assert [entry for entry in found if entry[2] > MOST_LINES_OF_A_FUNCTION] == []


def test_no_module_has_a_vague_name() -> None:
    assert [path for path in files(".py") if VAGUE_NAMES & {path.stem, path.parent.name}] == []


def test_sentences_are_read_once() -> None:
    texts = [path for path in files(".py", ".md", ".yaml") if path != Path(__file__)]
    assert [line for path in texts for line in unclear_lines(path)] == []


@pytest.mark.parametrize("phrase", ["the trainer is told", "whoever reads it", "what a plan is made of", "it says so"])
def test_unclear_phrases_are_found(phrase: str) -> None:
    assert UNCLEAR.search(f"Here {phrase}.")


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= MOST_LINES_OF_THE_README
