"""The console script: `sidrec COMMAND ...`.

A command is imported when it is called. Each reads its arguments before it imports torch, so that help and mistakes are
answered at once, and the doctor works where torch cannot be imported.
"""

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sidrec import __version__
from sidrec.command_line import run
from sidrec.errors import ConfigError, InstallationError
from sidrec.machine import end_with_launcher
from sidrec.stack import require_stack
from sidrec.text import did_you_mean


@dataclass(frozen=True)
class Command:
    """function: "MODULE:NAME" of a function from arguments to an exit status or None. needs_stack: uses TorchRec."""

    function: str
    summary: str
    needs_stack: bool = False


GROUPS = {
    "Prepare": {
        "init": Command("sidrec.cli.prepare:init", "write a starting recipe, or list them"),
        "prep": Command("sidrec.cli.prepare:prep", "prepare data: raw logs to log/ and items.parquet"),
        "fit": Command("sidrec.cli.prepare:fit", "learn semantic IDs from item vectors, write the catalog"),
    },
    "Train": {
        "train": Command("sidrec.cli.runs:train", "train a recipe, in this process or under torchrun", True),
        "evaluate": Command("sidrec.cli.runs:evaluate", "compute a run's metrics again from its checkpoint", True),
        "report": Command("sidrec.cli.reports:report", "write a run as an HTML page: curves, slices, gate"),
        "compare": Command("sidrec.cli.reports:compare", "compare runs on the same rows, with paired intervals"),
        "study": Command("sidrec.cli.study:study", "does it help? train variants of a recipe, compare them"),
        "table": Command("sidrec.cli.runs:table", "list the tables of a checkpoint, export one to a file"),
    },
    "Serve": {
        "export": Command("sidrec.cli.serving:export", "export a run to a bundle that scores without torch"),
        "delta": Command("sidrec.cli.serving:delta", "bring a new version of a bundle to its copies by what differs"),
        "score": Command("sidrec.cli.serving:score", "score files of rows with a bundle"),
        "serve": Command("sidrec.cli.serving:serve", "answer requests with a bundle, over HTTP"),
        "skew": Command("sidrec.cli.serving:skew", "compare what requests were scored with to prepared rows"),
        "shadow": Command("sidrec.cli.serving:shadow", "compare two versions of a bundle on the same rows"),
    },
    "Sharding plans": {
        "plan": Command("sidrec.cli.plans:plan", "make a sharding plan for any hardware, explain it, export it", True),
        "bench": Command(
            "sidrec.cli.plans:bench", "measure sharding plans on these ranks, calibrate their costs", True
        ),
    },
    "Recipes": {
        "recipe": Command(
            "sidrec.cli.recipes:recipe", "explain a recipe's keys and kinds, show a recipe with its defaults"
        ),
        "schema": Command("sidrec.cli.recipes:schema", "print the JSON schema of recipes, for editors"),
    },
    "Diagnose": {
        "doctor": Command("sidrec.cli.doctor:doctor", "check this machine, or a recipe on it, and name the repairs"),
    },
}
"""Commands by what a user wants to do."""
COMMANDS = {name: command for commands in GROUPS.values() for name, command in commands.items()}


def main(
    argv: Sequence[str] | None = None,
    commands: Mapping[str, Command] = COMMANDS,
    check_stack: Callable[[], None] = require_stack,
) -> int:
    """Runs one command.

    Returns: its exit status; 2 for a command, recipe, data, installation or folder that cannot be used, or a training
    that failed, after one message on stderr. SIDREC_TRACEBACK=1 shows where that message came from.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(_help())
        return 0
    if words[0] == "--version":
        print(f"sidrec {__version__}")
        return 0
    return run(lambda: _call(words[0], words[1:], commands, check_stack))


def _call(
    name: str, argv: Sequence[str], commands: Mapping[str, Command], check_stack: Callable[[], None]
) -> int | None:
    if name not in commands:
        known = f"expected one of the commands {', '.join(commands)}, got {name!r}"
        raise ConfigError(f"{known}{did_you_mean(name, commands)}")
    end_with_launcher()
    if commands[name].needs_stack:
        check_stack()
    module, _, function = commands[name].function.partition(":")
    try:
        return getattr(importlib.import_module(module), function)(argv)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in ("", *OWN):
            raise
        extra = EXTRA_OF.get(missing, "cpu or cuda")
        expected = f"expected the package {missing}, which the extra {extra} of sidrec brings"
        raise InstallationError(f"sidrec {name}: {expected}, got none; install sidrec with that extra") from error


OWN = ("sidrec", "data_prep", "launch")
EXTRA_OF = {"onnxruntime": "score", "onnx": "export", "onnxscript": "export"}
EXTRA_OF |= dict.fromkeys(("starlette", "uvicorn", "prometheus_client"), "serve")
"""Package -> the extra that brings it, besides those of training."""


def _help() -> str:
    lines = ["usage: sidrec COMMAND ..."]
    width = max(map(len, COMMANDS))
    for group, commands in GROUPS.items():
        lines += ["", f"{group}:", *(f"  {name:<{width}}  {command.summary}" for name, command in commands.items())]
    return "\n".join([*lines, "", "sidrec COMMAND --help describes a command; sidrec --version names the release."])
