"""benchmarks/README.md is an index: it names every script and result, and nothing that is not there."""

import re
from fnmatch import fnmatch

from benchmarks import RESULTS

FOLDER = RESULTS.parent
TEXT = (FOLDER / "README.md").read_text()


def test_it_names_every_script() -> None:
    scripts = {path.stem for path in FOLDER.glob("*.py")} | {path.parent.name for path in FOLDER.glob("*/__init__.py")}
    assert [name for name in sorted(scripts - {"__init__"}) if name not in TEXT] == []


def test_it_names_every_recorded_result() -> None:
    named = re.findall(r"`([^`]+)`", TEXT)
    results = [f"results/{path.name}" for path in RESULTS.iterdir() if path.is_dir()]
    results += [path.name for path in FOLDER.iterdir() if path.suffix == ".json"]
    assert [path for path in results if not any(fnmatch(path, name) for name in named)] == []


def test_what_it_names_is_there() -> None:
    named = re.findall(r"benchmarks/((?:recipes|studies|plans|sid_report)/[\w/]+\.yaml)", TEXT)
    assert named
    assert [name for name in named if not (FOLDER / name).exists()] == []
    modules = re.findall(r"python -m benchmarks\.(\w+)", TEXT)
    assert [name for name in modules if not list(FOLDER.glob(f"{name}*"))] == []
