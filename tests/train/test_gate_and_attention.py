"""Reports of the gate by exposure decile, and of attention over all item bags of all ranks."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sidrec.io.files import read_json, write_json
from sidrec.metrics.predictions import Predictions
from sidrec.train.evaluation import AttentionMeter, attention_report
from sidrec.train.gate_report import gate_by_decile, gate_report, rank_correlation, rank_text
from sidrec.train.run_directory import RunDirectory
from tests.model.test_ranker import batch_for, ranker_for
from tests.ranks import joined, run_on_ranks


def measured(rank: int, world: int, bias: float) -> dict[str, Any] | None:
    """Attention of a ranker whose first granularity gets exp(bias) times the weight of each other."""
    ranker = ranker_for(item={"kind": "sid", "fusion": {"kind": "additive", "hidden": 1}})
    torch.nn.init.zeros_(ranker.item.semantic.fusion.project.weight)  # type: ignore[union-attr,arg-type]
    torch.nn.init.constant_(ranker.item.semantic.fusion.score.weight, bias / math.tanh(1))  # type: ignore[union-attr,arg-type]
    with torch.no_grad():
        ranker.item.semantic.fusion.bias_GH[0] = 1  # type: ignore[union-attr,operator]
    with AttentionMeter(ranker) as meter:
        ranker(batch_for(ranker))
    ranker(batch_for(ranker))  # after the meter has left: counts nowhere
    return meter.result(joined(rank, world))


def nothing_measured(rank: int, world: int) -> dict[str, Any] | None:
    with AttentionMeter(ranker_for(item={"kind": "hid"})) as meter:
        pass
    return meter.result(joined(rank, world))


def test_weights_and_entropy_are_means_over_bags() -> None:
    for found in run_on_ranks(2, measured, math.log(4)):
        # exp(ln 4) against four times exp(0): 1/2 and four times 1/8
        assert list(found["weights"].values()) == pytest.approx([1 / 2, 1 / 8, 1 / 8, 1 / 8, 1 / 8], abs=1e-6)
        assert found["entropy_nats"] == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(8), abs=1e-6)
        assert not found["collapsed"]


def test_a_collapse_is_named(tmp_path: Path) -> None:
    found = run_on_ranks(1, measured, 10.0)[0]
    run = RunDirectory(tmp_path)
    write_json(run.attention("test"), found)
    assert found["collapsed"]
    assert "COLLAPSED" in str(attention_report(run, "test"))


def test_hids_have_no_attention(tmp_path: Path) -> None:
    assert run_on_ranks(1, nothing_measured) == [None]
    assert attention_report(RunDirectory(tmp_path), "test") is None


def test_a_gate_that_rises_with_exposure() -> None:
    exposures = np.repeat(np.arange(20, dtype=np.float32), 5)
    deciles = gate_by_decile(exposures, exposures / np.float32(100))
    assert deciles["rows"] == [10.0] * 10
    assert deciles["exposures"] == pytest.approx([0.5 + 2 * decile for decile in range(10)])
    assert rank_correlation(deciles["gate"]) == pytest.approx(1)
    assert rank_correlation(deciles["gate"][::-1]) == pytest.approx(-1)


def test_the_report_leaves_out_items_without_a_sid(tmp_path: Path) -> None:
    """Their gate is NaN: nothing is mixed. Figures are those of the other rows."""
    exposures_N = np.repeat(np.arange(10, dtype=np.float32), 20)
    gate_N = (0.3 + exposures_N / 20).astype(np.float32)
    rows, label_N, score_N = np.arange(200), np.ones(200, np.float32), np.zeros(200, np.float32)
    found = []
    for without in (rows < 0, rows % 20 < 3, rows >= 0):
        gate_of_all_N = gate_N.copy()
        gate_of_all_N[without] = np.nan
        extra = {"stat_exposures": exposures_N, "gate": gate_of_all_N}
        lines = gate_report(tmp_path, "test", Predictions("test", rows, rows, rows, label_N, score_N, extra))
        found.append((lines, read_json(tmp_path / "gate_test.json", "a gate")))
    (_, whole), (lines, part), (none, _) = found
    assert "gate on test: 30 rows are left out, as their items have no SID to mix" in lines
    assert sum(part["rows"]) == sum(whole["rows"]) - 30 == 170
    assert part["gate"] == pytest.approx(whole["gate"])
    assert (part["mean"], part["saturated"]) == (pytest.approx(0.525, abs=1e-6), 0.0)
    assert none == ["gate on test: none of its rows' items has a SID"]


def test_the_report_counts_rows_whose_gate_is_at_an_end(tmp_path: Path) -> None:
    gate_N = np.array([0.0, 0.019, 0.021, 0.5, 0.979, 0.981, 1.0, np.nan], np.float32)
    rows, label_N, score_N = np.arange(8), np.ones(8, np.float32), np.zeros(8, np.float32)
    extra = {"stat_exposures": np.arange(8, dtype=np.float32), "gate": gate_N}
    gate_report(tmp_path, "test", Predictions("test", rows, rows, rows, label_N, score_N, extra))
    found = read_json(tmp_path / "gate_test.json", "a gate")
    assert found["saturated"] == pytest.approx(4 / 7)
    assert found["mean"] == pytest.approx(np.nanmean(gate_N))


@pytest.mark.parametrize("shape", ["rises", "falls", "constant", "all shown", "never shown"])
def test_the_report_has_the_gate_on_items_never_shown(shape: str, tmp_path: Path) -> None:
    exposures_N = np.repeat(np.arange(10, dtype=np.float32), 20) + (shape == "all shown")
    if shape == "never shown":
        exposures_N[:] = 0
    gate_N = {"falls": 0.9 - exposures_N / 20, "constant": np.full(200, 0.5)}.get(shape, 0.3 + exposures_N / 20)
    rows = np.arange(200)
    extra = {"stat_exposures": exposures_N, "gate": gate_N.astype(np.float32)}
    label_N, score_N = np.ones(200, np.float32), np.zeros(200, np.float32)
    lines = gate_report(tmp_path, "test", Predictions("test", rows, rows, rows, label_N, score_N, extra))
    found = read_json(tmp_path / "gate_test.json", "a gate")
    assert (tmp_path / "gate_test.png").stat().st_size > 0
    if shape == "all shown":
        assert found["never_shown"] is None
        assert not any("never shown" in line for line in lines)
    else:
        assert found["never_shown"]["rows"] == (200 if shape == "never shown" else 20)
        assert found["never_shown"]["gate"] == pytest.approx(gate_N[:20].mean())
        assert any(
            f"never shown before: {gate_N[0]:.3f}, {found['never_shown']['rows']} rows" in line for line in lines
        )
    warned = {"falls": "falls", "constant": "constant", "never shown": "constant"}.get(shape)
    warnings = [line for line in lines if "warning" in line]
    assert len(warnings) == (warned is not None)
    assert all(warned in line for line in warnings if warned)


def test_equal_exposures_stay_together() -> None:
    exposures = np.array([0.0] * 95 + [1.0, 2.0, 3.0, 4.0, 5.0], dtype=np.float32)
    deciles = gate_by_decile(exposures, np.ones(100, dtype=np.float32))
    assert deciles["rows"] == [100.0]


def test_a_constant_gate_has_no_order_and_no_nan() -> None:
    assert rank_correlation([0.5, 0.5, 0.5]) is None
    assert rank_text(None) == "undefined (constant gate)"
