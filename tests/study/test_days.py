"""Days of a log, ages of items, and intervals over runs, days and users: by hand, and against slow references."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sidrec.errors import ContractError
from sidrec.metrics.exact import measure
from sidrec.metrics.predictions import Predictions
from sidrec.metrics.resampling import SEED, multiplicities
from sidrec.schema import ITEM_ID, ITEMS, LOG, TIMESTAMP, LogFile, load_manifest, save_manifest
from sidrec.study.day_comparison import (
    RESAMPLES,
    SIDS,
    TWIN,
    UPDATES,
    Cell,
    blocked_interval,
    compare_sizes,
    drawn_metrics,
    measure_cell,
    slice_difference,
    slice_masks,
)
from sidrec.study.day_log import AGES, ALWAYS, NEVER, Day, FirstSeen, find_days, item_ages, write_day
from tests.small_log import write_small_log

# Rows of the small log: one a second, train 0 to 119, test 120 to 159.


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_small_log(tmp_path, rows=120) / "data"


def test_a_folder_is_cut_into_days_of_equal_length(data: Path) -> None:
    days = find_days([data], 119, 4)
    assert [(day.first, day.last) for day in days] == [(120, 129), (130, 139), (140, 149), (150, 159)]
    assert [day.name for day in days] == ["day01", "day02", "day03", "day04"]


def test_each_folder_is_a_day_of_its_later_rows(data: Path, tmp_path: Path) -> None:
    manifest = load_manifest(data / LOG)
    (train,) = manifest.files("train")
    first = tmp_path / "first"
    (first / LOG / "train").mkdir(parents=True)
    rows = pq.read_table(data / LOG / train.path).slice(0, 100)
    pq.write_table(rows, first / LOG / train.path)
    save_manifest(replace(manifest, splits={"train": (LogFile(train.path, 100, 0, 99),)}), first / LOG)
    days = find_days([first, data], 59, None)
    assert [(day.first, day.last) for day in days] == [(60, 99), (100, 159)]
    with pytest.raises(ContractError, match="rows later than those before"):
        find_days([data, first], 59, None)


def test_a_day_holds_its_rows_and_the_items_seen_by_its_end(data: Path, tmp_path: Path) -> None:
    """Rows of 110 to 129 are the end of train and the begin of test."""
    seen, folder = FirstSeen(61), tmp_path / "day"
    seen.add(data, 110)
    facts = write_day(Day(1, data, 110, 129), folder, seen)
    rows = pq.read_table(folder / LOG / "train")
    assert rows[TIMESTAMP].to_pylist() == list(range(110, 130))
    assert (facts.rows, facts.shown, facts.users) == (20, True, len(set(rows["user_id"].to_pylist())))
    everything = pa.concat_tables([pq.read_table(data / LOG / "train"), pq.read_table(data / LOG / "test")])
    earlier = everything.filter(pa.compute.less(everything[TIMESTAMP], 130))
    expected = set(earlier[ITEM_ID].to_pylist()) | {item for items in earlier["history"].to_pylist() for item in items}
    assert set(pq.read_table(folder / ITEMS)[ITEM_ID].to_pylist()) == expected
    again = FirstSeen(61)
    again.add(data, 110)
    assert write_day(Day(1, data, 110, 129), folder, again) == facts
    assert np.array_equal(again.times_I, seen.times_I), "a day that is there counts as much"


def test_items_are_seen_as_targets_and_before_in_histories(data: Path) -> None:
    seen = FirstSeen(61)
    seen.add(data, 50)
    rows = pq.read_table(data / LOG / "train").slice(0, 50).to_pylist()
    for item in range(61):
        times = [row["timestamp"] for row in rows if row["item_id"] == item]
        times += [row["timestamp"] - 1 for row in rows if item in row["history"]]
        assert seen.times_I[item] == min(times, default=NEVER)
    unseen = seen.times_I == NEVER
    seen.know(np.ones(61, dtype=bool))
    assert (seen.times_I[unseen] == ALWAYS).all()


def test_ages_by_hand() -> None:
    """Days of 10 seconds, of which one begins at 100."""
    times = {NEVER: 0, 150: 0, 100: 0, 99: 1, 90: 1, 89: 2, 30: 2, 29: 3, ALWAYS: 3}
    ages = item_ages(np.array(list(times)), 100, 10.0)
    assert ages.tolist() == list(times.values())
    assert AGES == ("new today", "1 day", "2-7 days", "older")


def test_slices_by_hand() -> None:
    updates_I = np.array([0, 0, 1, 10, 11, 100, 101])
    masks = dict(slice_masks(np.array([1, 2, 3, 4, 5, 6, 9]), np.arange(10, dtype=np.int8) % 4, updates_I))
    assert [int(np.flatnonzero([masks[name][place] for name in UPDATES])[0]) for place in range(7)] == [
        *(0, 1, 1, 2, 2, 3),
        0,  # beyond the table: a row that nothing has updated
    ]
    assert [masks[name].tolist().count(True) for name in AGES] == [1, 3, 2, 1]
    assert list(dict(slice_masks(np.array([1]), np.zeros(2, np.int8), None))) == ["all", *AGES]


def predictions(seed: int, shift: float = 0.0, rows: int = 400) -> Predictions:
    random = np.random.default_rng(seed)
    label_N = (random.random(rows) < 0.4).astype(np.float32)
    score_N = (random.normal(size=rows) + (1 + shift) * label_N).astype(np.float32)
    user_N, item_N = np.random.default_rng(0).integers(50, size=(2, rows))
    return Predictions("train", np.arange(rows), user_N, item_N, label_N, score_N)


def test_draws_are_metrics_of_drawn_users() -> None:
    """Reference: the rows of each drawn user, as often as drawn, as rows of new users."""
    scored = predictions(1)
    masks = {"all": np.ones(400, dtype=bool), "older": scored.item_N < 20}
    metrics, draws = measure_cell(scored, masks, users=50, resamples=3)
    drawn = drawn_metrics(cell(metrics, draws))
    (multiplicity_RV,) = multiplicities(50, 3, SEED)
    for name, mask_N in masks.items():
        assert metrics[name]["items"] == len(set(scored.item_N[mask_N]))
        for place, times_V in enumerate(multiplicity_RV):
            parts = [
                (np.flatnonzero(mask_N & (scored.user_N == user)), user + 1000 * copy)
                for user, times in enumerate(times_V)
                for copy in range(times)
            ]
            row_N = np.concatenate([rows for rows, _ in parts])
            user_N = np.concatenate([np.full(len(rows), user) for rows, user in parts])
            expected = measure(scored.label_N[row_N], scored.score_N[row_N], user_N)
            for metric in ("gauc", "ne"):
                assert drawn[name, metric][place] == pytest.approx(expected[metric], abs=1e-4)


def cell(metrics: object, draws: str, day: str = "day02") -> Cell:
    kept: dict[str, object] = {"run": 0, "size": 1, "arm": TWIN, "day": day, "metrics": metrics, "draws": draws}
    return Cell(**kept, step_seconds=0.5, parameters={"item_parameters": 7}, catalog=None)  # type: ignore[typeddict-item]


def measured(seed: int, shift: float = 0.0) -> Cell:
    scored = predictions(seed, shift)
    return cell(*measure_cell(scored, {"all": np.ones(len(scored), dtype=bool)}, 50, 64))


def test_intervals_hold_a_single_run_and_day_fixed() -> None:
    drawn_R = np.random.default_rng(0).normal(size=RESAMPLES)
    found = blocked_interval(drawn_R[None, None], np.ones(1), np.zeros(1))
    assert (found.low, found.high) == tuple(np.quantile(np.tile(drawn_R, 16), [0.025, 0.975]))


def test_days_are_blocks_and_weigh_as_their_rows() -> None:
    """One run, no noise over users: a resample of two days has both, or one of them twice, one time in four each."""
    drawn_nDR = np.array([[[1.0] * RESAMPLES, [-1.0] * RESAMPLES]])
    found = blocked_interval(drawn_nDR, np.ones(2), np.zeros(1))
    assert (found.low, found.high) == (-1.0, 1.0)
    middle = blocked_interval(drawn_nDR, np.array([1.0, 0.0]), np.zeros(1))
    assert (middle.low, middle.high) == (1.0, 1.0), "a day without rows that count does not weigh"


def test_undefined_draws_count_in_no_mean() -> None:
    drawn_nDR = np.array([[[2.0, np.nan] * 128, [np.nan, 2.0] * 128]])
    assert blocked_interval(drawn_nDR, np.ones(2), np.zeros(1)).low == 2.0


def test_a_better_model_wins_and_an_equal_one_is_no_verdict() -> None:
    twin = [[measured(10 * run + day) for day in range(2)] for run in range(4)]
    better = [[measured(10 * run + day, shift=2.0) for day in range(2)] for run in range(4)]
    found = slice_difference(better, twin, "all", "gauc")
    assert found is not None
    assert found.verdict == "won"
    assert found.difference == pytest.approx(np.mean(found.by_run))
    assert found.rows == sum(int(cells["metrics"]["all"]["covered_rows"] or 0) for cells in twin[0])
    by_day = [
        np.mean([float(ours[day]["metrics"]["all"]["gauc"] or 0) for ours in better])
        - np.mean([float(theirs[day]["metrics"]["all"]["gauc"] or 0) for theirs in twin])
        for day in range(2)
    ]
    assert found.by_day == pytest.approx(tuple(by_day))
    lost = slice_difference(twin, better, "all", "ne")
    assert lost is not None
    assert (lost.verdict, lost.why) == ("lost", "")
    alone = slice_difference(better[:1], twin[:1], "all", "gauc")
    assert alone is not None
    assert (alone.verdict, alone.why) == ("cannot tell", "one run: the noise of training is unknown")


def test_sizes_count_runs_that_both_models_completed() -> None:
    twin = {run: [measured(run)] for run in range(3)}
    chains = {
        (1, TWIN): twin,
        (1, SIDS): twin,
        (4, TWIN): {0: twin[0], 1: twin[1]},
        (4, SIDS): {1: twin[1], 2: twin[2]},
    }
    whole, quarter = compare_sizes(chains, {1: 400, 4: 100})
    assert (whole.runs, quarter.runs) == ((0, 1, 2), (1,))
    assert quarter.against_whole["all"]["ne"] is not None
    assert quarter.costs[SIDS].hid_bytes == 100
    assert compare_sizes({(1, TWIN): twin, (1, SIDS): {}}, {1: 400}) == ()
