"""Which case has which number: drawn from the seed, the same whoever asks."""

from pathlib import Path
from random import Random

from benchmarks.fuzz.case import Case, shapes
from benchmarks.fuzz.kinds import KINDS, mutations

IN_PLACE = 0.04  # of the cases have no file, or something else, in the file's place
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


def make_sound(sound: Path) -> None:
    """Fills the folder of every kind."""
    for kind in KINDS.values():
        (sound / kind.name).mkdir(parents=True)
        kind.make(sound / kind.name)
