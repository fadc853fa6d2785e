"""The contract of every tokenizer: vectors in, codes out. A tokenizer is frozen once fitted.

Shapes: N items, V vector width, L levels, K codes per level (levels may differ in K), P pairs.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from sidrec.schema import ContractError


class Encoded(NamedTuple):
    """What a tokenizer says about items.

    codes_NL: int64, level l in [0, codebook_sizes[l]).
    weights_NL: float32 importance of every token, or None where the learner has no such thing.
    """

    codes_NL: np.ndarray
    weights_NL: np.ndarray | None = None


@dataclass(frozen=True)
class SideInformation:
    """What learners may use besides the vectors; each says which part it needs.

    columns: (name, width) of the vector columns that were concatenated, in order; widths sum to V.
    train_impressions_N: int64 rows of the train split per item.
    pairs_P2: int64 row numbers of items that belong together, such as co-occurring ones. From the train split only.
    behavior_NE: float32 behaviour vectors as they are, all zeros for items without any; from the train split only.
        May be a memory map.
    """

    columns: tuple[tuple[str, int], ...] = ()
    train_impressions_N: np.ndarray | None = None
    pairs_P2: np.ndarray | None = None
    behavior_NE: np.ndarray | None = None


class Tokenizer(ABC):
    """A fitted tokenizer. `arrays` and the learner's config are its whole state."""

    @classmethod
    @abstractmethod
    def fit(cls, vectors_NV: np.ndarray, config: Any, seed: int, side: SideInformation, work: Path | None) -> Self:
        """Learns from float32 vectors, which may be a memory map larger than RAM.

        work: a folder for this fit alone, which a learner makes once it has something to go on from after a kill.
        The same arguments give the same tokenizer. Raises ContractError when the vectors or the side information
        cannot support the config, and CollapseError when the codebooks collapsed.
        """

    @property
    def journal(self) -> tuple[dict[str, object], ...]:
        """What the fit saw on its way, one entry per epoch, for learners that have epochs."""
        return ()

    @property
    @abstractmethod
    def codebook_sizes(self) -> tuple[int, ...]:
        """K of every level."""

    @property
    @abstractmethod
    def width(self) -> int:
        """V, the width of the vectors it encodes."""

    @abstractmethod
    def encode(self, vectors_NV: np.ndarray) -> Encoded:
        """Codes of any items, seen in fitting or not. A row's codes depend on that row alone.

        Raises ContractError when the width is not V.
        """

    @abstractmethod
    def decode(self, codes_NL: np.ndarray, weights_NL: np.ndarray | None = None) -> np.ndarray | None:
        """The float32 vectors [N, V] that codes stand for, or None when they do not stand for vectors.

        weights_NL: what `encode` gave beside the codes. Without it, codes of a learner that has weights stand for none.
        """

    def last_level_costs(self, vectors_NV: np.ndarray, codes_NL: np.ndarray) -> np.ndarray | None:
        """How badly each code of the last level fits each item, given its codes before: float32 [N, K], less is better.

        What a resolver of collisions chooses by; the last column of codes_NL is not looked at. None for learners whose
        codes are no nearest ones.
        """
        return None

    @abstractmethod
    def arrays(self) -> dict[str, np.ndarray]:
        """The learned state, for the artifact."""

    @classmethod
    @abstractmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray], config: Any, seed: int) -> Self:
        """The tokenizer that `arrays` came from. Raises KeyError when an array is missing."""


def check_width(vectors_NV: np.ndarray, width: int) -> None:
    """Raises ContractError when vectors are not as wide as those a tokenizer was fitted on."""
    if vectors_NV.ndim != 2 or vectors_NV.shape[1] != width:
        raise ContractError("item vectors", f"shape [items, {width}], as the tokenizer was fitted", vectors_NV.shape)
