"""What the extras `score` and `serve` bring is enough: an interpreter that has nothing else scores and serves."""

import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from packaging.requirements import Requirement

from tests.serve.conftest import World

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def wanted(extra: str) -> Iterator[Requirement]:
    """Requirements of an extra of this project, with the base's."""
    for text in (*PROJECT["dependencies"], *PROJECT["optional-dependencies"][extra]):
        found = Requirement(text)
        if found.name == "sidrec":
            yield from (each for nested in found.extras for each in wanted(nested))
        else:
            yield found


def closure(extra: str) -> set[str]:
    """Names of all distributions that pip would install."""
    names: set[str] = set()
    waiting = list(wanted(extra))
    while waiting:
        found = waiting.pop()
        if found.name in names or (found.marker and not found.marker.evaluate({"extra": ""})):
            continue
        names.add(found.name)
        waiting += map(Requirement, distribution(found.name).requires or [])
    return names


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages: sidrec, and what its extra `serve` brings."""
    folder = tmp_path_factory.mktemp("alone")
    (folder / "sidrec").symlink_to(ROOT / "sidrec")
    for name in closure("serve"):
        found = distribution(name)
        for top in {file.parts[0] for file in found.files or () if file.parts[0] not in ("..", "__pycache__")}:
            if not (folder / top).exists():
                (folder / top).symlink_to(Path(str(found.locate_file(top))))
    return folder


def run(alone: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(alone), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-S", *words]  # -S: without the packages of this environment
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)


def test_no_package_of_training_is_among_them() -> None:
    assert not closure("serve") & {"torch", "torchrec", "pandas", "polars", "pydantic", "fbgemm-gpu-cpu", "faiss-cpu"}
    assert "pyarrow" not in {found.name for found in map(Requirement, PROJECT["dependencies"])}


def test_files_are_scored(alone: Path, world: World, tmp_path: Path) -> None:
    done = run(alone, "-m", "sidrec", "score", str(world.bundle), str(world.rows), str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    found = pq.read_table(tmp_path / "out/part-00000.parquet")["score"].to_numpy()
    assert abs(found - world.probability_N).max() <= 1e-6


def test_the_server_can_be_imported_and_its_command_asked(alone: Path) -> None:
    assert run(alone, "-c", "import sidrec.serve.server").returncode == 0
    assert run(alone, "-c", "import sidrec.serve.deltas").returncode == 0
    assert "Answers requests over HTTP" in run(alone, "-m", "sidrec", "serve", "--help").stdout


def test_commands_of_training_say_what_is_missing(alone: Path) -> None:
    done = run(alone, "-m", "sidrec", "prep", "interactions", "log.csv", "out")
    assert done.returncode == 2
    assert "which the extra cpu or cuda of sidrec brings" in done.stderr
