"""Files that appear whole or not at all."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from sidrec.errors import ContractError


@contextmanager
def replaced_file(target: Path, *, durable: bool = False, one_writer: bool = False) -> Iterator[Path]:
    """Yields a sibling of `target` to write. It becomes `target` when the block ends, and is removed if it raises.

    A `target` that exists stays as it is until then. durable: wait until the bytes are on the disk. one_writer: no
    other process writes `target`; the sibling is called NAME.partial, so that a rerun replaces what a killed run left.
    """
    partial = target.with_name(f"{target.name}.partial{'' if one_writer else os.getpid()}")
    try:
        yield partial
        if durable:
            with partial.open("rb") as written:
                os.fsync(written.fileno())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a small file in one step: a reader sees the old file or the new one."""
    with replaced_file(path) as partial:
        partial.write_text(text)


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON in one step. Raises ValueError for NaN or infinity, which JSON has not."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def check_free(target: Path, overwrite: bool) -> None:
    """Raises ContractError where `target` exists and is not to be overwritten, or is no file."""
    if target.exists() and not (overwrite and target.is_file()):
        expected = "a file to replace" if overwrite else "no such file yet, or --overwrite"
        raise ContractError(target, expected, "one that exists" if target.is_file() else "a folder")


@contextmanager
def new_file(target: Path, size: int, overwrite: bool = False) -> Iterator[Path]:
    """As `replaced_file`, durable, for a file that a user named.

    size: about how many bytes will be written. Raises ContractError where the disk has no room for them, before or
    while they are written, and where `target` exists and is not to be overwritten, or is a folder.
    """
    check_free(target, overwrite)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(target.parent).free
        if free < size:
            raise ContractError(target, f"room for {size:,} bytes", f"{free:,} bytes free")
        with replaced_file(target, durable=True) as partial:
            yield partial
    except OSError as error:
        raise ContractError(target, "a file that can be written", error.strerror or error) from None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"the number {constant}")


def read_json(path: Path, what: str) -> Any:
    """What a JSON file holds. what: names such a file in the ContractError for one that cannot be read.

    Raises ContractError also for what is no JSON, NaN among it, and for a key that is there twice.
    """

    def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """Python keeps the last of two equal keys without a word: a table copied and not renamed."""
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            raise ContractError(path, "every key once", f"{next(n for n in names if names.count(n) > 1)} twice")
        return found

    try:
        value = json.loads(path.read_bytes(), parse_constant=_refuse, object_pairs_hook=without_repeats)
        json.dumps(value, ensure_ascii=False).encode()  # half a character, as "\ud800" is one, is no name of anything
        return value
    except ContractError:
        raise
    except FileNotFoundError:
        raise ContractError(path, what, "no such file") from None
    except OSError as error:
        raise ContractError(path, what, error.strerror) from None
    except RecursionError:
        raise ContractError(path, "valid JSON", "values nested too deep") from None
    except ValueError as error:  # no JSON, no UTF-8, or a number of thousands of digits
        raise ContractError(path, "valid JSON", error) from None
