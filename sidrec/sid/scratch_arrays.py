"""Arrays in a folder of their own: written by one process, mapped by any on the same machine, larger than RAM."""

import os
import shutil
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

from sidrec.schema import ContractError


def new_array(folder: Path | None, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    """An array to fill, mapped from FOLDER/NAME.npy; without a folder, one in memory.

    Its place on disk is taken at once: a disk that gets full under a mapped file kills the process without a word.
    Raises ContractError when there is not enough.
    """
    if folder is None:
        return np.empty(shape, dtype)
    path = folder / f"{name}.npy"
    array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    with path.open("r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        except OSError as error:
            free = shutil.disk_usage(folder).free
            expected = f"room for {array.nbytes / 1e9:.1f} GB of {name}; TMPDIR names another folder"
            raise ContractError(folder, expected, f"{error.strerror}, {free / 1e9:.1f} GB free") from None
    return array


def mapped_array(folder: Path, name: str) -> np.ndarray:
    """What another process of this machine has filled, read-only.

    Raises ContractError where it is not to be seen from here.
    """
    path = folder / f"{name}.npy"
    try:
        return np.load(path, mmap_mode="r")
    except OSError as error:
        expected = "a file that the first process of this machine has written for all of them"
        raise ContractError(path, expected, error.strerror) from None
