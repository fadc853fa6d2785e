"""A training that torchrun started, observed from outside: its output, processes and files."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[3]
MARK = "SIDREC_FAULT_CAMPAIGN"
"""Environment variable that every process of a job inherits, also after its parent has ended."""
POLL = 0.002  # seconds
RANK_MODULE, LAUNCHER_MODULE = "sidrec.train", "torch.distributed.run"

_BEGAN = re.compile(r"; (?:from the start|resuming after step (\d+)); ")
_STEP = re.compile(r"step (\d+)/(\d+) ")


class HungError(RuntimeError):
    """A job that neither continued nor ended in time."""


@dataclass
class Start:
    """The ranks of a job, once started; torchrun may start them again.

    began: seconds of the monotonic clock. position: the step that they continued from. step: the last one done.
    first_step: when the first one was done; None before.
    """

    began: float
    position: int
    step: int
    first_step: float | None = None

    @property
    def seconds(self) -> float | None:
        """From the start to its first step; None before."""
        return None if self.first_step is None else round(self.first_step - self.began, 2)


class Job:
    """`torchrun -m sidrec.train RECIPE`. Its output goes to `log`."""

    def __init__(self, recipe: Path, ranks: int, max_restarts: int, log: Path, mark: str) -> None:
        self.mark = f"{mark} {uuid.uuid4()}"  # another campaign on this machine may use the same name
        self.began = time.monotonic()  # set again when ranks are killed that torchrun restarts
        self.starts: list[Start] = []
        command = [sys.executable, "-m", LAUNCHER_MODULE, "--nproc-per-node", str(ranks)]
        command += ["--max-restarts", str(max_restarts), "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
        environment = os.environ | {
            MARK: self.mark,
            "SIDREC_THREADS": "1",
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
            "PYTHONFAULTHANDLER": "1",  # a hung rank writes its stacks before it is killed
        }
        self.process = subprocess.Popen(
            [*command, "-m", RANK_MODULE, str(recipe)],
            cwd=ROOT,
            env=environment,
            text=True,
            errors="replace",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._log = log
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout, "it is a pipe"
        with self._log.open("a") as log:
            log.write(f"--- {' '.join(map(str, self.process.args))}\n")  # type: ignore[arg-type]
            for line in self.process.stdout:
                log.write(line)
                log.flush()
                self._understand(line)

    def _understand(self, line: str) -> None:
        if began := _BEGAN.search(line):
            position = int(began[1] or 0)
            self.starts.append(Start(self.began, position, position))
        elif (done := _STEP.match(line)) and self.start:
            self.start.step = int(done[1])
            self.start.first_step = self.start.first_step or time.monotonic()

    @property
    def start(self) -> Start | None:
        """The current start; None until the ranks have logged the step that they continue from."""
        return self.starts[-1] if self.starts and self.starts[-1].began == self.began else None

    @property
    def ended(self) -> bool:
        """Whether torchrun has ended; ranks may still run."""
        return self.process.poll() is not None

    def wait_for(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Waits until the condition holds: True, or the job has ended: False. Raises HungError after `seconds`."""
        deadline = time.monotonic() + seconds
        while not condition():
            if self.ended:
                return False
            if time.monotonic() > deadline:
                raise HungError(f"nothing new for {seconds:.0f} s")
            time.sleep(POLL)
        return True

    def end(self, seconds: float) -> int:
        """Waits for torchrun's end and gives its exit status. Raises HungError after `seconds`."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise HungError(f"torchrun still runs after {seconds:.0f} s") from None

    def left_over(self, seconds: float) -> list[str]:
        """Waits until every process of the job has ended. Returns the command lines of those that did not in time."""
        deadline = time.monotonic() + seconds
        while found := self.processes():
            if time.monotonic() > deadline:
                return [" ".join(_command(process)) for process in found]
            time.sleep(0.05)
        self._reader.join(seconds)
        return []

    def processes(self) -> list[psutil.Process]:
        """Every process of the job that is alive, torchrun first."""
        return sorted((p for p in psutil.process_iter() if _mark(p) == self.mark), key=lambda p: p.pid)

    def ranks(self) -> list[psutil.Process]:
        """The ranks that are alive."""
        return [p for p in self.processes() if RANK_MODULE in _command(p) and LAUNCHER_MODULE not in _command(p)]

    def loader_workers(self) -> list[psutil.Process]:
        """The loaders' processes that are alive: children of the servers that they are forked from."""
        servers = {p.pid for p in self.processes() if _is_fork_server(p)}
        return [p for p in self.processes() if _parent(p) in servers]

    def kill(self) -> None:
        """Kills all processes of the job; ranks write their stacks first."""
        for rank in self.ranks():
            _send(rank, signal.SIGABRT)
        time.sleep(1)
        for process in self.processes():
            _send(process, signal.SIGKILL)
        self.process.wait()


def _send(process: psutil.Process, number: int) -> None:
    with suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def _mark(process: psutil.Process) -> str | None:
    try:
        alive = process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
        return process.environ().get(MARK) if alive else None
    except (psutil.Error, OSError):
        return None


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except (psutil.Error, OSError):
        return []


def _parent(process: psutil.Process) -> int | None:
    try:
        return process.ppid()
    except (psutil.Error, OSError):
        return None


def _is_fork_server(process: psutil.Process) -> bool:
    return any("multiprocessing.forkserver" in word for word in _command(process))
