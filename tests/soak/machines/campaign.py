"""Trainings on two machines of two ranks each: lost machines, folders that are not shared, names that mislead, and
sharding types that distinguish machines."""

import json
import logging
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sidrec.config import Recipe, save
from sidrec.config.recipe import SgdTables
from sidrec.io.files import write_json, write_text
from sidrec.study.results import conditions
from tests.small_log import small_recipe, write_small_log
from tests.soak.faults.killed_run import EXACT, Difference, across_worlds, compare
from tests.soak.machines.network import MACHINES, Machines, Process

ROOT = Path(__file__).parents[3]
PORT = 29400
RANKS = 2  # of a machine
PATIENCE = 300.0  # seconds for a training, or a moment of it
SHARDED = Difference(1e-6, 1e-6)
"""Tolerance of losses and metrics between sharding types."""
LOST_AT = 12  # step
LONG = 6  # epochs, so that ranks can be held before they are through

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Case:
    """A case's result. found: what was seen. failure: why it is not as it should be; "" if it is."""

    name: str
    found: str
    seconds: float
    failure: str = ""


def run_machines(out: Path, names: Sequence[str] = ()) -> list[Case]:
    """Runs the cases, or those of these names; writes out/result.json and out/report.md.

    The logs of failed cases are kept in out/failures. Raises ObstacleError without the rights to make machines.
    """
    facts: dict[str, Any] = {**conditions(), "machines": len(MACHINES), "ranks": RANKS * len(MACHINES)}
    done = []
    with tempfile.TemporaryDirectory(prefix="machines-") as folder, Machines(Path(folder)) as machines:
        campaign = Campaign(machines, Path(folder))
        for name, case in campaign.cases().items():
            if names and name not in names:
                continue
            began = time.monotonic()
            try:
                found, failure = case(), ""
            except AssertionError as error:
                found, failure = "", str(error)
                shutil.copytree(campaign.logs, out / "failures", dirs_exist_ok=True)
            done.append(Case(name, found, round(time.monotonic() - began, 1), failure))
            log.info("%s: %s (%.0f s)", name, failure or found, done[-1].seconds)
            for machine in MACHINES:
                machines.lose(machine)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "result.json", {"conditions": facts, "cases": [asdict(case) for case in done]})
    write_text(out / "report.md", report_text(done, facts))
    return done


def report_text(cases: Sequence[Case], facts: dict[str, Any]) -> str:
    """report.md."""
    failed = sum(bool(case.failure) for case in cases)
    lines = ["# Two machines", "", f"{len(cases)} cases, {failed} failed. Commit {facts.get('commit')}.", ""]
    lines += ["| case | seconds | result |", "|---|---|---|"]
    lines += [f"| {case.name} | {case.seconds:.0f} | {case.failure or case.found} |" for case in cases]
    return "\n".join([*lines, ""])


class Campaign:
    """The cases, on machines that exist. folder: of the log, runs and outputs."""

    def __init__(self, machines: Machines, folder: Path) -> None:
        self.machines, self.folder, self.logs = machines, folder, folder / "logs"
        self.logs.mkdir()
        self.recipe = small_recipe(
            write_small_log(folder, rows=1200),
            model={"embedding_dim": 8, "item": {"kind": "sid_coord", "alignment": {"kind": "none"}}},
            optimizer={"tables": {"kind": "adagrad", "lr": 0.05, "eps": 1e-4}},
            train={"epochs": 3, "log_every": 1, "row_ledger": True},
            parallel={"sharding": "table_wise"},
            checkpoint={"every": 5, "keep": 3},
        )

    def cases(self) -> dict[str, Callable[[], str]]:
        """Name -> function that returns what was found, and raises AssertionError where that is wrong."""
        return {
            "grid_shard": lambda: self.sharded_as("grid_shard"),
            "table_row_wise": lambda: self.sharded_as("table_row_wise"),
            "a machine is lost and comes back": self.lost_and_back,
            "a machine is lost, the other trains on, and it comes back": self.elastic,
            "no shared folder": self.no_shared_folder,
            "no shared folder, resumed": self.no_shared_folder_resumed,
            "a rendezvous name that means the machine itself": self.wrong_rendezvous,
            "a machine whose name means itself": self.wrong_names,
        }

    def torchrun(
        self, machine: str, recipe: Recipe, log: str, nodes: str = "2", words: Sequence[str] = (), **facts: Any
    ) -> Process:
        """Starts the agent of a machine. log: name of its output. facts: for `Machines.start`."""
        path = self.folder / f"{recipe.name}.yaml"
        save(recipe, path)
        command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", nodes, "--nproc-per-node", f"{RANKS}"]
        command += ["--max-restarts", "3", "--rdzv-backend", "c10d", "--rdzv-id", recipe.name]
        if "--rdzv-endpoint" not in words:
            command += ["--rdzv-endpoint", f"alpha:{PORT}"]
        environment = {
            "PYTHONPATH": str(ROOT),
            "SIDREC_THREADS": "1",
            "SIDREC_DEVICE": "cpu",
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
            "LOGLEVEL": "INFO",
            **facts.pop("environment", {}),
        }
        command += [*words, "-m", "sidrec.train", str(path)]
        return self.machines.start(machine, command, self.logs / f"{log}-{machine}.log", environment, **facts)

    def whole(self, machines: int = 2, epochs: int = 3) -> Path:
        """The run directory of an uninterrupted training on this many machines, all tables table_wise."""
        recipe = self.named(f"whole-{machines}-{epochs}", epochs)
        if not (recipe.run / "metrics.json").exists():
            agents = [self.torchrun(each, recipe, recipe.name, f"{machines}") for each in list(MACHINES)[:machines]]
            _end_well(agents)
        return recipe.run

    def named(self, name: str, epochs: int) -> Recipe:
        """Over more epochs with SGD, under which rounding on other ranks does not grow as under Adagrad."""
        recipe = replace(self.recipe, name=name, train=replace(self.recipe.train, epochs=epochs))
        if epochs < LONG:
            return recipe
        return replace(recipe, optimizer=replace(recipe.optimizer, tables=SgdTables(lr=0.05)))

    # Sharding types that distinguish machines.

    def sharded_as(self, kind: str) -> str:
        """The tables of the plan in two blocks of columns, one on each machine; or each by rows over one machine."""
        whole = self.whole()
        plan = json.loads((whole / "plan.json").read_text())
        assert (plan["world"], plan["local_world"]) == (4, RANKS)
        tables = [layout for tables in plan["tables"].values() for layout in tables.values()]
        for number, layout in enumerate(tables):
            ranks = [0, 1, 2, 3] if kind == "grid_shard" else [[0, 1], [2, 3]][number % 2]
            layout |= {"sharding_type": kind, "ranks": ranks}
        path = self.folder / f"{kind}.json"
        path.write_text(json.dumps(plan))
        recipe = replace(self.recipe, name=kind)
        recipe = replace(recipe, parallel=replace(recipe.parallel, sharding="auto", plan=path))
        _end_well([self.torchrun(machine, recipe, kind) for machine in MACHINES])
        kept = json.loads((recipe.run / "plan.json").read_text())
        assert kept["tables"] == plan["tables"], "trained with another plan"
        verdict = compare(whole, recipe.run, SHARDED)
        assert not verdict.complaints, "; ".join(verdict.complaints)
        steps = len((recipe.run / "metrics.jsonl").read_text().splitlines())
        largest = (
            f"losses of {steps} steps within {verdict.found.losses:.1e}, metrics within {verdict.found.metrics:.1e}"
        )
        cut = "two blocks of columns, one on each machine" if kind == "grid_shard" else "rows over one of the machines"
        return f"{len(tables)} tables, {cut}; {largest} of table_wise"

    # Machines that are lost.

    def lost_and_back(self) -> str:
        whole, recipe = self.whole(), replace(self.recipe, name="lost")
        first, second = (self.torchrun(machine, recipe, "lost") for machine in MACHINES)
        first.wait_for(f"\nstep {LOST_AT}/", PATIENCE)
        self.machines.lose("beta")
        lost = time.monotonic()
        first.wait_for("lost its connection to another rank", PATIENCE)
        said = time.monotonic() - lost
        second = self.torchrun("beta", recipe, "lost")
        _end_well([first, second])
        resumed = re.findall(r"resuming after step (\d+)", first.output)
        assert resumed, "the run was not resumed"
        verdict = compare(whole, recipe.run, EXACT)
        assert not verdict.complaints, "; ".join(verdict.complaints)
        return (
            f"lost at step {LOST_AT}, which the other's ranks said after {said:.1f} s; resumed after step "
            f"{resumed[-1]}; metrics, losses and rows equal to the uninterrupted run's, bit for bit"
        )

    def elastic(self) -> str:
        """--nnodes 1:2. The ranks that train alone are held at their start until the other machine is there again."""
        wholes = [self.whole(machines, LONG) for machines in (2, 1)]
        recipe, soon = self.named("elastic", LONG), ["--rdzv-conf", "last_call_timeout=15"]
        first, second = (self.torchrun(machine, recipe, "elastic", "1:2", soon) for machine in MACHINES)
        first.wait_for(f"\nstep {LOST_AT}/", PATIENCE)
        assert "\n4 rank(s) on cpu" in first.output, "the machines did not start together"
        self.machines.lose("beta")
        first.wait_for("\n2 rank(s) on cpu", PATIENCE)
        held = _ranks(self.machines.processes("alpha"))
        for rank in held:
            os.kill(rank, signal.SIGSTOP)
        second = self.torchrun("beta", recipe, "elastic", "1:2", soon)
        try:
            first.wait_for("will restart worker group", PATIENCE)
            time.sleep(0.5)  # SIGTERM reaches the ranks first: they train a step and save it
        finally:
            for rank in held:
                with suppress(ProcessLookupError):
                    os.kill(rank, signal.SIGCONT)
        _end_well([first, second])
        starts = re.findall(r"\n(\d) rank\(s\) on cpu", first.output)
        assert starts == ["4", "2", "4"], f"ranks of its starts: {starts}"
        allowed = across_worlds(wholes)
        verdict = compare(wholes[0], recipe.run, allowed)
        assert not verdict.complaints, "; ".join(verdict.complaints)
        resumed = re.findall(r"resuming after step (\d+)", first.output)
        steps = len((recipe.run / "metrics.jsonl").read_text().splitlines())
        assert int(resumed[0]) < int(resumed[1]) < steps, f"resumed after steps {resumed} of {steps}"
        return (
            f"4, 2 and 4 ranks, resumed after steps {' and '.join(resumed)}; the same rows in the same steps; losses "
            f"within {verdict.found.losses:.1e} of the uninterrupted run (allowed {allowed.losses:.1e}), metrics "
            f"within {verdict.found.metrics:.1e} (allowed {allowed.metrics:.1e})"
        )

    # Machines that are refused.

    def no_shared_folder(self) -> str:
        recipe = replace(self.recipe, name="unshared")
        return self._unshared(recipe, {machine: [recipe.train.runs] for machine in MACHINES})

    def no_shared_folder_resumed(self) -> str:
        """The run was trained in part on alpha; beta does not see that."""
        source, recipe = self.whole(), replace(self.recipe, name="unshared-resumed")
        shutil.copytree(source, recipe.run)
        for path in (recipe.run / "checkpoints").glob("step-*"):
            if int(path.name.removeprefix("step-")) > LOST_AT + 40:
                shutil.rmtree(path)
        save(recipe, recipe.run / "config.yaml")
        before = _content(recipe.run)
        found = self._unshared(recipe, {"alpha": [], "beta": [recipe.train.runs]})
        assert _content(recipe.run) == before, "the run directory changed"
        return f"{found}; the run directory is as it was"

    def _unshared(self, recipe: Recipe, private: dict[str, list[Path]]) -> str:
        words = ["--max-restarts", "0"]
        agents = [
            self.torchrun(machine, recipe, recipe.name, words=words, private=private[machine]) for machine in MACHINES
        ]
        statuses = [agent.end(PATIENCE) for agent in agents]
        assert all(statuses), f"exit statuses {statuses}"
        output = "".join(agent.output for agent in agents)
        sentence = _sentence(output)
        expected = (
            "train.runs: expected one folder that all machines share, but what rank 0 on alpha writes into "
            f"{recipe.run} is not seen by rank(s) 2, 3 on beta"
        )
        assert expected in sentence, f"expected {expected!r}, got {sentence!r}"
        assert "start: " not in output, "it went on"
        return f"refused: {sentence}"

    def wrong_rendezvous(self) -> str:
        """The check that goes before torchrun, on a machine where the first one's name means the machine itself."""
        command = [sys.executable, "-m", "sidrec.rendezvous", f"alpha:{PORT}"]
        hosts = {"alpha": "127.0.1.1", "beta": MACHINES["beta"]}
        environment = {"PYTHONPATH": str(ROOT)}
        checked = self.machines.start("beta", command, self.logs / "rendezvous-beta.log", environment, hosts=hosts)
        status = checked.end(PATIENCE)
        sentence = _sentence(checked.output)
        assert status == 2, f"exit status {status}: {checked.output}"
        assert "on beta the name alpha means 127.0.1.1, beta itself" in sentence, sentence
        return f"refused: {sentence}"

    def wrong_names(self) -> str:
        """Rendezvous by address, while each name means 127.0.1.1 on its own machine, as Debian installs it."""
        recipe = self.named("names", 1)
        hosts = {"alpha": {"alpha": "127.0.1.1"}, "beta": {"beta": "127.0.1.1"}}

        def start(log: str, remedy: bool) -> list[Process]:
            found = []
            for machine, address in MACHINES.items():
                words = ["--rdzv-endpoint", f"{MACHINES['alpha']}:{PORT}", "--max-restarts", "0"]
                words += ["--local-addr", address, "--rdzv-conf", f"is_host={int(machine == 'alpha')}"]
                environment = {"GLOO_SOCKET_IFNAME": self.machines.interfaces[machine]} if remedy else {}
                agent = self.torchrun(machine, recipe, log, words=words, hosts=hosts[machine], environment=environment)
                found.append(agent)
            return found

        refused = start("names", remedy=False)
        assert all(agent.end(PATIENCE) for agent in refused)
        sentence = _sentence("".join(agent.output for agent in refused))
        assert "to mean an address that other machines reach, got 127.0.1.1; set GLOO_SOCKET_IFNAME=sid" in sentence, (
            sentence
        )
        _end_well(start("names-mended", remedy=True))
        return f"refused: {sentence}; with that variable, --local-addr and is_host=1 it trains"


def _end_well(agents: Sequence[Process]) -> None:
    for agent in agents:
        status = agent.end(PATIENCE)
        assert status == 0, f"exit status {status}: {_sentence(agent.output) or agent.output[-500:]}"


def _sentence(output: str) -> str:
    """The first error of ours in an output."""
    found = re.findall(r"^sidrec: error: (.*)$", output, re.MULTILINE)
    return str(found[0]) if found else ""


def _ranks(processes: Sequence[int]) -> list[int]:
    """Those that are ranks, not their torchrun, `ip` or a loader."""
    found = []
    for process in processes:
        with suppress(OSError):
            words = Path(f"/proc/{process}/cmdline").read_text().split("\0")
            if "sidrec.train" in words and "torch.distributed.run" not in words:
                found.append(process)
    return found


def _content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
