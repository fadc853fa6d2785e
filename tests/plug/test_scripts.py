"""The ordinary script and its plugged twin: how little differs, that the docs say so, and that both run."""

import difflib
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np

from sidrec.sid.catalog import Catalog
from tests.warm_processes import warm_environment

ROOT = Path(__file__).parents[2]
PLAIN, PLUGGED = ROOT / "examples/plain_dlrm.py", ROOT / "examples/plugged_dlrm.py"
MOST_CHANGED_LINES = 10


def changed_lines() -> list[str]:
    """Lines taken away and added, as `diff` says it."""
    plain, plugged = (path.read_text().splitlines() for path in (PLAIN, PLUGGED))
    diff = difflib.unified_diff(plain, plugged, n=0, lineterm="")
    return [line for line in diff if not line.startswith(("---", "+++", "@@"))]


def test_ten_changed_lines_are_enough_and_the_docs_show_them() -> None:
    assert 0 < len(changed_lines()) <= MOST_CHANGED_LINES
    (shown,) = re.findall(r"```diff\n(.*?)```", (ROOT / "docs/plug_in.md").read_text(), re.DOTALL)
    assert shown.splitlines() == changed_lines()


def mean_losses(script: Path, ranks: int, *arguments: str) -> list[float]:
    """What each rank prints in the end."""
    environment = {**warm_environment(), "OMP_NUM_THREADS": "1"}
    torchrun = shutil.which("torchrun", path=environment["PATH"])
    assert torchrun
    command = [torchrun, "--standalone", "--nproc-per-node", str(ranks)]
    run = subprocess.run(
        [*command, str(script), *arguments], env=environment, capture_output=True, text=True, timeout=1200, check=False
    )
    assert run.returncode == 0, run.stderr
    losses = re.findall(r"rank \d: mean loss of the last 10 steps (\d\.\d+)", run.stdout)
    return [float(loss) for loss in losses]


def test_both_scripts_train(tmp_path: Path) -> None:
    """Items are liked after items of the same parity, which the first code tells: SIDs learn it in a few steps."""
    ids_N = np.arange(1, 5000)
    codes_NL = np.random.default_rng(0).integers(0, 8, size=(len(ids_N), 3))
    codes_NL[:, 0] = ids_N % 2
    Catalog(ids_N, codes_NL, (2, 8, 8)).save(tmp_path / "catalog")
    (plain,) = mean_losses(PLAIN, 1, "--steps", "100")
    plugged = mean_losses(PLUGGED, 2, "--steps", "100", "--catalog", str(tmp_path / "catalog"))
    assert len(plugged) == 2
    assert max(plugged) < plain - 0.02
