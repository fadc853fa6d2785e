"""Fusion, gate, statistics and alignment, each against values one can work out by hand or a slow reference."""

import math

import pytest
import torch

from sidrec.config.item_parts import (
    AdditiveFusion,
    AutoDisAlignment,
    BucketizedStats,
    ConcatMlpFusion,
    Fusion,
    HistogramAlignment,
    MeanFusion,
    QueryFusion,
    RawStatsAlignment,
    StandardizedStats,
    StatsGate,
    SumGate,
)
from sidrec.model.alignment import InterestAlignment, build_alignment, similarities
from sidrec.model.autodis import masked_max_and_mean
from sidrec.model.fusion_and_gate import (
    AdditiveAttention,
    BucketizeStats,
    GranularityFusion,
    TargetAwareGate,
    build_fusion,
    build_gate,
    build_statistics,
)
from sidrec.model.history import index_history

U, G, D = 6, 5, 8


@pytest.mark.parametrize("config", [AdditiveFusion(), QueryFusion(), ConcatMlpFusion(), MeanFusion()])
def test_fusion_is_a_weighted_mean_and_keeps_padding_at_zero(config: Fusion) -> None:
    granules_UGD = torch.randn(U, G, D)
    granules_UGD[0] = 0
    fusion = build_fusion(config, G, D)
    assert isinstance(fusion, GranularityFusion)
    weights_UG = fusion.weights(granules_UGD)
    torch.testing.assert_close(weights_UG.sum(dim=1), torch.ones(U))
    slow_UD = torch.stack(
        [sum((weights_UG[u, k] * granules_UGD[u, k] for k in range(G)), torch.zeros(D)) for u in range(U)]
    )
    torch.testing.assert_close(fusion(granules_UGD), slow_UD)
    assert (fusion(granules_UGD)[0] == 0).all()


def test_additive_attention_is_the_formula() -> None:
    granules_UGD = torch.randn(U, G, D)
    fusion = build_fusion(AdditiveFusion(hidden=3), G, D)
    assert isinstance(fusion, AdditiveAttention)
    torch.nn.init.normal_(fusion.bias_GH)
    project, score = fusion.project.weight, fusion.score.weight[0]
    slow = [
        [float(score @ torch.tanh(project @ granules_UGD[u, k] + fusion.bias_GH[k])) for k in range(G)]
        for u in range(U)
    ]
    torch.testing.assert_close(fusion.scores(granules_UGD), torch.tensor(slow))


def test_a_dominant_score_picks_its_granularity() -> None:
    granules_UGD = torch.randn(U, G, D)
    fusion = build_fusion(AdditiveFusion(hidden=1), G, D)
    assert isinstance(fusion, AdditiveAttention)
    torch.nn.init.zeros_(fusion.project.weight)
    torch.nn.init.constant_(fusion.score.weight, 100.0)
    with torch.no_grad():
        fusion.bias_GH[3] = 5.0
    torch.testing.assert_close(fusion(granules_UGD), granules_UGD[:, 3])


def gate_with(bias: float, **options: object) -> TargetAwareGate:
    gate = build_gate(StatsGate(output_bias=bias, **options), D, torch.zeros(2), torch.ones(2))  # type: ignore[arg-type]
    assert isinstance(gate, TargetAwareGate)
    torch.nn.init.zeros_(gate.mlp.get_parameter("2.weight"))
    return gate


def test_gate_multiplies_the_hid() -> None:
    hid_BD, sid_BD = torch.full((3, D), 10.0), torch.full((3, D), 2.0)
    # g = sigmoid(ln 3) = 3/4, so e = 3/4 * 10 + 1/4 * 2 = 8
    torch.testing.assert_close(gate_with(math.log(3))(hid_BD, sid_BD, torch.rand(3, 2)), torch.full((3, D), 8.0))


def test_residual_gate_corrects_the_sid() -> None:
    hid_BD, sid_BD = torch.full((3, D), 10.0), torch.full((3, D), 2.0)
    # g = 3/4, so e = 2 + 3/4 * 10 = 9.5
    gate = gate_with(math.log(3), form="residual")
    torch.testing.assert_close(gate(hid_BD, sid_BD, torch.rand(3, 2)), torch.full((3, D), 9.5))


def test_equal_lengths_leave_the_gate_trust_alone() -> None:
    gate = gate_with(math.log(3), lengths="equal")
    hid_BD, sid_BD = torch.full((1, D), 1000.0), torch.full((1, D), -2.0)
    # both have root mean square 0.3, so e = 0.3 * (3/4 - 1/4) however long the HID is
    torch.testing.assert_close(gate(hid_BD, sid_BD, torch.rand(1, 2)), torch.full((1, D), 0.15))
    zeros = torch.zeros(1, D, requires_grad=True)
    found = gate(zeros, sid_BD, torch.rand(1, 2))
    torch.testing.assert_close(found, torch.full((1, D), -0.3 / 4))
    found.sum().backward()
    assert zeros.grad is not None
    assert torch.isfinite(zeros.grad).all()


def test_gate_starts_in_the_middle_and_can_be_a_vector() -> None:
    assert gate_with(0.0).value(torch.rand(4, 2)).tolist() == [[0.5]] * 4
    assert gate_with(0.0, per_dimension=True).value(torch.rand(4, 2)).shape == (4, D)


def test_without_a_gate_hid_and_sid_are_added() -> None:
    gate = build_gate(SumGate(), D, torch.zeros(2), torch.ones(2))
    torch.testing.assert_close(
        gate(torch.full((1, D), 10.0), torch.full((1, D), 2.0), torch.rand(1, 2)).unique().item(), 12.0
    )


def test_bucketized_counts_double_from_bucket_to_bucket() -> None:
    statistics = build_statistics(BucketizedStats(buckets=5, width=1), torch.zeros(2), torch.ones(2))
    assert isinstance(statistics, BucketizeStats)
    with torch.no_grad():
        statistics.embeddings.weight[:, 0] = torch.arange(10.0)
    counts = torch.tensor([[0.0, 0], [1, 1], [2, 3], [4, 7], [8, 1e9]])
    # first statistic: buckets 0..4; the second has embeddings of its own, and its last bucket is open
    assert statistics(counts).tolist() == [[0, 5], [1, 6], [2, 7], [3, 8], [4, 9]]


def test_counts_that_are_constant_in_training_are_not_scaled() -> None:
    """The *_recent counts of a log of one day are 0 in all rows; those of the next day are not."""
    statistics = build_statistics(StandardizedStats(), torch.tensor([0.0, 2.0, 1.0]), torch.tensor([0.0, 1e-4, 0.5]))
    found = statistics(torch.expm1(torch.tensor([[0.0, 2.0, 1.0], [3.0, 2.1, 2.0]])))
    torch.testing.assert_close(found, torch.tensor([[0.0, 0.0, 0.0], [3.0, 100.0, 2.0]]), rtol=1e-3, atol=1e-3)


def test_similarities_are_cosines_and_zero_at_padding() -> None:
    sid_UD = torch.tensor([[0.0, 0], [3, 4], [6, 8], [-4, 3], [-3, -4]])
    found = similarities(sid_UD, torch.tensor([1, 1]), index_history(torch.tensor([[2, 3, 4], [1, 0, 0]])))
    torch.testing.assert_close(found, torch.tensor([[1.0, 0, -1], [1, 0, 0]]))


def test_max_and_mean_see_valid_positions_only() -> None:
    values = torch.tensor([[[-5.0], [-1], [9]], [[4], [7], [7]]])
    valid = torch.tensor([[True, True, False], [False, False, False]])
    assert masked_max_and_mean(values, valid).tolist() == [[-1, -3], [0, 0]]


@pytest.mark.parametrize("config", [AutoDisAlignment(), HistogramAlignment(), RawStatsAlignment()])
def test_empty_history_gives_zeros_and_its_bit(
    config: AutoDisAlignment | HistogramAlignment | RawStatsAlignment,
) -> None:
    alignment = build_alignment(config, G)
    assert alignment is not None
    sid_UD = torch.randn(4, D)
    sid_UD[0] = 0
    features = alignment(sid_UD, torch.tensor([1, 2]), index_history(torch.tensor([[3, 1], [0, 0]])))
    assert features.shape == (2, alignment.width)
    assert features[:, -1].tolist() == [0, 1]
    assert features[1, :-1].abs().max() < 1e-3
    assert features[0, :-1].abs().max() > 1e-3


def test_gradient_reaches_target_and_history_unless_stopped() -> None:
    for stopped in (False, True):
        sid_UD = torch.randn(4, D, requires_grad=True)
        alignment = build_alignment(AutoDisAlignment(stop_gradient=stopped), G)
        assert alignment is not None
        alignment(sid_UD, torch.tensor([1]), index_history(torch.tensor([[2, 0]]))).sum().backward()
        moved = [False] * 4 if sid_UD.grad is None else (sid_UD.grad.abs().sum(dim=1) > 0).tolist()
        assert moved == ([False] * 4 if stopped else [False, True, True, False])


def test_raw_statistics_by_hand() -> None:
    alignment = build_alignment(RawStatsAlignment(), G)
    assert isinstance(alignment, InterestAlignment)
    pooled = alignment.features(torch.tensor([[1.0, 0.0, 7.0]]), torch.tensor([[True, True, False]]))
    torch.testing.assert_close(pooled, torch.tensor([[1.0, 0.5, 0.5]]), atol=1e-6, rtol=0)
