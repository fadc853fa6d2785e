"""Addresses at which machines cannot meet: one sentence each, with the remedy."""

import os
import socket
import subprocess
import sys
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from torch.distributed.elastic.rendezvous.utils import _matches_machine_hostname

from sidrec import rendezvous
from sidrec.errors import ConfigError
from sidrec.rendezvous import check_addresses, check_endpoint, is_seen_as_own

Entry = namedtuple("Entry", "address")
NAMES = {
    "debian": ["127.0.1.1"],
    "head": ["10.0.0.1"],
    "head.cluster": ["10.0.0.1"],
    "other": ["10.0.0.2"],
    "here": ["127.0.0.1"],
    "localhost": ["127.0.0.1"],
}


def on(machine: str, monkeypatch: pytest.MonkeyPatch, address: str = "10.0.0.1") -> None:
    """This process is on a machine of this name, whose eth0 has this address."""

    def getaddrinfo(host: str, *_: object, **__: object) -> list[tuple[object, ...]]:
        found = NAMES.get(host, [host] if host[0].isdigit() else [])
        if not found:
            raise socket.gaierror(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, 0)) for each in found]

    monkeypatch.setattr(socket, "gethostname", lambda: machine)
    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: {"lo": [Entry("127.0.0.1")], "eth0": [Entry(address)]})


@pytest.mark.parametrize(
    ("machine", "endpoint", "sentence"),
    [
        ("head", "10.0.0.1:29500", None),
        ("head", "head.cluster:29500", None),
        ("head", "localhost:29500", None),  # as torchx and Kubernetes call the first machine there
        ("debian", "debian:29500", None),
        ("head", "other:29500", None),
        (
            "head",
            "nowhere:29500",
            "expected a name that head can resolve, got nowhere; give the first machine's address",
        ),
        (
            "head",
            "here:29500",
            "on head the name here means 127.0.0.1, head itself; give the address, or mend /etc/hosts",
        ),
        (
            "debian",
            "10.0.0.1:29500",
            "10.0.0.1 is an address of debian, but torchrun does not see that, as the name debian means 127.0.1.1; "
            "start torchrun on debian with --rdzv-conf is_host=1 --local-addr 10.0.0.1",
        ),
        ("head", "29500", "expected HOST:PORT with a port from 1 to 65535, got 29500"),
        ("head", "head:port", "expected HOST:PORT"),
    ],
)
def test_endpoints(machine: str, endpoint: str, sentence: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    on(machine, monkeypatch)
    host = endpoint.partition(":")[0]
    if host and host != "29500":
        assert is_seen_as_own(host) == _matches_machine_hostname(host), "torchrun's own rule"
    if sentence is None:
        check_endpoint(endpoint, 0)
        return
    with pytest.raises(ConfigError) as error:
        check_endpoint(endpoint, 0)
    assert sentence in str(error.value)


@pytest.fixture
def taken() -> Iterator[int]:
    """A port at which this process listens."""
    with socket.socket() as listening:
        listening.bind(("", 0))
        listening.listen()
        yield listening.getsockname()[1]


def test_a_port_in_use_names_the_program(taken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = rf"expected a free port on .*, got {taken}, in use by process {os.getpid()} \(.*python"
    with pytest.raises(ConfigError, match=expected):
        check_endpoint(f"localhost:{taken}")
    monkeypatch.setattr(psutil.Process, "cmdline", lambda _: ["python", "-m", "torch.distributed.run"])
    check_endpoint(f"localhost:{taken}")  # by another torchrun of this job


RANK = {"RANK": "2", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "1", "TORCHELASTIC_RUN_ID": "of no job"}


@pytest.mark.parametrize(
    ("machine", "variables", "sentence"),
    [
        ("head", {"MASTER_ADDR": "other"}, None),
        (
            "head",
            {"MASTER_ADDR": "nowhere"},
            "rank 2: expected a name of rank 0 that head can resolve, got nowhere; start",
        ),
        (
            "head",
            {"MASTER_ADDR": "debian"},
            "got debian, which means 127.0.1.1 here, head itself; start torchrun on the",
        ),
        ("head", {"MASTER_ADDR": "debian", "GROUP_RANK": "0"}, None),
        (
            "debian",
            {"MASTER_ADDR": "other"},
            "the name debian to mean an address that other machines reach, got 127.0.1.1",
        ),
        ("debian", {"MASTER_ADDR": "other", "GLOO_SOCKET_IFNAME": "eth0"}, None),
        ("debian", {"MASTER_ADDR": "other", "WORLD_SIZE": "2"}, None),  # one machine
        ("unknown", {"MASTER_ADDR": "other"}, "got none; set GLOO_SOCKET_IFNAME="),
    ],
)
def test_addresses_of_ranks(
    machine: str, variables: dict[str, str], sentence: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    on(machine, monkeypatch)
    if sentence is None:
        check_addresses(RANK | variables, 0)
        return
    with pytest.raises(ConfigError) as error:
        check_addresses(RANK | variables, 0)
    assert sentence in str(error.value)


class Fake:
    def __init__(self, rank: int) -> None:
        self.rank = rank

    @property
    def pid(self) -> int:
        return os.getpid()

    def environ(self) -> dict[str, str]:
        return {"RANK": f"{self.rank}", "TORCHELASTIC_RUN_ID": "of no job"}


def test_several_torchruns_on_one_machine_may_use_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    on("debian", monkeypatch)
    monkeypatch.setattr(psutil, "process_iter", lambda: map(Fake, range(4)))
    check_addresses(RANK | {"MASTER_ADDR": "debian"}, 0)
    monkeypatch.setattr(rendezvous, "_network", lambda process: Path(f"net:[{process}]"))  # of a container each
    with pytest.raises(ConfigError, match="expected an address of rank 0"):
        check_addresses(RANK | {"MASTER_ADDR": "debian"}, 0)
    monkeypatch.undo()
    on("debian", monkeypatch)
    monkeypatch.setattr(psutil, "process_iter", lambda: map(Fake, range(3)))  # rank 3 is elsewhere
    with pytest.raises(ConfigError, match="GLOO_SOCKET_IFNAME"):
        check_addresses(RANK | {"MASTER_ADDR": "debian"}, 0)


JOIN = """
from sidrec.command_line import run
from sidrec.parallel.process_group import joined_ranks
def join():
    with joined_ranks():
        pass
raise SystemExit(run(join))
"""


def test_ranks_that_cannot_have_their_port(taken: int) -> None:
    variables = {"MASTER_ADDR": "localhost", "MASTER_PORT": f"{taken}", "RANK": "0", "WORLD_SIZE": "2"}
    environment = {**os.environ, **variables, "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    done = subprocess.run([sys.executable, "-c", JOIN], check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 2
    assert f"sidrec: error: rank 0: expected a free port on {socket.gethostname()}, got {taken}, in use" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_command(taken: int) -> None:
    command = [sys.executable, "-m", "sidrec.rendezvous"]
    done = subprocess.run([*command, f"localhost:{taken}"], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("sidrec: error: rendezvous: expected a free port on ")
    assert rendezvous.main([]) == 2
