"""Addresses at which machines meet: said in a sentence where torchrun and gloo would wait, or print C++ frames.

    python -m sidrec.rendezvous HOST:PORT && torchrun --nnodes 2 --rdzv-backend c10d --rdzv-endpoint HOST:PORT ...

checks an endpoint on this machine, before torchrun waits there. `check_addresses` checks what torchrun gave its ranks.
Imports no torch.
"""

import ipaddress
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from sidrec.errors import ConfigError
from sidrec.text import quoted

RESOLVED_WITHIN = 60.0
"""Seconds in which a name must resolve; torchrun waits as long. The name of a container that starts takes a while."""
STARTED_WITHIN = 10.0
"""Seconds between the starts of ranks of one job by two torchruns of one machine."""
POLL = 0.5
LAUNCHERS = ("torch.distributed.run", "torchrun")


def main(words: Sequence[str]) -> int:
    """Returns 0, or 2 after one sentence on stderr."""
    from sidrec.command_line import run

    if len(words) != 1:
        print("usage: python -m sidrec.rendezvous HOST:PORT", file=sys.stderr)
        return 2
    return run(lambda: check_endpoint(words[0]))


def check_endpoint(endpoint: str, patience: float = RESOLVED_WITHIN) -> None:
    """Checks that torchrun on this machine can meet the others at HOST:PORT (`--rdzv-endpoint`, backend c10d).

    patience: seconds to wait until the name resolves.

    Raises ConfigError: the name does not resolve, or only to this machine, which has another name; the machine has the
    address, but torchrun would not see it; the machine is to serve the port, and another program has it.
    """
    host, _, port = endpoint.rpartition(":")
    host = host.strip("[]")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise ConfigError(f"rendezvous: expected HOST:PORT with a port from 1 to 65535, got {quoted(endpoint)}")
    own = socket.gethostname()
    found = _wait_for_name(host, patience)
    if not found:
        raise ConfigError(
            f"rendezvous: expected a name that {own} can resolve, got {quoted(host)}; give the first machine's address"
        )
    serves = is_seen_as_own(host)
    if not serves and all(map(_is_loopback, found)):
        raise ConfigError(
            f"rendezvous: expected the first machine's address, but on {own} the name {host} means {found[0]}, "
            f"{own} itself; give the address, or mend /etc/hosts on {own}"
        )
    if not serves and _interface_of(found):
        raise ConfigError(
            f"rendezvous: {found[0]} is an address of {own}, but torchrun does not see that, as the name {own} means "
            f"{', '.join(addresses_of(own)) or 'no address'}; start torchrun on {own} with --rdzv-conf is_host=1 "
            f"--local-addr {found[0]}"
        )
    holder = _holder(int(port)) if serves else None
    if holder:
        raise ConfigError(f"rendezvous: expected a free port on {own}, got {port}, in use by {holder}; choose another")


def is_seen_as_own(host: str) -> bool:
    """Whether torchrun takes `host` for this machine, and serves the rendezvous there without is_host=1.

    The rule of `_matches_machine_hostname` in torch.distributed.elastic.rendezvous.utils: the host's name, or an
    address that this machine's own name means; other addresses of its interfaces are not seen.
    """
    own = socket.gethostname()
    if host in ("localhost", own) or _is_loopback(host):
        return True
    return bool(set(addresses_of(host)) & set(addresses_of(own)))


def addresses_of(host: str) -> list[str]:
    """IP addresses that a name means on this machine; empty if it means none."""
    try:
        found = socket.getaddrinfo(host, None, proto=socket.IPPROTO_TCP)
    except (OSError, UnicodeError):
        return []
    return list(dict.fromkeys(str(address[4][0]) for address in found))


def _wait_for_name(host: str, patience: float) -> list[str]:
    deadline = time.monotonic() + patience
    while not (found := addresses_of(host)) and time.monotonic() < deadline:
        time.sleep(POLL)
    return found


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address.partition("%")[0]).is_loopback
    except ValueError:
        return False


def _interface_of(addresses: Sequence[str]) -> str | None:
    """The network interface of this machine that has one of these addresses."""
    for name, entries in psutil.net_if_addrs().items():
        if any(entry.address.partition("%")[0] in addresses for entry in entries):
            return name
    return None


def _holder(port: int) -> str | None:
    """The program that listens at a TCP port of this machine; None if none does, or a torchrun, which may be ours."""
    with suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr[1:] == (port,):
                return _program(connection.pid)
    return None


def _program(process: int | None) -> str | None:
    if process is None:
        return "another user's program"
    try:
        command = " ".join(psutil.Process(process).cmdline())
    except psutil.Error:
        return f"process {process}"
    return None if any(name in command for name in LAUNCHERS) else f"process {process} ({quoted(command)})"


# What torchrun gave its ranks.


def check_addresses(environment: Mapping[str, str], patience: float = STARTED_WITHIN) -> None:
    """Checks on a rank of several torchruns that ranks can reach one another. environment: torchrun's variables.

    patience: seconds in which all ranks start, if they are on this machine. Raises ConfigError where MASTER_ADDR does
    not resolve, or where an address that only this machine reaches stands for it, or for the first machine.
    """
    ranks, world = int(environment.get("LOCAL_WORLD_SIZE", "1")), int(environment.get("WORLD_SIZE", "1"))
    if ranks == world or "TORCHELASTIC_RUN_ID" not in environment:
        return
    own, master, rank = socket.gethostname(), environment["MASTER_ADDR"], environment["RANK"]
    found = addresses_of(master)
    advice = "start torchrun on the first machine with --local-addr and its address"
    if not found:
        raise ConfigError(
            f"rank {rank}: expected a name of rank 0 that {own} can resolve, got {quoted(master)}; {advice}"
        )
    outside = environment.get("GROUP_RANK", "0") != "0" and all(map(_is_loopback, found))
    if outside and not _started_here({0}, environment, patience):
        got = f"{master}, which means {found[0]} here, {own} itself"
        raise ConfigError(f"rank {rank}: expected an address of rank 0 that {own} can reach, got {got}; {advice}")
    if environment.get("GLOO_SOCKET_IFNAME") or not all(map(_is_loopback, addresses_of(own))):
        return
    if not _started_here(set(range(world)), environment, patience):
        got = ", ".join(addresses_of(own)) or "none"
        name = _interface_towards(found[0]) or "NAME"
        raise ConfigError(
            f"rank {rank}: expected the name {own} to mean an address that other machines reach, got {got}; set "
            f"GLOO_SOCKET_IFNAME={name}, or mend /etc/hosts on {own}"
        )


def _started_here(wanted: set[int], environment: Mapping[str, str], patience: float) -> bool:
    """Whether these ranks of the same job are processes of this machine, behind the same addresses as this one."""
    job, network, deadline = environment["TORCHELASTIC_RUN_ID"], _network("self"), time.monotonic() + patience
    while True:
        here = set()
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                variables = process.environ()
                same = variables.get("TORCHELASTIC_RUN_ID") == job and "RANK" in variables
                if same and _network(process.pid) == network:
                    here.add(int(variables["RANK"]))
        if wanted <= here:
            return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL)


def _network(process: int | str) -> Path:
    """The network namespace of a process: containers of one machine may see each other's processes."""
    return Path(f"/proc/{process}/ns/net").readlink()


def _interface_towards(address: str) -> str | None:
    """The interface over which this machine reaches an address, unless it is the loopback interface."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((address, 9))  # sends nothing
        used = probe.getsockname()[0]
        return None if _is_loopback(used) else _interface_of([used])
    return None


def no_meeting(environment: Mapping[str, str], error: Exception) -> str:
    """The sentence about a rank that could not join the others. error: what torch raised."""
    rank, own = environment.get("RANK", "0"), socket.gethostname()
    master, port = environment.get("MASTER_ADDR"), environment.get("MASTER_PORT")
    text = str(error)
    if "EADDRINUSE" in text or "address already in use" in text.lower():
        holder = _holder(int(port or 0)) or "another program"
        fix = "choose another port (torchrun --master-port), or leave it to torchrun --standalone"
        return f"rank {rank}: expected a free port on {own}, got {port}, in use by {holder}; {fix}"
    first = quoted(text.splitlines()[0] if text else type(error).__name__)
    fix = "is rank 0 alive, is a firewall between them, do both machines mean the same by that name?"
    return f"rank {rank} on {own} cannot join the other ranks at {master}:{port}: {fix} ({first})"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
