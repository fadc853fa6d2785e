"""Two hundred broken files of every kind, and the campaign that judges them."""

import os
import resource
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from sidrec.config import ConfigError
from tests.soak.fuzz.campaign import Campaign, run_in_process, write_report
from tests.soak.fuzz.cases import Case, draw, load_case, write_sound_files
from tests.soak.fuzz.judge import Outcome, judge
from tests.soak.fuzz.kinds import KINDS

CASES, SEED = 200, 0


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    write_sound_files(folder)
    return folder


def test_broken_files_are_accepted_or_refused_with_a_message(tmp_path: Path) -> None:
    ran = Campaign(CASES, SEED, tmp_path / "failures")
    ran.run()
    failed = [
        f"case {one.number}, {one.kind}, {one.mutation}: {one.outcome}" for one in ran.ran if not one.outcome.fine
    ]
    assert not failed, "\n".join(failed)
    assert [one.number for one in ran.ran] == list(range(CASES))
    assert Counter(one.outcome.verdict for one in ran.ran)["refused"] > CASES / 2
    assert {one.kind for one in ran.ran} == set(KINDS)
    write_report(ran, tmp_path)
    assert f"{CASES:,} cases of {CASES:,}, seed {SEED}" in (tmp_path / "report.md").read_text()
    assert not (tmp_path / "failures").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_sound_files_are_accepted(kind: str, sound: Path, tmp_path: Path) -> None:
    file = next(iter(KINDS[kind].files))
    case = Case(0, 0, kind, file, "none", "bytes", (sound / kind / file).read_bytes())
    assert judge(case, sound, tmp_path / "case").verdict == "accepted"


def test_a_case_is_drawn_from_its_number_and_kept_as_a_file(sound: Path, tmp_path: Path) -> None:
    cases = [draw(number, 5, sound) for number in range(20)]
    assert cases == [draw(number, 5, sound) for number in range(20)]
    assert cases != [draw(number, 6, sound) for number in range(20)]
    for case in cases:
        case.save(tmp_path / "case.json")
        assert load_case(tmp_path / "case.json") == case


def _traceback(folder: Path) -> None:
    raise KeyError("item_id")


def _no_sentence(folder: Path) -> None:
    raise ConfigError("it did not work")


def _half_written(folder: Path) -> None:
    (folder / "out.partial").write_text("half")
    raise ConfigError("a: expected b, got c")


def _damage(folder: Path) -> None:
    (folder / "tables.yaml").write_text("")


def _gigabytes(folder: Path) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10  # of the tests before in this process
    held = bytearray(peak + (5 << 28))
    held[:: 1 << 12] = b"x" * len(held[:: 1 << 12])


FAULTS: list[tuple[Callable[[Path], None], str]] = [
    (_traceback, "traceback"),
    (_no_sentence, "sentence"),
    (_half_written, "written"),
    (_damage, "written"),
    (_gigabytes, "memory"),
]


@pytest.mark.parametrize(("read", "verdict"), FAULTS)
def test_verdicts_on_failures(
    read: Callable[[Path], None], verdict: str, sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(KINDS, "tables file", replace(KINDS["tables file"], read=read))
    case = Case(0, 0, "tables file", "tables.yaml", "none", "bytes", b"x")
    assert judge(case, sound, tmp_path / "case").verdict == verdict


def _hang(cases: Sequence[int | Case], seed: int, sound: Path, work: Path, conn: Connection, quiet: bool) -> None:
    conn.send((cases[0], "kind", "mutation"))
    conn.send(Outcome("refused"))
    conn.send((cases[1], "kind", "mutation"))
    time.sleep(600)


def _crash(cases: Sequence[int | Case], seed: int, sound: Path, work: Path, conn: Connection, quiet: bool) -> None:
    conn.send((cases[0], "kind", "mutation"))
    os.kill(os.getpid(), signal.SIGSEGV)


def test_a_process_that_hangs_is_killed(tmp_path: Path) -> None:
    ran = list(run_in_process([4, 5, 6], 0, tmp_path, run=_hang, hangs=5.0))
    assert [(one.number, one.outcome.verdict) for one in ran] == [(4, "refused"), (5, "hang")]


def test_a_process_that_dies_is_noted(tmp_path: Path) -> None:
    (ran,) = run_in_process([4, 5], 0, tmp_path, run=_crash)
    assert (ran.number, ran.outcome) == (4, Outcome("crash", f"exit status {-signal.SIGSEGV}"))
