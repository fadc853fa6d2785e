"""metrics.json and the tables printed from it."""

from pathlib import Path

import numpy as np
import pytest

from sidrec.metrics.exact import (
    Metrics,
    SplitMetrics,
    comparison_table,
    coverage_table,
    few_users,
    load_metrics,
    measure_slices,
    metrics_table,
    save_metrics,
    undefined,
)
from sidrec.metrics.predictions import Predictions
from sidrec.metrics.slices import slice_items
from sidrec.schema import ContractError


def _metrics() -> SplitMetrics:
    """Items 1 to 4 with 9, 5, 1 and 0 impressions: head 1, torso 2, tail 3 and 4, cold 4; nobody saw the cold item."""
    slices = slice_items(np.array([1, 2, 3, 4]), np.array([9, 5, 1, 0]), 0.25, 0.5)
    predictions = Predictions(
        "test",
        row_N=np.arange(6),
        user_N=np.array([1, 1, 1, 2, 2, 2]),
        item_N=np.array([1, 1, 2, 3, 3, 2]),
        label_N=np.array([1, 0, 1, 1, 0, 1], dtype=np.float32),
        score_N=np.array([2, 1, 0, 1, 1, 0], dtype=np.float32),
    )
    return {"test": measure_slices(predictions, slices)}


def test_each_slice_is_measured_on_its_own_rows() -> None:
    metrics = _metrics()["test"]
    assert [metrics[name]["rows"] for name in ("all", "head", "torso", "tail", "cold")] == [6, 2, 2, 2, 0]
    # user 1: (2, 1) won, (0, 1) lost; user 2: (1, 1) tied, (0, 1) lost
    assert metrics["all"]["gauc"] == (3 * 1 / 2 + 3 * (1 / 2) / 2) / 6
    assert metrics["head"]["auc"] == 1.0
    assert metrics["tail"]["auc"] == 1 / 2
    assert metrics["torso"]["auc"] is None


def test_reasons_are_given_once_per_split_and_reason() -> None:
    assert undefined(_metrics()) == [
        "split test, torso items: auc, gauc, uauc, ne undefined, no negative row",
        "split test, cold items: auc, gauc, uauc, ne, log_loss, calibration undefined, no rows",
    ]


def test_metrics_survive_the_file_with_null_for_undefined(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    save_metrics(_metrics(), path)
    assert load_metrics(path) == _metrics()
    assert '"auc": null' in path.read_text()
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.json"]


def test_nan_never_reaches_the_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        save_metrics({"test": {"all": {"auc": float("nan")}}}, tmp_path / "metrics.json")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [("[1]", "split -> slice -> metric"), ('{"test": {"all": 1}}', "split -> slice -> metric"), ("{", "valid JSON")],
)
def test_another_file_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "metrics.json").write_text(content)
    with pytest.raises(ContractError, match=message):
        load_metrics(tmp_path / "metrics.json")
    with pytest.raises(ContractError, match="a readable metrics file"):
        load_metrics(tmp_path / "none.json")


def test_one_run_is_printed_slice_by_slice() -> None:
    lines = metrics_table(_metrics()).splitlines()
    assert lines[0].split() == ["split", "items", "rows", "auc", "gauc", "uauc", "ne", "log_loss", "calibration"]
    assert lines[2].split()[:6] == ["test", "head", "2", "1.0000", "1.0000", "1.0000"]
    assert lines[5].split() == ["test", "cold", "0", "-", "-", "-", "-", "-", "-"]
    assert len({len(line) for line in lines}) == 1


def test_what_the_metrics_rest_on_is_printed() -> None:
    lines = [line.split() for line in coverage_table(_metrics()).splitlines()]
    assert lines[0][:6] == ["split", "items", "rows", "positives", "users", "items"]
    # user 1 has rows on items 1, 1, 2 and user 2 on 3, 3, 2; both have both classes
    assert lines[1] == ["test", "all", "6", "4", "2", "3", "2", "6"]
    assert lines[3] == ["test", "torso", "2", "2", "2", "1", "0", "0"]
    assert lines[5] == ["test", "cold", "0", "0", "0", "0", "0", "0"]
    old: SplitMetrics = {"test": {"all": {"rows": 6, "auc": 0.5}}}
    assert coverage_table(old).splitlines()[1].split() == ["test", "all", "6", *["-"] * 5]


@pytest.mark.parametrize(("users", "covered", "warned"), [(40, 30, 0), (40, 29, 1), (40, 1, 1), (9, 0, 0)])
def test_a_gauc_of_few_users_is_said(users: int, covered: int, warned: int) -> None:
    found: Metrics = {"users": users, "covered_users": covered}
    rest = "gauc and uauc rest on few users with both classes"
    lines = few_users({"test": {"all": {"users": 99, "covered_users": 99}, "cold": found}})
    assert lines == [f"warning: split test: {rest}: cold {covered}"] * warned


def test_runs_are_compared_side_by_side() -> None:
    runs = {"hid": _metrics(), "sid_coord": _metrics()}
    lines = comparison_table(runs, "test", slices=("all", "tail"), metrics=("auc", "gauc")).splitlines()
    assert [line.split()[:3] for line in lines] == [
        ["items", "run", "rows"],
        ["all", "hid", "6"],
        ["all", "sid_coord", "6"],
        ["tail", "hid", "2"],
        ["tail", "sid_coord", "2"],
    ]


def test_a_run_without_the_split_is_named() -> None:
    with pytest.raises(ContractError, match="metrics of hid, split validation, slice all"):
        comparison_table({"hid": _metrics()}, "validation")
