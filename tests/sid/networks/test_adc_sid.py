"""ADC-SID: level order, cosine codes, gates and router, alignment by hand, every ablation switch.

Shapes: columns are text [2], behavior [3], visual [2], in this order.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from sidrec.config.learner_parts import AlignmentController, Router
from sidrec.config.learners import AdcSidConfig
from sidrec.schema import ContractError
from sidrec.sid.networks.adc_sid import AdcSid
from sidrec.sid.networks.network import ItemBatch

COLUMNS = (("text", 2), ("behavior", 3), ("visual", 2))
SMALL = AdcSidConfig(shared=1, content=2, behavior=3, codebook_size=5, width=4, hidden=6)
NO_BEHAVIOR = 3  # the row of `vectors` without a behaviour vector


def vectors(items: int = 24) -> Tensor:
    made = torch.randn(items, 7, generator=torch.Generator().manual_seed(1))
    made[NO_BEHAVIOR, 2:5] = 0
    return made


def network(config: AdcSidConfig = SMALL, columns: tuple[tuple[str, int], ...] = COLUMNS) -> AdcSid:
    torch.manual_seed(0)
    made = AdcSid(config, columns)
    made.measure(vectors().numpy()[:, : sum(width for _, width in columns)])
    return made


def batch(items: int = 24) -> ItemBatch:
    return ItemBatch(torch.arange(items), vectors(items))


def test_levels_come_shared_then_content_in_order_then_behavior() -> None:
    """Changing one column changes the codes of its own levels and, through the towers, the shared one's latent."""
    net, before = network(), batch()
    assert net.codebook_sizes == (5,) * 8  # 1 shared, 2 text, 2 visual, 3 behaviour
    first = net(before).targets
    for part, levels in ((slice(0, 2), (0, 1, 2)), (slice(5, 7), (0, 3, 4)), (slice(2, 5), (0, 5, 6, 7))):
        changed = before.vectors_BV.clone()
        changed[:, part] += 1
        after = net(replace(before, vectors_BV=changed)).targets
        assert tuple(level for level in range(8) if not torch.equal(first[level], after[level])) == levels


def test_codes_are_those_of_the_largest_cosine() -> None:
    net = network()
    coded = net(batch())
    for level, (target, codewords) in enumerate(zip(coded.targets, net.codewords, strict=True)):
        cosine = functional.cosine_similarity(target[:, None], codewords[None], dim=2)
        assert coded.codes_BL[:, level].tolist() == cosine.argmax(dim=1).tolist()
        assert torch.allclose(target.norm(dim=1), torch.ones(24), atol=1e-5)
    codes, weights = net.encode(vectors())
    assert torch.equal(codes, coded.codes_BL)
    assert weights is not None
    assert coded.weights_BL is not None
    assert torch.allclose(weights, coded.weights_BL)


def test_weights_are_the_routers_and_one_elsewhere() -> None:
    net = network()
    weights = net(batch()).weights_BL
    assert weights is not None
    assert (weights[:, :5] == 1).all()
    behavior = vectors()[:, 2:5]
    norms = behavior.norm(dim=1)
    known = norms[norms > 0]
    scaled = torch.where(norms > 0, (norms - known.min()) / (known.max() - known.min()), 0)
    assert net.router is not None
    standardised = (behavior - behavior.mean(dim=0)) / behavior.std(dim=0, correction=0)
    expected = torch.sigmoid(scaled)[:, None] * torch.relu(net.router._mlp(standardised))
    assert torch.allclose(weights[:, 5:], expected, atol=1e-6)


def test_latents_are_the_gated_sum_and_gates_sum_to_one() -> None:
    net = network()
    coded = net(batch())
    text, visual = (
        torch.softmax(net.gates[name](vectors()[:, part]), dim=1)
        for name, part in (("text", slice(0, 2)), ("visual", slice(5, 7)))
    )
    assert coded.weights_BL is not None
    share = torch.cat([torch.ones(24, 1), text, visual, coded.weights_BL[:, 5:]], dim=1)
    expected = sum(share[:, level, None] * target for level, target in enumerate(coded.targets))
    assert torch.allclose(coded.latent_BD, expected, atol=1e-6)
    words = [functional.normalize(net.codewords[level][coded.codes_BL[:, level]], dim=1) for level in range(8)]
    fused = torch.stack([share[:, i, None] * word for i, word in enumerate(words)]).sum(dim=0)
    assert torch.allclose(coded.quantized_BD, fused, atol=1e-6)
    decoded = net.decoder(coded.quantized_BD)
    assert coded.terms["reconstruction"].item() == pytest.approx((decoded - vectors()).square().sum().item() / 24)


def test_without_gates_content_experts_count_as_their_mean() -> None:
    net = network(replace(SMALL, content_gates=False, router=None))
    coded = net(batch())
    assert coded.weights_BL is None
    assert net.encode(vectors())[1] is None
    share = [1, 0.5, 0.5, 0.5, 0.5, 1, 1, 1]
    expected = sum(factor * target for factor, target in zip(share, coded.targets, strict=True))
    assert torch.allclose(coded.latent_BD, expected, atol=1e-6)
    decoded = net.decode(coded.codes_BL)
    assert decoded is not None
    assert torch.allclose(decoded, net.decoder(coded.quantized_BD), atol=1e-5)


def test_codes_and_weights_decode_unless_gates_choose_among_experts() -> None:
    net = network(replace(SMALL, content_gates=False))
    coded = net(batch())
    assert coded.weights_BL is not None
    assert net.decode(coded.codes_BL) is None, "without the weights"
    decoded = net.decode(coded.codes_BL, net.encode(vectors())[1])
    assert decoded is not None
    assert torch.allclose(decoded, net.decoder(coded.quantized_BD), atol=1e-5)
    others = net.decode(coded.codes_BL, torch.ones_like(coded.weights_BL))
    assert others is not None
    assert not torch.allclose(decoded, others, atol=1e-3)
    assert network().decode(coded.codes_BL, coded.weights_BL) is None


def test_concatenation() -> None:
    net = network(replace(SMALL, fuse="concat"))
    coded = net(batch())
    assert net.latent_width == 32
    assert coded.latent_BD.shape == (24, 32)
    assert torch.allclose(coded.latent_BD[:, :4], coded.targets[0], atol=1e-6)


def info_nce_by_hand(anchors: Tensor, targets: Tensor, temperature: float, of: list[int]) -> dict[int, float]:
    found = {}
    for i in of:
        cosines = [functional.cosine_similarity(anchors[i], targets[j], dim=0).item() / temperature for j in of]
        found[i] = float(np.log(np.exp(cosines).sum())) - cosines[of.index(i)]
    return found


@pytest.mark.parametrize("controller", [AlignmentController(), AlignmentController(alpha=4, beta=1), None])
def test_alignment_by_hand(controller: AlignmentController | None) -> None:
    net = network(replace(SMALL, controller=controller, align_weight=0.5))
    terms, rows = net(batch()).terms, vectors()
    text, behavior, visual = (net.towers[name](rows[:, part]) for name, part in net.parts.items())
    known = [row for row in range(24) if row != NO_BEHAVIOR]
    strength = dict.fromkeys(known, 1.0)
    if controller:
        for row in known:
            at = float(torch.sigmoid(controller.alpha * net.norm(rows)[row] - controller.beta))
            strength[row] = at * (1 + np.exp(-(controller.alpha - controller.beta)))
    expected = 0.0
    for content in (text, visual):
        losses = info_nce_by_hand(content, behavior, 0.07, known)
        expected += sum(strength[row] * losses[row] for row in known) / len(known)
    assert terms["align_behavior"].item() == pytest.approx(0.5 * expected, rel=1e-4)
    every = list(range(24))
    between = [sum(info_nce_by_hand(a, b, 0.07, every).values()) / 24 for a, b in ((text, visual), (visual, text))]
    assert terms["align_content"].item() == pytest.approx(0.5 * sum(between), rel=1e-4)


def test_the_same_item_twice_is_no_negative_of_itself() -> None:
    alone = ItemBatch(torch.full((4,), 7), vectors()[:1].repeat(4, 1))
    terms = network()(alone).terms
    assert terms["align_behavior"].item() == pytest.approx(0, abs=1e-6)
    assert terms["align_content"].item() == pytest.approx(0, abs=1e-6)


def test_one_content_column_has_nothing_to_align_with_but_behavior() -> None:
    net = network(columns=COLUMNS[:2])
    coded = net(ItemBatch(torch.arange(24), vectors()[:, :5]))
    assert coded.codes_BL.shape == (24, 6)
    assert coded.terms["align_content"] == 0
    assert coded.terms["align_behavior"] > 0


def test_no_contrast_and_no_regularisation() -> None:
    assert not {"align_behavior", "align_content"} & set(network(replace(SMALL, align_weight=0))(batch()).terms)
    assert "router" in network()(batch()).terms
    assert "router" not in network(replace(SMALL, router=Router(regularize=False)))(batch()).terms
    assert network(replace(SMALL, router=None)).after_step() == {}


@pytest.mark.parametrize("detach", [False, True])
def test_alignment_reaches_the_behavior_tower_unless_detached(detach: bool) -> None:
    net = network(replace(SMALL, detach_behavior=detach))
    net(batch()).terms["align_behavior"].backward()
    reached = net.get_parameter("towers.behavior.0.weight").grad
    assert (reached is None) == detach
    assert net.get_parameter("towers.text.0.weight").grad is not None


def test_reconstruction_reaches_experts_gates_and_router_but_no_codeword() -> None:
    net = network()
    net(batch()).terms["reconstruction"].backward()
    for part in (net.shared, net.experts, net.gates, net.router, net.decoder):
        assert part is not None
        assert any(weight.grad is not None and weight.grad.any() for weight in part.parameters())
    assert all(codewords.grad is None for codewords in net.codewords)


@pytest.mark.parametrize("learning", ["gradient", "ema"])
def test_codewords_move_towards_their_items(learning: str) -> None:
    net = network(replace(SMALL, codebook_learning=learning))  # type: ignore[arg-type]
    before = net.codewords[0].clone()
    coded = net.train()(batch())
    optimizer = torch.optim.SGD(net.codebooks.parameters(), lr=0.1) if learning == "gradient" else None
    if optimizer:
        sum(coded.terms.values()).backward()
        optimizer.step()
    assert not torch.equal(net.codewords[0], before)
    assert (coded.terms["codebook"] == 0) == (learning == "ema")


def test_placement_puts_codewords_where_items_are() -> None:
    net = network()
    before = net(batch()).terms["commitment"]
    net.place_codebooks(vectors())
    assert net(batch()).terms["commitment"] < before / 2


def test_last_level_costs() -> None:
    net = network()
    codes, _ = net.encode(vectors())
    costs = net.last_level_costs(vectors(), codes)
    assert costs.argmin(dim=1).tolist() == codes[:, -1].tolist()
    cosine = functional.cosine_similarity(net(batch()).targets[-1][0], net.codewords[-1][2], dim=0)
    assert costs[0, 2].item() == pytest.approx(2 - 2 * cosine.item(), abs=1e-5)


@pytest.mark.parametrize("columns", [COLUMNS[:1], COLUMNS[1:2], (COLUMNS[0], COLUMNS[2])])
def test_columns_it_cannot_do_without(columns: tuple[tuple[str, int], ...]) -> None:
    with pytest.raises(ContractError, match="vectors of adc_sid: expected behavior and at least one content column"):
        AdcSid(SMALL, columns)


def test_behavior_of_nobody_is_refused_before_training() -> None:
    with pytest.raises(ContractError, match="column behavior: expected behaviour of some items, got all zeros"):
        network().measure(np.ones((4, 7), dtype=np.float32) * [1, 1, 0, 0, 0, 1, 1])


# The paper's equations in NumPy, float64, one item at a time.


def layers(net: AdcSid, name: str, inputs: np.ndarray) -> np.ndarray:
    """A two-layer network of `net`, by its name in the state dict."""
    state = {key: value.double().numpy() for key, value in net.state_dict().items()}
    hidden = np.maximum(state[f"{name}.0.weight"] @ inputs + state[f"{name}.0.bias"], 0)
    result: np.ndarray = state[f"{name}.2.weight"] @ hidden + state[f"{name}.2.bias"]
    return result


def by_equations(net: AdcSid, weights: dict[str, float]) -> dict[str, float]:
    """Equations 1 to 14 with two experts per content column and three for behaviour, and the terms that they give."""
    codewords = [words.detach().double().numpy() for words in net.codewords]
    norms = vectors()[:, 2:5].double().norm(dim=1).numpy()
    known = norms[norms > 0]
    sums = dict.fromkeys(("reconstruction", "codebook", "commitment"), 0.0)
    for row, norm in zip(vectors().double().numpy(), norms, strict=True):
        column = {"text": row[:2], "behavior": row[2:5], "visual": row[5:]}
        h = np.concatenate([layers(net, f"towers.{name}", column[name]) for name in ("text", "behavior", "visual")])
        places = [("text", 0), ("text", 1), ("visual", 0), ("visual", 1), *(("behavior", i) for i in range(3))]
        z = [layers(net, "shared.0", h), *(layers(net, f"experts.{name}.{i}", column[name]) for name, i in places)]
        gates = []
        for name in ("text", "visual"):
            power = np.exp(layers(net, f"gates.{name}", column[name]))
            gates += list(power / power.sum())
        n = np.clip((norm - known.min()) / (known.max() - known.min()), 0, 1)
        standard = (column["behavior"] - net.router.mean_V.numpy()) / net.router.spread_V.numpy()  # type: ignore[union-attr]
        routed = np.maximum(layers(net, "router._mlp", standard), 0) / (1 + np.exp(-n))
        g = [1.0, *gates, *routed]
        cosine = [(words @ z_l) / np.linalg.norm(words, axis=1) for words, z_l in zip(codewords, z, strict=True)]
        q = [words[similar.argmax()] for words, similar in zip(codewords, cosine, strict=True)]
        decoded = layers(net, "decoder", sum(g_l * q_l for g_l, q_l in zip(g, q, strict=True)))
        for name, part in (("text", slice(0, 2)), ("behavior", slice(2, 5)), ("visual", slice(5, 7))):
            sums["reconstruction"] += weights.get(name, 1.0) * np.square(decoded - row)[part].sum()
        distance = sum(np.square(z_l - q_l).sum() for z_l, q_l in zip(z, q, strict=True))
        sums["codebook"] += distance
        sums["commitment"] += 0.25 * distance
    return {name: value / len(vectors()) for name, value in sums.items()}


@pytest.mark.parametrize(
    "weights",
    [{}, {"behavior": 0.1}, {"behavior": 0.25, "text": 2.0}, {"text": 0.5, "visual": 3.0, "behavior": 1.0}],
)
def test_raw_latents_and_weighted_columns_are_the_papers_equations(weights: dict[Any, float]) -> None:
    net = network(replace(SMALL, unit_latents=False, reconstruction_weights=weights))
    with torch.no_grad():
        for codewords in net.codewords:  # of many lengths, so that a cosine chooses others than a distance
            codewords.mul_(torch.linspace(0.2, 5, len(codewords))[:, None])
    terms = net(batch()).terms
    for name, expected in by_equations(net, weights).items():
        assert terms[name].item() == pytest.approx(expected, rel=1e-5), name


def test_raw_latents_are_placed_encoded_and_resolved_by_cosine() -> None:
    net = network(replace(SMALL, unit_latents=False, content_gates=False, codebook_size=3)).eval()
    net.place_codebooks(vectors())
    coded = net(batch())
    for level, (target, codewords) in enumerate(zip(coded.targets, net.codewords, strict=True)):
        own = functional.cosine_similarity(target[:, None], codewords[None], dim=2).argmax(dim=1)
        assert coded.codes_BL[:, level].tolist() == own.tolist()
        assert codewords.norm(dim=1).max() < 2 * target.norm(dim=1).max()
        assert codewords.norm(dim=1).max() > target.norm(dim=1).min()
    codes, weights = net.encode(vectors())
    assert net.last_level_costs(vectors(), codes).argmin(dim=1).tolist() == codes[:, -1].tolist()
    decoded = net.decode(codes, weights)
    assert decoded is not None
    assert torch.allclose(decoded, net.decoder(coded.quantized_BD), atol=1e-5)


def test_raw_latents_learn_by_moving_averages_of_raw_points() -> None:
    net = network(replace(SMALL, unit_latents=False, codebook_learning="ema")).train()
    before = net.codewords[0].clone()
    coded = net(batch())
    for code in range(5):
        points = coded.targets[0][coded.codes_BL[:, 0] == code].detach().double()
        if len(points):
            total = 0.99 * before[code].double() + 0.01 * points.sum(dim=0)
            expected = total / (0.99 + 0.01 * len(points))
            assert torch.allclose(net.codewords[0][code].double(), expected, atol=1e-6)
