"""Independent codebooks: levels do not see each other, the decoder sees their sum."""

from dataclasses import replace

import torch

from sidrec.config.learner_parts import Router
from sidrec.config.learners import MultiVqConfig
from sidrec.sid.networks.network import ItemBatch
from sidrec.sid.networks.rqvae import MultiVq

SMALL = MultiVqConfig(levels=3, codebook_size=6, width=4, hidden=(8,))


def batch(items: int = 20) -> ItemBatch:
    return ItemBatch(torch.arange(items), torch.randn(items, 5, generator=torch.Generator().manual_seed(1)))


def network(config: MultiVqConfig = SMALL) -> MultiVq:
    torch.manual_seed(0)
    return MultiVq(config, (("text", 5),))


def test_every_level_takes_the_nearest_code_of_its_own_head() -> None:
    net, items = network(), batch()
    coded = net(items)
    heads = net.heads(net.trunk(items.vectors_BV)).reshape(20, 3, 4)
    for level, codewords in enumerate(net.codewords):
        assert torch.equal(coded.targets[level], heads[:, level])
        assert torch.equal(coded.codes_BL[:, level], torch.cdist(heads[:, level], codewords).argmin(dim=1))
    assert torch.equal(net.encode(items.vectors_BV)[0], coded.codes_BL)


def test_levels_are_independent() -> None:
    """Moving level 1's codewords changes no code but level 1's, unlike with residuals."""
    net, items = network(), batch()
    before = net.encode(items.vectors_BV)[0]
    with torch.no_grad():
        net.codewords[0].add_(3)
        net.codewords[0][0] = 0
    after = net.encode(items.vectors_BV)[0]
    assert not torch.equal(before[:, 0], after[:, 0])
    assert torch.equal(before[:, 1:], after[:, 1:])


def test_the_decoder_sees_the_sum_of_codewords() -> None:
    net, items = network(), batch()
    coded = net(items)
    expected = torch.stack([net.codewords[level][coded.codes_BL[:, level]] for level in range(3)]).sum(dim=0)
    assert torch.allclose(coded.quantized_BD, expected, atol=1e-6)
    decoded = net.decode(coded.codes_BL)
    assert decoded is not None
    error = (decoded - items.vectors_BV).square().sum(dim=1).mean()
    assert torch.allclose(coded.terms["reconstruction"], error, rtol=1e-4)


def test_weights_multiply_both_latents_and_codewords() -> None:
    net, items = network(replace(SMALL, router=Router())), batch()
    coded = net(items)
    assert coded.weights_BL is not None
    latents = torch.stack(coded.targets, dim=1)
    assert torch.allclose(coded.latent_BD, (coded.weights_BL[:, :, None] * latents).sum(dim=1), atol=1e-6)
    assert net.decode(coded.codes_BL) is None, "without the weights"
    decoded = net.decode(coded.codes_BL, coded.weights_BL)
    assert decoded is not None
    assert torch.allclose(decoded, net.decoder(coded.quantized_BD), atol=1e-5)


def test_placement_puts_codewords_on_the_latents() -> None:
    net, items = network(), batch(300)
    before = float(net(items).terms["codebook"].detach())
    net.place_codebooks(items.vectors_BV)
    assert float(net(items).terms["codebook"].detach()) < 0.5 * before


def test_last_level_costs_are_squared_distances_to_the_last_head() -> None:
    net, items = network(), batch()
    costs = net.last_level_costs(items.vectors_BV, net.encode(items.vectors_BV)[0])
    assert torch.equal(costs.argmin(dim=1), net.encode(items.vectors_BV)[0][:, -1])
