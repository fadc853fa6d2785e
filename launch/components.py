"""torchx components. Each is a pure translation to a command line that one can type by hand:

    python -m torch.distributed.run --nnodes 1 --nproc-per-node 2 ... -m sidrec.train RECIPE ARGUMENTS

    torchx run -s local_cwd launch/components.py:train --recipe RECIPE --ranks 2 -- --seed 3

torchx reads signatures as text and knows only typing's Dict, List and Optional (hence the UP noqas).
"""

import shlex
import sys
from collections.abc import Sequence
from typing import Dict, List, Optional  # noqa: UP035

from torchx import specs
from torchx.specs import macros

RENDEZVOUS_PORT = 29500


def train(
    recipe: str,
    *args: str,
    nodes: int = 1,
    ranks: int = 1,
    threads: int = 0,
    max_restarts: int = 0,
    image: str = "",
    cpu: int = 2,
    gpu: int = 0,
    memMB: int = 8192,
    mounts: Optional[List[str]] = None,  # noqa: UP006, UP045
    env: Optional[Dict[str, str]] = None,  # noqa: UP006, UP045
    name: str = "sidrec-train",
) -> specs.AppDef:
    """Trains a recipe on nodes x ranks processes.

    Args:
        recipe: recipe file (YAML)
        args: flags for the recipe's scalars, after --, as in -- --seed 3
        nodes: machines
        ranks: processes per machine; with GPUs, one each
        threads: threads per rank; 0 gives each rank its share of the machine's cores
        max_restarts: times the ranks are started again, from the latest checkpoint, after one has died
        image: container image, for schedulers that run one; its own python is used then
        cpu: cores per machine
        gpu: GPUs per machine
        memMB: memory per machine
        mounts: folders of a container, as in type=bind,src=/data,dst=/data
        env: environment, as in A=1,B=2
        name: name of the job
    """
    command = [*_torchrun(image, nodes, ranks, max_restarts), "-m", "sidrec.train", recipe, *args]
    resource = specs.Resource(cpu=cpu, gpu=gpu, memMB=memMB)
    return _app(name, command, nodes, image, resource, mounts, {**_threads(threads), **(env or {})})


def evaluate(
    run: str,
    *args: str,
    ranks: int = 1,
    threads: int = 0,
    image: str = "",
    cpu: int = 2,
    gpu: int = 0,
    memMB: int = 8192,
    mounts: Optional[List[str]] = None,  # noqa: UP006, UP045
    env: Optional[Dict[str, str]] = None,  # noqa: UP006, UP045
    name: str = "sidrec-evaluate",
) -> specs.AppDef:
    """Computes a run's metrics again, from its checkpoint.

    Args:
        run: run directory
        args: further arguments of sidrec evaluate, after --
        ranks: processes, all on one machine
        threads: threads per rank; 0 gives each rank its share of the machine's cores
        image: container image, for schedulers that run one; its own python is used then
        cpu: cores
        gpu: GPUs
        memMB: memory
        mounts: folders of a container, as in type=bind,src=/data,dst=/data
        env: environment, as in A=1,B=2
        name: name of the job
    """
    command = [*_torchrun(image, 1, ranks, 0), "-m", "sidrec", "evaluate", run, *args]
    resource = specs.Resource(cpu=cpu, gpu=gpu, memMB=memMB)
    return _app(name, command, 1, image, resource, mounts, {**_threads(threads), **(env or {})})


def bench(
    subject: str,
    *args: str,
    nodes: int = 1,
    ranks: int = 1,
    threads: int = 0,
    image: str = "",
    cpu: int = 2,
    gpu: int = 0,
    memMB: int = 8192,
    mounts: Optional[List[str]] = None,  # noqa: UP006, UP045
    env: Optional[Dict[str, str]] = None,  # noqa: UP006, UP045
    name: str = "sidrec-bench",
) -> specs.AppDef:
    """Measures sharding plans on nodes x ranks processes.

    Args:
        subject: recipe or tables file (YAML), or criteo-mlperf
        args: options of sidrec bench plans, after --, as in -- --plans auto,row_wise --rounds 3
        nodes: machines
        ranks: processes per machine; with GPUs, one each
        threads: threads per rank; 0 gives each rank its share of the machine's cores
        image: container image, for schedulers that run one; its own python is used then
        cpu: cores per machine
        gpu: GPUs per machine
        memMB: memory per machine
        mounts: folders of a container, as in type=bind,src=/data,dst=/data
        env: environment, as in A=1,B=2
        name: name of the job
    """
    command = [*_torchrun(image, nodes, ranks, 0), "-m", "sidrec", "bench", "plans", subject, *args]
    resource = specs.Resource(cpu=cpu, gpu=gpu, memMB=memMB)
    return _app(name, command, nodes, image, resource, mounts, {**_threads(threads), **(env or {})})


def fit(
    recipe: str,
    *args: str,
    nodes: int = 1,
    ranks: int = 1,
    threads: int = 0,
    max_restarts: int = 0,
    image: str = "",
    cpu: int = 2,
    gpu: int = 0,
    memMB: int = 8192,
    mounts: Optional[List[str]] = None,  # noqa: UP006, UP045
    env: Optional[Dict[str, str]] = None,  # noqa: UP006, UP045
    name: str = "sidrec-fit",
) -> specs.AppDef:
    """Learns semantic IDs and writes the catalog; learners that train by gradients share their batches over ranks.

    Args:
        recipe: recipe file (YAML)
        args: flags for the recipe's scalars, after --
        nodes: machines
        ranks: processes per machine; with GPUs, one each
        threads: threads per rank; 0 gives each rank its share of the machine's cores
        max_restarts: times the ranks are started again, from the latest checkpoint, after one has died
        image: container image, for schedulers that run one; its own python is used then
        cpu: cores per machine
        gpu: GPUs per machine
        memMB: memory per machine
        mounts: folders of a container, as in type=bind,src=/data,dst=/data
        env: environment, as in A=1,B=2
        name: name of the job
    """
    command = [*_torchrun(image, nodes, ranks, max_restarts), "-m", "sidrec", "fit", recipe, *args]
    resource = specs.Resource(cpu=cpu, gpu=gpu, memMB=memMB)
    return _app(name, command, nodes, image, resource, mounts, {**_threads(threads), **(env or {})})


class _Shell(str):
    """A word of the command that torchx and the shell on the machine are to expand."""


def _torchrun(image: str, nodes: int, ranks: int, max_restarts: int) -> list[str]:
    if nodes < 1 or ranks < 1:
        raise ValueError(f"expected at least one node and one rank, got --nodes {nodes} --ranks {ranks}")
    endpoint = "localhost:0"  # one agent: any free port
    if nodes > 1:
        # The scheduler tells every machine which one is first; without that word each would train a world of its own.
        endpoint = _Shell(f"$${{{macros.rank0_env}:?the scheduler did not name the first machine}}:{RENDEZVOUS_PORT}")
    return [
        *(_python(image), "-m", "torch.distributed.run"),
        *("--nnodes", str(nodes), "--nproc-per-node", str(ranks), "--max-restarts", str(max_restarts)),
        *("--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint, "--rdzv-id", _Shell(macros.app_id)),
        *("--tee", "3", "--role", ""),
    ]


def _python(image: str) -> str:
    """This very interpreter, so that no environment need be activated; a container has its own."""
    return "python" if image else sys.executable


def _threads(threads: int) -> dict[str, str]:
    return {"SIDREC_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)} if threads else {}


def _app(
    name: str,
    command: Sequence[str],
    nodes: int,
    image: str,
    resource: specs.Resource,
    mounts: Optional[List[str]],  # noqa: UP006, UP045  (torchx reads the signatures of all functions here)
    env: dict[str, str],
) -> specs.AppDef:
    role = specs.Role(
        name=name.rpartition("-")[2],
        image=image,
        entrypoint="bash",
        args=["-c", "exec " + " ".join(map(_word, command))],
        # Ranks that start again over gloo must not meet addresses that dead ranks left in the agent's store.
        env={"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "LOGLEVEL": "WARNING", **env},
        num_replicas=nodes,
        resource=resource,
        mounts=specs.parse_mounts(mounts or []),
        port_map={"c10d": RENDEZVOUS_PORT},
    )
    return specs.AppDef(name=name, roles=[role])


def _word(word: str) -> str:
    """Quoted for the shell, and for torchx, which fills in ${...} and reads $$ as $."""
    if isinstance(word, _Shell):
        return word
    return shlex.quote(word).replace("$", "$$")
