"""The ordinary script and its plugged twin: how little differs, that the docs say so, and that both run."""

import difflib
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from sidrec.sid.catalog import Catalog
from tests.warm_processes import warm_environment

ROOT = Path(__file__).parents[2]
PLAIN, PLUGGED = ROOT / "examples/plain_dlrm.py", ROOT / "examples/plugged_dlrm.py"
TWO_COLLECTIONS = ROOT / "examples/plain_attention.py", ROOT / "examples/plugged_attention.py"
MOST_CHANGED_LINES = 10


def changed_lines(*scripts: Path) -> list[str]:
    """Lines taken away and added, as `diff` says it."""
    plain, plugged = (path.read_text().splitlines() for path in scripts or (PLAIN, PLUGGED))
    diff = difflib.unified_diff(plain, plugged, n=0, lineterm="")
    return [line for line in diff if not line.startswith(("---", "+++", "@@"))]


def test_ten_changed_lines_are_enough_and_the_docs_show_them() -> None:
    assert 0 < len(changed_lines()) <= MOST_CHANGED_LINES
    shown, of_two_collections = re.findall(r"```diff\n(.*?)```", (ROOT / "docs/plug_in.md").read_text(), re.DOTALL)
    assert shown.splitlines() == changed_lines()
    assert of_two_collections.splitlines() == changed_lines(*TWO_COLLECTIONS)
    assert 0 < len(changed_lines(*TWO_COLLECTIONS)) < MOST_CHANGED_LINES


def mean_losses(script: Path, ranks: int, *arguments: str, folder: Path | None = None) -> list[float]:
    """What each rank prints in the end. folder: where the script runs."""
    environment = {**warm_environment(), "OMP_NUM_THREADS": "1"}
    torchrun = shutil.which("torchrun", path=environment["PATH"])
    assert torchrun
    command = [torchrun, "--standalone", "--nproc-per-node", str(ranks)]
    run = subprocess.run(
        [*command, str(script), *arguments],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    losses = re.findall(r"rank \d: mean loss of the last 10 steps (\d\.\d+)", run.stdout)
    return [float(loss) for loss in losses]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `demo/catalog`. The first code of an item is its parity."""
    ids_N = np.arange(1, 5000)
    codes_NL = np.random.default_rng(0).integers(0, 8, size=(len(ids_N), 3))
    codes_NL[:, 0] = ids_N % 2
    path = tmp_path_factory.mktemp("scripts")
    Catalog(ids_N, codes_NL, (2, 8, 8)).save(path / "demo/catalog")
    return path


def test_both_scripts_train(folder: Path) -> None:
    """Items are liked after items of the same parity, which the first code tells: SIDs learn it in a few steps."""
    (plain,) = mean_losses(PLAIN, 1, "--steps", "100")
    plugged = mean_losses(PLUGGED, 2, "--steps", "100", "--catalog", str(folder / "demo/catalog"))
    assert len(plugged) == 2
    assert max(plugged) < plain - 0.02


def test_a_model_of_two_collections_trains(folder: Path) -> None:
    plain, plugged = (mean_losses(script, 1, "--steps", "60", folder=folder) for script in TWO_COLLECTIONS)
    assert plugged[0] < plain[0] - 0.02
