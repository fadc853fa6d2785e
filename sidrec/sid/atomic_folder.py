"""Folders that appear whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Gives an empty sibling of `target` to fill; it becomes `target` when the block ends, and vanishes if it raises.

    A `target` that exists is replaced, and stays as it is until then.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    former = target.with_name(f".{target.name}.former-{os.getpid()}")
    partial.mkdir()
    try:
        yield partial
        if target.exists():  # a folder that is not empty cannot be renamed onto
            target.rename(former)
        partial.rename(target)
    except BaseException:
        if former.exists() and not target.exists():
            former.rename(target)
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(former, ignore_errors=True)
