"""Size of the code: `python -m benchmarks.code_size [--write]` counts modules, lines and functions of the product.

The product is sidrec, data_prep and launch; `__init__` modules are not counted. --write puts the counts into
code_size.json.
"""

import ast
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from sidrec.io.files import write_json
from sidrec.study.results import conditions

ROOT = Path(__file__).parents[1]
RESULT = Path(__file__).with_name("code_size.json")
ROOMS = ("sidrec", "data_prep", "launch")


def code_size(root: Path = ROOT) -> dict[str, Any]:
    """Counts of the checkout at `root`."""
    files = [path for room in ROOMS for path in (root / room).rglob("*.py") if path.name != "__init__.py"]
    lines = {str(path.relative_to(root)): len(path.read_text().splitlines()) for path in files}
    functions = {name: count for path in files for name, count in _functions(path, root).items()}
    longest, longest_function = max(lines, key=lines.__getitem__), max(functions, key=functions.__getitem__)
    return {
        "modules": len(files),
        "median_lines": median(lines.values()),
        "longest": {"module": longest, "lines": lines[longest]},
        "longest_function": {"function": longest_function, "lines": functions[longest_function]},
        "readme_lines": len((root / "README.md").read_text().splitlines()),
    }


def _functions(path: Path, root: Path) -> dict[str, int]:
    """MODULE:NAME -> lines, decorators apart."""
    found = (
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    return {f"{path.relative_to(root)}:{node.name}": (node.end_lineno or 0) - node.lineno + 1 for node in found}


def main(argv: Sequence[str]) -> None:
    """The command line."""
    if set(argv) - {"--write"}:
        sys.exit(f"usage: python -m benchmarks.code_size [--write]; got {' '.join(argv)}")
    found = code_size()
    print("\n".join(f"{name}: {value}" for name, value in found.items()))
    if argv:
        write_json(RESULT, {"conditions": conditions(), **found})


if __name__ == "__main__":
    main(sys.argv[1:])
