"""The preset `released` of MM-RQ-VAE against the terms of the released code, written again in float64."""

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor

from sidrec.config.learners import Learner, MmRqVaeConfig
from sidrec.sid.networks.mm_rqvae import MmRqVae, one_kernel_mmd
from sidrec.sid.networks.network import ItemBatch

SIZES = {"levels": 6, "codebook_size": 5, "width": 4, "hidden": [6]}
COLUMNS = (("text", 3), ("behavior", 2))
ITEMS, LEVELS, MU = 20, 3, 0.01


def config_of(**keys: Any) -> MmRqVaeConfig:
    learner = {"kind": "mm_rqvae", "preset": "released", **SIZES, **keys}
    found = TypeAdapter[Any](Learner).validate_python(learner)
    assert isinstance(found, MmRqVaeConfig)
    return found


def network(**keys: Any) -> MmRqVae:
    torch.manual_seed(0)
    made = MmRqVae(config_of(**keys), COLUMNS)
    made.place_codebooks(vectors(60, seed=5))
    return made


def vectors(items: int = ITEMS, seed: int = 1) -> Tensor:
    return torch.randn(items, 5, generator=torch.Generator().manual_seed(seed))


def released_mmd(x_BD: np.ndarray, y_BD: np.ndarray) -> float:
    """tllib's MultipleKernelMaximumMeanDiscrepancy with GaussianKernel(alpha=0.5), pair by pair."""
    points, rows = [*x_BD, *y_BD], len(x_BD)
    squared = [[float(np.square(p - q).sum()) for q in points] for p in points]
    sigma_square = 0.5 * sum(map(sum, squared)) / len(points) ** 2
    kernel = [[math.exp(-value / (2 * sigma_square)) for value in line] for line in squared]
    total = 2 / (rows - 1)
    for i in range(rows):
        for j in range(rows):
            if i != j:
                total += (kernel[i][j] + kernel[rows + i][rows + j]) / (rows * (rows - 1))
            total -= 2 * kernel[i][rows + j] / rows**2
    return total


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [([0.0, 1.0], [0.0, 1.0], 1 + math.exp(-2)), ([0.0, 1.0], [2.0, 3.0], 2.789922), ([0.0, 5.0], [5.0, 0.0], None)],
)
def test_mmd_by_hand(x: list[float], y: list[float], expected: float | None) -> None:
    x_BD, y_BD = np.array(x)[:, None], np.array(y)[:, None]
    found = one_kernel_mmd(torch.from_numpy(x_BD), torch.from_numpy(y_BD)).item()
    assert found == pytest.approx(released_mmd(x_BD, y_BD), rel=1e-9)
    assert expected is None or found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("rows", [2, 3, 7, 20])
@pytest.mark.parametrize("shift", [0.0, 1.0, 100.0])
def test_mmd_of_random_batches(rows: int, shift: float) -> None:
    rng = np.random.default_rng(rows)
    x_BD, y_BD = rng.standard_normal((rows, 3)) + shift, 2 * rng.standard_normal((rows, 3)) + shift
    found = one_kernel_mmd(torch.from_numpy(x_BD), torch.from_numpy(y_BD)).item()
    assert found == pytest.approx(released_mmd(x_BD, y_BD), rel=1e-9)


def test_mmd_of_a_single_row_or_equal_rows_is_finite() -> None:
    single = torch.ones(1, 3, requires_grad=True)
    one_kernel_mmd(single, torch.zeros(1, 3)).backward()
    assert single.grad is not None
    assert not single.grad.any()
    assert one_kernel_mmd(torch.ones(4, 3), torch.ones(4, 3)).item() == pytest.approx(2 / 3)


def sinkhorn(distances_BK: Tensor, entropy: float = 0.003, rounds: int = 50) -> Tensor:
    """Codes as LETTER and MME-SID draw them: distances centred to [-1, 1], Sinkhorn-Knopp, the largest share."""
    high, low = distances_BK.max(), distances_BK.min()
    middle = (high + low) / 2
    plan = torch.exp(-(distances_BK - middle) / (high - middle + 1e-5) / entropy)
    plan = plan / plan.sum()
    for _ in range(rounds):
        plan = plan / plan.sum(dim=1, keepdim=True) / len(plan)
        plan = plan / plan.sum(dim=0, keepdim=True) / plan.shape[1]
    return plan.argmax(dim=1)


def released_terms(net: MmRqVae, training: bool) -> tuple[dict[str, Tensor], Tensor]:
    """The terms and codes of a float64 copy of the network, with the released code's straight-through residuals."""
    anchor = {}
    terms = {name: torch.zeros((), dtype=torch.float64) for name in ("quantisation", "reconstruction", "alignment")}
    codes = []
    for place, part in enumerate((slice(0, 3), slice(3, 5))):
        inputs = vectors().double()[:, part]
        residual = latent = net.encoders[place](inputs)
        total, losses = torch.zeros_like(latent), []
        for level, words in enumerate(net.codewords[LEVELS * place : LEVELS * (place + 1)]):
            distances = torch.cdist(residual.detach(), words.detach()) ** 2
            spread = training and level == LEVELS - 1
            codes.append(sinkhorn(distances) if spread else distances.argmin(dim=1))
            taken = words[codes[-1]]
            commitment = ((taken.detach() - residual) ** 2).mean()
            losses.append(((taken - residual.detach()) ** 2).mean() + MU * commitment)
            straight = residual + (taken - residual).detach()
            residual, total = residual - straight, total + straight
        terms["quantisation"] += torch.stack(losses).mean()
        terms["reconstruction"] += 3 * differentiable_mmd(net.decoders[place](total), inputs)
        anchor[place] = total
    terms["alignment"] = MU * differentiable_mmd(anchor[1], anchor[0])
    return terms, torch.stack(codes, dim=1)


def differentiable_mmd(x_BD: Tensor, y_BD: Tensor) -> Tensor:
    """`released_mmd` with autograd."""
    rows, points = len(x_BD), torch.cat([x_BD, y_BD])
    squared = (points[:, None] - points[None]).square().sum(dim=2)
    kernel = torch.exp(-squared / squared.detach().mean())
    apart = 1 - torch.eye(rows, dtype=kernel.dtype)
    same = ((kernel[:rows, :rows] + kernel[rows:, rows:]) * apart).sum() / (rows * (rows - 1))
    return same - 2 * kernel[:rows, rows:].mean() + 2 / (rows - 1)


@pytest.mark.parametrize("training", [False, True], ids=["nearest codes", "optimal transport"])
def test_terms_codes_and_gradients(training: bool) -> None:
    net = network().train(training)
    reference = copy.deepcopy(net).double()
    coded = net(ItemBatch(torch.arange(ITEMS), vectors()))
    terms, codes_BL = released_terms(reference, training)
    assert coded.codes_BL.tolist() == codes_BL.tolist()
    found = coded.terms
    assert (found["codebook"] + found["commitment"]).item() == pytest.approx(terms["quantisation"].item(), rel=1e-5)
    assert found["reconstruction"].item() == pytest.approx(terms["reconstruction"].item(), rel=1e-5)
    assert found["alignment"].item() == pytest.approx(terms["alignment"].item(), rel=1e-5)
    torch.stack(list(found.values())).sum().backward()
    torch.stack(list(terms.values())).sum().backward()
    for (name, mine), theirs in zip(net.named_parameters(), reference.parameters(), strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        torch.testing.assert_close(mine.grad.double(), theirs.grad, rtol=1e-3, atol=1e-6, msg=name)


def test_deeper_commitments_reach_the_encoder_by_default_alone() -> None:
    gradients = {}
    for reaches in ("all_levels", "first_level"):
        net = network(commitment_gradient=reaches, commitment=1.0)
        net(ItemBatch(torch.arange(ITEMS), vectors())).terms["commitment"].backward()
        gradients[reaches] = next(net.encoders[0].parameters()).grad
    assert not torch.allclose(gradients["all_levels"], gradients["first_level"], atol=1e-4)  # type: ignore[arg-type]


def test_optimal_transport_is_for_training_alone() -> None:
    net = network().train()
    spread = net(ItemBatch(torch.arange(ITEMS), vectors())).codes_BL
    nearest = net.eval().encode(vectors())[0]
    last = [LEVELS - 1, 2 * LEVELS - 1]
    rest = [level for level in range(2 * LEVELS) if level not in last]
    assert torch.equal(spread[:, rest], nearest[:, rest])
    for level in last:
        assert torch.bincount(spread[:, level], minlength=5).max() <= 5, "20 items over 5 codes"
    uneven = [torch.bincount(nearest[:, level], minlength=5).max() for level in last]
    assert max(uneven) > 5
