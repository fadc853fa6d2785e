"""Python programs as forks of one process that imported torch, TorchRec and sidrec before, which takes 5 CPU seconds.

`warm_environment()` has scripts `sidrec` and `torchrun` first on PATH, and names a `python` for torchrun's ranks. Each
script sends its arguments, working directory, environment and streams over a socket, and exits with the status of the
fork. A fork ends when its script is killed.
"""

import atexit
import functools
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

ROOT = Path(__file__).parents[1]
LONGEST = 1 << 17  # bytes of a request
SCRIPTS = {"sidrec": "-m sidrec", "torchrun": "-m torch.distributed.run", "python": ""}


@functools.cache
def warm_environment() -> dict[str, str]:
    """Variables for processes that are to use the scripts. The process that is forked ends with this one."""
    folder = tempfile.TemporaryDirectory(prefix="warm-")
    address = Path(folder.name) / "socket"
    for name, words in SCRIPTS.items():
        script = Path(folder.name) / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "{__file__}" call "{address}" {words} "$@"\n')
        script.chmod(0o755)
    process = subprocess.Popen(
        [sys.executable, "-P", __file__, "answer", str(address)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=folder.name,
    )
    assert process.stdout
    assert process.stdout.readline() == "listens\n"
    atexit.register(folder.cleanup)
    atexit.register(process.kill)
    path = f"{folder.name}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {"PATH": path, "PYTHON_EXEC": f"{folder.name}/python", "PYTHONPATH": str(ROOT)}


def _call(address: str, words: list[str]) -> int:
    """Sends one command line. Returns its exit status; 1 if the fork died."""
    request = json.dumps([words, str(Path.cwd()), dict(os.environ)]).encode()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.connect(address)
        socket.send_fds(connection, [request], [0, 1, 2])
        return int(connection.recv(16) or b"1")


def _answer(address: str) -> None:
    """Forks for each command line until standard input ends."""
    for heavy in ("torchrec.distributed", "sidrec.train.run", "sidrec.fit", "torch.distributed.run"):
        importlib.import_module(heavy)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # forks that ended leave no zombies
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(address)
        listener.listen(16)
        print("listens", flush=True)
        while listener in select.select([listener, sys.stdin], [], [])[0]:
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                _run(connection)
            connection.close()


def _run(connection: socket.socket) -> None:
    request, streams, *_ = socket.recv_fds(connection, LONGEST, 3)
    words, folder, environment = json.loads(request)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    # The streams of the warm process may be files, whose wrappers would seek in the caller's pipes.
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    threading.Thread(target=_end_with_caller, args=(connection,), daemon=True).start()
    status = 1
    try:
        _execute([word for word in words if word != "-u"])
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        connection.send(str(status).encode())
        os._exit(0)


def _execute(words: list[str]) -> None:
    """`python -m MODULE ...` or `python SCRIPT ...`, in this process."""
    if words[0] == "-m":
        sys.argv = words[1:]
        sys.path.insert(0, str(Path.cwd()))
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        sys.path.insert(0, str(Path(words[0]).parent))
        runpy.run_path(words[0], run_name="__main__")


def _end_with_caller(connection: socket.socket) -> None:
    if not connection.recv(1):
        os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    _, deed, address, *words = sys.argv
    if deed == "call":
        sys.exit(_call(address, words))
    _answer(address)
