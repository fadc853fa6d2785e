"""torch, FBGEMM and torchrec as pip leaves them in a folder: the files that `find_stack` reads, laid out by hand."""

import importlib
import json
from pathlib import Path

import pytest

from sidrec.doctor.machine_checks import stack
from sidrec.errors import InstallationError
from sidrec.stack import KNOWN, REFUSED, TESTED, Stack, fault, find_stack, repair, require_stack


def _distribution(site: Path, name: str, version: str, files: tuple[str, ...] = ()) -> None:
    folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (folder / "RECORD").write_text("".join(f"{file},,\n" for file in files))


def _torch(site: Path, version: str, cuda: str | None) -> None:
    (site / "torch").mkdir()
    (site / "torch" / "__init__.py").write_text("raise AssertionError('torch was imported')\n")
    (site / "torch" / "version.py").write_text(f"__version__ = {version!r}\ncuda = {cuda!r}\n")


def _fbgemm_folder(site: Path, version: str, variant: str) -> None:
    (site / "fbgemm_gpu" / "docs").mkdir(parents=True, exist_ok=True)
    (site / "fbgemm_gpu" / "__init__.py").write_text("raise AssertionError('fbgemm_gpu was imported')\n")
    target = {"version": version, "target": "default", "variant": variant}
    (site / "fbgemm_gpu" / "docs" / "target.default.json.py").write_text(json.dumps(target))


def _find(site: Path) -> Stack:
    importlib.invalidate_caches()
    return find_stack([str(site)])


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A CPU installation as the Makefile leaves it: the stand-in owns no file."""
    _torch(tmp_path, "2.13.0+cpu", None)
    _distribution(tmp_path, "torchrec", "1.8.0")
    _distribution(tmp_path, "fbgemm_gpu-cpu", "1.8.0", ("fbgemm_gpu/__init__.py",))
    _distribution(tmp_path, "fbgemm-gpu", "1.8.0", ("fbgemm_gpu-1.8.0.dist-info/METADATA",))
    _fbgemm_folder(tmp_path, "1.8.0", "cpu")
    return tmp_path


def test_the_cpu_lock_is_sound(site: Path) -> None:
    found = _find(site)
    assert found == Stack("2.13.0+cpu", "cpu", "1.8.0", "1.8.0", "cpu", ("fbgemm-gpu-cpu",))
    assert fault(found) is None


def test_the_cuda_lock_is_sound(tmp_path: Path) -> None:
    _torch(tmp_path, "2.13.0", "13.0")
    _distribution(tmp_path, "torchrec", "1.8.0")
    _distribution(tmp_path, "fbgemm-gpu", "1.8.0", ("fbgemm_gpu/__init__.py",))
    _fbgemm_folder(tmp_path, "1.8.0", "cuda")
    found = _find(tmp_path)
    assert fault(found) is None
    assert repair(found).endswith("-m pip install torch==2.13.0 torchrec==1.8.0 fbgemm-gpu==1.8.0")


def test_another_release_of_the_cpu_build(site: Path) -> None:
    _fbgemm_folder(site, "1.9.0", "cpu")
    assert fault(_find(site)) == "torch 2.13.0+cpu needs FBGEMM 1.8, got 1.9.0"


def test_the_cuda_build_in_the_folder_of_the_cpu_build(site: Path) -> None:
    """What lies in the folder counts, not what the metadata of the build under it says."""
    _fbgemm_folder(site, "1.8.0", "cuda")
    assert fault(_find(site)) == "torch is a CPU build, but FBGEMM is built for cuda"


def test_the_cpu_build_under_a_cuda_torch(site: Path) -> None:
    (site / "torch" / "version.py").write_text("__version__ = '2.13.0'\ncuda = '13.0'\n")
    found = _find(site)
    assert fault(found) == "torch is a CUDA build, but FBGEMM is built for the CPU, and has no tables on a GPU"
    assert repair(found).endswith(" fbgemm-gpu==1.8.0")


@pytest.mark.parametrize(
    ("releases", "state", "words"),
    [
        (("2.13.0", "1.8.0", "1.8.0"), "ok", "torch 2.13.0 (cpu)"),
        (("2.11.0", "1.6.1", "1.6.0"), "note", "tested with these: models, plug-in, plans and ranks on Python 3.12"),
        (("2.12.0", "1.7.0", "1.7.0"), "note", "tested with these: nothing"),
        (("2.14.1", "1.9.2", "1.9.0"), "problem", "checkpoints and training have not been run"),
        (("2.15.0", "1.9.2", "1.9.0"), "problem", "got 2.15.0 (FBGEMM 1.9.0 is built for torch 2.14"),
    ],
)
def test_the_doctor_knows_what_was_tested(releases: tuple[str, str, str], state: str, words: str) -> None:
    torch, torchrec, fbgemm = releases
    finding = stack(lambda: Stack(torch, "cpu", torchrec, fbgemm, "cpu", ("fbgemm-gpu-cpu",)))
    assert finding.state == state
    assert words in finding.found


def test_the_locks_are_the_triple_that_is_tested() -> None:
    releases = {name: release.rpartition(".")[0] for name, release in TESTED.items()}
    assert (KNOWN[0].torch, KNOWN[0].fbgemm) == (releases["torch"], releases["fbgemm"])
    assert releases["torchrec"] in KNOWN[0].torchrec


def test_each_file_of_other_releases_is_known() -> None:
    """`make other-versions` installs them: a triple that is accepted, or one that would be."""
    files = sorted((Path(__file__).parents[1] / "requirements").glob("torch-*.txt"))
    assert [file.stem for file in files] == ["torch-2.11", "torch-2.14"]
    for file in files:
        pins = dict(line.split("==") for line in file.read_text(encoding="utf-8").split())
        releases = Stack(pins["torch"], "cpu", pins["torchrec"], pins["fbgemm-gpu-cpu"], "cpu", ("fbgemm-gpu-cpu",))
        assert fault(releases) is None or ".".join(pins["torch"].split(".")[:2]) in REFUSED


def test_two_builds_over_one_another(site: Path) -> None:
    (site / "fbgemm_gpu-1.8.0.dist-info" / "RECORD").write_text("fbgemm_gpu/__init__.py,,\n")
    found = _find(site)
    assert found.owners == ("fbgemm-gpu", "fbgemm-gpu-cpu")
    assert "installed over one another" in (fault(found) or "")


def test_a_folder_emptied_by_uninstalling_the_other_build(site: Path) -> None:
    (site / "fbgemm_gpu" / "__init__.py").unlink()
    assert fault(_find(site)) == "not installed: fbgemm"


def test_nothing_is_installed(tmp_path: Path) -> None:
    assert fault(_find(tmp_path)) == "not installed: torch, torchrec, fbgemm"


@pytest.mark.parametrize(
    ("torch", "torchrec", "fbgemm", "expected"),
    [
        ("2.12.1", "1.7.0", "1.7.0", None),
        ("2.11.0", "1.8.0", "1.6.0", None),
        ("2.11.0", "1.6.1", "1.6.0", None),
        ("2.14.1", "1.9.2", "1.9.0", f"expected torch 2.11 or 2.12 or 2.13, got 2.14.1 ({REFUSED['2.14']})"),
        ("2.15.0", "1.9.2", "1.9.0", f"expected torch 2.11 or 2.12 or 2.13, got 2.15.0 ({REFUSED['2.15']})"),
        ("2.10.0", "1.8.0", "1.8.0", "expected torch 2.11 or 2.12 or 2.13, got 2.10.0"),
        ("2.13.0", "1.9.2", "1.8.0", "expected torchrec 1.6, 1.7, 1.8, got 1.9.2"),
    ],
)
def test_releases(torch: str, torchrec: str, fbgemm: str, expected: str | None) -> None:
    assert fault(Stack(torch, "cpu", torchrec, fbgemm, "cpu", ("fbgemm-gpu-cpu",))) == expected


def test_the_refusal_names_fault_and_repair(site: Path) -> None:
    _fbgemm_folder(site, "1.9.0", "cpu")
    with pytest.raises(InstallationError, match=r"needs FBGEMM 1\.8, got 1\.9\.0 .* Repair: .*fbgemm-gpu-cpu==1\.8\.0"):
        require_stack(lambda: _find(site))
