"""A few hundred wrong command lines, and the verdicts on what a command must not do."""

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from sidrec.cli import dispatch as cli
from sidrec.cli.plans import BENCH
from sidrec.cli.prepare import SOURCES
from sidrec.cli.runs import TABLE
from tests.soak.fuzz.arguments import OPTIONS, CommandCase, draw_command, load_command_case, write_options
from tests.soak.fuzz.command_judge import World, judge_command
from tests.soak.fuzz.world import NEEDS_MUTATION, OUTSIDE, SOUND, make_world

CASES, SEED = 150, 11
WITHOUT_FILES = ("evaluate", "report", "compare")  # the world's run was not trained


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    make_world(folder / "world")
    write_options(folder / OPTIONS, folder / "world")
    return folder


@pytest.fixture
def world(sound: Path, tmp_path: Path) -> World:
    return World(sound / "world", tmp_path / "case")


def test_wrong_arguments_are_refused_and_nothing_is_lost(sound: Path, world: World) -> None:
    verdicts: Counter[str] = Counter()
    failed = []
    for number in range(CASES):
        case = draw_command(number, SEED, sound)
        outcome = judge_command(case, world)
        verdicts[outcome.verdict] += 1
        if not outcome.fine:
            failed.append(f"case {number}, {case.kind} {case.file}: {outcome}")
    assert not failed, "\n".join(failed)
    assert verdicts["refused"] > CASES / 2
    assert verdicts["accepted"] > CASES / 10


def test_every_command_is_tried() -> None:
    # tests/serve tries those of bundles: making one takes seconds
    of_bundles = {"delta", "export", "score", "serve", "shadow", "skew"}
    commands = set(cli.COMMANDS) - {"prep", "table", "bench", "recipe"} - of_bundles
    commands |= {f"prep {source}" for source in SOURCES}
    for group in (TABLE, BENCH):
        commands |= {f"{group.program.removeprefix('sidrec ')} {name}" for name in group.commands}
    assert commands <= set(SOUND)


@pytest.mark.parametrize("command", [name for name in SOUND if name not in (*NEEDS_MUTATION, *WITHOUT_FILES)])
def test_sound_arguments_are_accepted(command: str, world: World) -> None:
    outcome = judge_command(CommandCase(0, 0, command, SOUND[command], "none"), world)
    assert outcome.verdict == "accepted", outcome


def test_a_case_is_drawn_from_its_number_and_kept_as_a_file(sound: Path, tmp_path: Path) -> None:
    cases = [draw_command(number, 5, sound) for number in range(50)]
    assert cases == [draw_command(number, 5, sound) for number in range(50)]
    for case in cases:
        case.save(tmp_path / "case.json")
        assert load_command_case(tmp_path / "case.json") == case


def _deletes(folder: Path) -> int:
    (folder / "notes.txt").unlink()
    return 0


def _replaces_equal(folder: Path) -> int:
    text = (folder / "photos" / "2024" / "a.jpg").read_bytes()
    (folder / "photos" / "2024" / "a.jpg").unlink()
    (folder / "photos" / "2024" / "a.jpg").write_bytes(text + b"x")
    return 0


def _outside(folder: Path) -> int:
    (folder.parent / OUTSIDE).write_text("other")
    return 0


def _leaves(folder: Path) -> int:
    (folder / "new.partial").mkdir()
    return 0


def _makes(folder: Path) -> int:
    (folder / "made").mkdir()
    raise ValueError("expected no error of this kind")


def _replaces_ours(folder: Path) -> int:
    shutil.rmtree(folder / "catalog")
    return 0


@pytest.mark.parametrize(
    ("call", "verdict"),
    [
        (_deletes, "written"),
        (_replaces_equal, "written"),
        (_outside, "written"),
        (_leaves, "written"),
        (_makes, "traceback"),
        (_replaces_ours, "written"),
        (lambda folder: 3, "sentence"),
        (lambda folder: 2, "sentence"),
        (lambda folder: 0, "accepted"),
    ],
)
def test_verdicts(call: Callable[[Path], int], verdict: str, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.soak.fuzz.command_judge.cli.main", lambda words, check_stack: call(Path.cwd()))
    assert judge_command(CommandCase(0, 0, "fit", ("recipe.yaml",), "none"), world).verdict == verdict
    assert (world.path / "notes.txt").read_text() == "mine"


FOUND: list[tuple[str, tuple[str, ...], str]] = [
    ("bench calibrate", ("bench.json", "--out", "bench.json/.."), "a path below the file bench.json"),
    ("bench page", ("bench.json", "bench.json/new"), "a path below the file bench.json"),
    ("table list", ("x" * 300,), "File name too long"),
    ("table list", ("n\new",), "expected a run directory with checkpoints"),
    ("table export", ("run", "hid", "x/" * 3000 + "y"), "expected"),
    ("init", ("demo", "demo/.."), "expected no such file yet"),
    ("init", ("demo", "loop"), "expected no such file yet"),
    ("study", ("study.yaml", "--results", "calibration.json"), "calibration.json"),
    ("study", ("study.yaml", "--results", "/proc/new"), "/proc/new"),
    ("study", ("study.yaml", "--tune"), "expected the section `tuning`, got none"),
    ("compare", ("n\new", "run"), "expected a run directory with config.yaml"),
    ("evaluate", ("n\new",), "expected a run directory with config.yaml"),
    ("report", ("n\new",), "expected a run directory with config.yaml"),
    ("prep interactions", ("log.csv", "log.csv/../new", "--rating-column", "rating"), "a path below the file log.csv"),
    ("prep criteo", ("train.txt", "train.txt/../new"), "a path below the file train.txt"),
    ("prep criteo-log", ("npy", "\udce9new", "--item", "C10"), "expected a path in UTF-8"),
    ("prep amazon", ("amazon", "new", "--floor-weight=inf"), "--floor-weight: expected at least 0, finite, got inf"),
    ("prep synthetic", ("new", "--cat-noise", "9" * 30), "--cat-noise: expected 0 to 1,000 columns"),
    ("plan", ("tables.yaml", ""), "expected known options, got an empty argument"),
    ("bench calibrate", ("/dev/full", "--out", "new.json"), "got a device"),
    ("table export", ("run", "hid", "n\new"), "expected a file name that ends in"),
    ("table export", ("run", "n\new", "new.parquet"), "expected one of the tables hid"),
    ("prep interactions", ("log.csv", "new", "--items-file", "/proc/self/mem"), "/proc/self/mem: expected"),
    ("prep movielens", ("loop", "new", "--vectors", "none"), "loop"),
    ("prep amazon", ("loop", "new", "--vectors", "none"), "loop"),
    ("prep criteo-log", ("npy", "loop", "--item", "C10"), "loop"),
    ("prep interactions", ("log.csv", "new", "--rating-column", ""), "--rating-column: expected names of columns"),
    ("prep interactions", ("log.csv", "new", "--cat-columns", ""), "--cat-columns: expected names of columns"),
    ("prep interactions", ("log.csv", "new", "--cat-columns", "c" * 300), "at most 200 bytes, got one of 300 bytes"),
    ("prep interactions", ("log.csv", "new", "--dense-columns", "ü" * 150), "at most 200 bytes, got one of 300 bytes"),
    ("compare", ("run", "loop"), "loop: expected a run directory"),
]


@pytest.mark.parametrize(("command", "words", "said"), FOUND)
def test_what_a_campaign_found_is_refused(command: str, words: tuple[str, ...], said: str, world: World) -> None:
    outcome = judge_command(CommandCase(0, 0, command, words, "found"), world)
    assert outcome.verdict == "refused", outcome
    assert said in outcome.said
