"""How every command of sidrec and data_prep reads its arguments, refuses them, and ends.

A command declares its arguments as a dataclass: a field is an option, its docstring the help, its default the default.
`metavar` names positional arguments and values in the help. `parse` renders the help (what the command does, an
example, arguments by group, defaults) and raises ConfigError for arguments that it cannot use, so that a mistake looks
the same whether the parser, a recipe or the data refuses it. `run` turns errors into exit statuses.
"""

import io
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, TypeVar, get_type_hints, overload

import tyro

from sidrec.errors import ConfigError, ContractError, SidrecError, print_error, printed_warnings
from sidrec.io.places import Place, StorePath, is_uri, place, refusal_of_uri, shown_uri
from sidrec.text import did_you_mean, text_table

T = TypeVar("T")

UNKNOWN = "Unrecognized options: "

PlaceArgument: TypeAlias = Annotated[
    Place,
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="PATH",
        instance_from_str=lambda words: place(words[0]),
        is_instance=lambda value: isinstance(value, Path | StorePath),
        str_from_instance=lambda value: [str(value)],
    ),
]
"""Type of an argument that takes a local path or a URI. One of type Path, or a text, refuses URIs (`parse`)."""


def run(command: Callable[[], int | None]) -> int:
    """Runs a command to its exit status.

    Returns: the command's own status, or 0; 2 after an error that a user can mend, printed as one message on stderr;
    130 after Ctrl-C; 1 when the reader of stdout has gone. SIDREC_TRACEBACK=1 raises instead of printing.
    Characters that a terminal cannot show, as of a path under LANG=C, are printed as escapes.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    printed_warnings.clear()
    try:
        return command() or 0
    except BrokenPipeError:  # as in `sidrec train --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes stdout when it exits
        return 1
    except (SidrecError, OSError) as error:
        if os.environ.get("SIDREC_TRACEBACK") == "1":
            raise
        print_error(error if isinstance(error, SidrecError) else _of_the_system(error))
        return 2
    except KeyboardInterrupt:
        return 130


def _of_the_system(error: OSError) -> ContractError:
    """An error of the operating system as one sentence: the file, and what the system says of it."""
    where = error.filename2 or error.filename or "this machine"
    return ContractError(where, "a file or folder that can be used", error.strerror or error)


@dataclass(frozen=True)
class Subcommands:
    """Commands under one name, as in `sidrec table list` and `sidrec table export`. commands: name -> summary."""

    program: str
    about: str
    commands: Mapping[str, str]

    def choose(self, words: Sequence[str]) -> tuple[str, list[str]]:
        """The command's name and its arguments.

        Raises ConfigError for an unknown name; SystemExit(0) after the help, which is also printed without arguments.
        """
        if not words or words[0] in ("-h", "--help"):
            print(self._help())
            raise SystemExit(0)
        if words[0] not in self.commands:
            expected = f"expected one of the commands {', '.join(self.commands)}, got {words[0]!r}"
            raise ConfigError(f"{self.program}: {expected}{did_you_mean(words[0], self.commands)}")
        return words[0], list(words[1:])

    def _help(self) -> str:
        commands = text_table([(f"  {name}", summary) for name, summary in self.commands.items()], left=2)
        end = f"{self.program} COMMAND --help describes a command's arguments."
        return f"usage: {self.program} COMMAND ...\n\n{self.about}\n\n{commands}\n\n{end}"


def metavar(name: str, default: str | None = None) -> Any:
    """Names a value in the help, as NAME or PATH. default: text of the default in the help."""
    return tyro.conf.arg(metavar=name, help_behavior_hint=None if default is None else f"(default: {default})")


def describe(about: str, *examples: str) -> str:
    """The text above the arguments in a command's help."""
    return "\n".join(
        [about, "", "Example:" if len(examples) == 1 else "Examples:", *(f"  {line}" for line in examples)]
    )


@overload
def parse(kind: type[T], words: Sequence[str], program: str, description: str, default: T | None = None) -> T: ...
@overload
def parse(
    kind: type[T],
    words: Sequence[str],
    program: str,
    description: str,
    default: T | None = None,
    *,
    others: Literal[True],
) -> tuple[T, list[str]]: ...
def parse(
    kind: type[T],
    words: Sequence[str],
    program: str,
    description: str,
    default: T | None = None,
    others: bool = False,
) -> T | tuple[T, list[str]]:
    """An object of the dataclass `kind` from a command's arguments.

    program: the words before the arguments, as in "sidrec plan". default: overrides the class's defaults.
    others: also return the arguments that are no options of `kind`.

    Under torchrun all ranks parse the same arguments, and only rank 0 prints help.

    Raises ConfigError for arguments that do not parse, for values that the class's pydantic types refuse, and for a URI
    where only a local path will do. Raises SystemExit(0) after --help.
    """
    refusal, hidden = io.StringIO(), io.StringIO()
    for word in words:
        if is_uri(uri := word.partition("=")[2] if word.startswith("--") else word) and "***" in shown_uri(uri):
            place(uri)  # refuses credentials before anything prints the word
    if any(word in ("-h", "--help") for word in words):
        words = ["--help"]  # tyro's help omits positional arguments that were given
    cli: Any = tyro.cli  # its overloads know no bool for return_unknown_args
    settings = {} if default is None else {"default": default}
    shown = sys.stdout if os.environ.get("RANK", "0") == "0" else hidden
    try:
        with redirect_stderr(refusal), redirect_stdout(shown):
            parsed = cli(
                kind,
                args=list(words),
                prog=program,
                description=description,
                return_unknown_args=others,
                **settings,
            )
    except SystemExit as end:
        if not end.code:
            raise
        raise ConfigError(f"{program}: {_message(refusal.getvalue())} ({program} --help lists all)") from None
    found = _checked(kind, parsed[0] if others else parsed)
    for name, value in _uris(kind, found, default):
        raise ConfigError(f"{program}: {refusal_of_uri(name, value)}")
    return (found, parsed[1]) if others else found


def _uris(kind: Any, parsed: Any, default: Any) -> Iterator[tuple[str, object]]:
    """Arguments that are URIs although their type is no `PlaceArgument`, by their names in the help."""
    if not is_dataclass(kind):
        return
    hints = get_type_hints(kind, include_extras=True)
    for field in fields(kind):
        value = getattr(parsed, field.name)
        if default is not None and value == getattr(default, field.name):  # a recipe's: its loader has checked it
            continue
        for each in value if isinstance(value, tuple) else (value,):
            if is_uri(each):
                yield _shown_name(field.name, hints[field.name]), each
            elif is_dataclass(each):
                yield from ((f"--{field.name}.{name.lstrip('-')}", uri) for name, uri in _uris(type(each), each, None))


def _shown_name(field: str, hint: Any) -> str:
    """An argument in messages: RUN for a positional one, --out for an option."""
    extras = getattr(hint, "__metadata__", ())
    positional = any(extra is tyro.conf._markers.Positional for extra in extras)
    shown = next((extra.metavar for extra in extras if getattr(extra, "metavar", None)), None) or field.upper()
    name = next((extra.name for extra in extras if getattr(extra, "name", None)), None) or field
    return shown if positional else f"--{name.replace('_', '-')}"


def _message(boxed: str) -> str:
    """tyro's error without the box around it, and the option that it suggests.

    The box is of lines (`╭─ title`, `│ text`), or of spaces (title, rule, text) where stdout is no UTF-8.
    """
    title, *lines = [line.strip("│ ") for line in boxed.splitlines() if line.strip("│ ")]
    if not title.startswith("╭"):
        lines = lines[1:]
    rule = next((place for place, line in enumerate(lines) if set(line) <= set("─-╰╯")), len(lines))
    message = " ".join(lines[:rule]).removeprefix("Error parsing ")
    if message.startswith(UNKNOWN.strip()):
        unknown = message.removeprefix(UNKNOWN.strip()).strip().replace(", ", " ")
        message = f"expected known options, got {unknown or 'an empty argument'}"
    elif " Got errors: - " in message:  # of a value that may be left out: the last error is the one of its own type
        message = f"{message.partition(':')[0]}: {message.rpartition(' - ')[2].partition(': ')[2]}"
    elif message.startswith("Missing value for argument "):
        option = message.split("'")[1]
        message = f"expected a value after {option}, got nothing"
    elif "Failed to parse key-value pairs" in message:
        message = f"{message.partition(':')[0]}: expected a name and a value, one after the other, got something else"
    elif message.startswith("Missing from "):
        message = f"expected {lines[1]}, got nothing" if rule > 1 else message
    near = [line.split()[0].rstrip(",") for line in lines[rule + 1 :] if line.startswith("--") and line[2] != "-"]
    return f"{message}; did you mean {near[0]}?" if near and UNKNOWN in boxed else message.rstrip(".")


def _checked(kind: type[T], parsed: T) -> T:
    """Checks the values of a section (`sidrec.config.section`) by its pydantic types; other classes pass unchecked."""
    if not hasattr(kind, "__pydantic_config__"):
        return parsed
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(kind).validate_python(vars(parsed))
    except ValidationError as error:
        first = error.errors()[0]
        option = "--" + str(first["loc"][0]).replace("_", "-")
        raise ConfigError(f"{option}: {first['msg']}, got {first['input']!r}") from None
