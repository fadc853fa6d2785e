"""Checkpoints of a tokenizer's training, from which a killed fit resumes: one file, replaced in one step."""

import hashlib
import json
import logging
import pickle
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sidrec.config.learners import GradientLearnerConfig
from sidrec.io.files import replaced_file
from sidrec.sid.tokenizer import SideInformation

CHECKPOINT = "training.pt"
OLD_PARTIAL = "training.partial"  # the partial file's name in version 0.1.0
VERSION = 1
ROWS = 65_536  # rows hashed at a time

_log = logging.getLogger(__name__)


class Checkpoint:
    """The checkpoint of one training, in a folder of its own that the first `save` makes; no folder, no checkpoints."""

    def __init__(self, work: Path | None, identity: str) -> None:
        """identity: digest of everything that the result depends on, see `identity_of`."""
        self._path = None if work is None else work / CHECKPOINT
        self._identity = identity

    def save(self, state: dict[str, Any]) -> None:
        """state: dicts and lists of tensors and plain values."""
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with replaced_file(self._path) as partial:
            torch.save({"version": VERSION, "identity": self._identity, "state": state}, partial)

    def load(self) -> dict[str, Any] | None:
        """The state last saved; None without one, or, with a warning, where it is damaged or of another training."""
        if self._path is None or not self._path.is_file():
            return None
        try:
            content = torch.load(self._path, map_location="cpu", weights_only=True)
            version, identity, state = content["version"], content["identity"], content["state"]
        except (OSError, RuntimeError, EOFError, ValueError, KeyError, TypeError, pickle.UnpicklingError) as error:
            _log.warning("%s: not readable (%s), so the training starts anew", self._path, " ".join(str(error).split()))
            return None
        if version != VERSION:
            _log.warning("%s: of version %s, not %s, so the training starts anew", self._path, version, VERSION)
        elif identity != self._identity:
            _log.warning("%s: of another config, seed or data, so the training starts anew", self._path)
        else:
            return state
        return None


def remove_checkpoint(work: Path) -> None:
    """Removes the files of a training from its folder, and the folder if it is empty then. Ignores OSError."""
    with suppress(OSError):
        for path in (*work.glob(f"{CHECKPOINT}*"), work / OLD_PARTIAL):  # a save that was killed leaves a partial file
            path.unlink(missing_ok=True)
        work.rmdir()


def identity_of(
    config: GradientLearnerConfig, seed: int, processes: int, vectors_NV: np.ndarray, side: SideInformation
) -> str:
    """A digest of the config, the seed, the number of processes and every byte of the training data."""
    digest = hashlib.blake2b()
    digest.update(json.dumps([asdict(config), seed, processes, side.columns]).encode())
    for array in (vectors_NV, side.pairs_P2, side.behavior_NE):
        digest.update(b"none" if array is None else f"{array.shape} {array.dtype}".encode())
        for start in range(0, 0 if array is None else len(array), ROWS):
            assert array is not None
            digest.update(np.ascontiguousarray(array[start : start + ROWS]).tobytes())
    return digest.hexdigest()
