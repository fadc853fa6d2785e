"""Criteo's raw click logs to the .npy files of TorchRec's Criteo data set: `python -m data_prep.criteo SRC... OUT`.

OUT holds, for each raw file, day_K_dense.npy float32 [N, 13], day_K_sparse.npy int32 [N, 26] and day_K_labels.npy int32
[N, 1], for all of them vocabulary/C1.npy to C26.npy (unless hashed), and manifest.json, which says how they came to be.

Text is read once, block by block, so memory does not depend on rows. What it does depend on is distinct values: some 50
bytes for each of one column's while they are numbered, 8 for each id while days are encoded. Beside OUT, the disk holds
104 bytes per row until its day is encoded, and counts of values.

Killed anywhere and started again, the same command goes on after the last finished day and leaves the same bytes.
"""

import json
import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import tyro
from tqdm import tqdm

from data_prep.command import refuse_flags, run
from data_prep.criteo_blocks import blocks
from data_prep.criteo_days import Day, Steps
from data_prep.criteo_layout import VOCABULARY
from data_prep.criteo_manifest import FORMAT, ids_in_words, manifest, summary
from data_prep.criteo_rows import read_rows
from data_prep.progress import rows_bar
from data_prep.work_folder import WorkFolder
from sidrec import schema
from sidrec.schema import ContractError

FIRST_LOOK = 1 << 16  # bytes of every file that are checked before any work
LARGEST_TABLE = 1 << 31  # ids are int32


@dataclass(frozen=True)
class CriteoCommand:
    """Raw Criteo logs (Kaggle's train.txt or the day_* files, plain or .gz) to day_K_{dense,sparse,labels}.npy."""

    paths: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="SRC... OUT")]
    """Raw files, and last the folder to write. Files called day_K keep their number, others are numbered as given."""
    threshold: int = 3
    """Categorical values that occur less often share the id 1."""
    hash_rows: int | None = None
    """Instead of a vocabulary: ids by hashing into tables of so many rows, in one pass."""
    block_kib: int = 16_384
    """KiB of text in memory at a time."""
    overwrite: bool = False
    """Replace OUT if it exists and holds nothing but what data_prep wrote."""

    def run(self) -> None:
        self.check()
        prepare(numbered(self.paths[:-1]), self.paths[-1], self)
        print(f"{self.paths[-1]}: {summary(self.paths[-1])}")

    def check(self) -> None:
        """Raises ContractError naming the flag whose value makes no sense."""
        fits = self.hash_rows is None or 2 <= self.hash_rows <= LARGEST_TABLE
        folders = list(map(str, self.paths))
        rules = {
            "SRC... OUT": (len(folders) >= 2, "at least one raw file, and the folder to write", folders),
            "--threshold": (self.threshold >= 1, "at least 1", self.threshold),
            "--hash-rows": (fits, f"from 2 to {LARGEST_TABLE}", self.hash_rows),
            "--block-kib": (1 <= self.block_kib <= 1 << 20, f"from 1 to {1 << 20}", self.block_kib),
        }
        refuse_flags(rules)


def numbered(sources: tuple[Path, ...]) -> tuple[Day, ...]:
    """Files as days, in order: by the number in their names if all have one, else as given.

    Raises ContractError for two files of one day.
    """
    names = [re.match(r"day_(\d+)(?!\d)", source.name) for source in sources]
    if not all(names):
        return tuple(Day(number, source) for number, source in enumerate(sources))
    days = sorted((Day(int(name[1]), source) for name, source in zip(names, sources, strict=True) if name), key=_number)
    for before, day in pairwise(days):
        if before.number == day.number:
            raise ContractError(f"{before.source}, {day.source}", "files of different days", f"day {day.number} twice")
    return tuple(days)


def _number(day: Day) -> int:
    return day.number


def prepare(days: tuple[Day, ...], out: Path, command: CriteoCommand) -> None:
    """Writes the folder `out`, which appears when all is done.

    Raises ContractError for broken input; days that were read by then are kept for the next run.
    """
    for day in days:  # a first look at every file: a wrong one is refused at once, not after hours
        read_rows(next(blocks(day.source, FIRST_LOOK)))
    configuration = {
        "format": FORMAT,
        "days": [(day.number, str(day.source.resolve())) for day in days],
        "categorical": ids_in_words(command.threshold, command.hash_rows),
    }
    work, steps = _open(days, out, configuration, command)
    try:
        _read(days, steps)
    except ContractError:
        if not any(steps.record(day.reading) for day in days):
            work.discard()
        raise
    if command.hash_rows is None:
        _encode(days, steps)
    (work.data / schema.MANIFEST).write_text(json.dumps(manifest(days, steps), indent=1) + "\n")
    work.publish()


def _open(
    days: tuple[Day, ...], out: Path, configuration: dict[str, object], command: CriteoCommand
) -> tuple[WorkFolder, Steps]:
    """The work folder without what was made from files that have changed since."""
    inputs = [day.source for day in days]
    work = WorkFolder.open(out, configuration, command.overwrite, inputs)
    steps = Steps(work, command.threshold, command.hash_rows, command.block_kib << 10)
    outdated = [day for day in days if steps.outdated(day)]
    if outdated and steps.record(VOCABULARY):  # the others' values may be gone
        work.discard()
        work = WorkFolder.open(out, configuration, command.overwrite, inputs)
    else:
        for day in outdated:
            steps.forget(day)
    return work, steps


def _read(days: tuple[Day, ...], steps: Steps) -> None:
    sizes = {day: day.source.stat().st_size for day in days}
    with tqdm(total=sum(sizes.values()), desc="reading", unit="B", unit_scale=True, disable=None) as bar:
        for day in days:
            if steps.record(day.reading):
                bar.update(sizes[day])
            else:
                steps.read_day(day, bar.update)


def _encode(days: tuple[Day, ...], steps: Steps) -> None:
    if not steps.record(VOCABULARY):
        steps.number_values(days)
    rows = {day: steps.rows(day) for day in days}
    encoders = steps.encoders()
    with rows_bar("encoding", sum(rows.values())) as bar:
        for day in days:
            if steps.record(day.encoding):
                bar.update(rows[day])
            else:
                steps.encode_day(day, encoders, bar.update)


if __name__ == "__main__":
    run(CriteoCommand, "data_prep.criteo")
