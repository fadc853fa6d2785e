"""What the components turn into on each scheduler, and that the shell reads the command as it was meant."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torchx", reason="torchx is not installed; the extra launch brings it")

from torchx.runner import get_runner
from torchx.specs import AppDef
from torchx.specs.finder import ModuleComponentsFinder

from launch import components

FILE = f"{components.__file__}"


def _dry_run(scheduler: str, component: str, *words: str, **config: str | bool) -> str:
    """The scheduler's own request, as text, for a component called as the command line calls it."""
    with get_runner() as runner:
        return str(runner.dryrun_component(f"{FILE}:{component}", list(words), scheduler, config))


def _command(app: AppDef) -> str:
    assert app.roles[0].args[0] == "-c"
    return app.roles[0].args[1]


def test_torchx_finds_the_components_and_no_other_function() -> None:
    found = ModuleComponentsFinder(components, group="sidrec").find()
    assert sorted(each.fn_name for each in found) == ["bench", "evaluate", "fit", "train"]
    assert not [error for each in found for error in each.validation_errors]


def test_one_machine_is_a_torchrun_that_one_can_type() -> None:
    app = components.train("beauty.yaml", "--seed", "3", ranks=2, max_restarts=1)
    assert _command(app) == (
        f"exec {sys.executable} -m torch.distributed.run --nnodes 1 --nproc-per-node 2 --max-restarts 1 "
        "--rdzv-backend c10d --rdzv-endpoint localhost:0 --rdzv-id ${app_id} --tee 3 --role '' "
        "-m sidrec.train beauty.yaml --seed 3"
    )
    assert app.roles[0].env == {
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "30",
        "LOGLEVEL": "WARNING",
    }
    assert app.roles[0].max_retries == 1
    assert (app.roles[0].resource.cpu, app.roles[0].resource.gpu, app.roles[0].resource.memMB) == (4, 0, 16384)


def test_threads_resources_mounts_and_environment() -> None:
    app = components.train(
        "r.yaml", threads=3, cpu=8, gpu=2, memMB=100, env={"A": "1"}, mounts=["type=bind", "src=/d", "dst=/e"]
    )
    (role,) = app.roles
    assert (role.resource.cpu, role.resource.gpu, role.resource.memMB) == (8, 2, 100)
    assert role.env["SIDREC_THREADS"] == role.env["OMP_NUM_THREADS"] == "3"
    assert role.env["A"] == "1"
    assert [(mount.src_path, mount.dst_path) for mount in role.mounts] == [("/d", "/e")]


@pytest.mark.parametrize("component", ["train", "fit", "bench", "evaluate"])
def test_cores_and_memory_follow_ranks_and_each_rank_has_a_gpu(component: str) -> None:
    role = getattr(components, component)("r.yaml", ranks=8, gpu=8).roles[0]
    assert (role.resource.cpu, role.resource.gpu, role.resource.memMB) == (96, 8, 786432)
    assert role.env["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:True"
    assert {"TORCH_NCCL_TRACE_BUFFER_SIZE", "TORCH_NCCL_DUMP_ON_TIMEOUT", "NCCL_DEBUG"} < set(role.env)
    with pytest.raises(ValueError, match="at most one rank for each GPU, got --ranks 8 --gpu 4"):
        getattr(components, component)("r.yaml", ranks=8, gpu=4)


def test_the_environment_wins_over_defaults() -> None:
    chosen = {"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:512"}
    assert chosen.items() <= components.train("r.yaml", gpu=1, env=chosen).roles[0].env.items()


def test_evaluate_runs_through_the_console_script() -> None:
    assert _command(components.evaluate("runs/x/seed0", "--split", "test", ranks=2)).endswith(
        " -m sidrec evaluate runs/x/seed0 --split test"
    )


def test_bench_runs_on_ranks_as_train_does() -> None:
    bench = _command(components.bench("r.yaml", "--plans", "auto,row_wise", nodes=2, ranks=8))
    train = _command(components.train("r.yaml", "--plans", "auto,row_wise", nodes=2, ranks=8))
    assert bench == train.replace("-m sidrec.train", "-m sidrec bench plans")
    assert components.bench("r.yaml", gpu=8).roles[0].resource.gpu == 8


def test_fit_runs_on_ranks_as_train_does() -> None:
    fit = _command(components.fit("r.yaml", "--overwrite", nodes=2, ranks=8, max_restarts=1))
    train = _command(components.train("r.yaml", "--overwrite", nodes=2, ranks=8, max_restarts=1))
    assert fit == train.replace("-m sidrec.train", "-m sidrec fit")
    assert components.fit("r.yaml", gpu=8).roles[0].resource.gpu == 8


@pytest.mark.parametrize(("nodes", "ranks"), [(0, 1), (1, 0)])
def test_no_ranks(nodes: int, ranks: int) -> None:
    with pytest.raises(ValueError, match=f"at least one node and one rank, got --nodes {nodes} --ranks {ranks}"):
        components.train("r.yaml", nodes=nodes, ranks=ranks)


def test_slurm() -> None:
    words = ("--recipe", "r.yaml", "--nodes", "2", "--ranks", "8", "--gpu", "8", "--cpu", "64", "--memMB", "1000")
    script = _dry_run("slurm", "train", *words, "--max_restarts", "3", "--grace", "120", "--", "--seed", "3")
    assert script.count("-m sidrec.train r.yaml --seed 3") == 2  # one agent per machine
    assert script.count("--nnodes 2 --nproc-per-node 8") == 2
    assert script.count("endpoint=${SLURM_JOB_NODELIST_HET_GROUP_0:?") == 2
    assert script.count('-m sidrec.rendezvous "$endpoint" && exec ') == 2
    assert "\nexport TORCHX_MAX_RETRIES=3\n" in script
    assert script.count("TORCH_ELASTIC_SHUTDOWN_TIMEOUT=120") == 2
    assert script.count("PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True") == 2
    assert script.count("--cpus-per-task=64 --mem=1000 --gpus-per-task=8") == 2


def test_kubernetes() -> None:
    words = ("--recipe", "/d/r.yaml", "--nodes", "2", "--image", "me/sidrec:1", "--mounts", "type=bind,src=/d,dst=/d")
    more = ("--max_restarts", "2", "--port", "29500")
    job = " ".join(_dry_run("kubernetes", "train", *words, *more, queue="default").split())
    assert job.count("exec python -m torch.distributed.run --nnodes 2") == 2
    assert "endpoint=${TORCHX_RANK0_HOST:?" in job  # the first machine; torchx sets it to localhost there
    assert "endpoint=${VC_TRAIN_0_HOSTS:?the scheduler did not name the first machine}:29500" in job
    assert job.count("maxRetry: 2") == 3  # of the job, and of each machine
    assert job.count("mountPath: /dev/shm") == 2
    assert job.count("emptyDir: medium: Memory") == 2
    assert job.count("image: me/sidrec:1") == 2
    assert job.count("mountPath: /d ") == 2


def _run_shell(app: AppDef, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs the command with a `python` that prints its words, after filling torchx's macros in."""
    python = folder / "python"
    python.write_text('#!/bin/sh\nfor word in "$@"; do echo "<$word>"; done\n')
    python.chmod(0o755)
    with get_runner() as runner:
        request = runner.dryrun(app, "local_cwd", {"log_dir": str(folder)}).request
    command = request.role_params[app.roles[0].name][0].args
    environment["PATH"] = f"{folder}:{os.environ['PATH']}"
    return subprocess.run(command, check=False, capture_output=True, text=True, env=environment)


@pytest.mark.parametrize("word", ["a b", "it's", "$HOME", "${app_id}", "$$", "*", 'say "x"; exit 3', ""])
def test_words_arrive_as_they_were_given(word: str, tmp_path: Path) -> None:
    done = _run_shell(components.evaluate("run", word, image="any"), tmp_path)
    assert done.stdout.endswith(f"<-m>\n<sidrec>\n<evaluate>\n<run>\n<{word}>\n")


def _endpoint(app: AppDef, folder: Path, **environment: str) -> str:
    """The one that the check and torchrun got."""
    words = _run_shell(app, folder, **environment).stdout.split()
    checked = words[words.index("<sidrec.rendezvous>") + 1]
    assert words[words.index("<--rdzv-endpoint>") + 1] == checked
    return checked.strip("<>")


def test_a_machine_without_the_address_of_the_first_fails(tmp_path: Path) -> None:
    app = components.train("r.yaml", nodes=2, image="any", port=29500)
    assert _endpoint(app, tmp_path, TORCHX_RANK0_HOST="localhost") == "localhost:29500"
    alone = _run_shell(app, tmp_path)
    assert alone.returncode != 0
    assert alone.stdout == ""
    assert "the scheduler did not name the first machine" in alone.stderr


def test_machines_of_a_job_draw_one_port_and_other_jobs_another(tmp_path: Path) -> None:
    app = components.train("r.yaml", nodes=2, image="any")
    script = _command(app)
    ports = set()
    for job in ("train-a", "train-b"):
        app.roles[0].args[1] = script.replace("${app_id}", job)
        endpoints = {_endpoint(app, tmp_path, TORCHX_RANK0_HOST="head") for _ in range(2)}
        assert len(endpoints) == 1
        host, port = endpoints.pop().split(":")
        assert host == "head"
        assert 20000 <= int(port) < 30000
        ports.add(port)
    assert len(ports) == 2


def test_torchrun_does_not_start_where_machines_cannot_meet(tmp_path: Path) -> None:
    app = components.train("r.yaml", nodes=2, image="any")
    app.roles[0].args[1] = app.roles[0].args[1].replace("python -m sidrec.rendezvous", "false")
    done = _run_shell(app, tmp_path, TORCHX_RANK0_HOST="head")
    assert (done.returncode, done.stdout) == (1, "")
