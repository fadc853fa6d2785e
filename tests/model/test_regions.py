"""Fused regions: each equals the operators that it replaces, in values and gradients, one by one and compiled.

The references are the model's own modules without regions (`Paths.regions`).
"""

import shutil
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch._inductor import config as inductor

from sidrec.config.item_parts import AutoDisAlignment, StatsGate
from sidrec.model.alignment import build_alignment
from sidrec.model.fused import PRODUCTS
from sidrec.model.fusion_and_gate import AdditiveAttention, TargetAwareGate
from sidrec.model.history import CPU, Paths, index_history, products_with_history
from sidrec.model.pooling import TargetAttention
from sidrec.model.regions import REGIONS
from sidrec.model.semantic_part import fused
from tests.train.test_operators import Operators

B, U, T, D, G, H = 6, 9, 5, 4, 3, 5
PLAIN, COMPILED = CPU._replace(regions="plain"), CPU._replace(regions="compiled")


class Case(NamedTuple):
    """run: outputs of module and inputs, with regions as the paths say."""

    module: nn.Module
    inputs: list[Tensor]
    run: Callable[[nn.Module, list[Tensor], Paths], Tensor]


def histories(rows: int) -> Tensor:
    """A full, an empty and a one-item history, an item that comes twice, padding; bag 8 is in none. One row: full."""
    history_BT = torch.randint(1, 8, (rows, T), generator=torch.Generator().manual_seed(0))
    history_BT[1:2] = 0
    history_BT[2:3, 1:] = 0
    history_BT[3:4] = torch.tensor([4, 4, 2, 0, 0])
    return history_BT


def draw(seed: int, *shape: int) -> Tensor:
    """Normal numbers; those of bag 0 of all items are 0."""
    drawn = torch.randn(shape, dtype=torch.double, generator=torch.Generator().manual_seed(seed))
    if shape[0] == U:
        drawn[0] = 0
    return drawn


def targets(rows: int) -> Tensor:
    return torch.arange(rows) % (U - 1) + 1


def fusion(with_unit: bool, rows: int) -> Case:
    module = AdditiveAttention(G, D, H)
    nn.init.normal_(module.bias_GH)
    bags = U if rows > 1 else 2  # one item besides bag 0

    def run(module: nn.Module, granules: list[Tensor], paths: Paths) -> Tensor:
        assert isinstance(module, AdditiveAttention)
        found = fused(module, granules, paths.regions, with_unit, before=D)
        if not found:
            sid_UD = module(torch.stack(granules, dim=1))
            found = (sid_UD, nn.functional.normalize(sid_UD, dim=1, eps=1e-6)) if with_unit else (sid_UD,)
        return torch.cat(found, dim=1)[1:]  # nothing reads bag 0's

    return Case(module, [draw(k, U, D)[:bags] for k in range(G)], run)


def gate(rows: int) -> Case:
    module = TargetAwareGate(StatsGate(hidden=H), D, torch.tensor([1.0, 2.0]), torch.tensor([0.5, 1.5]))
    stats_BS, has_sid_B = draw(3, rows, 2).abs() * 50, torch.arange(rows) != 2

    def run(module: nn.Module, inputs: list[Tensor], paths: Paths) -> Tensor:
        hid_BD, sid_BD = inputs
        found: Tensor = module(hid_BD, sid_BD, stats_BS.to(hid_BD.dtype), has_sid_B, None, paths.regions)
        return found

    return Case(module, [draw(4, rows, D), draw(5, rows, D)], run)


def products(rows: int) -> Case:
    def run(module: nn.Module, inputs: list[Tensor], paths: Paths) -> Tensor:
        items_UD, target_BD = inputs
        return products_with_history(items_UD, target_BD, index_history(histories(rows), paths))

    return Case(nn.Identity(), [draw(6, U, D), draw(7, rows, D)], run)


def alignment(grid: int | None, rows: int) -> Case:
    """Similarities on both sides of 0 and at 1, as of an item with itself."""
    module = build_alignment(AutoDisAlignment(buckets=H, width=3, grid=grid), G)
    assert module is not None

    def run(module: nn.Module, inputs: list[Tensor], paths: Paths) -> Tensor:
        history = index_history(histories(rows), paths)
        found: Tensor = module(inputs[0], targets(rows), history.where(history.valid_BT & (history.bag_BT != 3)))
        return found

    return Case(module, [draw(8, U, D)], run)


def attention(softmax: bool, hidden: tuple[int, ...], rows: int) -> Case:
    module = TargetAttention(D, hidden, softmax)

    def run(module: nn.Module, inputs: list[Tensor], paths: Paths) -> Tensor:
        found: Tensor = module(*inputs, index_history(histories(rows), paths))
        return found

    return Case(module, [draw(9, U, D), draw(10, rows, D)], run)


CASES: dict[str, Callable[[int], Case]] = {
    "fuse": partial(fusion, False),
    "fuse_with_unit": partial(fusion, True),
    "gate": gate,
    "products": products,
    "autodis": partial(alignment, None),
    "autodis_on_grid": partial(alignment, 8),
    "attend": partial(attention, True, (H,)),
}
OTHERS: dict[str, Callable[[int], Case]] = {
    "attend without softmax": partial(attention, False, (H,)),
    "attend, two layers": partial(attention, True, (H, 3)),
}


def outcome(case: Case, paths: Paths, dtype: torch.dtype = torch.double) -> tuple[Tensor, list[Tensor]]:
    """The output, and gradients of inputs and parameters; not of bag 0, which nothing reads."""
    module = case.module.to(dtype)
    module.zero_grad()
    leaves = [tensor.to(dtype, copy=True).requires_grad_() for tensor in case.inputs]
    output = case.run(module, leaves, paths)
    output.backward(torch.randn(output.shape, generator=torch.Generator().manual_seed(2)).to(output.dtype))
    gradients = [leaf.grad for leaf in leaves if leaf.grad is not None]
    assert len(gradients) == len(leaves)
    gradients = [gradient[1:] if len(gradient) == U else gradient for gradient in gradients]
    parameters = [p.grad.clone() for p in module.parameters() if p.grad is not None]
    assert len(parameters) == len(list(module.parameters()))
    return output.detach(), [*gradients, *parameters]


def test_every_region_has_a_case() -> None:
    assert set(CASES) == set(REGIONS)


@pytest.mark.parametrize("rows", [B, 1])
@pytest.mark.parametrize("name", [*CASES, *OTHERS])
def test_regions_equal_the_operators_that_they_replace(name: str, rows: int) -> None:
    case = (CASES | OTHERS)[name](rows)
    expected = outcome(case, CPU)
    with Operators() as found:
        region = outcome(case, PLAIN)
    torch.testing.assert_close(region, expected)
    assert found.counts[name.split()[0].rstrip(",")] == 1, "the region ran"


@pytest.mark.parametrize("name", [*CASES, *OTHERS])
def test_gradients_equal_finite_differences(name: str) -> None:
    case = (CASES | OTHERS)[name](B)
    module = case.module.double()
    free = [leaf[1:] if len(leaf) == U else leaf for leaf in case.inputs]

    def output(*leaves: Tensor) -> Tensor:
        inputs = [
            torch.cat([torch.zeros_like(leaf[:1]), leaf]) if len(whole) == U else leaf
            for leaf, whole in zip(leaves, case.inputs, strict=True)
        ]
        return case.run(module, inputs, PLAIN)

    leaves = [tensor.clone().requires_grad_() for tensor in free]
    assert torch.autograd.gradcheck(output, leaves, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", CASES)
def test_regions_in_bf16(name: str) -> None:
    torch.manual_seed(0)  # the modules' weights: the bounds are those of a rounding to three digits
    case = CASES[name](B)
    expected, gradients = outcome(case, PLAIN)
    output, found = outcome(case, PLAIN, torch.bfloat16)
    assert {tensor.dtype for tensor in (output, *found)} == {torch.bfloat16}
    torch.testing.assert_close(output.double(), expected, rtol=0.1, atol=0.1)
    for gradient, exact in zip(found, gradients, strict=True):
        assert (gradient.double() - exact).norm() <= 0.15 * exact.norm() + 0.05


def test_autocast_does_not_reach_into_a_region() -> None:
    case = CASES["fuse"](B)
    module = case.module.float()
    granules = [tensor.bfloat16() for tensor in case.inputs[:1]] + [tensor.float() for tensor in case.inputs[1:]]
    with torch.autocast("cpu", torch.bfloat16):
        output = case.run(module, granules, PLAIN)
    assert output.dtype == torch.float32
    torch.testing.assert_close(output, case.run(module, [granule.float() for granule in granules], CPU))


# torch.compile. On a CPU inductor writes C++, on a GPU Triton; the functions and what is fused in them are the same.

needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None, reason="inductor compiles C++ for a CPU, and there is no g++"
)
QUICK = {"cpp.simdlen": 1, "compile_threads": 1, "aot_inductor.debug_compile": True}
"""Without optimising, and without vectors, whose instruction sets inductor finds by compiling."""


@needs_compiler
@pytest.mark.parametrize("name", [name for name in CASES if name != "fuse"])  # it is part of fuse_with_unit
def test_compiled_regions_equal_plain_ones(name: str) -> None:
    case = CASES[name](B)
    with inductor.patch(QUICK):
        found = outcome(case, COMPILED, torch.float32)
    assert not counters["graph_break"]
    torch.testing.assert_close(found, outcome(case, PLAIN, torch.float32), rtol=1e-4, atol=1e-5)


def test_regions_do_not_count_their_compilations_together() -> None:
    codes = {region.with_own_code(region._outputs).__code__ for region in REGIONS.values()}
    assert len(codes) == len(REGIONS)


@needs_compiler
def test_rows_and_items_of_a_batch_do_not_compile_again() -> None:
    """Of a gather, which has both."""
    with inductor.patch(QUICK):
        PRODUCTS.forward("compiled", draw(1, U, D).float(), histories(B), draw(2, B, D).float())
        before = counters["stats"]["unique_graphs"]
        for rows, bags in ((B + 1, U + 2), (B + 3, U + 5)):
            items_UD, rows_BD = draw(1, bags, D).float(), draw(2, rows, D).float()
            found = PRODUCTS.forward("compiled", items_UD, histories(rows), rows_BD)[0]
            torch.testing.assert_close(found, torch.einsum("btd,bd->bt", items_UD[histories(rows)], rows_BD))
    assert counters["stats"]["unique_graphs"] == before
