"""RQ-VAE: residual codes by hand, losses against a slow reference, where gradients go, Sinkhorn, weights."""

from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from sidrec.config.learner_parts import Router
from sidrec.config.learners import LetterConfig, RqVaeConfig
from sidrec.sid.networks.codebook import sinkhorn_codes
from sidrec.sid.networks.network import ItemBatch
from sidrec.sid.networks.rqvae import RqVae

SMALL = RqVaeConfig(levels=3, codebook_size=6, width=4, hidden=(8,))
COLUMNS = (("text", 5),)


def batch(items: int = 20, width: int = 5) -> ItemBatch:
    return ItemBatch(torch.arange(items), torch.randn(items, width, generator=torch.Generator().manual_seed(1)))


def network(config: RqVaeConfig = SMALL, columns: tuple[tuple[str, int], ...] = COLUMNS) -> RqVae:
    torch.manual_seed(0)
    return RqVae(config, columns)


def digits() -> RqVae:
    """One-dimensional, without an encoder: level 1 means 0, 10 or 20, level 2 means 0, 1 or 2."""
    made = network(RqVaeConfig(levels=2, codebook_size=3, width=1, hidden=()), (("text", 1),))
    made.encoder, made.decoder = nn.Sequential(), nn.Sequential()
    with torch.no_grad():
        for codewords, values in zip(made.codewords, ([0.0, 10, 20], [0.0, 1, 2]), strict=True):
            codewords.copy_(torch.tensor(values)[:, None])
    return made


def test_residual_codes_by_eye() -> None:
    vectors = torch.tensor([[0.0], [11.2], [22.0], [1.9], [-5.0]])
    codes, weights = digits().encode(vectors)
    assert weights is None
    assert codes.tolist() == [[0, 0], [1, 1], [2, 2], [0, 2], [0, 0]]
    decoded = digits().decode(codes)
    assert decoded is not None
    assert decoded[:, 0].tolist() == [0, 11, 22, 2, 0]
    coded = digits()(ItemBatch(torch.arange(5), vectors))
    assert coded.codes_BL.tolist() == codes.tolist()
    assert [target[1].item() for target in coded.targets] == pytest.approx([11.2, 1.2])


def test_losses_by_hand() -> None:
    """Of 11.2: levels leave 1.2 and .2, the reconstruction .2, so 1.44 + .04 twice, the second times .25, and .04."""
    terms = digits()(ItemBatch(torch.arange(1), torch.tensor([[11.2]]))).terms
    expected = {"reconstruction": 0.04, "codebook": 1.48, "commitment": 0.25 * 1.48}
    assert {name: float(term.detach()) for name, term in terms.items()} == pytest.approx(expected, rel=1e-4)


def slow_terms(net: RqVae, vectors: Tensor, mean: bool) -> dict[str, float]:
    """Item by item, code by code."""
    totals = {"reconstruction": 0.0, "codebook": 0.0}
    for vector in vectors:
        residual = latent = net.encoder(vector)
        quantized = torch.zeros_like(latent)
        for codewords in net.codewords:
            code = min(range(len(codewords)), key=lambda k: float((residual - codewords[k]).square().sum()))
            totals["codebook"] += float((residual - codewords[code]).square().sum())
            quantized, residual = quantized + codewords[code], residual - codewords[code]
        totals["reconstruction"] += float((net.decoder(quantized) - vector).square().sum())
    count = len(vectors)
    return {
        "reconstruction": totals["reconstruction"] / count / (5 if mean else 1),
        "codebook": totals["codebook"] / count / (4 * 3 if mean else 1),
        "commitment": 0.25 * totals["codebook"] / count / (4 * 3 if mean else 1),
    }


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_losses_equal_a_slow_reference(reduction: Literal["sum", "mean"]) -> None:
    net, items = network(replace(SMALL, reconstruction=reduction)), batch()
    found = {name: float(term.detach()) for name, term in net(items).terms.items()}
    with torch.no_grad():
        assert found == pytest.approx(slow_terms(net, items.vectors_BV, reduction == "mean"), rel=1e-4)


def test_gradients_go_where_they_belong() -> None:
    """Reconstruction passes straight through to the encoder, codewords move by the codebook loss alone."""
    net = network()
    moved = {
        "reconstruction": {"encoder", "decoder"},
        "codebook": {"codebooks"},
        "commitment": {"encoder"},
    }
    for term, parts in moved.items():
        net.zero_grad()
        net(batch()).terms[term].backward()
        assert {name.split(".")[0] for name, p in net.named_parameters() if p.grad is not None} == parts


def test_straight_through_gradient_is_that_of_the_decoder_at_the_quantised_latent() -> None:
    net, items = network(), batch(3)
    coded = net(items)
    (latent_gradient,) = torch.autograd.grad(coded.terms["reconstruction"], coded.latent_BD)
    quantized = coded.quantized_BD.detach().requires_grad_()
    error = (net.decoder(quantized) - items.vectors_BV).square().sum() / 3
    assert torch.allclose(latent_gradient, torch.autograd.grad(error, quantized)[0], atol=1e-6)


def test_placement_puts_every_level_on_its_residuals() -> None:
    """More codes, less error: after k-means on latents and residuals each level leaves less than the one before."""
    net, items = network(replace(SMALL, codebook_size=16)), batch(400)
    before = float(net(items).terms["codebook"].detach())
    net.place_codebooks(items.vectors_BV)
    coded = net(items)
    assert float(coded.terms["codebook"].detach()) < 0.2 * before
    sizes = [float(target.detach().square().sum()) for target in coded.targets]
    assert sizes == sorted(sizes, reverse=True)


def test_sinkhorn_spreads_what_the_nearest_code_would_pile_up() -> None:
    """Six points nearer to code 0 than to code 1, three of them only just: those three move, and no others."""
    distances = torch.tensor([[0.0, 1.0], [0.0, 1.1], [0.0, 1.2], [0.0, 0.1], [0.0, 0.2], [0.0, 0.3]])
    assert sinkhorn_codes(distances, 0.01, 50).tolist() == [0, 0, 0, 1, 1, 1]


def test_sinkhorn_marginals_equal_a_slow_reference_and_survive_tiny_entropy() -> None:
    distances = torch.rand(40, 8, generator=torch.Generator().manual_seed(0))
    plan = torch.exp(-2 * distances.double() / (distances.max() - distances.min() + 1e-5) / 0.05)
    for _ in range(50):
        plan = plan / plan.sum(dim=1, keepdim=True) / 40
        plan = plan / plan.sum(dim=0, keepdim=True) / 8
    assert sinkhorn_codes(distances, 0.05, 50).tolist() == plan.argmax(dim=1).tolist()
    counts = torch.bincount(sinkhorn_codes(distances, 1e-5, 50), minlength=8)
    assert counts.sum() == 40


def test_sinkhorn_is_for_the_last_level_in_training_alone() -> None:
    config = LetterConfig(levels=2, codebook_size=4, width=4, hidden=(8,))
    net, items = network(config), batch(64)
    with torch.no_grad():
        net.codewords[1][0] *= 0.01  # nearest for nearly all
        net.codewords[1][1:] += 5
    nearest_codes = net.encode(items.vectors_BV)[0]
    trained = net(items).codes_BL
    assert torch.equal(trained[:, 0], nearest_codes[:, 0])
    assert torch.bincount(nearest_codes[:, 1], minlength=4).tolist() == [64, 0, 0, 0]
    assert torch.bincount(trained[:, 1], minlength=4).min() > 8
    assert torch.equal(net.eval()(items).codes_BL, nearest_codes)


def test_weights_scale_codewords_and_leave_codes_alone() -> None:
    net, items = network(replace(SMALL, router=Router())), batch()
    coded = net(items)
    assert coded.weights_BL is not None
    parts = [net.codewords[level][coded.codes_BL[:, level]] for level in range(3)]
    expected = sum(coded.weights_BL[:, level, None] * part for level, part in enumerate(parts))
    assert torch.allclose(coded.quantized_BD, expected, atol=1e-6)
    assert torch.equal(coded.codes_BL, network()(items).codes_BL)
    assert net.decode(coded.codes_BL) is None, "without the weights"
    decoded = net.decode(coded.codes_BL, coded.weights_BL)
    assert decoded is not None
    assert torch.allclose(decoded, net.decoder(expected), atol=1e-5)
    codes, weights = net.encode(items.vectors_BV)
    assert torch.equal(codes, coded.codes_BL)
    assert weights is not None
    assert torch.equal(weights, coded.weights_BL)


def test_the_reconstruction_trains_the_weights() -> None:
    net = network(replace(SMALL, router=Router()))
    net(batch()).terms["reconstruction"].backward()
    assert {name.split(".")[0] for name, p in net.named_parameters() if p.grad is not None} == {
        "encoder",
        "decoder",
        "weights",
    }


def test_weights_follow_the_behavior_column_where_there_is_one() -> None:
    config, columns = replace(SMALL, router=Router()), (("text", 3), ("behavior", 2))
    net, items = network(config, columns), batch()
    net.measure(items.vectors_BV.numpy())
    norms = items.vectors_BV[:, 3:].norm(dim=1)
    scaled = (norms - norms.min()) / (norms.max() - norms.min())
    weights = net.encode(items.vectors_BV)[1]
    assert net.weights is not None
    assert weights is not None
    plain = net.weights.router(items.vectors_BV)
    assert torch.allclose(weights, torch.sigmoid(scaled)[:, None] * plain, atol=1e-6)


def test_last_level_costs_are_squared_distances_to_the_residual() -> None:
    assert digits().last_level_costs(torch.tensor([[11.5]]), torch.tensor([[1, 9]])).tolist() == [
        pytest.approx([2.25, 0.25, 0.25])
    ]
