"""Whether the installed releases of torch, FBGEMM and torchrec match. Reads metadata only, imports none of them.

FBGEMM is published twice, as `fbgemm-gpu` (CUDA) and `fbgemm-gpu-cpu`, and both install into the folder fbgemm_gpu/:
the later one overwrites the other. torchrec requires `fbgemm-gpu` of any release, so that an ordinary `pip install` can
overwrite a working CPU build with a CUDA build of another release. Importing it then fails with an undefined symbol,
far from the cause. `require_stack` reports the mismatch first.
"""

import json
import runpy
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.machinery import PathFinder
from importlib.metadata import Distribution, distributions
from pathlib import Path

from sidrec.errors import InstallationError

TESTED = {"torch": "2.13.0", "torchrec": "1.8.0", "fbgemm": "1.8.0"}
"""The releases that sidrec is tested with; the repair installs them."""


@dataclass(frozen=True)
class Triple:
    """Releases that belong together: FBGEMM is compiled against one torch release. tested: what ran with them.

    torchrec: Python code only, which runs with several of the pairs.
    """

    torch: str
    fbgemm: str
    torchrec: tuple[str, ...]
    tested: str

    def __str__(self) -> str:
        return f"torch {self.torch}, torchrec {' or '.join(self.torchrec)}, FBGEMM {self.fbgemm}"


KNOWN = (
    Triple("2.13", "1.8", ("1.6", "1.7", "1.8"), "the whole suite, at the releases of the locks"),
    Triple("2.12", "1.7", ("1.6", "1.7", "1.8"), "nothing; FBGEMM's own table of releases names the pair"),
    Triple(
        "2.11",
        "1.6",
        ("1.6", "1.7", "1.8"),
        "models, plug-in, plans and ranks on Python 3.12; no checkpoints or training",
    ),
)
"""Triples that are accepted (FBGEMM's own compatibility table, fbgemm_gpu/__init__.py of 1.8.0)."""

REFUSED = {
    "2.14": "models, plug-in and planning pass their tests, but checkpoints and training have not been run",
    "2.15": "FBGEMM 1.9.0 is built for torch 2.14 and does not load: torch 2.15 lacks the symbol c10::report_overflow",
}
"""Published releases of torch that are refused, and why: what was seen with 2.14.1 and 2.15.0 (PyPI's builds, no GPU),
torchrec 1.9.2 and FBGEMM 1.9.0 (CPU) on Python 3.11."""

FBGEMM_NAMES = ("fbgemm-gpu", "fbgemm-gpu-cpu")
"""The distributions that bring FBGEMM."""


@dataclass(frozen=True)
class Stack:
    """The installed releases. A version is None where the package is missing; builds are "cpu", "cuda" or "unknown".

    owners: distributions that have files in the folder fbgemm_gpu/.
    """

    torch: str | None
    torch_build: str
    torchrec: str | None
    fbgemm: str | None
    fbgemm_build: str
    owners: tuple[str, ...]

    def __str__(self) -> str:
        torch, torchrec, fbgemm = (version or "missing" for version in (self.torch, self.torchrec, self.fbgemm))
        return f"torch {torch} ({self.torch_build}), torchrec {torchrec}, FBGEMM {fbgemm} ({self.fbgemm_build})"


def find_stack(path: Sequence[str] | None = None) -> Stack:
    """Reads versions and builds from the folders of `path` (sys.path when left out). Imports none of the three."""
    folders = list(sys.path if path is None else path)
    installed: dict[str, Distribution] = {}
    for name in ("torchrec", *FBGEMM_NAMES):  # by name: reading the metadata of all packages takes a third of a second
        for found in distributions(name=name, path=folders):
            installed.setdefault(name, found)
    torch, torch_build = _torch(folders)
    fbgemm, fbgemm_build = _fbgemm(folders)
    owners = tuple(name for name in FBGEMM_NAMES if name in installed and _fills_folder(installed[name]))
    torchrec = installed["torchrec"].version if "torchrec" in installed else None
    return Stack(torch, torch_build, torchrec, fbgemm, fbgemm_build, owners)


def fault(stack: Stack) -> str | None:
    """The mismatch in the stack, in one sentence without the repair; None if there is none."""
    missing = [name for name in ("torch", "torchrec", "fbgemm") if getattr(stack, name) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    if len(stack.owners) > 1:
        return f"{' and '.join(stack.owners)} are installed over one another, and removing either breaks the other"
    triple = known_triple(stack)
    if triple is None:
        wanted = " or ".join(sorted(each.torch for each in KNOWN))
        reason = REFUSED.get(_release(stack.torch))
        return f"expected torch {wanted}, got {stack.torch}{f' ({reason})' if reason else ''}"
    if _release(stack.fbgemm) != triple.fbgemm:
        return f"torch {stack.torch} needs FBGEMM {triple.fbgemm}, got {stack.fbgemm}"
    if _release(stack.torchrec) not in triple.torchrec:
        return f"expected torchrec {', '.join(triple.torchrec)}, got {stack.torchrec}"
    if stack.torch_build == "cpu" and stack.fbgemm_build != "cpu":
        return f"torch is a CPU build, but FBGEMM is built for {stack.fbgemm_build}"
    if stack.torch_build == "cuda" and stack.fbgemm_build == "cpu":
        return "torch is a CUDA build, but FBGEMM is built for the CPU, and has no tables on a GPU"
    return None


def known_triple(stack: Stack) -> Triple | None:
    """The accepted triple of the installed torch; None for another torch."""
    return next((each for each in KNOWN if each.torch == _release(stack.torch)), None)


def repair(stack: Stack) -> str:
    """The shell command that installs the tested releases, in the build (CPU or CUDA) that torch has."""
    pip = f"{shlex.quote(sys.executable)} -m pip"
    remove = f"{pip} uninstall -y fbgemm-gpu fbgemm-gpu-cpu"
    pair = f"torch=={TESTED['torch']} torchrec=={TESTED['torchrec']}"
    if stack.torch_build == "cuda":
        return f"{remove}; {pip} install {pair} fbgemm-gpu=={TESTED['fbgemm']}"
    packages = [f"{pair} fbgemm-gpu-cpu=={TESTED['fbgemm']}"]
    stand_in = Path(__file__).parents[1] / "requirements" / "fbgemm-gpu"
    if stand_in.is_dir():  # In a checkout. It meets torchrec's requirement, so that pip does not fetch the CUDA build.
        packages.append(shlex.quote(str(stand_in)))
    return f"{remove}; {pip} install --no-deps {' '.join(packages)}"


def require_stack(find: Callable[[], Stack] | None = None) -> None:
    """Call this before importing torchrec. Raises InstallationError, which names the repair, for a mismatch.

    find: called in place of `find_stack`.
    """
    stack = (find or find_stack)()
    mismatch = fault(stack)
    if mismatch:
        raise InstallationError(f"{mismatch} ({stack}). Repair: {repair(stack)}")


def _torch(folders: list[str]) -> tuple[str | None, str]:
    package = _package("torch", folders)
    if package is None or not (package / "version.py").is_file():
        return None, "unknown"
    version = runpy.run_path(str(package / "version.py"))
    return str(version["__version__"]), "cuda" if version.get("cuda") else "cpu"


def _fbgemm(folders: list[str]) -> tuple[str | None, str]:
    """Release and build of the library in the folder; the metadata of the two distributions may differ from it."""
    package = _package("fbgemm_gpu", folders)
    if package is None:
        return None, "unknown"
    target = package / "docs" / "target.default.json.py"
    try:
        facts = json.loads(target.read_text(encoding="utf-8"))
        return str(facts["version"]), str(facts["variant"])
    except (OSError, ValueError, KeyError):
        return "of unknown release", "unknown"


def _package(name: str, folders: list[str]) -> Path | None:
    spec = PathFinder.find_spec(name, folders)
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent


def _fills_folder(found: Distribution) -> bool:
    return any(file.parts[0] == "fbgemm_gpu" for file in found.files or ())


def _release(version: str | None) -> str:
    return ".".join((version or "").split(".")[:2])
