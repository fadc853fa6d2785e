"""Large files that appear whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sidrec.checkpoint.tensor_shard import CheckpointError


def check_free(target: Path, overwrite: bool) -> None:
    """Raises CheckpointError where `target` exists and is not to be overwritten, or is no file."""
    if target.exists() and not (overwrite and target.is_file()):
        expected = "a file to replace" if overwrite else "no such file yet, or --overwrite"
        raise CheckpointError(
            f"{target}: expected {expected}, got {'one that exists' if target.is_file() else 'a folder'}"
        )


@contextmanager
def atomic_file(target: Path, size: int, overwrite: bool = False) -> Iterator[Path]:
    """Gives the path of a sibling of `target` to write; it becomes `target` when the block ends, and vanishes if it
    raises. A `target` that is replaced stays as it is until then.

    size: about how many bytes will be written. Raises CheckpointError where there is no room for them, before or while
    they are written, or `target` exists and is not to be overwritten.
    """
    check_free(target, overwrite)
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(target.parent).free
        if free < size:
            raise CheckpointError(f"{target}: expected room for {size:,} bytes, got {free:,} bytes free")
        yield partial
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        partial.replace(target)
    except OSError as error:
        raise CheckpointError(f"{target}: expected a file that can be written, got {error.strerror or error}") from None
    finally:
        partial.unlink(missing_ok=True)
