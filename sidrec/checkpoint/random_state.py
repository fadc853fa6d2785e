"""The state of every rank's random generators, as tensors: of torch on CPU and GPU, of numpy and of Python."""

import random
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sidrec.checkpoint.index import read_index
from sidrec.checkpoint.piece import Piece, whole
from sidrec.checkpoint.piece_names import RANKS
from sidrec.checkpoint.storage import load_pieces
from sidrec.parallel.process_group import Ranks, together


def random_pieces(ranks: Ranks) -> list[Piece]:
    """What this rank's generators are at, under keys of its own."""
    return [whole(f"{RANKS}/{ranks.rank}/random/{name}", state) for name, state in _states(ranks.device).items()]


def resume_random(path: Path, step: int, seed: int, ranks: Ranks) -> None:
    """Puts the generators where the checkpoint in `path` had them. Where other ranks wrote it, or another kind of
    device, every rank's are drawn anew from (seed, step, rank). Every rank calls it.

    Raises CheckpointError as `load_pieces` does.
    """
    pieces = random_pieces(ranks)
    index = together(ranks, lambda: read_index(path))
    stored = {key for key in index.tensors if "/random/" in key}
    states = {piece.key.rsplit("/", 1)[1]: piece.values for piece in pieces}
    if stored == {f"{RANKS}/{rank}/random/{name}" for rank in range(ranks.world) for name in states}:
        load_pieces(path, index, pieces, ranks.control)
        _restore(states, ranks.device)
    else:
        _draw(seed, step, ranks.rank)


def _draw(seed: int, step: int, rank: int) -> None:
    torch_seed, numpy_seed, python_seed = map(int, np.random.SeedSequence((seed, step, rank)).generate_state(3))
    torch.manual_seed(torch_seed)
    np.random.seed(numpy_seed)
    random.seed(python_seed)


def _states(device: torch.device) -> dict[str, Tensor]:
    numpy = np.random.get_state(legacy=False)
    _, words, python_gauss = random.getstate()
    states = {
        "torch": torch.get_rng_state(),
        "numpy": _packed(
            (*numpy["state"]["key"].tolist(), numpy["state"]["pos"]), numpy["gauss"] if numpy["has_gauss"] else None
        ),
        "python": _packed(words, python_gauss),
    }
    return states if device.type == "cpu" else {**states, "cuda": torch.cuda.get_rng_state(device)}


def _restore(states: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(states["torch"])
    words, gauss = _unpacked(states["numpy"])
    keys = np.array(words[:-1], dtype=np.uint32)
    np.random.set_state(("MT19937", keys, words[-1], int(gauss is not None), gauss or 0.0))
    words, gauss = _unpacked(states["python"])
    random.setstate((3, tuple(words), gauss))
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


def _packed(words: tuple[int, ...], gauss: float | None) -> Tensor:
    """int64: the generator's words, whether it holds the second of two normal numbers, and the bits of that one."""
    bits = int(np.float64(gauss or 0.0).view(np.int64))
    return torch.tensor([*words, int(gauss is not None), bits], dtype=torch.int64)


def _unpacked(packed: Tensor) -> tuple[list[int], float | None]:
    *words, has_gauss, bits = packed.tolist()
    return words, float(np.int64(bits).view(np.float64)) if has_gauss else None
