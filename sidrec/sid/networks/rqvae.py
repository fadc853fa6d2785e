"""Networks on the concatenated vector columns: RQ-VAE, and its control with independent codebooks.

Shapes: B items, N all items, V vector width, D latent width, L levels, K codes, P points.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from sidrec.config.learners import MultiVqConfig, RqVaeConfig
from sidrec.sid.networks.codebook import Codebook, quantisation_terms, spread_codes
from sidrec.sid.networks.network import Coded, ItemBatch, mlp
from sidrec.sid.networks.token_weights import ItemWeights, WeightedNetwork


class RqVae(WeightedNetwork):
    """RQ-VAE (TIGER, arXiv 2305.05065): encoder, one residual codebook per level, decoder. [B, V] -> codes [B, L].

    z = enc(x), r_0 = z, q_l = the codeword nearest to r_(l-1), r_l = r_(l-1) - sg[q_l], x' = dec(z + sg[sum_l q_l - z])

    The network of the learners rqvae, letter, das_lite, quasid and adasid, which differ in the losses that they add.
    Terms: reconstruction |x' - x|^2; codebook sum_l |sg[r_(l-1)] - q_l|^2, the only one that moves codewords;
    commitment beta sum_l |r_(l-1) - sg[q_l]|^2, with a gradient to the encoder from every level. All are means over
    items and sums over dimensions; with `reconstruction: mean`, means over dimensions and levels too, as in LETTER's
    released code. With a router, the decoder sees sum_l w_l q_l instead; codes do not depend on weights.
    """

    codebooks: nn.ModuleList

    def __init__(self, config: RqVaeConfig, columns: tuple[tuple[str, int], ...]) -> None:
        super().__init__()
        self.config = config
        inputs = sum(width for _, width in columns)
        self.encoder = mlp((inputs, *config.hidden, config.width))
        self.decoder = mlp((config.width, *reversed(config.hidden), inputs))
        self.codebooks = nn.ModuleList(Codebook(config.codebook_size, config.width) for _ in range(config.levels))
        self.weights = ItemWeights(config.router, columns, config.levels) if config.router else None

    @torch.no_grad()
    def place_codebooks(self, vectors_BV: Tensor) -> None:
        residual = self.encoder(vectors_BV)
        for codebook in self._levels():
            codebook.place(residual)
            residual = residual - codebook(residual)[1]

    def forward(self, batch: ItemBatch) -> Coded:
        latent_BD = self.encoder(batch.vectors_BV)
        codes, quantized, targets = [], [], []
        residual = latent_BD
        for level, codebook in enumerate(self._levels()):
            codes_B = self._training_codes(residual, level)
            quantized_BD = codebook.lookup(codes_B)
            codes.append(codes_B)
            quantized.append(quantized_BD)
            targets.append(residual)
            residual = residual - quantized_BD.detach()
        weights_BL = self.token_weights(batch.vectors_BV)
        terms = self._terms(batch.vectors_BV, latent_BD, quantized, weights_BL)
        config = self.config
        terms |= quantisation_terms(self.codebooks, targets, quantized, config.commitment, config.reconstruction)
        codes_BL = torch.stack(codes, dim=1)
        return Coded(latent_BD, weighted_sum(quantized, weights_BL), codes_BL, tuple(targets), terms, weights_BL)

    @torch.no_grad()
    def encode(self, vectors_BV: Tensor) -> tuple[Tensor, Tensor | None]:
        residual = self.encoder(vectors_BV)
        codes = []
        for codebook in self._levels():
            codes_B = codebook.nearest(residual)
            residual = residual - codebook.lookup(codes_B)
            codes.append(codes_B)
        return torch.stack(codes, dim=1), self.token_weights(vectors_BV)

    @torch.no_grad()
    def decode(self, codes_BL: Tensor, weights_BL: Tensor | None = None) -> Tensor | None:
        return None if self.misses_weights(weights_BL) else self.decoder(self._sum(codes_BL, weights_BL))

    @torch.no_grad()
    def last_level_costs(self, vectors_BV: Tensor, codes_BL: Tensor) -> Tensor:
        residual_BD = self.encoder(vectors_BV) - self._sum(codes_BL[:, :-1])
        return torch.cdist(residual_BD, self.codewords[-1]).square()

    def _levels(self) -> list[Codebook]:
        return [codebook for codebook in self.codebooks if isinstance(codebook, Codebook)]

    def _sum(self, codes_BL: Tensor, weights_BL: Tensor | None = None) -> Tensor:
        """Sum over the given first levels of the codewords, each times the item's weight if there are weights."""
        latent_BD = self.codewords[0].new_zeros(len(codes_BL), self.config.width)
        for level, (codebook, codes_B) in enumerate(zip(self._levels(), codes_BL.unbind(dim=1), strict=False)):
            quantized_BD = codebook.lookup(codes_B)
            latent_BD = latent_BD + (quantized_BD if weights_BL is None else weights_BL[:, level, None] * quantized_BD)
        return latent_BD

    def _training_codes(self, residual_BD: Tensor, level: int) -> Tensor:
        """The nearest codes; in training with `sinkhorn`, the last level's codes spread the batch evenly."""
        codebook = self._levels()[level]
        if self.training and self.config.sinkhorn and level == self.config.levels - 1:
            return spread_codes(codebook, residual_BD, self.config.sinkhorn, self.config.sinkhorn_iterations)
        return codebook.nearest(residual_BD)

    def _terms(
        self, vectors_BV: Tensor, latent_BD: Tensor, quantized: Sequence[Tensor], weights_BL: Tensor | None
    ) -> dict[str, Tensor]:
        fixed_BD = weighted_sum([quantized_BD.detach() for quantized_BD in quantized], weights_BL)
        decoded_BV = self.decoder(latent_BD + fixed_BD - latent_BD.detach())  # gradients to encoder and weights only
        terms = {"reconstruction": reconstruction(decoded_BV, vectors_BV, self.config.reconstruction)}
        return terms | self.weight_terms(weights_BL, vectors_BV)


def weighted_sum(quantized: Sequence[Tensor], weights_BL: Tensor | None) -> Tensor:
    """sum_l w_l q_l [B, D]; w_l = 1 without weights."""
    if weights_BL is None:
        return torch.stack(tuple(quantized)).sum(dim=0)
    return torch.einsum("bl,lbd->bd", weights_BL, torch.stack(tuple(quantized)))


def reconstruction(decoded_BV: Tensor, vectors_BV: Tensor, reduction: str) -> Tensor:
    """Squared error: `sum` or `mean` over dimensions, mean over items."""
    if reduction == "mean":
        return functional.mse_loss(decoded_BV, vectors_BV)
    return functional.mse_loss(decoded_BV, vectors_BV, reduction="sum") / len(vectors_BV)


class MultiVq(WeightedNetwork):
    """Independent codebooks: a control that measures the gain of residual levels (as in FORGE, arXiv 2509.20904).

    z_l = head_l(trunk(x)), q_l = the codeword nearest to z_l, z = sum_l w_l z_l, z_q = sum_l w_l q_l, x' = dec(z_q)

    [B, V] -> codes [B, L]; w_l = 1 without a router. Terms, and `reconstruction: mean`, as those of RQ-VAE.
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
    def place_codebooks(self, vectors_BV: Tensor) -> None:
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
        if self.misses_weights(weights_BL):
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
