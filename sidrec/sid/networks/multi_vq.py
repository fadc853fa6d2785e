"""Independent codebooks beside each other: the control that shows what residual levels are worth.

Shapes: B items, N all items, V vector width, D latent width, L levels, K codes, P points.
"""

import torch
from torch import Tensor, nn

from sidrec.config.learners import MultiVqConfig
from sidrec.sid.networks.codebook import Codebook, quantisation_terms
from sidrec.sid.networks.item_weights import ItemWeights
from sidrec.sid.networks.mlp import mlp
from sidrec.sid.networks.network import Coded, ItemBatch
from sidrec.sid.networks.rqvae import reconstruction, weighted_sum
from sidrec.sid.networks.weighted_network import WeightedNetwork


class MultiVq(WeightedNetwork):
    """One trunk, one head z_l and codebook per level; z = sum_l w_l z_l, and the same sum of codewords for the decoder.

    w_l = 1 without a router. Terms, and what `reconstruction: mean` does to them, as those of RQ-VAE.
    """

    codebooks: nn.ModuleList

    def __init__(self, config: MultiVqConfig, columns: tuple[tuple[str, int], ...]) -> None:
        super().__init__()
        self.config = config
        inputs = sum(width for _, width in columns)
        self.trunk = mlp((inputs, *config.hidden), last_activation=True)
        self.heads = nn.Linear((inputs, *config.hidden)[-1], config.levels * config.width)
        self.decoder = mlp((config.width, *reversed(config.hidden), inputs))
        self.codebooks = nn.ModuleList(Codebook(config.codebook_size, config.width) for _ in range(config.levels))
        self.weights = ItemWeights(config.router, columns, config.levels) if config.router else None

    @torch.no_grad()
    def start(self, vectors_BV: Tensor) -> None:
        for codebook, latent_BD in self._levels(vectors_BV):
            codebook.place(latent_BD)

    def forward(self, batch: ItemBatch) -> Coded:
        codes, quantized, targets = [], [], []
        for codebook, latent_BD in self._levels(batch.vectors_BV):
            codes_B, quantized_BD = codebook(latent_BD)
            codes.append(codes_B)
            quantized.append(quantized_BD)
            targets.append(latent_BD)
        weights_BL = self.token_weights(batch.vectors_BV)
        config = self.config
        terms = quantisation_terms(self.codebooks, targets, quantized, config.commitment, config.reconstruction)
        latent_BD, quantized_BD = weighted_sum(targets, weights_BL), weighted_sum(quantized, weights_BL)
        coded = Coded(latent_BD, quantized_BD, torch.stack(codes, dim=1), tuple(targets), terms, weights_BL)
        decoded_BV = self.decoder(coded.straight_through())
        terms["reconstruction"] = reconstruction(decoded_BV, batch.vectors_BV, self.config.reconstruction)
        terms |= self.weight_terms(weights_BL, batch.vectors_BV)
        return coded

    @torch.no_grad()
    def encode(self, vectors_BV: Tensor) -> tuple[Tensor, Tensor | None]:
        codes = [codebook.nearest(latent_BD) for codebook, latent_BD in self._levels(vectors_BV)]
        return torch.stack(codes, dim=1), self.token_weights(vectors_BV)

    @torch.no_grad()
    def decode(self, codes_BL: Tensor, weights_BL: Tensor | None = None) -> Tensor | None:
        if self.lacks(weights_BL):
            return None
        levels = zip(self.codewords, codes_BL.unbind(dim=1), strict=True)
        return self.decoder(weighted_sum([codewords_KD[codes_B] for codewords_KD, codes_B in levels], weights_BL))

    @torch.no_grad()
    def last_level_costs(self, vectors_BV: Tensor, codes_BL: Tensor) -> Tensor:
        codebook, latent_BD = self._levels(vectors_BV)[-1]
        return torch.cdist(latent_BD, codebook.weight).square()

    def _levels(self, vectors_BV: Tensor) -> list[tuple[Codebook, Tensor]]:
        """Every level's codebook and latent [B, D]."""
        latents = self.heads(self.trunk(vectors_BV)).chunk(len(self.codebooks), dim=1)
        codebooks = [codebook for codebook in self.codebooks if isinstance(codebook, Codebook)]
        return list(zip(codebooks, latents, strict=True))
