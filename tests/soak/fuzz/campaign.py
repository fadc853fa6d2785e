"""Runs many cases, a few hundred per process, kills processes that hang, records those that die, and reports."""

import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from time import monotonic
from typing import Any

from benchmarks.tables import markdown_table
from sidrec.io.files import read_json, write_json, write_text
from sidrec.study.results import conditions
from tests.soak.fuzz.arguments import OPTIONS, draw_command, load_command_case, write_options
from tests.soak.fuzz.cases import draw, load_case, write_sound_files
from tests.soak.fuzz.command_judge import run_commands
from tests.soak.fuzz.judge import SOUND, Outcome, run_cases
from tests.soak.fuzz.world import make_world

CASES_PER_PROCESS = 300  # cases
CASE_TIMEOUT = 20.0  # seconds that no case may take
START_TIMEOUT = 300.0  # seconds that a process may take to import the product
PROGRESS = 10.0  # seconds between lines

Runner = Callable[[Sequence[Any], int, Path, Path, Connection, bool], None]


@dataclass(frozen=True)
class Target:
    """What a campaign breaks.

    title, done: of the report. make: fills a folder with what is sound. draw: (number, seed, that folder) -> a case,
    with number, kind, mutation, and `save`. load: a saved case. run: what a process does with cases. hangs: seconds
    that no case may take.
    """

    title: str
    done: str
    make: Callable[[Path], None]
    draw: Callable[[int, int, Path], Any]
    load: Callable[[Path], Any]
    run: Runner
    hangs: float = CASE_TIMEOUT


def _make_world(sound: Path) -> None:
    make_world(sound / "world")
    write_options(sound / OPTIONS, sound / "world")


FILES = Target(
    "Broken files, and how they are answered",
    "Accepted: the damage has no effect, or leaves a valid value (a flipped bit of a number).",
    write_sound_files,
    draw,
    load_case,
    run_cases,
)
COMMANDS = Target(
    "Wrong arguments of commands, and how they are answered",
    "All that was there before is there afterwards, byte for byte, except what sidrec made and was asked to replace.",
    _make_world,
    draw_command,
    load_command_case,
    run_commands,
    hangs=6 * CASE_TIMEOUT,
)


@dataclass(frozen=True)
class CaseResult:
    """A case and its outcome."""

    number: int
    kind: str
    mutation: str
    outcome: Outcome


@dataclass
class Campaign:
    """cases: number wanted. failures: folder of the cases that failed, as files that `replay` reads."""

    cases: int
    seed: int
    failures: Path | None = None
    minutes: float = float("inf")
    target: Target = FILES
    ran: list[CaseResult] = field(default_factory=list)
    seconds: float = 0.0

    def run(self) -> None:
        """Runs until all cases are done or the time is up. Prints progress."""
        began = last = monotonic()
        with sound_folders(self.target) as folder:
            for ran in self._all(folder):
                self.ran.append(ran)
                if not ran.outcome.fine and self.failures is not None:
                    self.failures.mkdir(parents=True, exist_ok=True)
                    case = self.target.draw(ran.number, self.seed, folder / "sound")
                    case.save(self.failures / f"case-{ran.number}.json")
                self.seconds = monotonic() - began
                if monotonic() - last > PROGRESS:
                    last = monotonic()
                    self._log_progress()
                if self.seconds > 60 * self.minutes:
                    break

    def _all(self, folder: Path) -> Iterator[CaseResult]:
        for first in range(0, self.cases, CASES_PER_PROCESS):
            numbers = list(range(first, min(self.cases, first + CASES_PER_PROCESS)))
            while numbers:  # if a case ends the process, the next process continues
                done = 0
                for ran in run_in_process(numbers, self.seed, folder, run=self.target.run, hangs=self.target.hangs):
                    done += 1
                    yield ran
                if not done:
                    raise RuntimeError(f"expected a process that runs case {numbers[0]}, it ended before")
                numbers = numbers[done:]

    def _log_progress(self) -> None:
        done, verdicts = len(self.ran), Counter(ran.outcome.verdict for ran in self.ran)
        left = self.seconds / done * (self.cases - done)
        listed = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.most_common())
        print(
            f"case {done}/{self.cases}: {listed}; ETA {min(left, 60 * self.minutes - self.seconds):.0f} s", flush=True
        )


def replay(path: Path) -> int:
    """Runs a kept case again, prints its outcome, and returns the exit status."""
    target = COMMANDS if "words" in read_json(path, "a case") else FILES
    case = target.load(path)
    with sound_folders(target) as folder:
        (ran,) = run_in_process([case], case.seed, folder, quiet=False, run=target.run)
    print(f"{case.kind}, {case.file}, {case.mutation}: {ran.outcome.verdict} {ran.outcome.said}")
    return int(not ran.outcome.fine)


@contextmanager
def sound_folders(target: Target = FILES) -> Iterator[Path]:
    """A scratch folder with `sound`, which the target fills."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        (Path(scratch) / "sound").mkdir()
        target.make(Path(scratch) / "sound")
        yield Path(scratch)


def run_in_process(
    cases: Sequence[Any],
    seed: int,
    folder: Path,
    quiet: bool = True,
    run: Runner = run_cases,
    hangs: float = CASE_TIMEOUT,
) -> Iterator[CaseResult]:
    """Runs cases in a process of their own until one of them ends it; that one is the last that is yielded.

    run: what the process does. hangs: seconds after which a case is killed.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload([run_cases.__module__, run_commands.__module__])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=run, args=(cases, seed, folder / "sound", folder, sender, quiet))
    process.start()
    sender.close()
    try:
        while receiver.poll(START_TIMEOUT):
            number, kind, mutation = receiver.recv()
            began = monotonic()
            if not receiver.poll(hangs):
                yield CaseResult(number, kind, mutation, Outcome("hang", "killed", monotonic() - began))
                return
            try:
                yield CaseResult(number, kind, mutation, receiver.recv())
            except EOFError:
                process.join()
                yield CaseResult(number, kind, mutation, Outcome("crash", f"exit status {process.exitcode}"))
                return
        raise RuntimeError(f"expected a process that runs cases within {START_TIMEOUT:.0f} s, got none")
    except EOFError:  # all cases are done
        return
    finally:
        process.kill()
        process.join()
        receiver.close()


# The result as JSON and as a report: cases by kind and by mutation, and every failure.

FAILURES = 100  # listed
CUT = 300  # characters of what a failure said


def write_report(campaign: Campaign, out: Path) -> None:
    """Writes out/fuzz.json and out/report.md."""
    out.mkdir(parents=True, exist_ok=True)
    failed = [ran for ran in campaign.ran if not ran.outcome.fine]
    result = {
        "cases": len(campaign.ran),
        "wanted": campaign.cases,
        "seed": campaign.seed,
        "seconds": round(campaign.seconds, 1),
        "slowest_seconds": round(max((ran.outcome.seconds for ran in campaign.ran), default=0.0), 2),
        "kinds": _counted(campaign.ran, lambda ran: ran.kind),
        "mutations": _counted(campaign.ran, lambda ran: ran.mutation),
        "failures": [
            {"number": ran.number, "kind": ran.kind, "mutation": ran.mutation, "verdict": ran.outcome.verdict}
            | {"said": ran.outcome.said}
            for ran in failed
        ],
        "conditions": conditions(),
    }
    write_json(out / "fuzz.json", result)
    write_text(out / "report.md", _text(campaign, failed))


def _counted(rans: Iterable[CaseResult], of: Callable[[CaseResult], str]) -> dict[str, dict[str, int]]:
    counted: dict[str, Counter[str]] = {}
    for ran in rans:
        counted.setdefault(of(ran), Counter())[ran.outcome.verdict] += 1
    return {name: dict(counts) for name, counts in sorted(counted.items())}


def _text(campaign: Campaign, failed: list[CaseResult]) -> str:
    cases, refused = len(campaign.ran), sum(ran.outcome.verdict == "refused" for ran in campaign.ran)
    lines = [
        f"# {campaign.target.title}",
        "",
        f"{cases:,} cases of {campaign.cases:,}, seed {campaign.seed}, {campaign.seconds:.0f} s: {refused:,} refused "
        f"by a sentence of ours, nothing written; {cases - refused - len(failed):,} accepted; {len(failed)} failures.",
        campaign.target.done,
        "",
        "## By kind",
        "",
        _table("kind", _counted(campaign.ran, lambda ran: ran.kind)),
        "",
        "## By mutation",
        "",
        _table("mutation", _counted(campaign.ran, lambda ran: ran.mutation)),
    ]
    if failed:
        lines += ["", "## Failures", "", "`python -m tests.soak fuzz --replay DIR/failures/case-N.json`", ""]
        lines += [f"* case {ran.number}, {ran.kind}, {ran.mutation}: {_said(ran)}" for ran in failed[:FAILURES]]
    return "\n".join(lines) + "\n"


def _said(ran: CaseResult) -> str:
    return f"{ran.outcome.verdict}, {ascii(ran.outcome.said)[:CUT]}"


def _table(name: str, counted: dict[str, dict[str, int]]) -> str:
    verdicts = [*SOUND, *sorted({verdict for counts in counted.values() for verdict in counts} - set(SOUND))]
    rows = [
        [of, str(sum(counts.values())), *(str(counts.get(verdict, 0)) for verdict in verdicts)]
        for of, counts in counted.items()
    ]
    return markdown_table([name, "cases", *verdicts], rows)
