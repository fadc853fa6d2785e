"""From one version of a bundle to the next by what differs: made at the export, applied at the servers.

    DELTA/delta.json          Delta: both versions, how each file of the new one is made, checksums of the delta's files
    DELTA/bundle.json         of the new version
    DELTA/NAME                a file of the new version, whole
    DELTA/NAME.numbers        uint32: the rows of an array that are not the old version's
    DELTA/NAME.values         these rows, as the array holds them
    DELTA/NAME.header         the array's header

Every file that is made has the checksum that bundle.json states, so the new version is that of the export, to the last
bit. Files are read and written a block of rows at a time.

Shapes: R rows of an array, N rows that are new, W words of a row.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from sidrec.errors import ContractError
from sidrec.io.files import read_json, write_json
from sidrec.io.output_folders import FolderKind, Written, output_folder, replaced_folder
from sidrec.serve.bundle import Bundle, Description, File, file_of, inside
from sidrec.serve.id_lookup import BUCKETS, HASHES, ROWS, first_of_buckets
from sidrec.serve.versions import DESCRIPTION, VERSIONS, check_version, new_version, publish, use

CARD = "delta.json"
FORMAT = 1
BLOCK = 1 << 18
"""Rows at a time."""
NUMBERS, VALUES, HEADER = ".numbers", ".values", ".header"
How = Literal["same", "rows", "inserted", "buckets", "whole"]
"""same: the old version's file. rows: the old array with other rows and more. inserted: the old array with rows between
its own, as in sorted hashes. buckets: computed from the hashes. whole: in the delta."""
Masks = Callable[[], Iterator[NDArray[np.bool_]]]


@dataclass(frozen=True)
class Delta:
    """The content of delta.json. old, new: names of versions. made: file of the new version -> how it is made. files:
    of the delta."""

    old: str
    new: str
    made: Mapping[str, How]
    files: Mapping[str, File]
    format: int = FORMAT

    @property
    def bytes(self) -> int:
        """Of the delta's files, delta.json apart."""
        return sum(of.bytes for of in self.files.values())

    @classmethod
    def read(cls, folder: Path) -> "Delta":
        """Reads delta.json and checks every file of the delta. Raises ContractError naming the one that is wrong."""
        path = folder / CARD
        raw = read_json(path, "a delta, as sidrec delta make writes it")
        names = {each.name for each in fields(cls)}
        if not isinstance(raw, dict) or raw.keys() != names or raw["format"] != FORMAT:
            raise ContractError(path, f"format {FORMAT} with the keys {sorted(names)}", raw)
        try:
            found = cls(**{**raw, "files": {name: File(**of) for name, of in raw["files"].items()}})
            strange = set(found.made.values()) - set(get_args(How))
        except (TypeError, AttributeError) as error:
            raise ContractError(path, "values of the types that sidrec delta make writes", error) from None
        if strange:
            raise ContractError(f"{path}, made", f"some of {', '.join(get_args(How))}", sorted(strange))
        for name, of in found.files.items():
            of.check(inside(folder, name, path), "make the delta again")
        return found


def _written(folder: Path) -> Written | None:
    """Matches the files of a delta; None for another folder."""
    try:
        card = read_json(folder / CARD, "a delta")
    except ContractError:
        return None
    ours = isinstance(card, dict) and isinstance(card.get("files"), dict) and {"old", "new", "made"} <= card.keys()
    return {CARD, *card["files"]}.__contains__ if ours else None


DELTA = FolderKind("a delta that sidrec wrote", _written)


# Making.


def make_delta(bundle: Path, old: str, out: Path) -> Delta:
    """Writes what turns the version `old` of a bundle into the version in use. `out`: a folder, another delta at most.

    Raises ContractError if `old` is no other version of the bundle, and for a file that is damaged.
    """
    check_version(bundle, old)
    before, after = Bundle(bundle / VERSIONS / old), Bundle(bundle)
    if before.version == after.version:
        raise ContractError(f"{bundle}, version", "another one than that in use", old)
    output_folder(out, [bundle])
    with replaced_folder(out, DELTA) as partial:
        made = {name: _ship(before, after, name, partial) for name in after.description.files}
        shutil.copyfile(after.folder / DESCRIPTION, partial / DESCRIPTION)
        paths = sorted(path for path in partial.rglob("*") if path.is_file())
        files = {path.relative_to(partial).as_posix(): file_of(path) for path in paths}
        delta = Delta(before.version, after.version, made, files)
        write_json(partial / CARD, asdict(delta))
    return delta


def _ship(before: Bundle, after: Bundle, name: str, to: Path) -> How:
    """Writes into `to` what this file of the version `after` takes."""
    if before.description.files.get(name) == after.description.files[name]:
        return "same"
    (to / name).parent.mkdir(parents=True, exist_ok=True)
    old, new = (_Rows.of(each.folder / name) for each in (before, after))
    if old is not None and new is not None and new.continues(old):
        if _part_of_ids(name, BUCKETS):
            (to / f"{name}{HEADER}").write_bytes(new.header)
            return "buckets"
        inserted = _part_of_ids(name, HASHES) or _part_of_ids(name, ROWS)
        masks = _inserted(before.folder, after.folder, name) if inserted else lambda: _changed(old, new)
        if masks is not None and _write_change(new, masks, to / name):
            return "inserted" if inserted else "rows"
    shutil.copyfile(after.folder / name, to / name)
    return "whole"


def _part_of_ids(name: str, part: str) -> bool:
    return name.startswith("ids/") and name.endswith(f"/{part}")


class _Rows:
    """An array's file: its header, and its rows as unsigned words, [R, W]."""

    def __init__(self, header: bytes, rows_RW: NDArray[Any]) -> None:
        self.header, self.rows_RW = header, rows_RW

    @classmethod
    def of(cls, path: Path) -> "_Rows | None":
        """None for a file without rows."""
        if path.suffix != ".npy" or not path.is_file():
            return None
        array: Any = np.load(path, mmap_mode="r")
        if not array.size or not array.flags.c_contiguous:
            return None
        size = array.nbytes // len(array)
        with path.open("rb") as file:
            header = file.read(array.offset)
        return cls(header, cls.words(path, size, array.offset))

    @staticmethod
    def words(path: Path, size: int, offset: int = 0) -> NDArray[Any]:
        """Rows of `size` bytes in a file, in the largest words that divide them; none in an empty file."""
        word = next(each for each in (8, 4, 2, 1) if size % each == 0)
        if path.stat().st_size == offset:
            return np.empty((0, size // word), f"u{word}")
        return np.memmap(path, f"u{word}", "r", offset).reshape(-1, size // word)

    @property
    def size(self) -> int:
        """Bytes of a row."""
        return int(self.rows_RW.itemsize * self.rows_RW.shape[1])

    def continues(self, old: "_Rows") -> bool:
        """Whether the rows have the old ones' size, and are as many at least."""
        return self.size == old.size and len(old.rows_RW) <= len(self.rows_RW) < 1 << 32

    def blocks(self) -> Iterator[tuple[int, NDArray[Any]]]:
        """First row and rows."""
        for first in range(0, len(self.rows_RW), BLOCK):
            yield first, self.rows_RW[first : first + BLOCK]


def _changed(old: _Rows, new: _Rows) -> Iterator[NDArray[np.bool_]]:
    """Of each block: which rows are not the old ones, [rows of the block]."""
    for first, block_NW in new.blocks():
        before_NW = old.rows_RW[first : first + len(block_NW)]
        changed_N = np.ones(len(block_NW), dtype=np.bool_)
        changed_N[: len(before_NW)] = (before_NW != block_NW[: len(before_NW)]).any(axis=1)
        yield changed_N


def _inserted(before: Path, after: Path, name: str) -> Masks | None:
    """As `_changed`, of an index of ids: which rows lie between the old ones. None if it lacks an old one.

    Hashes are sorted, and no two are equal.
    """
    hashes = str(Path(name).with_name(HASHES))
    old_R, new_R = (np.load(folder / hashes, mmap_mode="r") for folder in (before, after))

    def masks() -> Iterator[NDArray[np.bool_]]:
        for first in range(0, len(new_R), BLOCK):
            block_N = new_R[first : first + BLOCK]
            place_N = np.minimum(np.searchsorted(old_R, block_N), len(old_R) - 1)
            yield old_R[place_N] != block_N

    old, new = (_Rows.of(folder / name) for folder in (before, after))
    assert old is not None, "an array with rows"
    assert new is not None, "an array with rows"
    kept = 0
    for (_, block_NW), mask_N in zip(new.blocks(), masks(), strict=True):
        kept_NW = block_NW[~mask_N]
        if not np.array_equal(old.rows_RW[kept : kept + len(kept_NW)], kept_NW):
            return None
        kept += len(kept_NW)
    return masks if kept == len(old.rows_RW) else None


def _write_change(new: _Rows, masks: Masks, to: Path) -> bool:
    """Writes the chosen rows and their numbers; returns whether it did: not if the whole array takes less."""
    chosen = sum(int(mask_N.sum()) for mask_N in masks())
    if chosen * (4 + new.size) >= new.rows_RW.nbytes:
        return False
    Path(f"{to}{HEADER}").write_bytes(new.header)
    with Path(f"{to}{NUMBERS}").open("wb") as numbers, Path(f"{to}{VALUES}").open("wb") as values:
        for (first, block_NW), mask_N in zip(new.blocks(), masks(), strict=True):
            numbers.write((first + np.flatnonzero(mask_N)).astype("<u4").tobytes())
            values.write(block_NW[mask_N].tobytes())
    return True


# Applying.


def apply_delta(folder: Path, bundle: Path) -> Delta:
    """Makes the delta's new version in a bundle that has the old one, and puts it in use.

    Raises ContractError if the bundle has no such version, if the delta or the old version is damaged, and leaves the
    bundle as it was.
    """
    delta = Delta.read(folder)
    about = Description.read(folder)
    if about.version != delta.new or about.files.keys() != delta.made.keys():
        raise ContractError(folder, f"the description of version {delta.new}", f"that of {about.version}")
    check_version(bundle, delta.old)
    if (bundle / VERSIONS / delta.new / DESCRIPTION).is_file():
        use(bundle, delta.new)
        return delta
    old = bundle / VERSIONS / delta.old
    with new_version(bundle) as partial:
        for name in sorted(about.files, key=lambda name: (delta.made[name] == "buckets", name)):  # after their hashes
            path = inside(partial, name, folder / DESCRIPTION)
            path.parent.mkdir(parents=True, exist_ok=True)
            _make(delta.made[name], old, folder, name, path, about.files[name].bytes)
            if file_of(path) != about.files[name]:
                got = f"another one: version {delta.old} of this bundle is damaged, or is not that of the delta"
                raise ContractError(f"{bundle}, {name}", f"the content that version {delta.new} states", got)
        shutil.copyfile(folder / DESCRIPTION, partial / DESCRIPTION)
        publish(bundle, partial, delta.new)
    return delta


def _make(how: How, old: Path, delta: Path, name: str, path: Path, size: int) -> None:
    """Makes a file of `size` bytes of the new version."""
    try:
        if how == "same":
            _link(old / name, path)
        elif how == "whole":
            shutil.copyfile(delta / name, path)
        elif how == "buckets":
            _write_blocks(path, delta / f"{name}{HEADER}", first_of_buckets(path.with_name(HASHES)))
        else:
            _write_blocks(path, delta / f"{name}{HEADER}", _patched(old, delta, name, size, how == "inserted"))
    except (OSError, ValueError, IndexError, AssertionError) as error:
        raise ContractError(old / name, "the file of which the delta was made", error) from None


def _link(source: Path, path: Path) -> None:
    """A second name of the same file, as versions never change; a copy where the file system has no such names."""
    try:
        os.link(source, path)
    except OSError:
        shutil.copyfile(source, path)


def _write_blocks(path: Path, header: Path, blocks: Iterator[NDArray[Any]]) -> None:
    with path.open("wb") as file:
        file.write(header.read_bytes())
        for block in blocks:
            file.write(block.tobytes())


def _patched(old: Path, delta: Path, name: str, size: int, inserted: bool) -> Iterator[NDArray[Any]]:
    """The new array's rows, a block at a time. inserted: new rows lie between the old ones, not in their places."""
    before = _Rows.of(old / name)
    assert before is not None, "an array with rows"
    numbers_N = _Rows.words(delta / f"{name}{NUMBERS}", 4).ravel()
    values_NW = _Rows.words(delta / f"{name}{VALUES}", before.size)
    rows = (size - (delta / f"{name}{HEADER}").stat().st_size) // before.size
    for first in range(0, rows, BLOCK):
        last = min(first + BLOCK, rows)
        begin, end = np.searchsorted(numbers_N, [first, last])
        chosen_N = numbers_N[begin:end].astype(np.int64) - first
        block_NW = np.zeros((last - first, before.rows_RW.shape[1]), before.rows_RW.dtype)
        if inserted:
            is_old_N = np.ones(len(block_NW), dtype=np.bool_)
            is_old_N[chosen_N] = False
            block_NW[is_old_N] = before.rows_RW[first - begin : last - end]
        else:
            kept_NW = before.rows_RW[first:last]
            block_NW[: len(kept_NW)] = kept_NW
        block_NW[chosen_N] = values_NW[begin:end]
        yield block_NW
