"""`sidrec` for the blocks of pages: each call is a fork of one process that imported torch before, which takes seconds.

`warm_commands(FOLDER)` starts that process and writes a script `sidrec` into FOLDER. The script sends its arguments,
working directory, environment and streams over a socket, and exits with the status that the fork sends back.
"""

import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path

LONGEST = 1 << 17  # bytes of a request


def warm_commands(folder: Path) -> subprocess.Popen[str]:
    """The process that is forked. It ends when its standard input ends, so at the latest with its parent."""
    address, script = folder / "socket", folder / "sidrec"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "{__file__}" call "{address}" "$@"\n')
    script.chmod(0o755)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, __file__, "answer", str(address)]
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=folder
    )
    assert process.stdout
    assert process.stdout.readline() == "listens\n"
    return process


def call(address: str, words: list[str]) -> int:
    """Sends one command line. Returns its exit status; 1 where the fork died."""
    request = json.dumps([words, str(Path.cwd()), dict(os.environ)]).encode()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.connect(address)
        socket.send_fds(connection, [request], [0, 1, 2])
        return int(connection.recv(16) or b"1")


def answer(address: str) -> None:
    """Forks for each command line until standard input ends."""
    for heavy in ("torchrec.distributed", "sidrec.train.run", "sidrec.fit"):
        importlib.import_module(heavy)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # forks that ended leave no zombies
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(address)
        listener.listen()
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
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["sidrec", *words]
    status = 1
    try:
        from sidrec.cli import main

        status = main(words)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        connection.send(str(status).encode())
        os._exit(0)


if __name__ == "__main__":
    _, deed, address, *words = sys.argv
    if deed == "call":
        sys.exit(call(address, words))
    answer(address)
