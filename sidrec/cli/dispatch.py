"""The console script: `sidrec COMMAND ...`. A command is imported when it is asked for, so that help is instant and the
doctor can be called where nothing else would import.
"""

import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from sidrec import __version__
from sidrec.errors import SidrecError, print_error
from sidrec.launcher import end_with_launcher
from sidrec.stack import require_stack
from sidrec.text import did_you_mean


@dataclass(frozen=True)
class Command:
    """A module with `main(argv) -> int | None`."""

    module: str
    summary: str
    imports_torchrec: bool


COMMANDS = {
    "fit": Command("sidrec.cli.fit", "learn semantic IDs from item vectors, write the catalog", False),
    "train": Command("sidrec.train.run", "train a recipe, in this process or under torchrun", True),
    "evaluate": Command("sidrec.cli.evaluate", "compute a run's metrics again from its checkpoint", True),
    "plan": Command("sidrec.cli.plan", "make a sharding plan for any hardware, explain it, keep it as a file", True),
    "recipe": Command("sidrec.cli.recipe", "explain a recipe's keys and kinds, show a recipe with its defaults", False),
    "schema": Command("sidrec.cli.schema", "print the JSON schema of recipes, for editors", False),
    "table": Command("sidrec.cli.table", "list the tables of a checkpoint, export one to a file", False),
    "bench": Command("sidrec.cli.bench", "measure sharding plans on the ranks at hand, calibrate their costs", True),
    "doctor": Command(
        "sidrec.cli.doctor", "check this machine, or a recipe on it, and say how to repair what is wrong", False
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns: its exit status; 2 for a command, recipe, data, installation or folder that cannot be used, or a training
    that failed, after one sentence on stderr. SIDREC_TRACEBACK=1 shows where that sentence came from.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(_help())
        return 0
    if words[0] == "--version":
        print(f"sidrec {__version__}")
        return 0
    if words[0] not in COMMANDS:
        known = f"expected one of the commands {', '.join(COMMANDS)}, got {words[0]!r}"
        print(f"sidrec: error: {known}{did_you_mean(words[0], COMMANDS)}", file=sys.stderr)
        return 2
    return _run(COMMANDS[words[0]], words[1:])


def _run(command: Command, argv: Sequence[str]) -> int:
    end_with_launcher()
    try:
        if command.imports_torchrec:
            require_stack()
        return importlib.import_module(command.module).main(argv) or 0
    except BrokenPipeError:  # as in `sidrec train --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python flushes at its end
        return 1
    except (SidrecError, OSError) as error:
        if os.environ.get("SIDREC_TRACEBACK") == "1":
            raise
        print_error(error)
        return 2
    except KeyboardInterrupt:
        return 130


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: sidrec COMMAND ...",
            "",
            *lines,
            "",
            "sidrec COMMAND --help says more; sidrec --version names the release.",
        ]
    )
