"""Files: written whole or not at all, read with errors that name the file."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from sidrec.errors import ContractError

if TYPE_CHECKING:  # pyarrow takes long to import, and most users of this module read no parquet
    import pyarrow as pa

    from sidrec.io.places import Place


@contextmanager
def replaced_file(target: Path, *, durable: bool = False, one_writer: bool = False) -> Iterator[Path]:
    """Yields a sibling of `target` to write. It becomes `target` when the block ends, and is removed if it raises.

    An existing `target` stays unchanged until then. durable: wait until the bytes are on disk. one_writer: no other
    process writes `target`; the sibling is called NAME.partial, so that a rerun replaces one left by a killed process.
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


def to_disk(path: Path) -> None:
    """Waits until a file's bytes, or a folder's names, are on disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str, *, one_writer: bool = False) -> None:
    """Writes a small file in one step: a reader sees the old file or the new one. one_writer: see `replaced_file`."""
    with replaced_file(path, one_writer=one_writer) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any, *, one_writer: bool = False) -> None:
    """Writes `json_text(value)` in one step."""
    write_text(path, json_text(value), one_writer=one_writer)


def json_text(value: Any) -> str:
    """`value` as indented JSON. Raises ValueError for NaN or infinity, which JSON does not have."""
    return json.dumps(value, indent=1, allow_nan=False) + "\n"


def check_free(target: Path, overwrite: bool) -> None:
    """Raises ContractError if `target` exists, unless it is a file and `overwrite` is set."""
    if target.exists() and not (overwrite and target.is_file()):
        expected = "a file to replace" if overwrite else "no such file yet, or --overwrite"
        raise ContractError(target, expected, "one that exists" if target.is_file() else "a folder")


@contextmanager
def new_file(target: Path, size: int, overwrite: bool = False) -> Iterator[Path]:
    """A durable `replaced_file` for a file that a user named; makes missing parent folders.

    size: about how many bytes will be written. Raises ContractError if the disk has less space or fills up meanwhile,
    if the file cannot be written, and as `check_free`.
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


def read_json(path: "Place", what: str) -> Any:
    """The value in a JSON file. what: the kind of file, for the error message if it cannot be read.

    Raises ContractError also for invalid JSON, NaN and infinity included, and for a repeated key.
    """

    def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """Refuses repeated keys, of which Python silently keeps the last: a copied entry that was not renamed."""
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            raise ContractError(path, "every key once", f"{next(n for n in names if names.count(n) > 1)} twice")
        return found

    if path.is_char_device():  # such as /dev/zero, which never ends
        raise ContractError(path, what, "a device")
    try:
        value = json.loads(path.read_bytes(), parse_constant=_refuse, object_pairs_hook=without_repeats)
        json.dumps(value, ensure_ascii=False).encode()  # refuses lone surrogates such as "\ud800"
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


@contextmanager
def readable(where: object, expected: str = "a readable parquet file") -> Iterator[None]:
    """Wraps pyarrow calls that read a parquet file: their exceptions become ContractErrors. where: names the file."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ContractError(where, expected, error) from None


def column_type(schema: "pa.Schema", name: str, where: object) -> "pa.DataType":
    """The type of a column. Raises ContractError unless there is exactly one column of that name."""
    places = schema.get_all_field_indices(name)
    if len(places) != 1:
        expected, got = (f"a column {name}", "") if not places else (f"one column {name}", f"{len(places)} of them, ")
        raise ContractError(where, expected, f"{got}columns {schema.names}")
    return schema.field(places[0]).type
