"""Commands of a study: forks of a warm process, processes of their own, and how all of them are stopped."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from sidrec.study.processes import Ended, Processes, StoppedError


@pytest.fixture(scope="module")
def warm() -> Iterator[Processes]:
    with Processes(warm=True) as processes:
        yield processes


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline, "waited for 300 s"
        time.sleep(0.02)


def _forks(processes: Processes) -> list[psutil.Process]:
    assert processes._warm is not None
    return psutil.Process(processes._warm._process.pid).children()


class Call(threading.Thread):
    """A command that waits to read a recipe from a pipe that nobody writes."""

    def __init__(self, processes: Processes, folder: Path) -> None:
        super().__init__()
        self.processes, self.pipe, self.output = processes, folder / "pipe", folder / "out"
        os.mkfifo(self.pipe)
        self.ended: Ended | StoppedError | None = None
        self.start()

    def run(self) -> None:
        try:
            self.ended = self.processes.sidrec(["recipe", "show", str(self.pipe)], self.output)
        except StoppedError as error:
            self.ended = error


def test_the_warm_process_is_forked(warm: Processes, tmp_path: Path) -> None:
    assert warm._warm is not None
    assert warm._warm.ready()  # its imports start no thread
    ended = warm.sidrec(["--version"], tmp_path / "out")
    assert ended.status == 0
    assert 0 < ended.cpu_seconds < 60
    assert (tmp_path / "out").read_text().startswith("sidrec ")


def test_a_fork_has_the_status_and_output_of_the_command(warm: Processes, tmp_path: Path) -> None:
    assert warm.sidrec(["train", "none.yaml"], tmp_path / "out").status == 2
    assert "sidrec: error: none.yaml: expected a readable recipe" in (tmp_path / "out").read_text()


def test_a_killed_fork_ends_by_that_signal(warm: Processes, tmp_path: Path) -> None:
    call = Call(warm, tmp_path)
    _wait_until(lambda: len(_forks(warm)) == 1)
    _forks(warm)[0].send_signal(signal.SIGKILL)
    call.join(300)
    assert isinstance(call.ended, Ended)
    assert call.ended.status == -signal.SIGKILL


def test_stopping_ends_commands(tmp_path: Path) -> None:
    found: list[BaseException] = []

    def call() -> None:
        try:
            processes.command([sys.executable, "-c", "import time; time.sleep(600)"], tmp_path / "out")
        except StoppedError as error:
            found.append(error)

    with Processes(warm=False) as processes:
        thread = threading.Thread(target=call)
        thread.start()
        _wait_until(lambda: bool(processes._running))
        (pid,) = processes._running
    thread.join(300)
    assert len(found) == 1
    assert not psutil.pid_exists(pid)


def test_cpu_time_is_that_of_the_command_alone(tmp_path: Path) -> None:
    with Processes(warm=False) as processes:
        idle = processes.command(["true"], tmp_path / "out")
        busy = processes.command([sys.executable, "-c", "sum(range(20_000_000))"], tmp_path / "out")
    assert idle.cpu_seconds < busy.cpu_seconds


def test_commands_have_one_thread(tmp_path: Path) -> None:
    with Processes(warm=False) as processes:
        processes.command(["sh", "-c", "echo $OMP_NUM_THREADS"], tmp_path / "out")
    assert (tmp_path / "out").read_text() == "1\n"


def test_stopping_ends_forks_and_refuses_new_commands(warm: Processes, tmp_path: Path) -> None:
    call = Call(warm, tmp_path)
    _wait_until(lambda: len(_forks(warm)) == 1)
    fork = _forks(warm)[0]
    warm.stop()
    call.join(300)
    assert isinstance(call.ended, StoppedError)
    assert not fork.is_running()
    with pytest.raises(StoppedError):
        warm.command(["true"], tmp_path / "out")
