"""A case of a command: arguments that it accepts, with mistakes, drawn from the case's number and the seed."""

import io
import json
import re
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout, suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from random import Random

from sidrec import cli
from tests.soak.fuzz.world import NEEDS_MUTATION, SOUND

OPTIONS = "options.json"

_NAMES = """
data data2 npy catalog run plan.json calibration.json bench.json bench.html table.parquet recipe.yaml tables.yaml
study.yaml log.csv items.csv raw amazon train.txt v.npy items.parquet notes.txt mine.json empty photos data_and_notes
catalog_and_notes run_and_notes link_to_data link_to_photos link_to_notes link_to_nothing loop linked half file locked
half.partial file.partial .new.lock new new/ ./new deep/er/new data/new data/log data/items.parquet photos/new
notes.txt/new run/checkpoints/step-7 raw/new data/../new data/../data link_to_data/log linked/photos . .. ../new - -- ~
* [ data* é /dev/null /dev/full /proc/new /proc/self/mem new.parquet new.json new.safetensors new.html new.yaml
"""
_TEXTS = """
x None null true [] {} a,b user_id item_id label rating title {a:1} -- -h = , é auto row_wise test newest best step-7
80GB
"""
PATHS = (*_NAMES.split(), "", " ", "n\new", "\u202enew", "\udce9new", "x" * 300, "x/" * 3000 + "y")
WORDS = (*_TEXTS.split(), "", "\udcff", "x" * 5000)
NUMBERS = ("0", "1", "2", "-1", "3", "1.5", "nan", "inf", "-inf", "1e9", "1e-300", "0x10", "१", "1_0", "", "9" * 30)


@dataclass(frozen=True)
class CommandCase:
    """number, seed: of the campaign that drew it. kind: the command. mutation: what was done to its arguments."""

    number: int
    seed: int
    kind: str
    words: tuple[str, ...]
    mutation: str

    @property
    def file(self) -> str:
        """The arguments, for messages."""
        return " ".join(map(ascii, self.words))

    def save(self, path: Path) -> None:
        """Writes the case as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1))


def load_command_case(path: Path) -> CommandCase:
    """Reads what `CommandCase.save` wrote."""
    raw = json.loads(path.read_text())
    return CommandCase(**{**raw, "words": tuple(raw["words"])})


def draw_command(number: int, seed: int, sound: Path) -> CommandCase:
    """The case of that number. sound: a folder with OPTIONS, see `write_options`."""
    random = Random(f"commands {seed} {number}")
    command = random.choice(list(SOUND))
    words = list(SOUND[command])
    done: list[str] = []
    least = 1 if command in NEEDS_MUTATION else 0
    for _ in range(max(least, random.choice((0, 1, 1, 1, 2, 2, 3)))):
        name, mutation = random.choice(list(MUTATIONS.items()))
        mutation(words, _options(sound)[command], random)
        done.append(name)
    if command in NEEDS_MUTATION:
        words += ["--no-such-option"] if random.random() < 0.3 else []
        words, done = _without_work(command, words, random), [*done, "no work"]
    return CommandCase(number, seed, command, tuple(words), " + ".join(sorted(set(done))) or "none")


def _without_work(command: str, words: list[str], random: Random) -> list[str]:
    """Adds an argument that is refused late, so that a case with sound arguments besides takes no seconds of work."""
    nothing = random.choice(("nothing", "photos", "notes.txt"))
    late = {
        "prep behavior": ["--earliest-share", random.choice(("-1", "nan", "2"))],
        "fit": [random.choice(("--tokenizer.vectors", "--data.path")), nothing],
        "train": [random.choice(("--data.catalog", "--data.path", "--train.runs")), random.choice(PATHS)],
        "study": ["--minutes", "1e-9", "--results", random.choice(PATHS)],
        "bench plans": ["--plans", random.choice(("", ",", "none", "auto,auto", "plan.json", "mine.json", "photos"))],
        "doctor": ["--world", random.choice(("0", "x", "-3", ""))],
    }
    if command == "train":
        return [*words, *late[command], "--data.catalog", "photos"]
    return [*words, *late[command]]


# Mutations


Options = Mapping[str, str]  # option -> the name of its value in the help; empty for a flag


def _value(kind: str, random: Random) -> str:
    if random.random() < 0.3:
        return random.choice((random.choice(PATHS), random.choice(NUMBERS), random.choice(WORDS)))
    if choices := re.match(r"\{([^}]+)\}", kind):
        return random.choice(choices[1].split(","))
    if re.search(r"INT|FLOAT|RANKS|ROWS", kind):
        return random.choice(NUMBERS)
    return random.choice(PATHS if re.search(r"PATH|FILE|FOLDER|RESULTS", kind) else WORDS)


def _replace(words: list[str], options: Options, random: Random) -> None:
    if words:
        words[random.randrange(len(words))] = random.choice((random.choice(PATHS), random.choice(NUMBERS + WORDS)))


def _path(words: list[str], options: Options, random: Random) -> None:
    """Another path in the place of one: of an input, or of the output."""
    paths = [place for place, word in enumerate(words) if not word.startswith("-")]
    if paths:
        words[random.choice(paths)] = random.choice(PATHS)


def _overwrite(words: list[str], options: Options, random: Random) -> None:
    """--overwrite, and an output that is there."""
    _path(words, options, random)
    words.append("--overwrite")


def _same(words: list[str], options: Options, random: Random) -> None:
    """The output is the input."""
    paths = [place for place, word in enumerate(words) if not word.startswith("-")]
    if len(paths) > 1:
        words[paths[1]] = words[paths[0]] + random.choice(("", "/", "/new", "/..", "/../new"))
        words += random.choice(([], ["--overwrite"]))


def _option(words: list[str], options: Options, random: Random) -> None:
    if options:
        name = random.choice(list(options))
        value = [] if not options[name] and random.random() < 0.8 else [_value(options[name], random)]
        glued = [f"{name}={value[0]}"] if value and random.random() < 0.3 else [name, *value]
        place = random.randint(0, len(words)) if random.random() < 0.2 else len(words)
        words[place:place] = glued


def _drop(words: list[str], options: Options, random: Random) -> None:
    if words:
        del words[random.randrange(len(words))]


def _repeat(words: list[str], options: Options, random: Random) -> None:
    if words:
        words.insert(random.randint(0, len(words)), random.choice(words))


def _shuffle(words: list[str], options: Options, random: Random) -> None:
    random.shuffle(words)


def _misspell(words: list[str], options: Options, random: Random) -> None:
    if options:
        name = random.choice(list(options))
        cut = random.randint(1, len(name))
        words.append(random.choice((name[:cut], name[1:], name.upper(), name + "s", name.replace("-", "_"))))


def _append(words: list[str], options: Options, random: Random) -> None:
    words.append(random.choice((random.choice(PATHS), random.choice(NUMBERS + WORDS))))


MUTATIONS: Mapping[str, Callable[[list[str], Options, Random], None]] = {
    "word": _replace,
    "path": _path,
    "overwrite": _overwrite,
    "same": _same,
    "option": _option,
    "drop": _drop,
    "repeat": _repeat,
    "shuffle": _shuffle,
    "misspell": _misspell,
    "append": _append,
}


# The options of every command, as its help lists them.


def write_options(file: Path, world: Path) -> None:
    """Writes command -> option -> the name of its value. world: has a recipe, whose keys some commands list."""
    found = {}
    for command in SOUND:
        words = [*command.split(), *([str(world / "recipe.yaml")] if command in ("fit", "train") else []), "--help"]
        shown = io.StringIO()
        with redirect_stdout(shown), suppress(SystemExit):
            cli.main(words)
        listed = re.findall(r"^[│ ]*(--[a-z][\w.-]*)(?:, --no-[\w.-]+)? ?([^│ \n]*)", shown.getvalue(), re.MULTILINE)
        found[command] = dict(listed)
    file.write_text(json.dumps(found, indent=1))


@cache
def _options(sound: Path) -> dict[str, dict[str, str]]:
    options: dict[str, dict[str, str]] = json.loads((sound / OPTIONS).read_text())
    return options
