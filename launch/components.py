"""torchx components. Each only builds a command line, which works without torchx too:

    python -m torch.distributed.run --nnodes 1 --nproc-per-node 2 ... -m sidrec.train RECIPE ARGUMENTS

    torchx run -s local_cwd launch/components.py:train --recipe RECIPE --ranks 2 -- --seed 3

torchx parses signatures as text and accepts only typing's Dict, List and Optional, hence the noqas.
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
        max_restarts: how often all ranks restart from the latest checkpoint after one has died
        image: container image, whose python runs; for schedulers that use containers
        cpu: cores per machine
        gpu: GPUs per machine
        memMB: memory per machine
        mounts: folders of a container, as in type=bind,src=/data,dst=/data
        env: environment, as in A=1,B=2
        name: name of the job
    """
    job = _Job(name, image, nodes, ranks, max_restarts, threads)
    resource = specs.Resource(cpu=cpu, gpu=gpu, memMB=memMB)
    return job.app(["-m", "sidrec.train", recipe, *args], resource, mounts, env)


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
        image: container image, whose python runs; for schedulers that use containers
        cpu: cores
        gpu: GPUs
        memMB: memory
        mounts: folders of a container, as in type=bind,src=/data,dst=/data
        env: environment, as in A=1,B=2
        name: name of the job
    """
    job = _Job(name, image, 1, ranks, threads=threads)
    resource = specs.Resource(cpu=cpu, gpu=gpu, memMB=memMB)
    return job.app(["-m", "sidrec", "evaluate", run, *args], resource, mounts, env)


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
        image: container image, whose python runs; for schedulers that use containers
        cpu: cores per machine
        gpu: GPUs per machine
        memMB: memory per machine
        mounts: folders of a container, as in type=bind,src=/data,dst=/data
        env: environment, as in A=1,B=2
        name: name of the job
    """
    job = _Job(name, image, nodes, ranks, threads=threads)
    resource = specs.Resource(cpu=cpu, gpu=gpu, memMB=memMB)
    return job.app(["-m", "sidrec", "bench", "plans", subject, *args], resource, mounts, env)


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
        max_restarts: how often all ranks restart from the latest checkpoint after one has died
        image: container image, whose python runs; for schedulers that use containers
        cpu: cores per machine
        gpu: GPUs per machine
        memMB: memory per machine
        mounts: folders of a container, as in type=bind,src=/data,dst=/data
        env: environment, as in A=1,B=2
        name: name of the job
    """
    job = _Job(name, image, nodes, ranks, max_restarts, threads)
    resource = specs.Resource(cpu=cpu, gpu=gpu, memMB=memMB)
    return job.app(["-m", "sidrec", "fit", recipe, *args], resource, mounts, env)


class _Shell(str):
    """A word of the command that torchx and the shell on the machine expand."""


class _Job:
    """Ranks under torchrun on one machine or several. A class, since torchx registers every function of this file.

    image: container image; "" runs this Python. threads: of each rank; 0 leaves them to sidrec.
    """

    def __init__(self, name: str, image: str, nodes: int, ranks: int, max_restarts: int = 0, threads: int = 0) -> None:
        if nodes < 1 or ranks < 1:
            raise ValueError(f"expected at least one node and one rank, got --nodes {nodes} --ranks {ranks}")
        self.name, self.image, self.nodes, self.ranks, self.max_restarts = name, image, nodes, ranks, max_restarts
        self.threads = {"SIDREC_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)} if threads else {}

    def app(
        self, words: Sequence[str], resource: specs.Resource, mounts: list[str] | None, env: dict[str, str] | None
    ) -> specs.AppDef:
        """words: the module and its arguments, as in -m sidrec.train RECIPE."""
        role = specs.Role(
            name=self.name.rpartition("-")[2],
            image=self.image,
            entrypoint="bash",
            args=["-c", "exec " + " ".join(map(self._quoted, [*self._torchrun(), *words]))],
            # With a shared store, ranks that restart over gloo would read the addresses of dead ranks.
            env={"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "LOGLEVEL": "WARNING", **self.threads, **(env or {})},
            num_replicas=self.nodes,
            resource=resource,
            mounts=specs.parse_mounts(mounts or []),
            port_map={"c10d": RENDEZVOUS_PORT},
        )
        return specs.AppDef(name=self.name, roles=[role])

    def _torchrun(self) -> list[str]:
        endpoint = "localhost:0"  # one agent: any free port
        if self.nodes > 1:
            # The scheduler names the first machine in this variable. Without it, each machine would train alone.
            unset = "the scheduler did not name the first machine"
            endpoint = _Shell(f"$${{{macros.rank0_env}:?{unset}}}:{RENDEZVOUS_PORT}")
        python = "python" if self.image else sys.executable  # works without an activated environment
        return [
            *(python, "-m", "torch.distributed.run"),
            *("--nnodes", str(self.nodes), "--nproc-per-node", str(self.ranks)),
            *("--max-restarts", str(self.max_restarts)),
            *("--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint, "--rdzv-id", _Shell(macros.app_id)),
            *("--tee", "3", "--role", ""),
        ]

    def _quoted(self, word: str) -> str:
        """Quotes a word for the shell, and for torchx, which expands ${...} and reads $$ as $."""
        if isinstance(word, _Shell):
            return word
        return shlex.quote(word).replace("$", "$$")
