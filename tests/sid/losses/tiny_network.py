"""A network small enough to compute by hand, and batches for losses."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sidrec.sid.networks.network import Coded, ItemBatch, Network, nearest


class TinyNetwork(Network):
    """A linear encoder and residual codebooks; no decoder, no losses of its own."""

    def __init__(self, width: int = 4, latent: int = 3, levels: int = 3, size: int = 4, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.encoder = nn.Linear(width, latent)
        self.codebooks = nn.ModuleList(nn.Embedding(size, latent) for _ in range(levels))

    def forward(self, batch: ItemBatch) -> Coded:
        latent_BD = self.encoder(batch.vectors_BV)
        codes_BL = self._codes(latent_BD)
        quantized_BD = sum(words[codes] for words, codes in zip(self.codewords, codes_BL.T, strict=True))
        assert isinstance(quantized_BD, Tensor)
        return Coded(latent_BD, quantized_BD, codes_BL, (), {})

    def encode(self, vectors_BV: Tensor) -> tuple[Tensor, None]:
        return self._codes(self.encoder(vectors_BV)), None

    def decode(self, codes_BL: Tensor, weights_BL: Tensor | None = None) -> None:
        return None

    @torch.no_grad()
    def _codes(self, residual_BD: Tensor) -> Tensor:
        codes = []
        for words in self.codewords:
            codes.append(nearest(residual_BD, words))
            residual_BD = residual_BD - words[codes[-1]]
        return torch.stack(codes, dim=1)


def coded(latent_BD: Tensor, codes: list[list[int]] | Tensor, quantized_BD: Tensor | None = None) -> Coded:
    """What a network would return, from its latents and codes."""
    return Coded(latent_BD, latent_BD if quantized_BD is None else quantized_BD, torch.as_tensor(codes), (), {})


def items(
    rows: Sequence[int] | Tensor, partners: int | None = None, has_partner: list[bool] | None = None
) -> ItemBatch:
    """A batch of which only the row numbers matter."""
    rows_B = rows if isinstance(rows, Tensor) else torch.tensor(list(rows))
    known_P = None if has_partner is None else torch.tensor(has_partner)
    return ItemBatch(rows_B, torch.zeros(len(rows_B), 4), partners, known_P)


def random_batch(rows: int = 12, width: int = 4, behavior: int = 5, seed: int = 1) -> ItemBatch:
    """Distinct items, half of them partners of the others, all but the first with a behaviour vector."""
    generator = torch.Generator().manual_seed(seed)
    behavior_BE = torch.randn(rows, behavior, generator=generator)
    behavior_BE[0] = 0
    vectors_BV = torch.randn(rows, width, generator=generator)
    return ItemBatch(torch.arange(rows), vectors_BV, rows // 2, None, behavior_BE, torch.linspace(0, 1, rows))


def on_angle(*degrees: float) -> Tensor:
    """Unit vectors [B, 2] at these angles."""
    angle_B = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    return torch.stack([angle_B.cos(), angle_B.sin()], dim=1)
