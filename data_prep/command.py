"""Shared by the commands of data_prep: arguments, progress bars, the work folder of an output, snapshots.

A data folder is made in the work folder OUT.partial and replaces OUT when it is whole. --overwrite replaces OUT only if
commands of data_prep wrote every file in it. OUT.partial is continued or discarded only if it holds an unfinished
preparation and nothing else.
"""

import json
import math
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from inspect import getdoc
from pathlib import Path
from typing import IO, Any, Protocol, TypeVar, cast

import numpy as np

from sidrec import command_line, schema
from sidrec.errors import ContractError
from sidrec.id_maps import map_path
from sidrec.io.files import read_json, replaced_file
from sidrec.io.output_folders import (
    FolderKind,
    Written,
    check_apart,
    check_replaceable,
    output_folder,
    replace_folder,
    restore,
)
from sidrec.io.output_lock import OutputLock
from sidrec.io.progress import Bar


class Command(Protocol):
    """A command of data_prep: its fields are the arguments, its docstring is the first line of the help."""

    def run(self) -> None:
        """Raises ContractError for input that cannot be used."""


def run(command: type[Command], module: str, *examples: str) -> None:
    """Parses sys.argv and runs the command. Ends the process only with an exit status other than 0.

    module: the name after `python -m`. examples: arguments that the help shows. Errors and Ctrl-C: see
    `sidrec.command_line.run`.
    """
    called = Path(sys.argv[0]).name
    program = called if called.startswith("sidrec prep ") else f"python -m {module}"
    about = getdoc(command) or ""
    if examples:
        about = command_line.describe(about, *(f"{program} {words}" for words in examples))
    status = command_line.run(lambda: command_line.parse(command, sys.argv[1:], program, about).run())
    if status:
        sys.exit(status)


LARGEST = (1 << 63) - 1  # of a flag: an int64


def refuse_flags(rules: Mapping[str, tuple[bool, str, object]]) -> None:
    """Raises ContractError for the first flag whose value cannot be used, infinity and numbers beyond int64 included.

    rules: flag -> whether its value is valid, what was expected, the value.
    """
    for flag, (valid, expected, got) in rules.items():
        if isinstance(got, float) and not math.isfinite(got):
            raise ContractError(flag, f"{expected}, finite", got)
        if isinstance(got, int) and abs(got) > LARGEST:
            raise ContractError(flag, f"{expected} and at most {LARGEST:,}", f"{got:,}")
        if not valid:
            raise ContractError(flag, expected, got)


def rows_bar(what: str, rows: int) -> Bar:
    """A progress bar over rows; lines where stderr is no terminal."""
    return Bar(total=rows, desc=what, unit="row", unit_scale=True, disable=None)


@contextmanager
def reading(path: Path) -> Iterator[IO[bytes]]:
    """Opens a file for reading, with a progress bar over its (compressed) bytes."""
    with (
        path.open("rb") as file,
        Bar.wrapattr(file, "read", total=path.stat().st_size, desc=path.name, disable=None) as watched,
    ):
        yield cast(IO[bytes], watched)


# The work folder.


CONFIGURATION = "configuration.json"
REPORT, PICTURE = "behavior.json", "behavior.png"  # of data_prep.behavior, which also writes schema.PAIRS
STATE = "state"  # of data_prep.log_state: folder of a data folder, and key of manifest.protocol
STATE_RELATIONS = ("users", "items", "positives", "daily", "days", "recent", "launched", "pairs")
PARTIAL = ".partial"


@dataclass(frozen=True)
class WorkFolder:
    """`publish` renames `data` to OUT and deletes `scratch`.

    out: without links, see `output_folder`. overwrite: OUT may exist, if data_prep wrote it. lock: held from `open` to
    `publish` or `discard`.
    """

    out: Path
    overwrite: bool
    lock: OutputLock

    @property
    def partial(self) -> Path:
        return self.out.with_name(self.out.name + PARTIAL)

    @property
    def data(self) -> Path:
        return self.partial / "data"

    @property
    def scratch(self) -> Path:
        return self.partial / "scratch"

    @property
    def _configuration(self) -> Path:
        return self.partial / CONFIGURATION

    @property
    def _replaced(self) -> Path:
        """Holds the former OUT while it is replaced."""
        return self.partial / "replaced"

    @property
    def _discarded(self) -> Path:
        """Holds `data` while it is deleted."""
        return self.partial / "discarded"

    @classmethod
    def open(
        cls, out: Path, configuration: Mapping[str, object], overwrite: bool, inputs: Iterable[Path] = ()
    ) -> "WorkFolder":
        """Continues an unfinished preparation of equal configuration, or deletes one of another configuration.

        inputs: files and folders that the preparation reads. Raises ContractError, before anything is written, if OUT
        must not be replaced, another process is writing it, OUT.partial holds other files, or one of them is, holds
        or lies inside an input.
        """
        inputs = tuple(inputs)
        folder = output_folder(out, inputs)
        work = cls(folder, overwrite, OutputLock(folder))
        check_apart(work.partial, inputs)
        work.lock.take()
        try:
            work._begin(configuration)
        except BaseException:
            work.lock.release()
            raise
        return work

    def _begin(self, configuration: Mapping[str, object]) -> None:
        self._check_partial()
        restore(self.out, self._replaced)
        self._check_out()
        wanted = json.dumps(configuration, indent=1, sort_keys=True, default=str)
        found = self._configuration.read_text(encoding="utf-8") if self._configuration.exists() else None
        # Without `data`, the work was published or discarded, and the process ended before the rest was deleted.
        if found != wanted or not self.data.exists():
            self._delete_all()
        self.partial.mkdir(parents=True, exist_ok=True)
        with replaced_file(self._configuration, one_writer=True) as partial:
            partial.write_text(wanted, encoding="utf-8")
        self.data.mkdir(exist_ok=True)
        self.scratch.mkdir(exist_ok=True)

    def _check_partial(self) -> None:
        if not self.partial.is_symlink() and not self.partial.exists():
            return
        expected = "no such folder, or an unfinished run's alone"
        if self.partial.is_symlink() or not self.partial.is_dir():
            raise ContractError(self.partial, expected, "a link or a file; remove it or name another OUT")
        own = (self.data, self.scratch, self._replaced, self._discarded, self._configuration)
        names = {*(path.name for path in own), CONFIGURATION + PARTIAL}
        foreign = sorted(path.name for path in self.partial.iterdir() if path.name not in names or path.is_symlink())
        begun = [path for path in own if path.exists()]
        if foreign or (begun and not isinstance(_json_or_none(self._configuration), dict)):
            got = f"something else ({', '.join(foreign[:3]) or f'no {CONFIGURATION}'})"
            raise ContractError(self.partial, expected, f"{got}; remove it or name another OUT")
        if self._replaced.exists() and self.data.exists() and self.out.exists():
            expected = f"nothing at {self.out}, whose replacement was killed"
            raise ContractError(self._replaced, expected, "another folder there; move one of the two away")

    def _check_out(self) -> None:
        if self.out.exists() and not self.overwrite:
            raise ContractError(self.out, "no such folder yet (or the flag --overwrite)", "one that exists")
        check_replaceable(self.out, DATA_FOLDER)

    @contextmanager
    def discarded_on_bad_input(self) -> Iterator[None]:
        """Deletes the unfinished work if the block raises ContractError. After a kill, the work is continued."""
        try:
            yield
        except ContractError:
            self.discard()
            raise

    def discard(self) -> None:
        """Deletes the unfinished work, and gives the lock back."""
        self._delete_all()
        self.lock.release()

    def _delete_all(self) -> None:
        if self.data.exists():
            _delete(self._discarded)
            self.data.rename(self._discarded)
        self._delete_rest()

    def publish(self) -> None:
        """Replaces OUT with the finished data folder and deletes the rest.

        Raises ContractError if OUT has become a folder that must not be replaced. The work stays; a rerun publishes it.
        """
        self._check_out()
        replace_folder(self.data, self.out, self._replaced)
        self._delete_rest()
        self.lock.release()

    def _delete_rest(self) -> None:
        """Deletes the configuration last, because it marks the rest as ours."""
        for folder in (self.scratch, self._discarded, self._replaced):
            _delete(folder)
        for file in (self.partial / (CONFIGURATION + PARTIAL), self._configuration):
            file.unlink(missing_ok=True)
        if self.partial.exists():
            self.partial.rmdir()


def _delete(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _written(folder: Path) -> Written | None:
    """Names of the files in a log's or a Criteo folder's manifest, and of those that data_prep adds to a log later.

    Both kinds of manifest say how the folder was prepared. A manifest that only lists files was written by others.
    """
    names = _log_files(folder) or _criteo_files(folder)
    return None if names is None else names.__contains__


def _log_files(folder: Path) -> set[str] | None:
    try:
        manifest = schema.load_manifest(folder / schema.LOG)
    except ContractError:
        return None
    if "as_of" not in manifest.protocol:  # all preparations of a log write it
        return None
    names = {schema.ITEMS, f"{schema.LOG}/{schema.MANIFEST}"}
    names |= {f"{schema.LOG}/{file.path}" for files in manifest.splits.values() for file in files}
    names |= {map_path(Path(), column).as_posix() for column in manifest.id_maps}
    if STATE in manifest.protocol:
        names |= {state_file(Path(), name).as_posix() for name in STATE_RELATIONS}
    added = (schema.PAIRS, REPORT, PICTURE) if is_behavior_report(folder / REPORT) else ()
    unfinished = {name + PARTIAL for name in (schema.ITEMS, schema.PAIRS, REPORT, PICTURE)}  # of killed commands
    return names | {*added} | unfinished


def _criteo_files(folder: Path) -> set[str] | None:
    manifest = _json_or_none(folder / schema.MANIFEST)
    keys = {"format", "rows", "dense", "categorical", "days", "files"}
    if not isinstance(manifest, dict) or not keys <= set(manifest) or not isinstance(manifest["files"], dict):
        return None
    return {schema.MANIFEST, *manifest["files"]}


def state_file(folder: Path, relation: str) -> Path:
    """The file of a relation of the data folder's state."""
    return folder / STATE / f"{relation}.parquet"


def is_behavior_report(path: Path) -> bool:
    """Whether data_prep.behavior wrote the file, and so pairs.parquet and the picture in its folder."""
    report = _json_or_none(path)
    return isinstance(report, dict) and {"source", "settings", "norm_and_frequency", "pairs"} <= set(report)


def _json_or_none(path: Path) -> object:
    try:
        return read_json(path, "JSON")
    except ContractError:
        return None


DATA_FOLDER = FolderKind("a folder that data_prep wrote", _written)


def file_facts(files: tuple[Path, ...]) -> list[tuple[str, int, int]]:
    """Path, size and modification time (ns) of each input. Raises ContractError if one is missing."""
    facts = []
    for file in files:
        if not file.is_file():
            raise ContractError(file, "a file to read", "none")
        facts.append((str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns))
    return facts


# Snapshots: trees of dataclasses, with numpy arrays, numbers and text as leaves, in one .npz file.


T = TypeVar("T")


def save_snapshot(path: Path, **roots: object) -> None:
    """Writes the trees in one step."""
    arrays: dict[str, np.ndarray] = {}
    for name, root in roots.items():
        flatten_snapshot(name, root, arrays)
    with replaced_file(path, one_writer=True) as partial, partial.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def load_snapshot(path: Path) -> dict[str, np.ndarray]:
    """All leaves, by dotted name."""
    with np.load(path) as stored:
        return dict(stored)


def restore_snapshot(template: T, name: str, arrays: dict[str, np.ndarray]) -> T:
    """A tree like the template, with the leaves saved under `name`."""
    if not is_dataclass(template):
        leaf: Any = arrays[name]
        return leaf if isinstance(template, np.ndarray) else leaf.item()
    parts = {f.name: restore_snapshot(getattr(template, f.name), f"{name}.{f.name}", arrays) for f in fields(template)}
    tree: Any = type(template)
    return tree(**parts)


def flatten_snapshot(name: str, node: object, arrays: dict[str, np.ndarray]) -> None:
    """Adds the leaves of a tree to `arrays`, by dotted name."""
    if is_dataclass(node):
        for field in fields(node):
            flatten_snapshot(f"{name}.{field.name}", getattr(node, field.name), arrays)
    else:
        arrays[name] = np.asarray(node)
