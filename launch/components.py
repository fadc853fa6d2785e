"""torchx components. Each only builds a command line, which works without torchx too:

    python -m torch.distributed.run --nnodes 1 --nproc-per-node 2 ... -m sidrec.train RECIPE ARGUMENTS

    torchx run -s local_cwd launch/components.py:train --recipe RECIPE --ranks 2 -- --seed 3

launch/templates has the same command for Slurm and Kubernetes without torchx. On several machines, torchx's Kubernetes
and Docker schedulers mount a /dev/shm as large as the memory; elsewhere it is the machine's.

torchx parses signatures as text and accepts only typing's Dict, List and Optional, hence the noqas.
"""

import shlex
import sys
from collections.abc import Sequence
from typing import Dict, List, Optional  # noqa: UP035

from torchx import specs
from torchx.specs import macros

FIRST_PORT, PORTS = 20000, 10000
"""Ports of rendezvous, drawn by the job's id: below those that Linux gives to connections."""
CPU_RANK, GPU_RANK = (2, 8192), (12, 98304)
"""Cores and megabytes for each rank unless --cpu and --memMB are given; on GPUs, loaders need more of both."""
GPU_ENVIRONMENT = {
    "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",  # batches differ in size: fixed segments fragment
    "TORCH_NCCL_TRACE_BUFFER_SIZE": "2000",  # NCCL's flight recorder, which the watchdog writes down
    "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
    "NCCL_DEBUG": "WARN",
}


def train(
    recipe: str,
    *args: str,
    nodes: int = 1,
    ranks: int = 1,
    threads: int = 0,
    max_restarts: int = 0,
    grace: int = 30,
    port: int = 0,
    image: str = "",
    cpu: int = 0,
    gpu: int = 0,
    memMB: int = 0,
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
        max_restarts: how often all ranks restart from the latest checkpoint after one has died, and how often the
            scheduler starts the job again that has lost a machine
        grace: seconds that ranks have after SIGTERM to save a checkpoint
        port: of the rendezvous of several machines; 0 for one drawn by the job's id
        image: container image, whose python runs; for schedulers that use containers
        cpu: cores per machine; 0 for two of each rank, 12 on GPUs
        gpu: GPUs per machine, at least one for each rank; 0 for none
        memMB: memory per machine; 0 for 8192 of each rank, 98304 on GPUs
        mounts: folders of a container, as in type=bind,src=/data,dst=/data
        env: environment, as in A=1,B=2
        name: name of the job
    """
    job = _Job(name, image, nodes, ranks, max_restarts, threads, grace, port)
    return job.app(["-m", "sidrec.train", recipe, *args], (cpu, gpu, memMB), mounts, env)


def evaluate(
    run: str,
    *args: str,
    ranks: int = 1,
    threads: int = 0,
    image: str = "",
    cpu: int = 0,
    gpu: int = 0,
    memMB: int = 0,
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
        cpu: cores; 0 for two of each rank, 12 on GPUs
        gpu: GPUs, at least one for each rank; 0 for none
        memMB: memory; 0 for 8192 of each rank, 98304 on GPUs
        mounts: folders of a container, as in type=bind,src=/data,dst=/data
        env: environment, as in A=1,B=2
        name: name of the job
    """
    job = _Job(name, image, 1, ranks, threads=threads)
    return job.app(["-m", "sidrec", "evaluate", run, *args], (cpu, gpu, memMB), mounts, env)


def bench(
    subject: str,
    *args: str,
    nodes: int = 1,
    ranks: int = 1,
    threads: int = 0,
    port: int = 0,
    image: str = "",
    cpu: int = 0,
    gpu: int = 0,
    memMB: int = 0,
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
        port: of the rendezvous of several machines; 0 for one drawn by the job's id
        image: container image, whose python runs; for schedulers that use containers
        cpu: cores per machine; 0 for two of each rank, 12 on GPUs
        gpu: GPUs per machine, at least one for each rank; 0 for none
        memMB: memory per machine; 0 for 8192 of each rank, 98304 on GPUs
        mounts: folders of a container, as in type=bind,src=/data,dst=/data
        env: environment, as in A=1,B=2
        name: name of the job
    """
    job = _Job(name, image, nodes, ranks, threads=threads, port=port)
    return job.app(["-m", "sidrec", "bench", "plans", subject, *args], (cpu, gpu, memMB), mounts, env)


def fit(
    recipe: str,
    *args: str,
    nodes: int = 1,
    ranks: int = 1,
    threads: int = 0,
    max_restarts: int = 0,
    grace: int = 30,
    port: int = 0,
    image: str = "",
    cpu: int = 0,
    gpu: int = 0,
    memMB: int = 0,
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
        max_restarts: how often all ranks restart from the latest checkpoint after one has died, and how often the
            scheduler starts the job again that has lost a machine
        grace: seconds that ranks have after SIGTERM to save a checkpoint
        port: of the rendezvous of several machines; 0 for one drawn by the job's id
        image: container image, whose python runs; for schedulers that use containers
        cpu: cores per machine; 0 for two of each rank, 12 on GPUs
        gpu: GPUs per machine, at least one for each rank; 0 for none
        memMB: memory per machine; 0 for 8192 of each rank, 98304 on GPUs
        mounts: folders of a container, as in type=bind,src=/data,dst=/data
        env: environment, as in A=1,B=2
        name: name of the job
    """
    job = _Job(name, image, nodes, ranks, max_restarts, threads, grace, port)
    return job.app(["-m", "sidrec", "fit", recipe, *args], (cpu, gpu, memMB), mounts, env)


class _Shell(str):
    """A word of the command that torchx and the shell on the machine expand."""


class _Job:
    """Ranks under torchrun on one machine or several. A class, since torchx registers every function of this file.

    image: container image; "" runs this Python. threads: of each rank; 0 leaves them to sidrec. grace: seconds.
    """

    def __init__(
        self,
        name: str,
        image: str,
        nodes: int,
        ranks: int,
        max_restarts: int = 0,
        threads: int = 0,
        grace: int = 30,
        port: int = 0,
    ) -> None:
        if nodes < 1 or ranks < 1:
            raise ValueError(f"expected at least one node and one rank, got --nodes {nodes} --ranks {ranks}")
        self.name, self.image, self.nodes, self.ranks, self.max_restarts = name, image, nodes, ranks, max_restarts
        self.port = port
        self.env = {
            # With a shared store, ranks that restart over gloo would read the addresses of dead ranks.
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
            "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": f"{grace}",
            "LOGLEVEL": "WARNING",
        }
        if threads:
            self.env |= {"SIDREC_THREADS": f"{threads}", "OMP_NUM_THREADS": f"{threads}"}

    def app(
        self,
        words: Sequence[str],
        resources: tuple[int, int, int],
        mounts: list[str] | None,
        env: dict[str, str] | None,
    ) -> specs.AppDef:
        """words: the module and its arguments, as in -m sidrec.train RECIPE. resources: cpu, gpu, memMB."""
        cpu, gpu, memory = resources
        if gpu and self.ranks > gpu:
            raise ValueError(f"expected at most one rank for each GPU, got --ranks {self.ranks} --gpu {gpu}")
        rank_cpu, rank_memory = GPU_RANK if gpu else CPU_RANK
        role = specs.Role(
            name=self.name.rpartition("-")[2],
            image=self.image,
            entrypoint="bash",
            args=["-c", self._script(words)],
            env={**self.env, **(GPU_ENVIRONMENT if gpu else {}), **(env or {})},
            num_replicas=self.nodes,
            max_retries=self.max_restarts,
            resource=specs.Resource(
                cpu=cpu or rank_cpu * self.ranks, gpu=gpu, memMB=memory or rank_memory * self.ranks
            ),
            mounts=specs.parse_mounts(mounts or []),
        )
        return specs.AppDef(name=self.name, roles=[role])

    def _script(self, words: Sequence[str]) -> str:
        """The shell's command: torchrun, and on several machines before it a check that they can meet."""
        python = "python" if self.image else sys.executable  # works without an activated environment
        check, endpoint = "", "localhost:0"  # one agent: any free port
        if self.nodes > 1:
            # The scheduler names the first machine in this variable. Without it, each machine would train alone.
            unset = "the scheduler did not name the first machine"
            port = f"{self.port}" if self.port else self._drawn_port()
            assigned = f"endpoint=$${{{macros.rank0_env}:?{unset}}}:{port}"
            endpoint = _Shell('"$$endpoint"')
            check = f'{assigned}; {self._quoted(python)} -m sidrec.rendezvous "$$endpoint" && '
        torchrun = [
            *(python, "-m", "torch.distributed.run"),
            *("--nnodes", str(self.nodes), "--nproc-per-node", str(self.ranks)),
            *("--max-restarts", str(self.max_restarts)),
            *("--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint, "--rdzv-id", _Shell(macros.app_id)),
            *("--tee", "3", "--role", ""),
        ]
        return f"{check}exec " + " ".join(map(self._quoted, [*torchrun, *words]))

    def _drawn_port(self) -> str:
        """A port that all machines of a job agree on, and two jobs of one machine hardly ever share."""
        return f"$$(({FIRST_PORT} + $$(echo {macros.app_id} | cksum | cut -d ' ' -f 1) % {PORTS}))"

    def _quoted(self, word: str) -> str:
        """Quotes a word for the shell, and for torchx, which expands ${...} and reads $$ as $."""
        if isinstance(word, _Shell):
            return word
        return shlex.quote(word).replace("$", "$$")
