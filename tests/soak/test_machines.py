"""Two machines on one: they have names, addresses and folders of their own, and nothing of them stays."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.soak.__main__ import main
from tests.soak.machines.network import MACHINES, Machines, ObstacleError

SERVE = "import socket; s = socket.create_server(('', 5000)); print('serves', flush=True); s.accept()[0].sendall(b'hi')"
ASK = """
import pathlib, socket
print(socket.gethostname(), socket.create_connection(("alpha", 5000), 10).recv(2).decode(), flush=True)
pathlib.Path("PRIVATE/seen").write_text("by beta alone")
"""


def spaces() -> str:
    return subprocess.run(["ip", "netns", "list"], check=True, capture_output=True, text=True).stdout


def test_they_reach_one_another_and_leave_nothing_behind(tmp_path: Path) -> None:
    machines = Machines(tmp_path)
    private = tmp_path / "private"
    try:
        with machines:
            assert spaces().count(f"sidrec-{os.getpid()}-") == len(MACHINES)
            served = machines.start("alpha", [sys.executable, "-c", SERVE], tmp_path / "alpha.log", {})
            served.wait_for("serves", 60)
            words = [sys.executable, "-c", ASK.replace("PRIVATE", str(private))]
            asked = machines.start("beta", words, tmp_path / "beta.log", {}, private=[private])
            assert (asked.end(60), asked.output) == (0, "beta hi\n")
            assert list(private.iterdir()) == []
            machines.start("beta", ["sleep", "3600"], tmp_path / "sleep.log", {})
            raise KeyError("whatever happens")
    except ObstacleError as obstacle:
        pytest.skip(str(obstacle))
    except KeyError:
        assert f"sidrec-{os.getpid()}-" not in spaces()
        assert [machines.processes(name) for name in MACHINES] == [[], []]


def test_missing_rights_are_said_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert main(["machines", "--out", str(tmp_path / "out")]) == 1
    said = "machines: expected the right to make network and mount namespaces, got another user than root"
    assert capsys.readouterr().out == f"machines: not run: {said}\n"
    assert not (tmp_path / "out").exists()
