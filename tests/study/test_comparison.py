"""A study's comparison against its parts: pairing, intervals, verdicts, counts, and what keeps a verdict back."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import yaml

from sidrec.metrics.exact import measure, measure_slices
from sidrec.metrics.predictions import Predictions
from sidrec.metrics.slices import ItemSlices, slice_items
from sidrec.study.comparison import Comparison, GateOfRun, PairedDifference, Spread, comparison, place
from sidrec.study.definition import Study
from sidrec.study.draws import draws_row, draws_table, measure_draws
from sidrec.study.intervals import hierarchical_interval, percentile_interval, t_interval
from sidrec.study.jobs import study_runs
from sidrec.study.results import GATES, RunResult, run_results

ROWS, USERS, ITEMS = 900, 90, 120
GATE_OF_RUN: dict[int, Any] = {
    0: None,
    1: {
        **{"spearman_of_deciles": 1.0, "gate": [0.2, 0.4, 0.6], "exposures": [0.0, 1.0, 9.0]},
        **{"never_shown": {"gate": 0.1, "rows": 3}, "mean": 0.4, "saturated": 0.25},
    },
    2: 0.5,  # as earlier versions recorded it
    3: {"spearman_of_deciles": None, "gate": [0.3], "exposures": [2.0], "never_shown": None},
}
COLUMNS = ("AUC", "GAUC", "NE", "tail AUC", "warm-tail AUC", "cold AUC", "cold GAUC")


def _slices(cold: int = 40) -> ItemSlices:
    """The last `cold` items are cold, the last half are tail."""
    impressions = np.full(ITEMS, 5)
    impressions[ITEMS - cold :] = 0
    return slice_items(np.arange(1, ITEMS + 1), impressions, 0.1, 0.5)


def _predictions(skill: float, run: int, users: int = USERS) -> Predictions:
    """The same rows for every skill and run; a run's own noise is drawn anew."""
    rows = np.random.default_rng(1)
    label = (rows.random(ROWS) < 0.4).astype(np.float32)
    user, item = rows.integers(1, users + 1, ROWS), rows.integers(1, ITEMS + 1, ROWS)
    score = skill * label + rows.normal(size=ROWS) + 0.3 * np.random.default_rng(run).normal(size=ROWS)
    return Predictions("test", np.arange(ROWS), user, item, label, score.astype(np.float32))


@pytest.fixture
def study(tmp_path: Path) -> Study:
    recipe = {"name": "world", "data": {"path": "data"}, "model": {"item": {"kind": "hid"}}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    variants: dict[str, Any] = {"weak": {}, "strong": {"model": {"dim": 8}}}
    return Study(
        name="small",
        datasets={"world": tmp_path / "recipe.yaml"},
        variants=variants,
        references=("weak",),
        runs=(0, 1, 2),
        runs_of={"strong": (1, 2, 3)},
        columns=cast(Any, COLUMNS),
    )


def _record(
    study: Study,
    results: Path,
    skills: Mapping[str, float],
    slices: ItemSlices | None = None,
    users: int = USERS,
    drawn: Sequence[str] = ("weak", "strong"),
) -> Comparison:
    """Records every run of the study, with draws for the variants `drawn`."""
    slices = slices or _slices()
    for run in study_runs(study):
        found = _predictions(skills[run.variant], run.number, users)
        if run.variant in drawn:
            row = draws_row((run.dataset, run.variant, run.number), run.recipe_hash, measure_draws(found, slices))
            draws_table(study, results).put(row)
        parameters = {"item_parameters": 100, "context_parameters": 20, "dense_parameters": 3}
        run_results(results, study).put(
            RunResult(
                study=study.name,
                dataset=run.dataset,
                variant=run.variant,
                run=run.number,
                fit=None,
                recipe_hash=run.recipe_hash,
                finished="2026-01-01T00:00:00",
                recipe=run.recipe,
                conditions={"commit": "abc", "cpu": "fast", "cores": 2, "ranks": 1, "python": "3"},
                facts={
                    "catalog": f"fit{run.number % 2}",
                    "parameters": parameters,
                    GATES: {"test": GATE_OF_RUN[run.number]},
                },
                wall_seconds=9.0,
                cpu_seconds=float(run.number),
                step_seconds=0.25,
                table_parameters=120,
                dense_parameters=3,
                metrics={"test": measure_slices(found, slices)},
            )
        )
    return comparison(study, results)


def _against(found: Comparison, column: str) -> PairedDifference:
    difference = found.datasets["world"].variants["strong"].against["weak"][column]
    assert difference is not None
    return difference


def test_a_difference_is_over_the_runs_that_both_have(study: Study, tmp_path: Path) -> None:
    found = _against(_record(study, tmp_path, {"weak": 0.2, "strong": 1.5}), "GAUC")
    metrics = {
        (name, run): measure_slices(_predictions(skill, run), _slices())["all"]["gauc"]
        for name, skill in (("weak", 0.2), ("strong", 1.5))
        for run in (1, 2)
    }
    by_run = [cast(float, metrics[("strong", run)]) - cast(float, metrics[("weak", run)]) for run in (1, 2)]
    assert found.runs == (1, 2)
    assert list(found.by_run) == pytest.approx(by_run)
    assert found.difference == pytest.approx(np.mean(by_run))
    weak = np.mean([cast(float, metrics[("weak", run)]) for run in (1, 2)])
    assert found.relative == pytest.approx(np.mean(by_run) / weak)
    assert found.over_runs == t_interval(np.array(found.by_run))
    assert found.positive == 2


def test_intervals_are_those_of_the_recorded_draws(study: Study, tmp_path: Path) -> None:
    found = _record(study, tmp_path, {"weak": 0.2, "strong": 1.5})
    strong, weak = (
        [measure_draws(_predictions(skill, run), _slices()).offset_R for run in (1, 2)] for skill in (1.5, 0.2)
    )
    for column in COLUMNS:
        of, scored = _against(found, column), place(column)
        offsets = [a[scored].astype(np.float64) - b[scored] for a, b in zip(strong, weak, strict=True)]
        drawn_nR = np.array(of.by_run)[:, None] + np.stack(offsets)
        drawn_nR = drawn_nR[:, ~np.isnan(drawn_nR).any(axis=0)]
        assert of.hierarchical == hierarchical_interval(np.array(of.by_run), drawn_nR), column
        assert of.over_users == percentile_interval(drawn_nR.mean(axis=0)), column
        assert of.over_runs is not None
        assert of.interval == max(of.hierarchical, of.over_runs, key=lambda ends: ends.half_width)


def test_a_clear_lead_is_won_by_one_and_lost_by_the_other(study: Study, tmp_path: Path) -> None:
    study = replace(study, runs=tuple(range(4)), runs_of={}, references=("weak", "strong"))
    found = _record(study, tmp_path, {"weak": 0.2, "strong": 3.0}).datasets["world"].variants
    for column in ("AUC", "GAUC", "NE"):  # NE is lower for the better one
        won, lost = found["strong"].against["weak"][column], found["weak"].against["strong"][column]
        assert won is not None
        assert lost is not None
        assert (won.verdict, won.why, lost.verdict) == ("won", "", "lost")
        assert (won.difference > 0) == (column != "NE")
    assert list(found["weak"].against) == ["strong"]


def test_a_variant_is_summed_up_over_its_own_runs(study: Study, tmp_path: Path) -> None:
    found = _record(study, tmp_path, {"weak": 0.2, "strong": 1.5})
    strong = found.datasets["world"].variants["strong"]
    assert (strong.runs, strong.catalogs) == ((1, 2, 3), 2)
    assert strong.gates == (GateOfRun(1.0, 0.2, 0.6, 0.1, 0.25), GateOfRun(0.5), GateOfRun(None, 0.3, 0.3, None, None))
    assert strong.cost.cpu_seconds == Spread(2.0, 1.0, (1.0, 2.0, 3.0))
    assert strong.cost.step_seconds == Spread(0.25, 0.0, (0.25, 0.25, 0.25))
    assert (strong.cost.item_parameters, strong.cost.context_parameters, strong.cost.dense_parameters) == (100, 20, 3)
    rows = _predictions(1.5, 1)
    warm_N = (rows.item_N > 60) & (rows.item_N <= 80)
    warm_tail = strong.metrics["warm-tail AUC"]
    assert warm_tail is not None  # from the draws: metrics.json has no such slice
    expected = measure(rows.label_N[warm_N], rows.score_N[warm_N], rows.user_N[warm_N])["auc"]
    assert warm_tail.values[0] == pytest.approx(expected)
    assert found.datasets["world"].counts["warm_tail"].rows == warm_N.sum()
    assert found.datasets["world"].conditions["commit"] == ("abc",)


def test_without_draws_of_a_variant_there_is_no_verdict(study: Study, tmp_path: Path) -> None:
    found = _record(study, tmp_path, {"weak": 0.2, "strong": 3.0}, drawn=["weak"])
    of = _against(found, "GAUC")
    assert (of.hierarchical, of.over_users, of.verdict) == (None, None, "cannot tell")
    assert of.interval == of.over_runs
    assert of.why == "no draws of users are recorded for all of these runs"
    assert found.datasets["world"].variants["strong"].metrics["warm-tail AUC"] is None


def test_one_run_has_an_interval_over_users_and_no_verdict(study: Study, tmp_path: Path) -> None:
    study = replace(study, runs=(0,), runs_of={})
    of = _against(_record(study, tmp_path, {"weak": 0.2, "strong": 3.0}), "AUC")
    assert (of.over_runs, of.p, of.power, of.verdict) == (None, None, None, "cannot tell")
    assert of.interval == of.hierarchical
    assert of.interval is not None
    assert of.interval.low > 0
    assert of.why == "one run: the noise of training is unknown"


@pytest.mark.parametrize(
    ("users", "cold", "column", "why"),
    [
        (29, 40, "AUC", "29 users are too few"),
        (USERS, 29, "cold AUC", "29 cold items are too few"),
        (USERS, 29, "tail AUC", ""),
        (USERS, 40, "cold AUC", ""),
    ],
)
def test_few_users_and_few_cold_items_support_no_verdict(
    study: Study, tmp_path: Path, users: int, cold: int, column: str, why: str
) -> None:
    of = _against(_record(study, tmp_path, {"weak": 0.2, "strong": 5.0}, _slices(cold), users), column)
    assert of.why == why
    assert of.verdict == "cannot tell" if why else of.verdict == "won"


def test_a_slice_without_rows_has_no_difference(study: Study, tmp_path: Path) -> None:
    found = _record(study, tmp_path, {"weak": 0.2, "strong": 1.5}, _slices(cold=0)).datasets["world"]
    assert found.variants["strong"].against["weak"]["cold AUC"] is None
    assert found.variants["strong"].metrics["cold AUC"] is None
    assert found.counts["cold"].rows == 0


def test_columns_name_a_slice_and_a_metric() -> None:
    assert [place(column) for column in ("AUC", "NE", "warm-tail GAUC", "cold NE")] == [
        ("all", "auc"),
        ("all", "ne"),
        ("warm_tail", "gauc"),
        ("cold", "ne"),
    ]
