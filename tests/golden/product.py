"""How the golden tests reach the product: command lines, and the few documented functions. Nothing else is imported.

When a module of the product is renamed, this file may have to follow; no other file of tests/golden does.
"""

import contextlib
import io
import os
import pickle
import platform
import random
import runpy
import socket
import sys
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torchrec
from torch import multiprocessing, nn

from sidrec import __version__, cli
from sidrec.plug import ItemCounts, attach, embedding_parameters
from sidrec.sid.catalog import load_catalog
from tests.ranks import start_from_warm

__all__ = [
    "ItemCounts",
    "Said",
    "attach",
    "command",
    "embedding_parameters",
    "inside",
    "load_catalog",
    "machine",
    "on_ranks",
    "prepare",
]

LIMIT = 1200.0  # seconds for all commands of one `on_ranks`
LIBRARIES = ("torch", "torchrec", "fbgemm-gpu-cpu", "numpy", "faiss-cpu", "scipy", "sentencepiece")


class Said(NamedTuple):
    """What a command left on its two streams, and its exit status."""

    status: int
    out: str
    err: str


def command(words: Sequence[str]) -> Said:
    """`sidrec WORDS`, in this process, on one thread."""
    return _captured(lambda: cli.main(list(words)))


def prepare(module: str, words: Sequence[str]) -> Said:
    """`python -m data_prep.MODULE WORDS`, in this process."""

    def run() -> int:
        given, sys.argv = sys.argv, [module, *words]
        try:
            runpy.run_module(f"data_prep.{module}", run_name="__main__", alter_sys=True)
        finally:
            sys.argv = given
        return 0

    return _captured(run)


def on_ranks(ranks: int, folder: Path, commands: Sequence[Sequence[str]]) -> list[Said]:
    """Runs each command on `ranks` processes joined over gloo, one after the other, in `folder`.

    Returns: what rank 0 said for each command. Raises AssertionError when a rank fails or the time is up.
    """
    context = multiprocessing.get_context("forkserver")
    ports = [_free_port() for _ in commands]
    said = folder / ".said"
    arguments = [(rank, ranks, str(folder), [list(words) for words in commands], ports) for rank in range(ranks)]
    processes = [context.Process(target=_run_rank, args=each) for each in arguments]
    try:
        start_from_warm(processes)
        deadline = time.monotonic() + LIMIT
        while any(process.exitcode is None for process in processes) and time.monotonic() < deadline:
            if any(process.exitcode for process in processes):
                break
            time.sleep(0.02)
        codes = [process.exitcode for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.join()
    errors = "".join(path.read_text() for path in sorted(folder.glob(".error-*")))
    assert codes == [0] * ranks, f"exit codes of the ranks: {codes}\n{errors}"
    found = [Said(*fields) for fields in pickle.loads(said.read_bytes())]
    said.unlink()
    return found


def machine() -> dict[str, Any]:
    """What decides which kernels run, and so the last bits of every number: processor, instruction set, libraries."""
    processor = {"architecture": platform.machine(), "instructions": torch.backends.cpu.get_cpu_capability()}
    return {**processor, **_processor(), **{name: version(name) for name in LIBRARIES}}


def product_version() -> str:
    """The release that is being tested."""
    return __version__


def plugged_dlrm(catalog: Path, items: int, width: int) -> tuple[nn.Module, list[nn.Parameter]]:
    """TorchRec's DLRM with SID-Coord plugged in, on one feature beside item and history; and its table parameters."""
    from torchrec.models.dlrm import DLRM

    torch.manual_seed(0)
    features = {"t_cat": (11, ["cat"]), "t_item": (items, ["item_id", "history"])}
    tables = torchrec.EmbeddingBagCollection(
        tables=[
            torchrec.EmbeddingBagConfig(name=name, embedding_dim=width, num_embeddings=rows, feature_names=names)
            for name, (rows, names) in features.items()
        ]
    )
    model = DLRM(tables, 5, [8, width], [8, 1])
    attach(model, catalog, "item_id", "history", ItemCounts(torch.arange(items).flip(0)))
    return model, list(embedding_parameters(model))


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Works in `folder`: all paths of the golden set are relative, so that none names a machine."""
    with contextlib.chdir(folder):
        yield


@contextlib.contextmanager
def _environment(**variables: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _captured(run: Any) -> Said:
    out, err = io.StringIO(), io.StringIO()
    threads = torch.get_num_threads()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # shown once in a process, so by the test that comes first
        with _environment(SIDREC_THREADS="1", OMP_NUM_THREADS="1"):
            try:
                torch.set_num_threads(1)
                status = run()
            except SystemExit as end:
                status = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
            finally:
                torch.set_num_threads(threads)
    return Said(status, out.getvalue(), err.getvalue())


def _run_rank(rank: int, ranks: int, folder: str, commands: list[list[str]], ports: list[int]) -> None:
    torch.set_num_threads(1)
    os.chdir(folder)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(ranks))
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    found = []
    try:
        for words, port in zip(commands, ports, strict=True):
            os.environ["MASTER_PORT"] = str(port)
            found.append(tuple(command(words)))
            if found[-1][0] != 0:
                raise AssertionError(f"{words}: {found[-1]}")
        if rank == 0:
            Path(".said").write_bytes(pickle.dumps(found))
    except BaseException:
        Path(f".error-{rank}").write_text(traceback.format_exc())
        os._exit(1)


def _free_port() -> int:
    """Below those that the system deals out: gloo takes many of these before a later command needs its own."""
    while True:
        port = random.SystemRandom().randrange(15_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def _processor() -> dict[str, str]:
    """Vendor, family and model, which choose the code path inside MKL, FBGEMM and OpenBLAS."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().split("\n\n")[0].splitlines() if path.exists() else []
    facts = dict(line.split(":", 1) for line in lines if ":" in line)
    named = {name.strip(): value.strip() for name, value in facts.items()}
    return {key: named.get(key, "") for key in ("vendor_id", "cpu family", "model")}
