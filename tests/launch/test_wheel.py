"""The wheel works in a folder without a checkout: prepare, fit, train, evaluate, and a torchx command line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

FIT_TRAIN_EVALUATE = """
from sidrec.cli import main
assert main(["fit", "demo.yaml"]) == 0
assert main(["train", "demo.yaml", "--train.epochs", "1"]) == 0
print("trained")
assert main(["evaluate", "demo/runs/demo/seed0"]) == 0
"""
"""In one process, which imports TorchRec once."""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's content in a folder of its own, built from the files that git knows."""
    source, wheels, target = (tmp_path_factory.mktemp(name) for name in ("source", "wheels", "installed"))
    names = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.split("\0")
    for name in filter(None, names):
        if name.startswith(("sidrec/", "data_prep/", "launch/")) or "/" not in name:
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    _run([*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(wheels), str(source)], source, {})
    (wheel,) = wheels.glob("sidrec-*.whl")
    _run([*pip, "install", "--no-deps", "--no-index", "--target", str(target), str(wheel)], source, {})
    return target


def _run(command: list[str], folder: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **environment}, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_nothing_but_sidrec_lands_in_site_packages(installed: Path) -> None:
    folders = {path.name for path in installed.iterdir() if path.is_dir()}
    assert {name for name in folders if not name.endswith(".dist-info")} - {"bin"} == {"sidrec"}
    assert (installed / "sidrec/py.typed").is_file()


def test_the_whole_way_without_a_checkout(installed: Path, tmp_path: Path) -> None:
    environment = {"PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}

    def sidrec(*words: str) -> str:
        return _run([sys.executable, "-m", "sidrec", *words], tmp_path, environment)

    where = _run([sys.executable, "-c", "import sidrec; print(sidrec.__file__)"], tmp_path, environment)
    assert Path(where.strip()).is_relative_to(installed)
    sidrec("init", "demo")
    sidrec("prep", "synthetic", "demo/world", "--rows", "4000", "--users", "200", "--items", "300")
    said = _run([sys.executable, "-c", FIT_TRAIN_EVALUATE], tmp_path, environment)
    assert "test" in said.split("trained\n")[-1]
    pytest.importorskip("torchx", reason="torchx is not installed; the extra launch brings it")
    torchx = [str(Path(sys.executable).with_name("torchx")), "run", "--dryrun", "-s", "local_cwd"]
    shown = _run([*torchx, "sidrec.train", "--recipe", "demo.yaml", "--ranks", "2"], tmp_path, environment)
    assert "sidrec.train" in shown
