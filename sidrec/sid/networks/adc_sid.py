"""ADC-SID: experts per modality with parallel codebooks, alignment by behaviour norm, a router over behaviour tokens.

Equations of arXiv 2510.25622v3.

Shapes: B items, N all items, V vector width, D width of experts and towers, L levels, K codes, A items with behaviour.
"""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import torch
from torch import Tensor, nn

from sidrec.config.learners import AdcSidConfig
from sidrec.schema import BEHAVIOR, ContractError
from sidrec.sid.losses.attraction import alignment_strength
from sidrec.sid.losses.loss import info_nce, mean_or_zero, same_item
from sidrec.sid.networks.codebook import Codebook, quantisation_terms
from sidrec.sid.networks.network import Coded, ItemBatch, Network, mlp
from sidrec.sid.networks.rqvae import reconstruction
from sidrec.sid.networks.token_weights import BehaviorNorm, TokenRouter, column_part


class AdcSid(Network):
    """ADC-SID (arXiv 2510.25622v3, eq. 1-23): an expert and a codebook per level, in parallel. [B, V] -> codes [B, L].

    h_m = tower_m(e_m); shared z_l = expert_l([h_m]); others z_l = expert_l(e_m); q_l = codeword of largest cosine
    z = sum_l g_l z_l, z_q = sum_l g_l q_l, [e_m]' = dec(z + sg[z_q - z])

    e_m are the vector columns: content, and `behavior` unscaled, since its norm measures how much behaviour is known.
    For SIDs that hold content and, where there is enough of it, behaviour. Levels in order: shared experts, experts of
    each content column, behaviour experts. g is 1 for shared experts, softmax(MLP(e_m)) over the experts of a content
    column, the router R(e_b) for behaviour. Weights [B, L] are R for behaviour levels and 1 for all others.

    With `unit_latents`, z_l and codewords are unit vectors throughout; without, z and z_q are sums of raw vectors, as
    in equations 10 and 11. The paper quantises by cosine and does not say how codewords are learned
    (`codebook_learning`). Terms: reconstruction of all columns, each times its weight; codebook and commitment as in
    RQ-VAE; align_behavior and align_content (eq. 15 to 21); router (eq. 23).
    """

    unscaled_columns = frozenset({BEHAVIOR})
    unknown_behavior = True
    codebooks: nn.ModuleList
    error_weight_V: Tensor

    def __init__(self, config: AdcSidConfig, columns: tuple[tuple[str, int], ...]) -> None:
        """Raises ContractError when `behavior`, or any content, is not among the columns."""
        super().__init__()
        names, widths = [name for name, _ in columns], dict(columns)
        if BEHAVIOR not in names or len(names) < 2:
            raise ContractError("vectors of adc_sid", f"{BEHAVIOR} and at least one content column", names)
        self.config = config
        self.inputs = sum(widths.values())
        self.content = [name for name in names if name != BEHAVIOR]
        self.parts = {name: column_part(columns, name) for name in names}
        hidden, width = config.hidden, config.width
        self.towers = nn.ModuleDict({name: mlp((widths[name], hidden, width)) for name in names})
        self.shared = nn.ModuleList(mlp((len(names) * width, hidden, width)) for _ in range(config.shared))
        self.experts = nn.ModuleDict(
            {
                name: nn.ModuleList(mlp((widths[name], hidden, width)) for _ in range(self._count(name)))
                for name in names
            }
        )
        gated = self.content if config.content_gates and config.content > 1 else []
        self.gates = nn.ModuleDict({name: mlp((widths[name], hidden, config.content)) for name in gated})
        self.router = TokenRouter(config.router, widths[BEHAVIOR], config.behavior) if config.router else None
        part = self.parts[BEHAVIOR]
        assert part is not None, "checked above"
        self.norm = BehaviorNorm(part, config.controller.clip_quantile if config.controller else 0.0)
        levels = config.shared + config.content * len(self.content) + config.behavior
        self.codebooks = nn.ModuleList(
            Codebook(config.codebook_size, width, True, config.codebook_learning, config.unit_latents)
            for _ in range(levels)
        )
        self.decoder = mlp((self.latent_width, hidden, self.inputs))
        of_column = {str(name): weight for name, weight in config.reconstruction_weights.items()}
        weights = [torch.full((widths[name],), of_column.get(name, 1.0)) for name in names]
        self.register_buffer("error_weight_V", torch.cat(weights), persistent=False)

    @property
    def latent_width(self) -> int:
        return self.config.width * (len(self.codebooks) if self.config.fuse == "concat" else 1)

    def measure(self, vectors_NV: np.ndarray) -> None:
        self.norm.measure(vectors_NV)
        if not self.norm.high:
            raise ContractError(f"item vectors, column {BEHAVIOR}", "behaviour of some items", "all zeros")
        if self.router is not None:
            self.router.measure(vectors_NV[:, self.norm.part])

    @torch.no_grad()
    def place_codebooks(self, vectors_BV: Tensor) -> None:
        for codebook, latent_BD in zip(
            self._levels(), self._latents(vectors_BV, self._towers(vectors_BV)), strict=True
        ):
            codebook.place(latent_BD)

    def forward(self, batch: ItemBatch) -> Coded:
        vectors_BV = batch.vectors_BV
        towers = self._towers(vectors_BV)
        latents = self._latents(vectors_BV, towers)
        codes, quantized = [], []
        for codebook, latent_BD in zip(self._levels(), latents, strict=True):
            codes_B, quantized_BD = codebook(latent_BD)
            codes.append(codes_B)
            quantized.append(quantized_BD)
        scaled_norm_B = self.norm(vectors_BV)
        weights_BL = self._weights(vectors_BV, scaled_norm_B)
        share_BL = self._shares(vectors_BV, weights_BL)
        config = self.config
        terms = quantisation_terms(self.codebooks, latents, quantized, config.commitment, config.reconstruction)
        coded = Coded(
            self._fuse(latents, share_BL),
            self._fuse(quantized, share_BL),
            torch.stack(codes, dim=1),
            tuple(latents),
            terms,
            weights_BL,
        )
        decoded_BV = self.decoder(coded.straight_through())
        scale_V = self.error_weight_V.sqrt()
        terms["reconstruction"] = reconstruction(decoded_BV * scale_V, vectors_BV * scale_V, config.reconstruction)
        terms |= self._alignment(batch, towers, scaled_norm_B)
        if self.router is not None and weights_BL is not None and self.router.config.regularize:
            terms["router"] = self.router.loss(weights_BL[:, -self.config.behavior :], scaled_norm_B)
        return coded

    @torch.no_grad()
    def encode(self, vectors_BV: Tensor) -> tuple[Tensor, Tensor | None]:
        latents = self._latents(vectors_BV, self._towers(vectors_BV))
        codes = [codebook.nearest(latent_BD) for codebook, latent_BD in zip(self._levels(), latents, strict=True)]
        return torch.stack(codes, dim=1), self._weights(vectors_BV, self.norm(vectors_BV))

    @torch.no_grad()
    def decode(self, codes_BL: Tensor, weights_BL: Tensor | None = None) -> Tensor | None:
        """None also with content gates: they depend on the content vectors, which are unknown here."""
        if len(self.gates) or (self.router is not None and weights_BL is None):
            return None
        levels = zip(self._levels(), codes_BL.unbind(dim=1), strict=True)
        quantized = [codebook.lookup(codes_B) for codebook, codes_B in levels]
        return self.decoder(self._fuse(quantized, self._shares(quantized[0], weights_BL)))

    @torch.no_grad()
    def last_level_costs(self, vectors_BV: Tensor, codes_BL: Tensor) -> Tensor:
        return self._levels()[-1].distances(self._latents(vectors_BV, self._towers(vectors_BV))[-1])

    def after_step(self) -> dict[str, float]:
        return {} if self.router is None else self.router.after_step()

    def _count(self, name: str) -> int:
        return self.config.behavior if name == BEHAVIOR else self.config.content

    def _levels(self) -> list[Codebook]:
        return [codebook for codebook in self.codebooks if isinstance(codebook, Codebook)]

    def _towers(self, vectors_BV: Tensor) -> dict[str, Tensor]:
        """h_m of every column [B, D]."""
        return {name: self.towers[name](vectors_BV[:, part]) for name, part in self.parts.items()}

    def _latents(self, vectors_BV: Tensor, towers: dict[str, Tensor]) -> list[Tensor]:
        """z_l of every level [B, D], unit vectors with `unit_latents`."""
        together = torch.cat(list(towers.values()), dim=1)
        latents = [expert(together) for expert in self.shared]
        for name in (*self.content, BEHAVIOR):
            experts = self.experts[name]
            assert isinstance(experts, nn.ModuleList)
            latents += [expert(vectors_BV[:, self.parts[name]]) for expert in experts]
        return (
            [nn.functional.normalize(latent_BD, dim=1) for latent_BD in latents]
            if self.config.unit_latents
            else latents
        )

    def _weights(self, vectors_BV: Tensor, scaled_norm_B: Tensor) -> Tensor | None:
        """weights_BL: the router's for behaviour levels, 1 for the others; None without a router."""
        if self.router is None:
            return None
        routed = self.router(vectors_BV[:, self.norm.part], scaled_norm_B)
        return torch.cat([routed.new_ones(len(routed), len(self.codebooks) - routed.shape[1]), routed], dim=1)

    def _shares(self, vectors_BV: Tensor, weights_BL: Tensor | None) -> Tensor:
        """g [B, L], the factor of every level. Without gates, a content column's experts are averaged."""
        items, config = len(vectors_BV), self.config
        shares = [vectors_BV.new_ones(items, config.shared)]
        for name in self.content:
            if name in self.gates:
                shares.append(torch.softmax(self.gates[name](vectors_BV[:, self.parts[name]]), dim=1))
            else:
                shares.append(vectors_BV.new_full((items, config.content), 1 / config.content))
        routed = (
            vectors_BV.new_ones(items, config.behavior) if weights_BL is None else weights_BL[:, -config.behavior :]
        )
        return torch.cat([*shares, routed], dim=1)

    def _fuse(self, levels: list[Tensor], share_BL: Tensor) -> Tensor:
        shared_BLD = torch.stack(levels, dim=1) * share_BL[:, :, None]
        return shared_BLD.flatten(1) if self.config.fuse == "concat" else shared_BLD.sum(dim=1)

    def _alignment(self, batch: ItemBatch, towers: dict[str, Tensor], scaled_norm_B: Tensor) -> dict[str, Tensor]:
        """The terms align_behavior and align_content; none at weight 0."""
        if not self.config.align_weight:
            return {}
        content = [towers[name] for name in self.content]
        known_B = (batch.vectors_BV[:, self.norm.part] != 0).any(dim=1)
        to_behavior = content_to_behavior(content, towers[BEHAVIOR], scaled_norm_B, known_B, batch.rows_B, self.config)
        between = between_content(content, batch.rows_B, self.config)
        return {
            "align_behavior": self.config.align_weight * to_behavior,
            "align_content": self.config.align_weight * between,
        }


def content_to_behavior(
    content: Sequence[Tensor],
    behavior_BD: Tensor,
    scaled_norm_B: Tensor,
    known_B: Tensor,
    rows_B: Tensor,
    config: AdcSidConfig,
) -> Tensor:
    """sum over content columns of mean_i w_i InfoNCE(content_i -> behaviour_i) (eq. 15 to 20), a scalar.

    w_i is the controller's `alignment_strength`, 1 without a controller. content, behavior_BD: outputs of the towers.
    known_B: bool, the items that have a behaviour vector; the others are neither anchors nor negatives.
    """
    behavior_AD = (behavior_BD.detach() if config.detach_behavior else behavior_BD)[known_B]
    excluded_AA = same_item(rows_B[known_B])
    total = behavior_BD.new_zeros(())
    for content_BD in content:
        loss_A = info_nce(content_BD[known_B], behavior_AD, config.temperature, excluded_AA)
        if config.controller is not None:
            loss_A = loss_A * alignment_strength(scaled_norm_B[known_B], config.controller)
        total = total + mean_or_zero(loss_A)
    return total


def between_content(content: Sequence[Tensor], rows_B: Tensor, config: AdcSidConfig) -> Tensor:
    """sum over pairs of content columns of the mean InfoNCE in both directions (eq. 21); 0 for a single column."""
    excluded_BB = same_item(rows_B)
    total = content[0].new_zeros(())
    for one_BD, other_BD in combinations(content, 2):
        there_B = info_nce(one_BD, other_BD, config.temperature, excluded_BB)
        back_B = info_nce(other_BD, one_BD, config.temperature, excluded_BB)
        total = total + (there_B + back_B).mean()
    return total
