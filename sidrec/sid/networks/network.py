"""The contract of every network that learns codes: a batch of item vectors in, codes and the network's own losses out.

`GradientTokenizer` wraps a trained network; `Trainer` trains it: `measure` all items, `place_codebooks` on a sample,
then `forward` and `after_step` in every step.

Shapes: N all items, B items of a batch, V vector width, D latent width, L levels, K codes, E behaviour width.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class ItemBatch:
    """The items of one training step.

    rows_B: int64 row numbers of the items; equal numbers mark the same item.
    vectors_BV: float32, the vector columns concatenated.
    partners: None without item pairs. Else B = 2 * partners, and item i + partners is the partner of item i < partners.
    has_partner_P: bool [partners], False where item i has no known partner and place i + partners holds item i again.
    behavior_BE: float32 behaviour vectors for the losses, zeros where an item has none; None when no loss uses them.
    scaled_norm_B: float32 norm of the behaviour vector, scaled to [0, 1] over all items; None without behaviour.
    """

    rows_B: Tensor
    vectors_BV: Tensor
    partners: int | None = None
    has_partner_P: Tensor | None = None
    behavior_BE: Tensor | None = None
    scaled_norm_B: Tensor | None = None


class Coded(NamedTuple):
    """The output of a network for a batch.

    latent_BD: before quantisation. quantized_BD: its reconstruction from codewords, with gradient to the codewords.
    codes_BL: int64. targets: per level, the points that were quantised, [B, width of that codebook].
    terms: the network's own losses by name, scalars whose sum is minimised.
    weights_BL: float32 token weights, or None.
    """

    latent_BD: Tensor
    quantized_BD: Tensor
    codes_BL: Tensor
    targets: tuple[Tensor, ...]
    terms: dict[str, Tensor]
    weights_BL: Tensor | None = None

    def straight_through(self) -> Tensor:
        """z + sg[z_q - z] [B, D]: the quantised latent, with the gradient of the latent."""
        return self.latent_BD + (self.quantized_BD - self.latent_BD).detach()


class Network(nn.Module, ABC):
    """A network with one codebook per level.

    codebooks: one module per level, each with a parameter or buffer `weight` [K, width].
    unscaled_columns: vector columns that must not be scaled to unit length.
    unknown_behavior: the network accepts items whose vector in the column `behavior` is all zeros.
    """

    unscaled_columns: ClassVar[frozenset[str]] = frozenset()
    unknown_behavior: ClassVar[bool] = False
    codebooks: nn.ModuleList

    @property
    def codewords(self) -> tuple[Tensor, ...]:
        """Every level's codewords, [K, width of that codebook]."""
        return tuple(cast(Tensor, codebook.weight) for codebook in self.codebooks)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """K of every level."""
        return tuple(len(codewords_KD) for codewords_KD in self.codewords)

    @property
    def latent_width(self) -> int:
        """D; networks whose latents are not as wide as the first level's codewords override it."""
        return self.codewords[0].shape[1]

    @abstractmethod
    def forward(self, batch: ItemBatch) -> Coded:
        """Codes with gradients, and the network's own losses."""

    @abstractmethod
    def encode(self, vectors_BV: Tensor) -> tuple[Tensor, Tensor | None]:
        """codes_BL and weights_BL (or None), without gradients; a row's codes depend on that row alone."""

    @abstractmethod
    def decode(self, codes_BL: Tensor, weights_BL: Tensor | None = None) -> Tensor | None:
        """Reconstructed vectors [B, V]; None when the network cannot reconstruct vectors from these.

        weights_BL: the weights that `encode` returned. Networks with token weights return None without them.
        """

    def last_level_costs(self, vectors_BV: Tensor, codes_BL: Tensor) -> Tensor | None:
        """[B, K]: see `Tokenizer.last_level_costs`."""
        return None

    def measure(self, vectors_NV: np.ndarray) -> None:
        """Sets buffers that depend on all items, such as means. Called once, before training; accepts a memory map.

        Raises ContractError when the network cannot learn from these items.
        """

    def place_codebooks(self, vectors_BV: Tensor) -> None:
        """Sets the codewords to k-means centroids of a large batch, level by level, before the first step."""

    def after_step(self) -> dict[str, float]:
        """Updates state that is not trained by gradient, such as a controller's strength. Returns figures to log."""
        return {}


@torch.no_grad()
def nearest(points_BD: Tensor, codewords_KD: Tensor) -> Tensor:
    """int64 [B]: the codeword at the smallest squared distance; the first of equals."""
    squares_K = codewords_KD.square().sum(dim=1)
    distances_BK = torch.addmm(squares_K, points_BD, codewords_KD.T, alpha=-2)  # less |point|^2, equal for all codes
    if distances_BK.device.type == "cpu":
        return torch.from_numpy(distances_BK.numpy().argmin(axis=1))  # vectorised, unlike torch's: several times faster
    return distances_BK.argmin(dim=1)


def mlp(widths: Sequence[int], last_activation: bool = False) -> nn.Sequential:
    """Linear layers from widths[0] to widths[-1] with ReLU between them, and after the last one if asked for."""
    layers = list(_layers(widths))
    return nn.Sequential(*(layers if last_activation else layers[:-1]))


def _layers(widths: Sequence[int]) -> Iterator[nn.Module]:
    for inputs, outputs in pairwise(widths):
        yield nn.Linear(inputs, outputs)
        yield nn.ReLU()
