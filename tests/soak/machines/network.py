"""Two network namespaces joined by a pair of virtual interfaces, in which processes run as on two machines.

Each has a host name, and an address that only the two know. Needs root and the command `ip` (package iproute2).
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

MACHINES = {"alpha": "10.77.0.1", "beta": "10.77.0.2"}
ENDED_WITHIN = 20.0  # seconds, for processes that were killed

INSIDE = """
hostname "$NAME" && mount --bind "$HOSTS" /etc/hosts || exit 70
for folder in $PRIVATE; do mkdir -p "$folder" && mount -t tmpfs tmpfs "$folder" || exit 70; done
exec "$@"
"""


class ObstacleError(Exception):
    """Why no machines can be made here, in one sentence."""


@dataclass
class Process:
    """A command on a machine. log: its output."""

    process: subprocess.Popen[bytes]
    log: Path
    began: float

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_for(self, text: str, seconds: float) -> None:
        """Waits until the output contains `text`. Raises AssertionError if it ends, or `seconds` pass, before."""
        deadline = time.monotonic() + seconds
        while text not in self.output:
            assert self.process.poll() is None, f"ended with {self.process.returncode} before {text!r}: {self.log}"
            assert time.monotonic() < deadline, f"no {text!r} in {seconds:.0f} s: {self.log}"
            time.sleep(0.02)

    def end(self, seconds: float) -> int:
        """The exit status. Raises AssertionError after `seconds`."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still runs after {seconds:.0f} s: {self.log}") from None


class Machines:
    """A context in which machines exist; afterwards neither they nor their processes do.

    Entering raises ObstacleError.
    """

    def __init__(self, folder: Path) -> None:
        """folder: for files of the machines."""
        self._folder = folder
        self._spaces = {name: f"sidrec-{os.getpid()}-{name}" for name in MACHINES}

    def __enter__(self) -> "Machines":
        reason = None
        if os.geteuid() != 0:
            reason = "got another user than root"
        elif missing := [name for name in ("ip", "unshare", "mount") if shutil.which(name) is None]:
            reason = f"got no command {', '.join(missing)} (packages iproute2, util-linux)"
        else:
            try:
                self._make()
            except subprocess.CalledProcessError as error:
                self._remove()
                reason = f"{' '.join(error.cmd[:4])} failed: {error.stderr.strip()}"
        if reason:
            raise ObstacleError(f"machines: expected the right to make network and mount namespaces, {reason}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    def _make(self) -> None:
        links = {name: f"sid{os.getpid() % 10**6}{name[0]}" for name in MACHINES}  # at most 15 letters
        for space in self._spaces.values():
            _run("ip", "netns", "add", space)
        (one, other), (space, other_space) = links.values(), self._spaces.values()
        _run("ip", "link", "add", one, "netns", space, "type", "veth", "peer", "name", other, "netns", other_space)
        for name, link in links.items():
            inside = ("ip", "-n", self._spaces[name])
            _run(*inside, "addr", "add", f"{MACHINES[name]}/24", "dev", link)
            for each in ("lo", link):
                _run(*inside, "link", "set", each, "up")
        self.interfaces = links
        for name in MACHINES:
            _run("ip", "netns", "exec", self._spaces[name], "unshare", "--uts", "--mount", "hostname", name)

    def _remove(self) -> None:
        for name, space in self._spaces.items():
            self.lose(name)
            subprocess.run(["ip", "netns", "delete", space], check=False, capture_output=True)

    def start(
        self,
        name: str,
        command: Sequence[str],
        log: Path,
        environment: Mapping[str, str],
        private: Sequence[Path] = (),
        hosts: Mapping[str, str] = MACHINES,
    ) -> Process:
        """Starts a command on a machine. Its output is appended to `log`.

        private: folders that are empty there, and unseen by others. hosts: name -> address, in /etc/hosts.
        """
        file = self._folder / f"hosts-{log.stem}-{name}"
        file.write_text("".join(f"{address} {host}\n" for host, address in {"localhost": "127.0.0.1", **hosts}.items()))
        own = {"NAME": name, "HOSTS": str(file), "PRIVATE": " ".join(map(str, private))}
        inside = ["unshare", "--uts", "--mount", "bash", "-c", INSIDE, "bash", *command]
        with log.open("ab") as output:
            process = subprocess.Popen(
                ["ip", "netns", "exec", self._spaces[name], *inside],
                env={**os.environ, **environment, **own},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return Process(process, log, time.monotonic())

    def lose(self, name: str) -> None:
        """Ends all processes of a machine by SIGKILL, as if it had lost its power, and waits until they are gone."""
        deadline = time.monotonic() + ENDED_WITHIN
        while (found := self.processes(name)) and time.monotonic() < deadline:
            for process in found:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            time.sleep(0.05)

    def processes(self, name: str) -> list[int]:
        """Process ids on a machine."""
        shown = subprocess.run(
            ["ip", "netns", "pids", self._spaces[name]], check=False, capture_output=True, text=True
        ).stdout
        return [int(word) for word in shown.split() if _is_alive(int(word))]


def _is_alive(process: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2][:1] not in ("Z", "X")
    return False


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)
