"""The hand-written gradients: each fast path against a slow reference that autograd differentiates."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional
from torchrec.sparse.jagged_tensor import KeyedTensor

from sidrec.model.alignment import AutoDis
from sidrec.model.autodis import (
    INTERVALS_PER_SLOPE,
    MOST_INTERVALS,
    autodis_max_and_mean,
    interpolated_max_and_mean,
    intervals_between_nodes,
    masked_max_and_mean,
    nearest_max_and_mean,
)
from sidrec.model.cpu_fusion import fuse_on_cpu
from sidrec.model.fusion_and_gate import AdditiveAttention
from sidrec.model.history import (
    CPU,
    EXPORT,
    GPU,
    Paths,
    Segments,
    index_history,
    items_of_history,
    mean_of_history,
    products_with_history,
    products_with_targets,
    targets_among,
)
from sidrec.model.semantic_part import ItemLookup, fused, split_lookup

B, U, T, D, H, A = 7, 9, 5, 4, 6, 3


def histories() -> Tensor:
    """A full, an empty and a one-item history, items that come twice in a row, padding; bag 8 is in none."""
    history_BT = torch.randint(1, 8, (B, T), generator=torch.Generator().manual_seed(0))
    history_BT[1] = 0
    history_BT[2, 1:] = 0
    history_BT[3] = torch.tensor([4, 4, 2, 0, 0])
    return history_BT


def items() -> Tensor:
    items_UD = torch.randn(U, D, dtype=torch.double, generator=torch.Generator().manual_seed(1))
    items_UD[0] = 0
    return items_UD


def assert_same(fast: Callable[..., Tensor], slow: Callable[..., Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
    """Equal values and gradients, in double precision. Returns the fast path's gradients."""
    outcomes = []
    for function in (fast, slow):
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        output = function(*leaves)
        output.backward(torch.randn(output.shape, dtype=output.dtype, generator=torch.Generator().manual_seed(2)))
        gradients = [leaf.grad for leaf in leaves if leaf.grad is not None]
        assert len(gradients) == len(leaves)
        outcomes.append((output.detach(), gradients))
    (output, gradients), (expected, expected_gradients) = outcomes
    torch.testing.assert_close(output, expected)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, expected_gradient)
    return gradients


def but_padding(gradient_UD: Tensor) -> Tensor:
    return gradient_UD * (torch.arange(U) > 0).unsqueeze(1)


@pytest.mark.parametrize("paths", [CPU, GPU._replace(regions="plain")])
def test_mean_of_history(paths: Paths) -> None:
    history_BT = histories()

    def slow(items_UD: Tensor) -> Tensor:
        return torch.stack(
            [items_UD[row[row > 0]].mean(dim=0) if (row > 0).any() else items_UD.new_zeros(D) for row in history_BT]
        )

    def fast(items_UD: Tensor) -> Tensor:
        items_UD.register_hook(but_padding)  # bag 0 is never looked up: its gradient is nobody's
        return mean_of_history(items_UD, index_history(history_BT, paths))

    assert_same(fast, slow, [items()])


@pytest.mark.parametrize("paths", [CPU, GPU._replace(regions="plain")])
def test_products_with_history(paths: Paths) -> None:
    history_BT = histories()
    target_BD = torch.randn(B, D, dtype=torch.double)

    def slow(items_UD: Tensor, target_BD: Tensor) -> Tensor:
        return torch.einsum("btd,bd->bt", items_UD[history_BT], target_BD)

    assert_same(
        lambda items_UD, target_BD: products_with_history(leaf(items_UD), target_BD, index_history(history_BT, paths)),
        lambda items_UD, target_BD: slow(leaf(items_UD), target_BD),
        [items(), target_BD],
    )


@pytest.mark.parametrize("paths", [CPU, GPU._replace(regions="plain"), EXPORT])
def test_targets_among_the_items_of_histories(paths: Paths) -> None:
    """Targets twice, and one that is in no history; cosines of them with the history, and what else reads the items."""
    history_BT, target_B = histories(), torch.tensor([1, 8, 8, 4, 5, 6, 7])

    def slow(items_UD: Tensor) -> Tensor:
        items_UD, target_BD = leaf(items_UD), items_UD[target_B]
        products_BT = torch.einsum("btd,bd->bt", items_UD[history_BT], target_BD)
        return torch.cat([target_BD, items_UD[history_BT].sum(dim=1), products_BT], dim=1)

    def fast(items_UD: Tensor) -> Tensor:
        history = index_history(history_BT, paths)
        target_BD, items_UD = targets_among(leaf(items_UD), target_B, paths)
        sum_BD = mean_of_history(items_UD, history) * history.count_B1
        return torch.cat([target_BD, sum_BD, products_with_targets(items_UD, target_B, history)], dim=1)

    assert_same(fast, slow, [items()])


def leaf(items_UD: Tensor) -> Tensor:
    """The items, without a gradient of bag 0: the paths differ in it, and it is nobody's."""
    items_UD.register_hook(but_padding)
    return items_UD


@pytest.mark.parametrize("paths", [CPU, GPU._replace(regions="plain")])
def test_items_of_history(paths: Paths) -> None:
    history_BT = histories()
    assert_same(
        lambda items_UD: items_of_history(leaf(items_UD), index_history(history_BT, paths)),
        lambda items_UD: leaf(items_UD)[history_BT],
        [items()],
    )


# Sums by segment, in pieces.


def skewed(rows: int, count: int) -> Tensor:
    """Segments of [rows, T] entries: half are in none, a quarter in segment 5; most segments beyond 9 are empty."""
    generator = torch.Generator().manual_seed(6)
    draw_BT = torch.rand(rows, T, generator=generator)
    some_BT = torch.randint(10, (rows, T), generator=generator)
    return torch.where(draw_BT < 0.5, count, torch.where(draw_BT < 0.75, 5, some_BT))


@pytest.mark.parametrize("piece", [1, 2, 3, 128])
@pytest.mark.parametrize(("rows", "count"), [(1, 12), (60, 12), (60, 500)])
def test_segments_equal_sums_one_by_one(rows: int, count: int, piece: int) -> None:
    segment_BT = skewed(rows, count)
    rows_BD, weight_BT = torch.randn(rows, D, dtype=torch.double), torch.rand(rows, T, dtype=torch.double)
    segments = Segments(segment_BT, count, piece)

    def slow(values_BTD: Tensor) -> Tensor:
        sums = values_BTD.new_zeros(count + 1, D).index_add_(0, segment_BT.flatten(), values_BTD.flatten(0, 1))
        return sums[:-1]

    rows_BTD = rows_BD.unsqueeze(1).expand(-1, T, -1)
    torch.testing.assert_close(segments.sum(rows_BD), slow(rows_BTD))
    torch.testing.assert_close(segments.sum(rows_BD, weight_BT), slow(rows_BTD * weight_BT.unsqueeze(2)))
    values_PD = torch.randn(rows * T, D, dtype=torch.double)
    torch.testing.assert_close(segments.sum_of_entries(values_PD), slow(values_PD.view(rows, T, D)))


@pytest.mark.parametrize("shape", [(0, T), (3, 0)])
def test_segments_without_entries(shape: tuple[int, int]) -> None:
    segments = Segments(torch.zeros(shape, dtype=torch.int64), 4)
    assert torch.equal(segments.sum(torch.ones(shape[0], D)), torch.zeros(4, D))


@pytest.mark.parametrize("count", [12, 5000])
def test_no_thread_of_a_gpu_adds_many_terms(count: int) -> None:
    segments = Segments(skewed(20_000, count), count, piece := 64)
    popular = int((skewed(20_000, count) == 5).sum())
    assert popular > 15_000, "otherwise this would show nothing"
    assert longest(segments.first_N, 20_000 * T) <= piece
    assert longest(segments.first_M, len(segments.first_N)) <= popular / piece + 2 + piece


def longest(first_N: Tensor, entries: int) -> int:
    """Terms of the longest of `embedding_bag`'s sums. first_N: where each begins."""
    return int(torch.cat([first_N, torch.tensor([entries])]).diff().max())


def slow_autodis(x_BT: Tensor, valid_BT: Tensor, slope_2H: Tensor, meta_HA: Tensor) -> Tensor:
    """Position by position."""
    pooled = []
    for x_T, valid_T in zip(x_BT, valid_BT, strict=True):
        embedded = [
            torch.softmax(x * slope_2H[0] if x >= 0 else -x * slope_2H[1], dim=0) @ meta_HA
            for x, valid in zip(x_T, valid_T, strict=True)
            if valid
        ]
        if not embedded:
            pooled.append(x_BT.new_zeros(2 * A))
            continue
        embedded_TA = torch.stack(embedded)
        pooled.append(torch.cat([embedded_TA.amax(dim=0), embedded_TA.mean(dim=0)]))  # amax shares among equals
    return torch.stack(pooled)


@pytest.mark.parametrize("rows", [2, 3, 100])
def test_autodis_in_chunks_of_rows(rows: int) -> None:
    valid_BT = histories() > 0
    x_BT = (torch.rand(B, T, dtype=torch.double) * 2 - 1) * valid_BT
    x_BT[0, 1] = x_BT[0, 0]  # the same item twice: equal maxima
    x_BT[0, 2] = 0.0
    slope_2H = torch.randn(2, H, dtype=torch.double) * 5
    meta_HA = torch.randn(H, A, dtype=torch.double)
    x_grad_BT, _, _ = assert_same(
        lambda x_BT, slope_2H, meta_HA: autodis_max_and_mean(x_BT, valid_BT, slope_2H, meta_HA, Paths(rows)),
        lambda x_BT, slope_2H, meta_HA: slow_autodis(x_BT, valid_BT, slope_2H, meta_HA),
        [x_BT, slope_2H, meta_HA],
    )
    assert not x_grad_BT[~valid_BT].any()


def test_large_slopes_do_not_overflow() -> None:
    slope_2H = torch.tensor([[5e4, -5e4, 0.0], [0.0, 5e4, -5e4]])
    pooled = autodis_max_and_mean(
        torch.tensor([[1.0], [-1.0]]), torch.ones(2, 1, dtype=torch.bool), slope_2H, torch.tensor([[1.0], [2], [3]])
    )
    assert pooled.tolist() == [[1, 1], [2, 2]]


def test_autodis_equals_its_formula() -> None:
    module = AutoDis(buckets=7, width=3, skip=0.8, temperature=0.3)
    x_N = torch.tensor([-1.0, -0.3, 0.0, 0.2, 1.0])
    found = module(x_N.unsqueeze(1), torch.ones(5, 1, dtype=torch.bool))
    for x, pooled in zip(x_N, found, strict=True):
        h = functional.leaky_relu(module.weight_H * x)
        embedded = torch.softmax((module.mix.weight @ h + 0.8 * h) / 0.3, dim=0) @ module.meta_HA
        torch.testing.assert_close(pooled, torch.cat([embedded, embedded]))


# Fusion on a CPU.


@pytest.mark.parametrize("with_unit", [False, True])
def test_fusion_on_a_cpu_equals_its_formula(with_unit: bool) -> None:
    """Granules of items of ordinary length, of one too short to be scaled to unit length, and of an empty bag."""
    module = AdditiveAttention(3, D, H).double()
    granules_UGD = torch.randn(U, 3, D, dtype=torch.double, generator=torch.Generator().manual_seed(6))
    granules_UGD[0], granules_UGD[1] = 0, granules_UGD[1] * 1e-9
    names = [name for name, _ in module.named_parameters()]
    order = {"project.weight": 0, "bias_GH": 1, "score.weight": 2}
    inputs = [weight.detach() for weight in module.region_weights()]
    inputs[1] = torch.linspace(-1, 1, inputs[1].numel(), dtype=torch.double).view_as(inputs[1])

    def slow(granules_UGD: Tensor, *weights: Tensor) -> Tensor:
        sid_UD = functional_call(module, {name: weights[order[name]] for name in names}, granules_UGD)
        return torch.cat([sid_UD, functional.normalize(sid_UD, dim=1, eps=1e-6)] if with_unit else [sid_UD], dim=1)

    def fast(granules_UGD: Tensor, *weights: Tensor) -> Tensor:
        return torch.cat(fuse_on_cpu(granules_UGD, weights, with_unit), dim=1)

    assert_same(fast, slow, [granules_UGD, *inputs])


# The parts of a lookup's output.


@pytest.mark.parametrize(("regions", "sids", "joined"), [
    ("none", ("s1", "s2", "s3"), True),
    ("plain", ("s1", "s2", "s3"), True),
    ("plain", ("s2", "s3"), False),  # s1's gradient has a place of its own too, and is that of a slice
    ("plain", ("s1", "s2"), False),
])  # fmt: skip
def test_a_lookup_gets_the_gradients_of_its_parts(regions: str, sids: tuple[str, ...], joined: bool) -> None:
    """joined: in the tensor that the fusion's gradient lies in."""
    names = ["hid", "s1", "s2", "s3"]
    module = AdditiveAttention(len(sids), D, H).double()
    values_UF = torch.randn(U, 4 * D, dtype=torch.double, generator=torch.Generator().manual_seed(7))
    places: list[int] = []
    found = []
    for by_us in (False, True):
        leaf_UF = values_UF.clone().requires_grad_()
        keyed = KeyedTensor(names, [D] * 4, leaf_UF)
        parts = split_lookup(keyed) if by_us else keyed.to_dict()
        if by_us:
            parts["s3"].register_hook(lambda grad: places.append(grad.untyped_storage().data_ptr()))
        granules = [parts[name] for name in sids]
        before = ItemLookup(parts, torch.zeros(U, 0)).columns_before(sids)
        fused_UD = module(torch.stack(granules, dim=1))
        if by_us:
            (fused_UD,) = fused(module, granules, regions, False, on_cpu=True, before=before)
        rest = torch.stack([k * parts[name].sum() for k, name in enumerate(names) if name not in sids])
        (fused_UD.square().sum() + parts["hid"].square().sum() + rest.sum()).backward()
        assert leaf_UF.grad is not None
        found.append(leaf_UF.grad)
    torch.testing.assert_close(found[1], found[0])
    assert (found[1].untyped_storage().data_ptr() in places) == joined


# AutoDis between nodes.


def many_similarities(padding: float) -> tuple[Tensor, Tensor]:
    """x and valid, [600, T]: -1, 0, 1 and what rounding takes beyond, the same item twice, an empty history."""
    generator = torch.Generator().manual_seed(5)
    x_BT = torch.rand(600, T, generator=generator) * 2 - 1
    valid_BT = torch.rand(600, T, generator=generator) >= padding
    x_BT[0], x_BT[1] = torch.tensor([1.0, -1.0, 0.0, 1.0000001, -1.0000001]), x_BT[1, 0]
    valid_BT[2] &= padding == 0
    return x_BT * valid_BT, valid_BT


@pytest.mark.parametrize("padding", [0, 0.6])
@pytest.mark.parametrize("positions", [1 << 17, 1 << 10])  # in one chunk and in several
def test_autodis_between_nodes_is_as_exact_as_float32(
    padding: float, positions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sidrec.model.autodis.POSITIONS", positions)
    x_BT, valid_BT = many_similarities(padding)
    slope_2H, meta_HA = torch.linspace(-3, 3, 2 * H).view(2, H).cos() * 3, torch.linspace(0, 9, H * A).view(H, A).sin()
    assert intervals_between_nodes(x_BT, slope_2H)
    assert not intervals_between_nodes(x_BT[:60], slope_2H)
    assert not intervals_between_nodes(x_BT.double(), slope_2H)
    outcomes = []
    for dtype in (torch.float32, torch.double):
        leaves = [tensor.to(dtype, copy=True).requires_grad_() for tensor in (x_BT, slope_2H, meta_HA)]
        x, slope, meta = leaves
        pooled = autodis_max_and_mean(x, valid_BT, slope, meta)
        pooled.backward(torch.linspace(1, 500, pooled.numel()).cos().view_as(pooled).to(dtype))
        outcomes.append([pooled.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)])
    assert len(outcomes[0]) == 4
    for found, expected in zip(*outcomes, strict=True):
        difference = (found - expected).abs().max() / expected.abs().max()
        assert 0 < difference < 2e-6


def test_what_nodes_cannot_hold_is_computed_exactly() -> None:
    many_BT = many_similarities(0)[0].repeat(200, 1)
    most = MOST_INTERVALS / INTERVALS_PER_SLOPE
    assert intervals_between_nodes(many_BT, torch.tensor([[0.0, most * 0.99], [0.0, 1.0]])) == MOST_INTERVALS
    assert not intervals_between_nodes(many_BT, torch.tensor([[0.0, most * 1.01], [0.0, 1.0]]))
    assert not intervals_between_nodes(many_BT, torch.tensor([[0.0, torch.nan], [0.0, 1.0]]))


def test_a_similarity_that_is_not_a_number_spoils_its_row_alone() -> None:
    x_BT, valid_BT = many_similarities(0)
    x_BT[7, 3] = torch.nan
    pooled = autodis_max_and_mean(x_BT, valid_BT, torch.tensor([[0.0, 1.0], [2.0, 0.0]]), torch.eye(2))
    assert intervals_between_nodes(x_BT, torch.tensor([[0.0, 1.0], [2.0, 0.0]]))
    assert pooled[7].isnan().all()
    assert pooled.isnan().sum() == 4


# AutoDis by interpolation.


def slow_interpolation(x_BT: Tensor, valid_BT: Tensor, values_MA: Tensor) -> Tensor:
    """Weights max(0, 1 - distance to a point in steps) of all points: what linear interpolation is."""
    step = 2 / (len(values_MA) - 1)
    points_M = torch.linspace(-1, 1, len(values_MA), dtype=x_BT.dtype)
    weight_BTM = (1 - (x_BT.unsqueeze(2) - points_M).abs() / step).clamp_min(0)
    return masked_max_and_mean(weight_BTM @ values_MA, valid_BT)


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("rows", [1, 3, 100])
def test_interpolation_equals_weights_of_all_points(rows: int, balanced: bool) -> None:
    generator = torch.Generator().manual_seed(4)
    x_BT = 1.9 * torch.rand(B, T, dtype=torch.double, generator=generator) - 0.95
    x_BT[4, 0], x_BT[5, 1] = 0.999, -0.999  # in the last and the first interval
    values_MA = torch.randn(9, A, dtype=torch.double, generator=generator)
    valid_BT = histories() > 0
    assert_same(
        lambda x_BT, values_MA: interpolated_max_and_mean(x_BT, valid_BT, values_MA, Paths(rows, balanced)),
        lambda x_BT, values_MA: slow_interpolation(x_BT, valid_BT, values_MA),
        [x_BT, values_MA],
    )


def test_interpolated_autodis_is_near_the_exact_one() -> None:
    torch.manual_seed(0)
    exact, near = AutoDis(7, 3, 0.8, 0.1).double(), AutoDis(7, 3, 0.8, 0.1, grid=512).double()
    near.load_state_dict(exact.state_dict())
    valid_BT = histories() > 0
    x_BT = 2 * torch.rand(B, T, dtype=torch.double) - 1
    outcomes = []
    for module in (exact, near):
        leaf_BT = x_BT.clone().requires_grad_()
        pooled = module(leaf_BT, valid_BT)
        pooled.square().sum().backward()
        outcomes.append((pooled, leaf_BT.grad, *(parameter.grad for parameter in module.parameters())))
    torch.testing.assert_close(outcomes[0][0], outcomes[1][0], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(outcomes[0][1:], outcomes[1][1:], rtol=0.05, atol=2e-3)
    assert not torch.equal(outcomes[0][0], outcomes[1][0])


def test_cosines_that_rounding_takes_beyond_one_are_at_the_end() -> None:
    values_MA = torch.tensor([[1.0], [5.0], [2.0]])
    x_BT = torch.tensor([[1.0000001, 9.0], [-1.0000001, 9.0], [9.0, 9.0]])
    pooled = interpolated_max_and_mean(x_BT, torch.tensor([[True, False], [True, False], [False, False]]), values_MA)
    assert pooled.tolist() == [[2, 2], [1, 1], [0, 0]]


@pytest.mark.parametrize("grid", [None, 64])
@pytest.mark.parametrize("filled", [False, True])
@torch.no_grad()
def test_a_table_of_knots_gives_autodis_up_to_its_step(grid: int | None, filled: bool) -> None:
    """Padding at the beginning, in the middle and everywhere; -1 and 1; all rows of one history are filled."""
    torch.manual_seed(0)
    module = AutoDis(buckets=8, width=5, skip=0.5, temperature=0.2, grid=grid)
    x_BT = torch.rand(40, 7) * 2 - 1
    x_BT[0], x_BT[1] = -1, 1
    valid_BT = torch.rand(1 if filled else 40, 7) < 0.6
    if filled:
        first_BT = x_BT.gather(1, valid_BT.long().argmax(1, keepdim=True).expand(40, -1))
        x_BT = torch.where(valid_BT, x_BT, first_BT)
    else:
        valid_BT[2] = False
    valid_of_all_BT = valid_BT.expand(40, -1)
    wanted = module(x_BT, valid_of_all_BT, Paths(1 << 20, inline=True))
    for knots, tolerance in ((1 << 10, 2e-3), (1 << 16, 4e-5)):
        paths = Paths(1 << 20, inline=True, shared=filled, knots=knots)
        found = module(x_BT, valid_BT, paths)
        assert torch.allclose(found, wanted, atol=tolerance)
        assert not torch.allclose(found, wanted, atol=tolerance / 1000)  # it is a table
    if not filled:
        assert (found[2] == 0).all()


def test_knots_are_rounded_to_the_nearest() -> None:
    values_MA = torch.tensor([[0.0], [10.0], [20.0]])  # at -1, 0, 1
    x_BT = torch.tensor([[-0.51, 0.49], [0.51, -1.0], [5.0, -5.0]])
    found = nearest_max_and_mean(x_BT, torch.ones(3, 2, dtype=torch.bool), values_MA)
    assert found.tolist() == [[10.0, 5.0], [20.0, 10.0], [20.0, 10.0]]
