"""The console script, as a process and in this one."""

import subprocess
import sys
import types
from pathlib import Path

import pytest

from sidrec import __version__
from sidrec.cli import dispatch as cli
from sidrec.config import ConfigError
from sidrec.errors import InstallationError
from sidrec.schema import ContractError


def _script(*words: str) -> subprocess.CompletedProcess[str]:
    script = Path(sys.executable).with_name("sidrec")
    return subprocess.run([script, *words], check=False, capture_output=True, text=True)


def test_installed_script() -> None:
    assert _script("--version").stdout == f"sidrec {__version__}\n"
    helped = _script("--help")
    assert helped.returncode == 0
    for command in ("fit", "train", "evaluate", "bench", "doctor"):
        assert f"\n  {command} " in helped.stdout


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; from sidrec.cli import main; main([]); print({'torch', 'pyarrow', 'tyro'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("\nset()\n")


def test_a_reader_that_has_seen_enough_ends_the_command_quietly() -> None:
    script = Path(sys.executable).with_name("sidrec")
    done = subprocess.run(f"{script} train --help | true", check=False, capture_output=True, text=True, shell=True)
    assert done.stderr == ""


def test_unknown_command() -> None:
    done = _script("trian")
    assert done.returncode == 2
    commands = "fit, train, evaluate, plan, recipe, schema, table, bench, doctor"
    assert done.stderr == f"sidrec: error: expected one of the commands {commands}, got 'trian'; did you mean train?\n"


def _command(monkeypatch: pytest.MonkeyPatch, outcome: int | BaseException | None) -> None:
    def main(argv: list[str]) -> int | None:
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    module = types.ModuleType("some_command")
    module.main = main  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "some_command", module)
    monkeypatch.setitem(cli.COMMANDS, "some", cli.Command("some_command", "", imports_torchrec=True))


@pytest.mark.parametrize(("outcome", "status"), [(None, 0), (0, 0), (1, 1), (KeyboardInterrupt(), 130)])
def test_exit_status(outcome: int | BaseException | None, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    _command(monkeypatch, outcome)
    assert cli.main(["some"]) == status


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
def test_a_users_mistake_is_one_sentence(
    error: Exception, sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _command(monkeypatch, error)
    assert cli.main(["some"]) == 2
    assert capsys.readouterr().err == sentence
    monkeypatch.setenv("SIDREC_TRACEBACK", "1")
    with pytest.raises(type(error)):
        cli.main(["some"])


def test_our_own_mistake_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    _command(monkeypatch, KeyError("bug"))
    with pytest.raises(KeyError):
        cli.main(["some"])


def test_a_broken_stack_is_refused_before_the_command_is_imported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse() -> None:
        raise InstallationError("torch 2.13 needs FBGEMM 1.8, got 1.9.0. Repair: pip install ...")

    monkeypatch.setattr(cli, "require_stack", refuse)
    monkeypatch.setitem(cli.COMMANDS, "some", cli.Command("no_such_module", "", imports_torchrec=True))
    assert cli.main(["some"]) == 2
    assert capsys.readouterr().err == "sidrec: error: torch 2.13 needs FBGEMM 1.8, got 1.9.0. Repair: pip install ...\n"
