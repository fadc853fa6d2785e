"""The templates for Slurm and Kubernetes are valid, and run what the component runs."""

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("torchx", reason="torchx is not installed; the extra launch brings it")

from torchx.specs import Role

from launch import components

TEMPLATES = Path(components.__file__).parent / "templates"
SBATCH = TEMPLATES / "slurm.sbatch"
NODES, RANKS, RETRIES, GRACE = 2, 8, 3, 120


@pytest.fixture(scope="module")
def role() -> Role:
    app = components.train(
        "/data/recipe.yaml", nodes=NODES, ranks=RANKS, gpu=RANKS, max_restarts=RETRIES, grace=GRACE, image="any"
    )
    return app.roles[0]


def torchrun_of(role: Role, endpoint: str, job: str) -> list[str]:
    """The component's words after `python`, as a machine's shell sees them."""
    command = role.args[1].partition("&& exec python ")[2]
    command = command.replace("$$endpoint", endpoint).replace("${app_id}", job)
    done = subprocess.run(["bash", "-c", f"printf '%s\\n' {command}"], check=True, capture_output=True, text=True)
    return done.stdout.split("\n")[:-1]


def program(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/bash\n{script}\n")
    path.chmod(0o755)


def submit(folder: Path, status: int = 0, **variables: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Runs the script with programs in place of Slurm's and python. Returns its result, and what these did."""
    did = folder / "did"
    did.write_text("")
    note = f'for word in "$@"; do printf "<%s>" "$word"; done >> {did}; echo >> {did}'
    program(folder, "scontrol", f'if [ "$1" = show ]; then printf "node-1\\nnode-2\\n"; else {note}; fi')
    program(folder, "srun", f'{note}; env > {folder}/env; while [[ "$1" == --* ]]; do shift; done; "$@"')
    program(folder, "python", f'{note}; [ "$2" = sidrec.rendezvous ] || exit {status}')
    environment = {"PATH": f"{folder}:{os.environ['PATH']}", "SLURM_JOB_ID": "123456", "SLURM_NNODES": f"{NODES}"}
    environment |= {"SLURM_JOB_NODELIST": "node-[1-2]", **variables}
    command = ["bash", str(SBATCH), "/data/recipe.yaml", "--name", "a b"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    return done, did.read_text().splitlines()


def options() -> dict[str, str]:
    found = re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", SBATCH.read_text(), re.MULTILINE)
    assert len(found) == SBATCH.read_text().count("#SBATCH ")
    return dict(found)


def test_the_slurm_script_is_valid_bash() -> None:
    assert subprocess.run(["bash", "-n", str(SBATCH)], check=True, capture_output=True, text=True).stderr == ""


def test_slurm_runs_what_the_component_runs(role: Role, tmp_path: Path) -> None:
    done, did = submit(tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    srun, checked, trained = did
    assert srun.startswith(f"<--kill-on-bad-exit=1><--wait={GRACE}><bash><-c>")
    assert checked == "<-m><sidrec.rendezvous><node-1:23456>"
    expected = [*torchrun_of(role, "node-1:23456", "123456"), "--name", "a b"]
    assert trained == "".join(f"<{word}>" for word in expected)
    given = set((tmp_path / "env").read_text().splitlines())
    assert {f"{name}={value}" for name, value in role.env.items()} <= given


def test_slurm_gives_what_the_component_asks_for(role: Role) -> None:
    asked = options()
    assert asked["nodes"] == f"{role.num_replicas}" == f"{NODES}"
    assert asked["ntasks-per-node"] == "1"
    assert int(asked["gpus-per-node"]) == role.resource.gpu >= RANKS
    assert int(asked["cpus-per-task"]) == role.resource.cpu
    assert asked["mem"] == f"{role.resource.memMB}M"
    assert {"requeue", "open-mode"} < set(asked)
    sent, seconds = asked["signal"].split("@")
    assert sent == "TERM"
    assert int(seconds) > int(role.env["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]) == GRACE


@pytest.mark.parametrize(("restarts", "requeued"), [(None, True), ("2", True), ("3", False)])
def test_slurm_starts_a_job_again_as_often_as_the_component(
    role: Role, restarts: str | None, requeued: bool, tmp_path: Path
) -> None:
    assert role.max_retries == RETRIES
    done, did = submit(tmp_path, status=7, **({} if restarts is None else {"SLURM_RESTART_COUNT": restarts}))
    assert done.returncode == 7
    assert ("<requeue><123456>" in did) == requeued


# Kubernetes.


@pytest.fixture(scope="module")
def jobset() -> Any:
    return yaml.safe_load((TEMPLATES / "jobset.yaml").read_text())


@pytest.fixture(scope="module")
def job(jobset: Any) -> Any:
    (machine,) = jobset["spec"]["replicatedJobs"]
    assert machine["replicas"] == 1
    return machine["template"]["spec"]


def unknown_keys(tree: Any, kind: str) -> list[str]:
    """Keys that Kubernetes' own type of this name does not have."""
    models = pytest.importorskip("kubernetes.client.models")
    if kind.startswith("list["):
        return [key for entry in tree for key in unknown_keys(entry, kind[5:-1])]
    model = getattr(models, kind, None)
    if model is None:
        return []
    names = {key: name for name, key in model.attribute_map.items()}
    found = [f"{kind}.{key}" for key in tree if key not in names]
    for key in set(tree) & set(names):
        found += unknown_keys(tree[key], model.openapi_types[names[key]])
    return found


def test_the_jobset_has_keys_that_kubernetes_knows(jobset: Any, job: Any) -> None:
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert set(jobset["spec"]) == {"network", "failurePolicy", "replicatedJobs"}
    assert unknown_keys(job, "V1JobSpec") == []
    assert unknown_keys({"template": {"spec": {"containers": [{"img": 1}]}}}, "V1JobSpec") == ["V1Container.img"]


def test_kubernetes_runs_what_the_component_runs(role: Role, jobset: Any, job: Any, tmp_path: Path) -> None:
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    shell, flag, script = container["command"]
    assert (shell, flag) == ("bash", "-c")
    program(tmp_path, "python", 'printf "<%s>" "$@"; echo')
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = [shell, flag, script]
    shown = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    name = jobset["metadata"]["name"]
    machine = jobset["spec"]["replicatedJobs"][0]["name"]
    endpoint = f"{name}-{machine}-0-0.{name}:29500"  # JobSet's name of the first pod
    expected = torchrun_of(role, endpoint, name)
    assert shown.splitlines() == [
        f"<-m><sidrec.rendezvous><{endpoint}>",
        "".join(f"<{word}>" for word in expected),
    ]
    assert {entry["name"]: entry["value"] for entry in container["env"]} == role.env


def test_kubernetes_gives_what_the_component_asks_for(role: Role, jobset: Any, job: Any) -> None:
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    assert job["parallelism"] == job["completions"] == role.num_replicas
    assert job["completionMode"] == "Indexed"
    assert (job["backoffLimit"], jobset["spec"]["failurePolicy"]["maxRestarts"]) == (0, role.max_retries)
    assert pod["restartPolicy"] == "Never"
    assert pod["terminationGracePeriodSeconds"] > int(role.env["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"])
    asked = {"cpu": f"{role.resource.cpu}", "memory": f"{role.resource.memMB}M", "nvidia.com/gpu": f"{RANKS}"}
    assert container["resources"] == {"requests": asked, "limits": asked}
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes[mounts["/dev/shm"]]["emptyDir"] == {"medium": "Memory"}
    assert "persistentVolumeClaim" in volumes[mounts["/data"]]
