"""Random codes: a control without meaning. Also the shortest example of a learner.

Shapes as in `sidrec.sid.tokenizer`.
"""

import hashlib
from pathlib import Path
from typing import Self

import numpy as np

from sidrec.config.learners import RandomCodesConfig
from sidrec.sid.tokenizer import Encoded, SideInformation, Tokenizer, check_width


class RandomCodes(Tokenizer):
    """A control that shows whether SIDs carry meaning (as in FORGE, arXiv 2509.20904). [N, V] -> codes [N, L].

    Codes are uniform on [0, K) per level: a hash of the vector's bytes and the seed. New items get codes too. Items
    with equal vectors share a SID, as with every tokenizer; similar items do not.
    """

    def __init__(self, width: int, config: RandomCodesConfig, seed: int) -> None:
        self._width = width
        self._config = config
        self._seed = seed

    @classmethod
    def fit(
        cls,
        vectors_NV: np.ndarray,
        config: RandomCodesConfig,
        seed: int,
        side: SideInformation,
        work: Path | None = None,
    ) -> Self:
        return cls(vectors_NV.shape[1], config, seed)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        return (self._config.codebook_size,) * self._config.levels

    @property
    def width(self) -> int:
        return self._width

    def encode(self, vectors_NV: np.ndarray) -> Encoded:
        check_width(vectors_NV, self._width)
        levels = self._config.levels
        key = str(self._seed).encode()
        words = np.empty((len(vectors_NV), levels), dtype="<u8")
        for row, vector in enumerate(np.ascontiguousarray(vectors_NV, dtype="<f4")):
            digest = hashlib.shake_128(key + b":" + vector.tobytes()).digest(8 * levels)
            words[row] = np.frombuffer(digest, dtype="<u8")
        return Encoded((words % self._config.codebook_size).astype(np.int64))

    def decode(self, codes_NL: np.ndarray, weights_NL: np.ndarray | None = None) -> None:
        return None

    def arrays(self) -> dict[str, np.ndarray]:
        return {"width": np.array([self._width], dtype=np.int64)}

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray], config: RandomCodesConfig, seed: int) -> Self:
        return cls(int(arrays["width"][0]), config, seed)
