"""A case: one broken file of a sound folder, drawn from its number and the seed."""

import base64
import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Literal

from tests.soak.fuzz.kinds import KINDS, mutations

Shape = Literal["bytes", "missing", "directory", "dangling link", "link loop", "unreadable"]


@dataclass(frozen=True)
class Case:
    """number, seed: of the campaign that drew it. kind, mutation: their names. file: within the kind's folder.

    shape: what replaces the file. content: its bytes, if it is a file.
    """

    number: int
    seed: int
    kind: str
    file: str
    mutation: str
    shape: Shape
    content: bytes = b""

    def put(self, folder: Path) -> None:
        """Replaces the sound file by the broken one."""
        path = folder / self.file
        path.unlink()
        match self.shape:
            case "directory":
                path.mkdir()
            case "dangling link":
                path.symlink_to(path.with_name("nothing"))
            case "link loop":
                path.symlink_to(path)
            case "bytes" | "unreadable":
                path.write_bytes(self.content)
        if self.shape == "unreadable":
            path.chmod(0)

    def save(self, path: Path) -> None:
        """Writes the case, with its bytes, as JSON."""
        path.write_text(json.dumps({**asdict(self), "content": base64.b64encode(self.content).decode()}, indent=1))


def load_case(path: Path) -> Case:
    """Reads what `Case.save` wrote."""
    raw = json.loads(path.read_text())
    return Case(**{**raw, "content": base64.b64decode(raw["content"])})


def shapes() -> tuple[Shape, ...]:
    """What may replace a file. Files without read permission are left out for root, who can read them."""
    every: tuple[Shape, ...] = ("missing", "directory", "dangling link", "link loop")
    return every if os.geteuid() == 0 else (*every, "unreadable")


def copy_of(sound: Path, into: Path) -> Path:
    """A fresh copy of a sound folder."""
    if into.exists():
        shutil.rmtree(into)
    return Path(shutil.copytree(sound, into))


# The case of a number, drawn from number and seed alone.

IN_PLACE = 0.04  # share of cases in which the file is missing or something else
TRIES = 20  # of drawing a mutation that changes something


def draw(number: int, seed: int, sound: Path) -> Case:
    """The case of that number. sound: folder with a folder of sound files for every kind."""
    random = Random(f"{seed} {number}")
    kind = random.choices(list(KINDS.values()), [kind.weight for kind in KINDS.values()])[0]
    file = random.choice(list(kind.files))
    if random.random() < IN_PLACE:
        shape = random.choice(shapes())
        return Case(number, seed, kind.name, file, f"place: {shape}", shape)
    before = (sound / kind.name / file).read_bytes()
    for _ in range(TRIES):
        name, mutation = random.choice(list(mutations(kind.files[file]).items()))
        content = mutation(before, random)
        if content != before:
            break
    return Case(number, seed, kind.name, file, name, "bytes", content)


def write_sound_files(sound: Path) -> None:
    """Fills the folder of every kind."""
    for kind in KINDS.values():
        (sound / kind.name).mkdir(parents=True)
        kind.make(sound / kind.name)
