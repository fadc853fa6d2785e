"""Checks of this machine: can it train, and if not, which command repairs it?

Imports neither torch nor torchrec: calls that may crash are probes, which run as subprocesses of this file:

    python -m sidrec.doctor.machine_checks lookup
    torchrun ... -m sidrec.doctor.machine_checks all_reduce
"""

import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from sidrec import machine
from sidrec.preflight import Finding
from sidrec.stack import KNOWN, Stack, fault, find_stack, known_triple, repair

GIB = 2**30
PROBE_SECONDS = 180
PROBES = "sidrec.doctor.machine_checks"
PYTHON = shlex.quote(sys.executable)


def examine() -> list[Finding]:
    """All checks of the machine. The probes are skipped if the installed stack is broken."""
    findings = [python(), stack()]
    if findings[-1].state != "problem":
        lookup, gpus = look_up()
        findings += [lookup, gpu(gpus), all_reduce(gpus)]
    return [*findings, cores(), threads(), memory(), shared_memory(), disk(), torchx()]


def python() -> Finding:
    """The lock files are made and tested for 3.11."""
    found = f"{platform.python_version()} at {sys.executable}"
    if sys.version_info[:2] != (3, 11):
        return Finding("Python", "note", f"{found}; tested with 3.11", "rm -rf .venv && make .venv PYTHON=python3.11")
    return Finding("Python", "ok", found)


def stack(find: Callable[[], Stack] | None = None) -> Finding:
    """The releases and builds of torch, FBGEMM and torchrec match, by their metadata. A note if not those of the locks.

    find: called in place of `find_stack`.
    """
    installed = (find or find_stack)()
    mismatch = fault(installed)
    if mismatch:
        return Finding("stack", "problem", f"{mismatch} ({installed})", repair(installed))
    triple = known_triple(installed)
    if triple and triple != KNOWN[0]:
        return Finding("stack", "note", f"{installed}; tested with these: {triple.tested}", repair(installed))
    return Finding("stack", "ok", str(installed))


def look_up() -> tuple[Finding, int]:
    """A fused embedding lookup with its update works; also returns the number of GPUs that torch sees."""
    done = _run_probe([sys.executable, "-m", PROBES, "lookup"])
    if done.returncode:
        return Finding("fused lookup", "problem", _error_message(done), repair(find_stack())), 0
    facts = json.loads(done.stdout.splitlines()[-1])
    return Finding("fused lookup", "ok", f"forward, backward and update; torchrec {facts['torchrec']}"), facts["gpus"]


def gpu(gpus: int) -> Finding:
    """torch can use the GPUs that the driver lists."""
    devices = sorted(Path("/dev").glob("nvidia[0-9]*"))
    if gpus:
        return Finding("GPU", "ok", f"{gpus} that torch can use")
    if devices:
        command = "make .venv BUILD=cuda" if find_stack().torch_build == "cpu" else "nvidia-smi"
        return Finding("GPU", "note", f"{len(devices)} in /dev, none that torch can use", command)
    return Finding("GPU", "ok", "none; sidrec trains on CPU")


def all_reduce(gpus: int) -> Finding:
    """An all-reduce works: over NCCL with one rank for each GPU, else over gloo with two ranks."""
    ranks, name = (gpus, "NCCL") if gpus else (2, "gloo")
    launch = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(ranks),
        "-m",
        PROBES,
    ]
    done = _run_probe([sys.executable, *launch, "all_reduce"])
    if done.returncode:
        command = "NCCL_DEBUG=INFO sidrec doctor" if gpus else "GLOO_SOCKET_IFNAME=lo sidrec doctor"
        return Finding(name, "problem", f"{ranks} rank(s) cannot sum: {_error_message(done)}", command)
    return Finding(name, "ok", f"{ranks} rank(s) sum")


def cores() -> Finding:
    """Cores that the CPU affinity and the container's quota allow."""
    usable = machine.cores()
    return Finding("cores", "ok", f"{usable:g} usable of {os.cpu_count()}")


def threads() -> Finding:
    """OMP_NUM_THREADS is at most the number of cores; more threads are 2 to 4 times slower (measured)."""
    wanted = os.environ.get("OMP_NUM_THREADS")
    if wanted is None:
        return Finding("threads", "ok", "OMP_NUM_THREADS is not set: every rank gets cores / ranks")
    if not wanted.isdigit() or int(wanted) < 1 or int(wanted) > max(1, machine.cores()):
        found = f"OMP_NUM_THREADS={wanted}, expected 1 to {max(1, int(machine.cores()))}"
        return Finding("threads", "problem", found, "unset OMP_NUM_THREADS")
    return Finding("threads", "ok", f"OMP_NUM_THREADS={wanted}")


def memory(available: Callable[[], tuple[int, int]] = machine.memory) -> Finding:
    """2 GiB are free: two ranks and their two loader workers need about 330 MB each (measured) before any table.

    available: returns bytes that are free, and bytes in all.
    """
    free, limit = available()
    found = f"{free / GIB:.1f} GiB free of {limit / GIB:.1f}"
    if free < 2 * GIB:
        return Finding("memory", "problem", f"{found}; expected 2 GiB free", "ps aux --sort=-rss | head")
    return Finding("memory", "ok", found)


def shared_memory() -> Finding:
    """/dev/shm is large enough for the batches of loader workers; containers often have 64 MB."""
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return Finding("/dev/shm", "note", "none; set data.workers to 0", "sidrec train RECIPE --data.workers 0")
    usage = shutil.disk_usage(folder)
    found = f"{usage.free / GIB:.1f} GiB free of {usage.total / GIB:.1f}"
    if usage.free < GIB // 4:
        command = "mount -o remount,size=2G /dev/shm" if usage.total < GIB else "ls -lS /dev/shm | head"
        return Finding("/dev/shm", "problem", f"{found}; expected 0.25 GiB free", command)
    return Finding("/dev/shm", "ok", found)


def disk(folder: Path | None = None) -> Finding:
    """Disk for run directories. While a checkpoint is replaced, tables and optimizer state are there twice."""
    where = Path.cwd() if folder is None else folder
    free = shutil.disk_usage(where).free
    found = f"{free / GIB:.1f} GiB free in {where}"
    if free < 2 * GIB:
        return Finding("disk", "problem", f"{found}; expected 2", "sidrec train RECIPE --train.runs LARGER_DISK")
    return Finding("disk", "ok", found)


def torchx() -> Finding:
    """torchx is installed. Only launch/components.py needs it."""
    try:
        return Finding("torchx", "ok", version("torchx"))
    except PackageNotFoundError:
        found = "not installed; torchrun works without it"
        return Finding("torchx", "note", found, f"{PYTHON} -m pip install 'torchx>=0.7'")


def _run_probe(command: list[str]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    try:
        return subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=PROBE_SECONDS, env=environment
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"no answer after {PROBE_SECONDS} s")


def _error_message(done: subprocess.CompletedProcess[str]) -> str:
    """The first error line on stderr, because launchers print a report after it; else the last line."""
    if done.returncode < 0:
        return f"killed by signal {-done.returncode}"
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if "Error: " in line or "expected" in line]
    return (errors or lines or [f"exit status {done.returncode}"])[0 if errors else -1][:300]


# The probes.


def probe_lookup() -> None:
    """One fused embedding lookup, forward, backward and update; prints JSON.

    Two bags, {0, 2} and {2}, of a table whose row r holds r; SGD of rate 1 on the sum of the pooled vectors.

    The pooled sums are 0 + 2 and 2. Row 2 is in both bags, row 0 in one, row 1 in none: they lose 2, 1 and 0.
    """
    import torch
    from fbgemm_gpu.split_embedding_configs import EmbOptimType
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
        ComputeDevice,
        SplitTableBatchedEmbeddingBagsCodegen,
    )

    gpu = torch.cuda.is_available()
    location, device = (
        (EmbeddingLocation.DEVICE, ComputeDevice.CUDA) if gpu else (EmbeddingLocation.HOST, ComputeDevice.CPU)
    )
    table = SplitTableBatchedEmbeddingBagsCodegen(
        [(3, 4, location, device)], optimizer=EmbOptimType.EXACT_SGD, learning_rate=1.0
    )
    (weight,) = table.split_embedding_weights()
    weight.copy_(torch.arange(3.0).unsqueeze(1).expand(3, 4))
    ids, offsets = (torch.tensor(values, device=weight.device) for values in ([0, 2, 2], [0, 2, 3]))
    pooled = table(ids, offsets)
    pooled.sum().backward()
    _expect("the lookup", pooled[:, 0].tolist(), [2.0, 2.0])
    _expect("the update", table.split_embedding_weights()[0][:, 0].tolist(), [-1.0, 1.0, 0.0])
    import torchrec

    print(json.dumps({"torchrec": torchrec.__version__, "gpus": torch.cuda.device_count() if gpu else 0}))


def probe_all_reduce() -> None:
    """Sums rank + 1 over all ranks, by NCCL if every rank has a GPU, else by gloo; expects world * (world + 1) / 2."""
    import torch
    import torch.distributed as dist

    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    gpu = torch.cuda.is_available() and torch.cuda.device_count() >= world
    device = torch.device("cuda", rank) if gpu else torch.device("cpu")
    dist.init_process_group("nccl" if gpu else "gloo", timeout=timedelta(seconds=60))
    total = torch.tensor([rank + 1.0], device=device)
    dist.all_reduce(total)
    dist.destroy_process_group()
    _expect("the sum over the ranks", total.tolist(), [world * (world + 1) / 2])


def _expect(what: str, got: list[float], expected: list[float]) -> None:
    if got != expected:
        raise SystemExit(f"{what}: expected {expected}, got {got}")


if __name__ == "__main__":
    {"lookup": probe_lookup, "all_reduce": probe_all_reduce}[sys.argv[1]]()
