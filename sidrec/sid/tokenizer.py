"""The contract of every tokenizer: item vectors in, codes out. A fitted tokenizer does not change.

A learner of semantic ids is one class here: it says what it needs (`inputs`), learns (`fit`), encodes, decodes, and
gives its state as arrays. `sidrec.sid.learners.registry` finds it by the section of the recipe that configures it.

Shapes: N items, V vector width, E behaviour width, L levels, K codes per level (levels may differ in K), P pairs.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np

from sidrec.schema import ContractError


class Encoded(NamedTuple):
    """Codes of items.

    codes_NL: int64, level l in [0, codebook_sizes[l]).
    weights_NL: float32 importance of every token; None for learners without token weights.
    """

    codes_NL: np.ndarray
    weights_NL: np.ndarray | None = None


@dataclass(frozen=True)
class LearnerInputs:
    """What a learner needs besides the vector columns; decides what `read_item_vectors` reads.

    pairs: item pairs, as `SideInformation.pairs_P2`.
    behavior: behaviour vectors, as `SideInformation.behavior_NE`.
    unscaled: vector columns that are never scaled to unit length, whatever `normalize` says.
    unknown_behavior: the learner accepts items whose vector in the column `behavior` is all zeros.
    """

    pairs: bool = False
    behavior: bool = False
    unscaled: frozenset[str] = frozenset()
    unknown_behavior: bool = False


VECTORS_ALONE = LearnerInputs()


@dataclass(frozen=True)
class SideInformation:
    """What learners may use besides the vectors.

    columns: (name, width) of the vector columns that were concatenated, in order; widths sum to V.
    train_impressions_N: int64 rows of the train split per item.
    pairs_P2: int64 row numbers of items that belong together, such as co-occurring ones. From the train split only.
    behavior_NE: float32 behaviour vectors, not scaled, all zeros for items without any; from the train split only.
        May be a memory map.
    """

    columns: tuple[tuple[str, int], ...] = ()
    train_impressions_N: np.ndarray | None = None
    pairs_P2: np.ndarray | None = None
    behavior_NE: np.ndarray | None = None


class Tokenizer(ABC):
    """A fitted tokenizer. `arrays` and the learner's config are its whole state."""

    several_processes: ClassVar[bool] = False
    """Whether the processes of a joined process group can share one fit."""

    @classmethod
    def inputs(cls, config: Any) -> LearnerInputs:
        """What `fit` needs besides the vector columns, by the learner's section of the recipe."""
        return VECTORS_ALONE

    @classmethod
    @abstractmethod
    def fit(cls, vectors_NV: np.ndarray, config: Any, seed: int, side: SideInformation, work: Path | None) -> Self:
        """Learns from float32 vectors, which may be a memory map larger than RAM.

        config: the learner's section of the recipe.
        work: a folder for this fit alone. Learners with checkpoints create it and resume from it; None keeps none.
        The same arguments give the same tokenizer. Raises ContractError when the vectors or the side information
        cannot support the config, and CollapseError when the codebooks collapsed.
        """

    @property
    def journal(self) -> tuple[dict[str, object], ...]:
        """One entry per epoch of the fit, for learners that have epochs."""
        return ()

    @property
    @abstractmethod
    def codebook_sizes(self) -> tuple[int, ...]:
        """K of every level."""

    @property
    @abstractmethod
    def width(self) -> int:
        """V, the width of the vectors that it encodes."""

    @abstractmethod
    def encode(self, vectors_NV: np.ndarray) -> Encoded:
        """Codes of any items, whether the fit saw them or not. A row's codes depend on that row alone.

        Raises ContractError when the width is not V.
        """

    @abstractmethod
    def decode(self, codes_NL: np.ndarray, weights_NL: np.ndarray | None = None) -> np.ndarray | None:
        """Reconstructed float32 vectors [N, V], or None when the learner cannot reconstruct vectors from these.

        weights_NL: the weights that `encode` returned. A learner with token weights returns None without them.
        """

    def last_level_costs(self, vectors_NV: np.ndarray, codes_NL: np.ndarray) -> np.ndarray | None:
        """Cost of every code of the last level for every item, given the item's codes before: float32 [N, K].

        `sidrec.sid.collisions` chooses by these; less is better. The last column of codes_NL is ignored. None for
        learners that do not take the nearest code.
        """
        return None

    @abstractmethod
    def arrays(self) -> dict[str, np.ndarray]:
        """The learned state, for the artifact."""

    @classmethod
    @abstractmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray], config: Any, seed: int) -> Self:
        """The tokenizer with the state `arrays`. Raises KeyError when an array is missing."""


def check_width(vectors_NV: np.ndarray, width: int) -> None:
    """Raises ContractError when vectors are not as wide as those that the tokenizer was fitted on."""
    if vectors_NV.ndim != 2 or vectors_NV.shape[1] != width:
        raise ContractError("item vectors", f"shape [items, {width}], as the tokenizer was fitted", vectors_NV.shape)
