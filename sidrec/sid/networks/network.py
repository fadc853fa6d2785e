"""The contract of every network that learns codes: a batch of item vectors in, codes and its own losses out.

Shapes: N all items, B items of a batch, V vector width, D latent width, L levels, K codes, E behaviour width.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class ItemBatch:
    """What a step sees.

    rows_B: int64 row numbers of the items, so that the same item twice can be told.
    vectors_BV: float32, the vector columns concatenated.
    partners: None, or how many of the first items have their partners behind: item i < partners belongs to item
        i + partners, and B = 2 * partners.
    has_partner_P: bool [partners], False where no partner is known and the place holds the item itself again.
    behavior_BE: float32 behaviour vectors for the losses, all zeros where an item has none; None when not asked for.
    scaled_norm_B: float32 norm of the behaviour vector, scaled to [0, 1] over all items; None without behaviour.
    """

    rows_B: Tensor
    vectors_BV: Tensor
    partners: int | None = None
    has_partner_P: Tensor | None = None
    behavior_BE: Tensor | None = None
    scaled_norm_B: Tensor | None = None


class Coded(NamedTuple):
    """What a network makes of a batch.

    latent_BD: before quantisation. quantized_BD: what the codes stand for in the same space, gradient to the codewords.
    codes_BL: int64. targets: per level, what was compared with the codewords, [B, width of that codebook].
    terms: the network's own losses by name, scalars that are summed as they are.
    weights_BL: float32 token weights, or None.
    """

    latent_BD: Tensor
    quantized_BD: Tensor
    codes_BL: Tensor
    targets: tuple[Tensor, ...]
    terms: dict[str, Tensor]
    weights_BL: Tensor | None = None

    def straight_through(self) -> Tensor:
        """The quantised latent, whose gradient goes to the encoder as if nothing had been quantised."""
        return self.latent_BD + (self.quantized_BD - self.latent_BD).detach()


class Network(nn.Module, ABC):
    """`codebooks` holds one module per level, each with a parameter or buffer `weight` [K, width]."""

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
        """[B, V] vectors that codes stand for, with the weights that `encode` gave, where it gave some.

        None when these do not give a vector, as codes without their weights do not.
        """

    def last_level_costs(self, vectors_BV: Tensor, codes_BL: Tensor) -> Tensor | None:
        """[B, K]: see `Tokenizer.last_level_costs`, whose answer for these items it is."""
        return None

    def survey(self, vectors_NV: np.ndarray) -> None:
        """Sees all item vectors once, before `start`: sets buffers that need every item. May be a memory map.

        Raises ContractError when these items cannot be learned from.
        """

    def start(self, vectors_BV: Tensor) -> None:
        """Places the codebooks by k-means on a first large batch, level by level, before the first step."""

    def after_step(self) -> dict[str, float]:
        """Moves whatever is no parameter, such as a controller's strength. Returns what is worth logging."""
        return {}


@torch.no_grad()
def nearest(points_BD: Tensor, codewords_KD: Tensor) -> Tensor:
    """int64 [B]: the codeword at the least squared distance; the first of equals."""
    squares_K = codewords_KD.square().sum(dim=1)
    distances_BK = torch.addmm(squares_K, points_BD, codewords_KD.T, alpha=-2)  # less |point|^2, the same for all codes
    if distances_BK.device.type == "cpu":
        return torch.from_numpy(distances_BK.numpy().argmin(axis=1))  # vectorised, unlike torch's: several times faster
    return distances_BK.argmin(dim=1)


# Multi-layer perceptrons of encoders, decoders, experts and routers.


def mlp(widths: Sequence[int], last_activation: bool = False) -> nn.Sequential:
    """Linear layers from widths[0] to widths[-1] with ReLU between them, and behind the last one if asked for."""
    layers = list(_layers(widths))
    return nn.Sequential(*(layers if last_activation else layers[:-1]))


def _layers(widths: Sequence[int]) -> Iterator[nn.Module]:
    for inputs, outputs in pairwise(widths):
        yield nn.Linear(inputs, outputs)
        yield nn.ReLU()
