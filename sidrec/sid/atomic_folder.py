"""Folders that appear whole or not at all."""

import glob
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sidrec.output import FolderKind, check_replaceable, output_folder, replace_folder, restore


@contextmanager
def atomic_folder(target: Path, kind: FolderKind) -> Iterator[Path]:
    """Gives an empty sibling of `target` to fill; it becomes `target` when the block ends, and vanishes if it raises.

    A `target` of this kind is replaced, and stays as it is until then. Raises ContractError, before the block and
    again after it, for one that must not be replaced: see `sidrec.output`.
    """
    folder = replaceable_folder(target, kind)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    former = folder.with_name(f".{folder.name}.former-{os.getpid()}")
    partial.mkdir()
    try:
        yield partial
        check_replaceable(folder, kind)
        replace_folder(partial, folder, former)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(former, ignore_errors=True)


def replaceable_folder(target: Path, kind: FolderKind) -> Path:
    """The target without links. A former one that a killed replacement had moved away is put back first.

    Raises ContractError where the target must not be replaced.
    """
    folder = output_folder(target)
    for former in sorted(folder.parent.glob(f".{glob.escape(folder.name)}.former-*")):
        if kind.written(former) is not None:
            restore(folder, former)
    check_replaceable(folder, kind)
    return folder
