"""MM-RQ-VAE: one RQ-VAE per modality, tied by their quantised latents (MME-SID).

Shapes: B items, N all items, V vector width, D latent width, M modalities (vector columns), L levels of all, K codes.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sidrec.config.learners import MmRqVaeConfig
from sidrec.schema import BEHAVIOR, ContractError
from sidrec.sid.losses.info_nce import info_nce, same_item
from sidrec.sid.losses.mmd import mmd
from sidrec.sid.networks.codebook import Codebook, quantisation_terms
from sidrec.sid.networks.item_weights import ItemWeights
from sidrec.sid.networks.mlp import mlp
from sidrec.sid.networks.network import Coded, ItemBatch
from sidrec.sid.networks.rqvae import reconstruction, weighted_sum
from sidrec.sid.networks.weighted_network import WeightedNetwork


class Branch(NamedTuple):
    """One modality of a batch. inputs_BV: its columns. quantized, targets: per level of its own, [B, D]."""

    inputs_BV: Tensor
    latent_BD: Tensor
    codes: list[Tensor]
    quantized: list[Tensor]
    targets: list[Tensor]


class MmRqVae(WeightedNetwork):
    """Levels of the first column come first. Latents of the modalities, and what codes stand for, are concatenated.

    Terms: reconstruction, per modality MMD between inputs and reconstructions or the squared error; codebook and
    commitment as in RQ-VAE; alignment of the quantised latents of `behavior` (the first column where there is none)
    with each other modality's: MMD, or InfoNCE in both directions. All are sums over modalities. Items without
    behaviour take no part in an alignment with it.
    """

    codebooks: nn.ModuleList

    def __init__(self, config: MmRqVaeConfig, columns: tuple[tuple[str, int], ...]) -> None:
        """Raises ContractError when the columns cannot share the levels out evenly."""
        super().__init__()
        if config.levels % len(columns):
            expected = f"levels as a multiple of {len(columns)} vector columns"
            raise ContractError("learner mm_rqvae, levels", expected, config.levels)
        self.config = config
        names = [name for name, _ in columns]
        self.widths = [width for _, width in columns]
        self.anchor = names.index(BEHAVIOR) if BEHAVIOR in names else 0
        self.levels = config.levels // len(columns)
        self.encoders = nn.ModuleList(mlp((width, *config.hidden, config.width)) for width in self.widths)
        self.decoders = nn.ModuleList(mlp((config.width, *reversed(config.hidden), width)) for width in self.widths)
        self.codebooks = nn.ModuleList(Codebook(config.codebook_size, config.width) for _ in range(config.levels))
        self.weights = ItemWeights(config.router, columns, config.levels) if config.router else None

    @property
    def latent_width(self) -> int:
        return self.config.width * len(self.widths)

    @torch.no_grad()
    def start(self, vectors_BV: Tensor) -> None:
        for encoder, inputs_BV, codebooks in self._modalities(vectors_BV):
            residual_BD = encoder(inputs_BV)
            for codebook in codebooks:
                codebook.place(residual_BD)
                residual_BD = residual_BD - codebook(residual_BD)[1]

    def forward(self, batch: ItemBatch) -> Coded:
        branches = self._branches(batch.vectors_BV)
        weights_BL = self.token_weights(batch.vectors_BV)
        sums = [weighted_sum(branch.quantized, part) for branch, part in self._weighted(branches, weights_BL)]
        terms = self._quantisation(branches)
        terms["reconstruction"] = self._reconstruction(branches, weights_BL)
        if self.config.align_weight and len(branches) > 1:
            through = [b.latent_BD + (sum_BD - b.latent_BD).detach() for b, sum_BD in zip(branches, sums, strict=True)]
            known_B = (branches[self.anchor].inputs_BV != 0).any(dim=1)
            terms["alignment"] = self.config.align_weight * self._alignment(through, batch.rows_B, known_B)
        terms |= self.weight_terms(weights_BL, batch.vectors_BV)
        return Coded(
            torch.cat([branch.latent_BD for branch in branches], dim=1),
            torch.cat(sums, dim=1),
            torch.stack([codes_B for branch in branches for codes_B in branch.codes], dim=1),
            tuple(target_BD for branch in branches for target_BD in branch.targets),
            terms,
            weights_BL,
        )

    @torch.no_grad()
    def encode(self, vectors_BV: Tensor) -> tuple[Tensor, Tensor | None]:
        codes = [codes_B for branch in self._branches(vectors_BV) for codes_B in branch.codes]
        return torch.stack(codes, dim=1), self.token_weights(vectors_BV)

    @torch.no_grad()
    def decode(self, codes_BL: Tensor, weights_BL: Tensor | None = None) -> Tensor | None:
        if self.lacks(weights_BL):
            return None
        quantized = [codewords[codes_B] for codewords, codes_B in zip(self.codewords, codes_BL.unbind(1), strict=True)]
        starts = range(0, len(quantized), self.levels)
        sums = [
            weighted_sum(quantized[start : start + self.levels], part_BL)
            for start, part_BL in zip(starts, self._parts(weights_BL), strict=True)
        ]
        return torch.cat([decoder(sum_BD) for decoder, sum_BD in zip(self.decoders, sums, strict=True)], dim=1)

    @torch.no_grad()
    def last_level_costs(self, vectors_BV: Tensor, codes_BL: Tensor) -> Tensor:
        encoder, inputs_BV, codebooks = list(self._modalities(vectors_BV))[-1]
        residual_BD = encoder(inputs_BV)
        own = codes_BL[:, -self.levels : -1].unbind(dim=1) if self.levels > 1 else ()
        for codebook, codes_B in zip(codebooks, own, strict=False):
            residual_BD = residual_BD - codebook.lookup(codes_B)
        return torch.cdist(residual_BD, self.codewords[-1]).square()

    def _modalities(self, vectors_BV: Tensor) -> Iterator[tuple[nn.Module, Tensor, list[Codebook]]]:
        """Encoder, columns of the vectors and codebooks of each."""
        codebooks = [codebook for codebook in self.codebooks if isinstance(codebook, Codebook)]
        parts = torch.split(vectors_BV, self.widths, dim=1)
        for number, (encoder, inputs_BV) in enumerate(zip(self.encoders, parts, strict=True)):
            yield encoder, inputs_BV, codebooks[number * self.levels : (number + 1) * self.levels]

    def _branches(self, vectors_BV: Tensor) -> list[Branch]:
        branches = []
        for encoder, inputs_BV, codebooks in self._modalities(vectors_BV):
            latent_BD = encoder(inputs_BV)
            branch = Branch(inputs_BV, latent_BD, [], [], [])
            residual_BD = latent_BD
            for codebook in codebooks:
                codes_B, quantized_BD = codebook(residual_BD)
                branch.codes.append(codes_B)
                branch.quantized.append(quantized_BD)
                branch.targets.append(residual_BD)
                residual_BD = residual_BD - quantized_BD.detach()
            branches.append(branch)
        return branches

    def _weighted(self, branches: list[Branch], weights_BL: Tensor | None) -> Iterator[tuple[Branch, Tensor | None]]:
        yield from zip(branches, self._parts(weights_BL), strict=True)

    def _parts(self, weights_BL: Tensor | None) -> Sequence[Tensor | None]:
        """Each modality's weights."""
        return [None] * len(self.widths) if weights_BL is None else torch.split(weights_BL, self.levels, dim=1)

    def _quantisation(self, branches: list[Branch]) -> dict[str, Tensor]:
        config = self.config
        terms = [
            quantisation_terms(
                self.codebooks[number * self.levels : (number + 1) * self.levels],
                branch.targets,
                branch.quantized,
                config.commitment,
                config.reconstruction,
            )
            for number, branch in enumerate(branches)
        ]
        return {name: torch.stack([of[name] for of in terms]).sum() for name in terms[0]}

    def _reconstruction(self, branches: list[Branch], weights_BL: Tensor | None) -> Tensor:
        total = branches[0].latent_BD.new_zeros(())
        for decoder, (branch, part_BL) in zip(self.decoders, self._weighted(branches, weights_BL), strict=True):
            fixed_BD = weighted_sum([quantized_BD.detach() for quantized_BD in branch.quantized], part_BL)
            decoded_BV = decoder(branch.latent_BD + fixed_BD - branch.latent_BD.detach())
            if self.config.reconstruct == "mmd":
                total = total + mmd(decoded_BV, branch.inputs_BV)
            else:
                total = total + reconstruction(decoded_BV, branch.inputs_BV, self.config.reconstruction)
        return self.config.reconstruct_weight * total

    def _alignment(self, quantized: Sequence[Tensor], rows_B: Tensor, known_B: Tensor) -> Tensor:
        """Of the anchor's quantised latents with each other modality's, over items that have the anchor's vector."""
        total = quantized[0].new_zeros(())
        if not known_B.any():
            return total
        anchor_AD, excluded_AA = quantized[self.anchor][known_B], same_item(rows_B[known_B])
        for number, other_BD in enumerate(quantized):
            if number == self.anchor:
                continue
            other_AD = other_BD[known_B]
            if self.config.align == "mmd":
                total = total + mmd(anchor_AD, other_AD)
            else:
                there_A = info_nce(anchor_AD, other_AD, self.config.temperature, excluded_AA)
                back_A = info_nce(other_AD, anchor_AD, self.config.temperature, excluded_AA)
                total = total + (there_A + back_A).mean()
        return total
