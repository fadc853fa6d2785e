"""Commands of a study, each in a process of its own; all of them end with the study.

`sidrec` commands are forks of one process that imported torch, TorchRec and sidrec before, which takes about 5 CPU
seconds. The fork is safe because that process only imports and has a single thread, which is checked: no thread can
hold a lock of OpenMP, gloo or arrow that a fork would wait for, and no thread pool exists whose threads a fork would
lack. Pools start in the forks. A build of torch with CUDA is not forked, as a driver does not survive it: there, and
where imports started threads, each command imports for itself.
"""

import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

import sidrec
from sidrec.errors import TrainingError

GRACE = 30.0  # seconds in which a training that is asked to stop saves a checkpoint
LONGEST = 1 << 16  # bytes of a request
READY = "ready"
COMMAND = "sidrec.cli.dispatch"
HEAVY = (
    *("torchrec.distributed", "sidrec.train.run", COMMAND, "sidrec.cli.runs", "sidrec.cli.prepare"),
    *("pyarrow.dataset", "torch.utils.tensorboard"),  # imported late by every training
)
"""Modules that the warm process imports."""
NO_THREADS = {"JE_ARROW_MALLOC_CONF": "background_thread:false"}
"""Variables with which imports start no thread: arrow's allocator would purge its memory in one."""


class StoppedError(TrainingError):
    """The study stops, so a command was stopped or did not start."""


class Ended(NamedTuple):
    """status: exit status, or minus the signal that ended the process. cpu_seconds: of it and its own processes."""

    status: int
    cpu_seconds: float


class Processes:
    """Runs commands from any thread, with OMP_NUM_THREADS=1. A context: when it ends, all processes are stopped."""

    def __init__(self, warm: bool) -> None:
        """warm: whether `sidrec` commands are forked. Starts the warm process, which is ready some seconds later."""
        self._environment = _environment()
        self._lock = threading.Lock()
        self._running: set[int] = set()  # process groups
        self._stopped = False
        self._warm = _WarmProcess(self._environment) if warm else None

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def sidrec(self, words: Sequence[str], output: Path) -> Ended:
        """Runs `sidrec WORDS` to its end. output: file for its stdout and stderr. Raises StoppedError."""
        if self._warm is not None and self._warm.ready():
            ended = self._warm.run(words, output)
            self._check()
            return ended
        return self.command([sys.executable, "-P", "-m", "sidrec", *words], output)

    def command(self, words: Sequence[str], output: Path) -> Ended:
        """Runs a command to its end, as `sidrec` does."""
        with self._lock:
            self._check()
            with output.open("w", encoding="utf-8") as stream:
                process = subprocess.Popen(
                    words, stdout=stream, stderr=subprocess.STDOUT, env=self._environment, start_new_session=True
                )
            self._running.add(process.pid)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)  # lest Popen wait for it again
        with self._lock:
            self._running.discard(process.pid)
        self._check()
        return Ended(process.returncode, usage.ru_utime + usage.ru_stime)

    def stop(self) -> None:
        """Asks all processes to stop, waits up to GRACE seconds, then kills those that are left."""
        with self._lock:
            self._stopped = True
            for group in self._running:
                with suppress(ProcessLookupError):
                    os.killpg(group, signal.SIGTERM)
        if self._warm is not None:
            self._warm.stop()
        deadline = time.monotonic() + GRACE
        while self._running and time.monotonic() < deadline:
            time.sleep(0.05)
        with self._lock:
            for group in self._running:
                with suppress(ProcessLookupError):
                    os.killpg(group, signal.SIGKILL)

    def _check(self) -> None:
        if self._stopped:
            raise StoppedError("the study stops")


def _environment() -> dict[str, str]:
    """This environment for a single thread, with scripts of this Python's own environment first in PATH."""
    source = str(Path(sidrec.__file__).parents[1])
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "PYTHONPATH": os.pathsep.join([source, *filter(None, [os.environ.get("PYTHONPATH")])]),
    }


class _WarmProcess:
    """The process that is forked, as seen by the study. It ends, with its forks, when the study does."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="sidrec-study-")
        self._address = str(Path(self._folder.name) / "socket")
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__, self._address],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**environment, **NO_THREADS},
            start_new_session=True,  # Ctrl-C reaches the study alone, which stops the others
        )
        self._lock = threading.Lock()
        self._ready: bool | None = None

    def ready(self) -> bool:
        """Waits until its imports are done. Returns whether it can be forked."""
        with self._lock:
            if self._ready is None:
                assert self._process.stdout is not None
                self._ready = self._process.stdout.readline().strip() == READY
            return self._ready

    def run(self, words: Sequence[str], output: Path) -> Ended:
        """The end of a fork; status 1 if the warm process itself has ended."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            try:
                connection.connect(self._address)
                connection.send(json.dumps([list(words), str(output), str(Path.cwd())]).encode())
                answer = connection.recv(LONGEST)
            except OSError:
                answer = b""
        return Ended(*json.loads(answer)) if answer else Ended(1, 0.0)

    def stop(self) -> None:
        """Ends the process, which stops its forks first."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(GRACE + 5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._folder.cleanup()


# The warm process: `python -m sidrec.study.processes SOCKET`.


class _Request(NamedTuple):
    words: list[str]
    output: str
    folder: str


class _Forks:
    """The forks of this process: pid -> the connection that waits for its end."""

    def __init__(self) -> None:
        self.connections: dict[int, socket.socket] = {}
        self._kill_at: dict[int, float] = {}

    def waiting(self) -> list[socket.socket]:
        """Connections of forks that were not asked to stop."""
        return [connection for pid, connection in self.connections.items() if pid not in self._kill_at]

    def reap(self) -> None:
        """Answers for each fork that has ended."""
        while self.connections:
            pid, status, usage = os.wait4(-1, os.WNOHANG)
            if not pid:
                return
            connection = self.connections.pop(pid)
            self._kill_at.pop(pid, None)
            with connection, suppress(OSError):
                answer = [os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime]
                connection.send(json.dumps(answer).encode())

    def stop(self, connection: socket.socket | None = None) -> None:
        """Asks the fork of a connection to stop, or all forks."""
        for pid, found in self.connections.items():
            if pid not in self._kill_at and connection in (None, found):
                self._kill_at[pid] = time.monotonic() + GRACE
                _signal(pid, signal.SIGTERM)

    def kill_late(self) -> None:
        """Kills forks that were asked GRACE seconds ago."""
        for pid, late in self._kill_at.items():
            if time.monotonic() > late:
                _signal(pid, signal.SIGKILL)


def _signal(group: int, number: int) -> None:
    for send in (os.killpg, os.kill):  # a fork that has only begun has no group of its own yet
        with suppress(ProcessLookupError):
            send(group, number)
            return


def serve(address: str, stdin: IO[str]) -> _Request | None:
    """Forks for each request until stdin ends and all forks have ended; then returns None. Returns a request in a fork.

    A fork whose connection closes is stopped.
    """
    woken, wakes = os.pipe()
    os.set_blocking(wakes, False)
    signal.set_wakeup_fd(wakes)
    signal.signal(signal.SIGCHLD, lambda *_: None)  # only wakes the loop
    forks, open_ = _Forks(), True
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(address)
    listener.listen(64)
    print(READY, flush=True)
    while open_ or forks.connections:
        sources: list[Any] = [woken, *forks.waiting(), *([listener, stdin] if open_ else [])]
        ready, _, _ = select.select(sources, [], [], 1.0)
        if woken in ready:
            os.read(woken, 4096)
        forks.reap()
        forks.kill_late()
        for connection in forks.waiting():
            if connection in ready:
                forks.stop(connection)
        if stdin in ready:
            open_ = False
            forks.stop()
        if listener in ready and open_:
            connection = listener.accept()[0]
            request = connection.recv(LONGEST)
            pid = os.fork() if request else -1
            if pid == 0:
                signal.set_wakeup_fd(-1)
                for used in (listener, connection, *forks.connections.values()):
                    used.close()
                return _Request(*json.loads(request))
            if pid > 0:
                forks.connections[pid] = connection
    return None


def _obey(request: _Request) -> int:
    """Runs a `sidrec` command in this fork. Returns its exit status."""
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.chdir(request.folder)  # `output` may be relative
    output = os.open(request.output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for found, stream in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(found, stream)
    sys.argv = ["sidrec", *request.words]
    status: int = importlib.import_module(COMMAND).main(request.words)
    return status


def main() -> int:
    """Imports, then forks for each request."""
    for module in HEAVY:
        importlib.import_module(module)

    import psutil
    import torch

    if torch.version.cuda is not None or psutil.Process().num_threads() > 1:
        print("not to be forked", flush=True)
        return 0
    gc.freeze()  # the collector would write to pages that forks share
    request = serve(sys.argv[1], sys.stdin)
    return 0 if request is None else _obey(request)


if __name__ == "__main__":
    sys.exit(main())
