"""`sidrec`, as a process and in this one."""

import importlib
import json
import os
import re
import subprocess
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sidrec import __version__
from sidrec.cli import dispatch as cli
from sidrec.cli import prepare
from sidrec.cli.arguments import read_before_ranks
from sidrec.command_line import Subcommands
from sidrec.config import ConfigError, load_file
from sidrec.errors import InstallationError
from sidrec.schema import ContractError

ROOT = Path(__file__).parents[1]


def _process(words: str | Sequence[str], shell: bool = False) -> subprocess.CompletedProcess[str]:
    """A process in which `import sidrec` finds this checkout, installed or not."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(words, check=False, capture_output=True, text=True, env=environment, shell=shell)


def _sidrec(*words: str) -> subprocess.CompletedProcess[str]:
    return _process([sys.executable, "-m", "sidrec", *words])


def test_version_and_list_of_commands() -> None:
    assert _sidrec("--version").stdout == f"sidrec {__version__}\n"
    helped = _sidrec("--help")
    assert helped.returncode == 0
    for command in ("fit", "train", "evaluate", "bench", "doctor"):
        assert f"\n  {command} " in helped.stdout


def _answered(words: Sequence[str], forbidden: str) -> tuple[int, str]:
    """Exit status and output of a command in a process in which `forbidden` cannot be imported."""
    code = f"""
import sys
class Refuse:
    def find_spec(name, path=None, target=None):
        if name.split(".")[0] in {forbidden.split()}: raise SystemExit(f"{{name}} was imported")
sys.meta_path.insert(0, Refuse)
from sidrec.cli import main
sys.exit(main(sys.argv[1:]))
"""
    done = _process([sys.executable, "-c", code, *words])
    return done.returncode, done.stdout + done.stderr


def test_the_list_of_commands_imports_nothing_heavy() -> None:
    status, said = _answered([], "torch pyarrow numpy pydantic")
    assert (status, said.splitlines()[0]) == (0, "usage: sidrec COMMAND ...")


def _every_command() -> list[str]:
    """All commands of the dispatch, those of one with subcommands each: "train", "table list", "prep amazon"..."""
    found = []
    for name, command in cli.COMMANDS.items():
        module = importlib.import_module(command.function.partition(":")[0])
        groups = [each for each in vars(module).values() if isinstance(each, Subcommands)]
        names = [f"{name} {sub}" for group in groups if group.program == f"sidrec {name}" for sub in group.commands]
        found += names or [name]
    return found


@pytest.fixture(scope="module")
def helps() -> dict[str, dict[str, Any]]:
    """Command -> the exit status, text and forbidden modules of its help, all asked in one process."""
    code = """
import contextlib, io, json, sys
from sidrec.cli import main
found = {}
for words in sys.argv[1:]:
    with contextlib.redirect_stdout(io.StringIO()) as said:
        try:
            status = main([*words.split(), "--help"])
        except SystemExit as end:
            status = end.code
    heavy = [name for name in ("torch", "torchrec", "matplotlib", "scipy") if name in sys.modules]
    found[words] = {"status": status, "said": said.getvalue(), "heavy": heavy}
print(json.dumps(found))
"""
    commands = [*_every_command(), *(f"{words} RUN" for words in _every_command())]
    done = subprocess.run([sys.executable, "-c", code, *commands], check=True, capture_output=True, text=True)
    found: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("words", _every_command())
def test_help_of_a_command_imports_no_torch(words: str, helps: dict[str, dict[str, Any]]) -> None:
    for asked in (words, f"{words} RUN"):
        shown = helps[asked]
        assert (shown["status"], shown["heavy"]) == (0, []), shown["said"]
        assert shown["said"].startswith(f"usage: sidrec {words} ")
        assert f"  sidrec {words}" in shown["said"], "an example"


@pytest.mark.parametrize("words", ["train", "fit", "doctor", "plan", "bench plans"])
def test_a_mistyped_recipe_imports_no_torch_and_names_the_nearest(words: str, tmp_path: Path) -> None:
    (tmp_path / "beauty.yaml").touch()
    status, said = _answered([*words.split(), str(tmp_path / "beuaty.yaml")], "torch torchrec pandas scipy matplotlib")
    assert status == 2
    assert said.startswith(f"sidrec: error: {tmp_path}/beuaty.yaml: expected a readable recipe")
    assert said.endswith(f"; did you mean {tmp_path}/beauty.yaml?\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("train", "sidrec train: expected a recipe file, RECIPE, got nothing"),
        ("fit --seed 3", "sidrec fit: expected RECIPE before flags that change it, got --seed"),
        ("evaluate", "sidrec evaluate: expected RUN, got nothing (sidrec evaluate --help lists all)"),
        ("evaluate nosuch", "nosuch: expected a run directory with config.yaml, got none"),
        (
            "plan r --hardwar cpu",
            "sidrec plan: expected known options, got --hardwar cpu; did you mean --hardware? "
            "(sidrec plan --help lists all)",
        ),
        ("plan r --world x", "sidrec plan: --world: invalid literal for int() with base 10: 'x'"),
        ("plan r --world 0", "--world: Input should be greater than 0, got 0"),
        (
            "bench pages",
            "sidrec bench: expected one of the commands plans, calibrate, page, got 'pages'; did you mean ",
        ),
        ("doctor --jsn", "sidrec doctor: expected a recipe before flags of one, got --jsn; did you mean --json?"),
    ],
)
def test_mistaken_arguments_are_one_message(words: str, message: str) -> None:
    status, said = _answered(words.split(), "torch torchrec pandas scipy matplotlib")
    assert status == 2
    assert said.startswith(f"sidrec: error: {message}"), said
    assert said.count("\n") == 1


def test_init_lists_recipes_writes_one_and_replaces_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["init"]) == 0
    assert "movielens" in capsys.readouterr().out
    mine = tmp_path / "new" / "mine.yaml"
    assert cli.main(["init", "demo", str(mine)]) == 0
    assert load_file(mine).name == "demo"
    before = mine.read_bytes()
    assert cli.main(["init", "movielens", str(mine)]) == 2
    assert mine.read_bytes() == before
    assert cli.main(["init", "demmo", str(mine)]) == 2
    assert "did you mean demo?" in capsys.readouterr().err


@pytest.mark.parametrize("source", prepare.SOURCES)
def test_the_help_of_prep_describes_every_flag(source: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["prep", source, "--help"]) == 0
    flags: list[str] = []
    for row in capsys.readouterr().out.split("positional arguments", 1)[1].splitlines():
        if re.match(r"\W --", row):
            flags.append("")
        if flags:
            flags[-1] += " " + row.strip("│| ")
    assert flags
    bare = [flag for flag in flags if re.fullmatch(r" --[a-z-]+ (\S+ |\[.*\]\] )?\(default: [^()]*\).*", flag)]
    assert not bare, bare


def test_prep_refuses_as_other_commands_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["prep", "movielens", str(tmp_path / "absent"), str(tmp_path / "out")]) == 2
    ratings = tmp_path / "absent" / "ratings.csv"
    assert capsys.readouterr().err == f"sidrec: error: {ratings}: expected a file to read, got none\n"
    assert cli.main(["prep", "movilens"]) == 2
    assert capsys.readouterr().err.endswith("; did you mean movielens?\n")


def test_ranks_read_their_arguments_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")

    def refuse() -> None:
        raise ConfigError("told on all ranks")

    read = read_before_ranks(refuse)
    with pytest.raises(ConfigError):
        read()


def test_a_reader_that_has_seen_enough_ends_the_command_quietly() -> None:
    done = _process(f"{sys.executable} -m sidrec train --help | true", shell=True)
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("missing", "words", "extra"),
    [
        ("onnxruntime", ["score", "bundle", "rows", "out"], "score"),
        ("starlette", ["serve", "bundle"], "serve"),
        ("polars", ["prep", "interactions", "log.csv", "out"], "cpu or cuda"),
    ],
)
def test_a_command_without_its_extra_names_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], missing: str, words: list[str], extra: str
) -> None:
    def call(_: Sequence[str]) -> None:
        raise ModuleNotFoundError(f"No module named {missing!r}", name=f"{missing}.part")

    monkeypatch.setattr("sidrec.cli.serving.score", call)
    monkeypatch.setattr("sidrec.cli.serving.serve", call)
    monkeypatch.setattr("sidrec.cli.prepare.prep", call)
    assert cli.main(words) == 2
    expected = f"sidrec {words[0]}: expected the package {missing}, which the extra {extra} of sidrec brings, got none"
    assert expected in capsys.readouterr().err


def test_unknown_command() -> None:
    done = _sidrec("trian")
    assert done.returncode == 2
    commands = "init, prep, fit, train, evaluate, report, compare, study, table, export, delta, score, serve, skew, "
    commands += "shadow, plan, bench, recipe, schema, doctor"
    assert done.stderr == f"sidrec: error: expected one of the commands {commands}, got 'trian'; did you mean train?\n"


def _raising(outcome: int | BaseException | None, monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit status of a command that ends so."""

    def main(argv: list[str]) -> int | None:
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    module = types.ModuleType("some_command")
    module.main = main  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "some_command", module)
    return cli.main(["some"], {"some": cli.Command("some_command:main", "", needs_stack=True)})


@pytest.mark.parametrize(("outcome", "status"), [(None, 0), (0, 0), (1, 1), (KeyboardInterrupt(), 130)])
def test_exit_status(outcome: int | BaseException | None, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _raising(outcome, monkeypatch) == status


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (ConfigError("a.yaml: 1 mistake(s) in the recipe"), "sidrec: error: a.yaml: 1 mistake(s) in the recipe\n"),
        (
            ContractError("log/a.parquet", "a column label", "none"),
            "sidrec: error: log/a.parquet: expected a column label, got none\n",
        ),
    ],
)
def test_a_users_mistake_is_one_message(
    error: Exception, sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _raising(error, monkeypatch) == 2
    assert capsys.readouterr().err == sentence
    monkeypatch.setenv("SIDREC_TRACEBACK", "1")
    with pytest.raises(type(error)):
        _raising(error, monkeypatch)


def test_our_own_mistake_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyError):
        _raising(KeyError("bug"), monkeypatch)


def test_a_broken_stack_is_refused_before_the_command_is_imported(capsys: pytest.CaptureFixture[str]) -> None:
    def refuse() -> None:
        raise InstallationError("torch 2.13 needs FBGEMM 1.8, got 1.9.0. Repair: pip install ...")

    assert cli.main(["some"], {"some": cli.Command("no_such_module:main", "", needs_stack=True)}, refuse) == 2
    assert capsys.readouterr().err == "sidrec: error: torch 2.13 needs FBGEMM 1.8, got 1.9.0. Repair: pip install ...\n"
