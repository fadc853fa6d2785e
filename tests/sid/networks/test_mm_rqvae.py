"""MM-RQ-VAE: a residual quantiser per column, tied by their latents."""

from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import Tensor

from sidrec.config.learner_parts import Router
from sidrec.config.learners import MmRqVaeConfig, RqVaeConfig
from sidrec.schema import ContractError
from sidrec.sid.losses.loss import info_nce
from sidrec.sid.networks.mm_rqvae import MmRqVae, mmd
from sidrec.sid.networks.network import ItemBatch
from sidrec.sid.networks.rqvae import RqVae

COLUMNS = (("text", 3), ("behavior", 2))
SMALL = MmRqVaeConfig(levels=4, codebook_size=6, width=4, hidden=(5,))


def vectors(items: int = 20) -> Tensor:
    return torch.randn(items, 5, generator=torch.Generator().manual_seed(1))


def network(config: MmRqVaeConfig = SMALL, columns: tuple[tuple[str, int], ...] = COLUMNS) -> MmRqVae:
    torch.manual_seed(0)
    return MmRqVae(config, columns)


def batch(rows: Tensor | None = None) -> ItemBatch:
    rows = vectors() if rows is None else rows
    return ItemBatch(torch.arange(len(rows)), rows)


def alone(net: MmRqVae, modality: int) -> RqVae:
    """The RQ-VAE of one column, with the same weights."""
    reduction = net.config.reconstruction
    config = RqVaeConfig(levels=2, codebook_size=6, width=4, hidden=(5,), reconstruction=reduction)
    single = RqVae(config, (COLUMNS[modality],))
    single.encoder.load_state_dict(net.encoders[modality].state_dict())
    single.decoder.load_state_dict(net.decoders[modality].state_dict())
    for mine, theirs in zip(single.codebooks, net.codebooks[2 * modality : 2 * modality + 2], strict=True):
        mine.load_state_dict(theirs.state_dict())
    return single


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_each_column_is_an_rqvae_of_its_own(reduction: Literal["sum", "mean"]) -> None:
    """Codes, latents and the sums of all terms are those of two separate RQ-VAEs."""
    squared = replace(SMALL, reconstruct="squared", reconstruct_weight=1.0, reconstruction=reduction)
    net = network(replace(squared, align_weight=0))
    coded = net(batch())
    parts = [alone(net, 0)(batch(vectors()[:, :3])), alone(net, 1)(batch(vectors()[:, 3:]))]
    assert torch.equal(coded.codes_BL, torch.cat([part.codes_BL for part in parts], dim=1))
    assert torch.allclose(coded.latent_BD, torch.cat([part.latent_BD for part in parts], dim=1), atol=1e-6)
    assert torch.allclose(coded.quantized_BD, torch.cat([part.quantized_BD for part in parts], dim=1), atol=1e-6)
    for mine, theirs in zip(coded.targets, [*parts[0].targets, *parts[1].targets], strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6)
    for name in ("reconstruction", "codebook", "commitment"):
        assert coded.terms[name].item() == pytest.approx(sum(part.terms[name].item() for part in parts), rel=1e-5)
    assert "alignment" not in coded.terms
    assert torch.equal(net.encode(vectors())[0], coded.codes_BL)
    decoded = net.decode(coded.codes_BL)
    assert decoded is not None
    expected = [alone(net, modality).decode(parts[modality].codes_BL) for modality in (0, 1)]
    assert torch.allclose(decoded, torch.cat([part for part in expected if part is not None], dim=1), atol=1e-5)


def test_reconstruction_by_mmd() -> None:
    net = network()
    coded = net(batch())
    decoded = net.decode(coded.codes_BL)
    assert decoded is not None
    expected = 3 * (mmd(decoded[:, :3], vectors()[:, :3]) + mmd(decoded[:, 3:], vectors()[:, 3:]))
    assert coded.terms["reconstruction"].item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("align", ["mmd", "contrast"])
def test_alignment_of_quantised_latents(align: str) -> None:
    net = network(replace(SMALL, align=align))  # type: ignore[arg-type]
    coded = net(batch())
    text, behavior = coded.quantized_BD[:, :4], coded.quantized_BD[:, 4:]
    if align == "mmd":
        expected = mmd(behavior, text)
    else:
        expected = (info_nce(behavior, text, 0.07) + info_nce(text, behavior, 0.07)).mean()
    assert coded.terms["alignment"].item() == pytest.approx(0.01 * expected.item(), rel=1e-4)
    coded.terms["alignment"].backward()
    for encoder in net.encoders:
        assert next(encoder.parameters()).grad.any()  # type: ignore[union-attr]


def test_three_columns_align_with_behavior_or_else_with_the_first() -> None:
    torch.manual_seed(3)
    rows = torch.randn(20, 6)
    for names, anchor in ((("text", "visual", "behavior"), 2), (("text", "visual", "audio"), 0)):
        net = network(replace(SMALL, levels=3), tuple((name, 2) for name in names))
        coded = net(batch(rows))
        parts = coded.quantized_BD.split(4, dim=1)
        expected = sum(mmd(parts[anchor], part).item() for place, part in enumerate(parts) if place != anchor)
        assert coded.terms["alignment"].item() == pytest.approx(0.01 * expected, rel=1e-4)


@pytest.mark.parametrize("align", ["mmd", "contrast"])
def test_items_without_behavior_take_no_part_in_the_alignment(align: str) -> None:
    net = network(replace(SMALL, align=align))  # type: ignore[arg-type]
    rows = vectors()
    rows[15:, 3:] = 0
    whole, known = net(batch(rows)).terms["alignment"], net(batch(rows[:15])).terms["alignment"]
    assert whole.item() == pytest.approx(known.item(), rel=1e-4)
    rows[:, 3:] = 0
    assert net(batch(rows)).terms["alignment"].item() == 0


def test_the_same_item_twice_is_no_negative_of_itself() -> None:
    net = network(replace(SMALL, align="contrast"))
    alone = ItemBatch(torch.full((4,), 7), vectors(1).repeat(4, 1))
    assert net(alone).terms["alignment"].item() == pytest.approx(0, abs=1e-6)


def test_a_router_weighs_the_levels_of_all_columns() -> None:
    net = network(replace(SMALL, router=Router()))
    net.measure(vectors().numpy())
    coded = net(batch())
    assert coded.weights_BL is not None
    words = [codewords[coded.codes_BL[:, level]] for level, codewords in enumerate(net.codewords)]
    behavior = coded.weights_BL[:, 2:3] * words[2] + coded.weights_BL[:, 3:] * words[3]
    assert torch.allclose(coded.quantized_BD[:, 4:], behavior, atol=1e-6)
    assert net.decode(coded.codes_BL) is None, "without the weights"
    text = coded.weights_BL[:, :1] * words[0] + coded.weights_BL[:, 1:2] * words[1]
    decoded = net.decode(coded.codes_BL, coded.weights_BL)
    assert decoded is not None
    assert torch.allclose(decoded, torch.cat([net.decoders[0](text), net.decoders[1](behavior)], dim=1), atol=1e-5)
    assert "router" in coded.terms
    assert "router/strength" in net.after_step()


def test_last_level_costs() -> None:
    net = network()
    net.place_codebooks(vectors())
    codes, _ = net.encode(vectors())
    assert net.last_level_costs(vectors(), codes).argmin(dim=1).tolist() == codes[:, -1].tolist()
    single = network(replace(SMALL, levels=2))
    codes, _ = single.encode(vectors())
    assert single.last_level_costs(vectors(), codes).argmin(dim=1).tolist() == codes[:, -1].tolist()


def test_placement_puts_codewords_where_items_are() -> None:
    net = network()
    before = net(batch()).terms["commitment"]
    net.place_codebooks(vectors())
    assert net(batch()).terms["commitment"] < before / 2


def test_columns_must_share_the_levels_out() -> None:
    with pytest.raises(ContractError, match="levels as a multiple of 2 vector columns, got 3"):
        network(replace(SMALL, levels=3))
