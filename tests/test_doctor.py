"""The doctor on this very machine, and on one made ill."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sidrec.cli import doctor as entry
from sidrec.doctor import machine_checks as doctor
from sidrec.preflight import Finding


def test_a_sound_installation() -> None:
    command = [sys.executable, "-m", "sidrec", "doctor", "--json"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    findings = {finding["name"]: finding for finding in json.loads(done.stdout)}
    assert [findings[name]["state"] for name in ("stack", "fused lookup")] == ["ok", "ok"]
    assert findings["gloo" if "gloo" in findings else "NCCL"]["state"] == "ok"
    assert {"Python", "GPU", "cores", "threads", "memory", "/dev/shm", "disk", "torchx"} < set(findings)
    assert done.returncode == any(finding["state"] == "problem" for finding in findings.values())


def test_a_lookup_that_kills_its_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fbgemm_gpu").mkdir()
    (tmp_path / "fbgemm_gpu" / "__init__.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    finding, _ = doctor.look_up()
    assert (finding.state, finding.found) == ("problem", "killed by signal 11")
    assert "pip install" in finding.repair


def test_a_library_that_does_not_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fbgemm_gpu").mkdir()
    (tmp_path / "fbgemm_gpu" / "__init__.py").write_text("raise OSError('undefined symbol: _ZN3c10')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    finding, _ = doctor.look_up()
    assert (finding.state, finding.found) == ("problem", "OSError: undefined symbol: _ZN3c10")


def test_ranks_that_cannot_find_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nosuch0")
    finding = doctor.all_reduce(gpus=0)
    assert finding.state == "problem"
    assert "nosuch0" in finding.found
    assert finding.repair == "GLOO_SOCKET_IFNAME=lo sidrec doctor"


@pytest.mark.parametrize("value", ["9999", "0", "many"])
def test_threads_beyond_the_cores(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    finding = doctor.threads()
    assert (finding.state, finding.repair) == ("problem", "unset OMP_NUM_THREADS")
    assert f"OMP_NUM_THREADS={value}, expected 1 to " in finding.found


def test_little_memory() -> None:
    finding = doctor.memory(lambda: (2**30, 2**32))
    assert finding.state == "problem"
    assert finding.found == "1.0 GiB free of 4.0; expected 2 GiB free"


def test_problems_set_the_exit_status_and_notes_do_not(capsys: pytest.CaptureFixture[str]) -> None:
    note, problem = Finding("torchx", "note", "not installed", "pip install torchx"), Finding("disk", "problem", "full")
    assert entry.doctor([], lambda: [note]) == 0
    assert capsys.readouterr().out == (
        "torchx  note     not installed\n                 -> pip install torchx\n\nready to train\n"
    )
    assert entry.doctor([], lambda: [note, problem]) == 1
    assert capsys.readouterr().out.endswith("1 problem(s)\n")
