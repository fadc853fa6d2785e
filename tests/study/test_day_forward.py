"""Day forward, end to end on a synthetic world: three days after the train split, in which items' clusters matter."""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml

from sidrec import cli
from sidrec.cli.day_forward import day_forward
from sidrec.errors import SidrecError
from sidrec.io.files import read_json
from sidrec.schema import ITEM_ID, ITEMS, LOG, TIMESTAMP, load_manifest
from sidrec.sid.catalog import load_catalog
from sidrec.study.day_comparison import Cell
from sidrec.study.results import ResultTable

ITEM = "{kind: sid_coord, views: [mixed, hid, sid], hid_dropout: 0.3, gate: {kind: mean}, granularities: [s1, s12]}"
RECIPE: Mapping[str, Any] = {
    "name": "hid",
    "data": {"path": "world", "catalog": "none", "batch_size": 256, "history_length": 5, "workers": 0, "lanes": 2},
    "tokenizer": {"vectors": ["text"], "learner": {"kind": "residual_kmeans", "levels": 2, "codebook_size": 3}},
    "model": {"embedding_dim": 4, "context": ["user_id"], "item": {"kind": "hid"}},
    "train": {"epochs": 1},
    "parallel": {"sharding": "table_wise"},  # the search for a plan takes as long as the training
}
QUESTION = ["--checkpoint", "runs/hid/seed0", "--log", "world", "--days", "3", "--item", ITEM]
WORLD = "--rows 9000 --users 300 --items 300 --branching 3 --width 9 --charm 1 --int-noise 0 --cat-noise 0"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a world and a run of HIDs alone, in which commands run."""
    folder = tmp_path_factory.mktemp("forward")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert cli.main(["prep", "synthetic", "world", *WORLD.split()]) == 0
        for name, item in {"hid": {"kind": "hid"}, "sids": {"kind": "sid_coord"}}.items():
            tree = {**RECIPE, "name": name, "model": {**RECIPE["model"], "item": item}}
            Path(f"{name}.yaml").write_text(yaml.safe_dump(tree))
        assert cli.main(["train", "hid.yaml"]) == 0
        shutil.copytree(folder, folder.with_name("future"))
        yield folder


@pytest.fixture(scope="module")
def study(home: Path) -> Path:
    """The results of two runs."""
    assert cli.main(["study", *QUESTION, "--runs", "2"]) == 0
    return home / "results/studies/day_forward"


def cells(results: Path) -> dict[tuple[object, ...], Cell]:
    return ResultTable(results / "cells.parquet", ("run", "size", "arm", "day"), Cell).read()


def test_the_report_compares_both_models_on_the_days_they_had_not_seen(study: Path, home: Path) -> None:
    found = cells(study)
    assert {key[3] for key in found} == {"day02", "day03"}, "the first day is scored by equal models"
    assert len(found) == 2 * 2 * 2
    saved = read_json(study / "day_forward.json", "a report")
    whole = saved["sizes"][0]["differences"]["all"]["ne"]
    days = [load_manifest(home / "runs/studies/day_forward/days" / name / LOG) for name in ("day02", "day03")]
    assert whole["rows"] == sum(day.rows("train") for day in days)
    scored = [
        [float(found[run, 1, arm, "day02"]["metrics"]["all"]["ne"] or 0) for run in (0, 1)] for arm in ("hid", "sids")
    ]
    assert whole["by_day"][0] == pytest.approx(np.mean(scored[1]) - np.mean(scored[0]))
    assert saved["catalogs"] == 2, "each run has a fit of its own"
    assert saved["sizes"][0]["costs"]["sids"]["item_parameters"] > saved["sizes"][0]["costs"]["hid"]["item_parameters"]
    text = (study / "report.md").read_text()
    assert "| new today |" in text
    assert "| 0 updates |" in text
    assert "tied: the interval lies within" in text


def test_slices_by_age_and_updates_cover_all_rows(study: Path) -> None:
    """An item without a row before has had no update: its day begins with it."""
    for cell in cells(study).values():
        rows = {name: int(of["rows"] or 0) for name, of in cell["metrics"].items()}
        ages = ("new today", "1 day", "2-7 days", "older")
        assert sum(rows[name] for name in ages) == rows["all"]
        assert sum(count for name, count in rows.items() if name.endswith("updates")) == rows["all"]
        assert rows["0 updates"] == rows["new today"] > 0
        assert rows["older"]


def test_a_finished_study_trains_nothing_and_more_runs_go_on(study: Path, home: Path) -> None:
    log = home / "runs/studies/day_forward/train.log"
    before, recorded = log.read_bytes(), cells(study)
    assert day_forward([*QUESTION, "--runs", "2"]) == 0
    assert log.read_bytes() == before
    assert day_forward([*QUESTION, "--runs", "3", "--minutes", "1e-9"]) == 0
    assert cells(study) == recorded, "no cell begins after the limit"
    assert read_json(study / "day_forward.json", "a report")["sizes"][0]["runs"] == [0, 1]
    assert not list((home / "runs/studies/day_forward").rglob("step-*")), "finished chains keep no checkpoint"


def test_another_question_needs_another_name(study: Path) -> None:
    with pytest.raises(SidrecError, match="differs in days; give another --name"):
        day_forward([*QUESTION, "--days", "2"])


def test_the_future_changes_no_score(study: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same study where the third day has other labels, items and statistics, and items that are first seen then
    other vectors: the second day's cells are equal bit by bit, the third day's are not."""
    days = home / "runs/studies/day_forward/days"
    begin = int(load_manifest(days / "day03" / LOG).files("train")[0].first_timestamp)
    known = set(pq.read_table(days / "day02" / ITEMS)[ITEM_ID].to_pylist())
    other = home.with_name("future")
    change_future(other / "world", begin, known)
    monkeypatch.chdir(other)
    assert day_forward([*QUESTION, "--runs", "1"]) == 0
    ours, theirs = cells(study), cells(other / "results/studies/day_forward")
    for arm in ("hid", "sids"):
        one, two = ({**of[0, 1, arm, "day02"], "step_seconds": None} for of in (ours, theirs))
        assert one == two
        assert ours[0, 1, arm, "day03"]["metrics"] != theirs[0, 1, arm, "day03"]["metrics"]
    fits = [load_catalog(root / "runs/studies/day_forward/catalogs/fit0/day02") for root in (home, other)]
    assert set(fits[0].item_ids_N.tolist()) == known


def change_future(data: Path, begin: int, known: set[int]) -> None:
    for path in sorted((data / LOG).rglob("*.parquet")):
        rows = pq.read_table(path)
        later = pc.greater_equal(rows[TIMESTAMP], begin)
        for column, value in {
            "label": pc.subtract(pa.scalar(1.0, pa.float32()), rows["label"]),
            "item_id": pa.chunked_array([rows["item_id"].combine_chunks()[::-1]]),
            "stat_exposures": pc.add(rows["stat_exposures"], pa.scalar(7.0, pa.float32())),
        }.items():
            index = rows.schema.get_field_index(column)
            rows = rows.set_column(index, rows.schema.field(index), pc.if_else(later, value, rows[column]))
        pq.write_table(rows, path)
        restate_crc(data / LOG, path)
    items = pq.read_table(data / ITEMS)
    vectors = np.stack(items["text"].to_numpy())
    new_N = np.array([item not in known for item in items[ITEM_ID].to_pylist()])
    assert new_N.sum() > 5, "items that the third day or none shows first"
    vectors[new_N] = np.random.default_rng(0).normal(size=(new_N.sum(), vectors.shape[1]))
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
    index = items.schema.get_field_index("text")
    pq.write_table(
        items.set_column(index, items.schema.field(index), column.cast(items.schema.field(index).type)), data / ITEMS
    )


def restate_crc(log: Path, path: Path) -> None:
    """The manifest says nothing of the file's bytes any more."""
    manifest = json.loads((log / "manifest.json").read_text())
    for entries in manifest["splits"].values():
        for entry in entries:
            if entry["path"] == str(path.relative_to(log)):
                entry.pop("crc32", None)
    (log / "manifest.json").write_text(json.dumps(manifest))


def test_smaller_tables_start_from_a_twin_of_their_size(study: Path, home: Path) -> None:
    words = [*QUESTION, "--days", "2", "--runs", "1", "--sizes", "1", "4", "--name", "quarter"]
    assert day_forward(words) == 0
    saved = read_json(home / "results/studies/quarter/day_forward.json", "a report")
    whole, quarter = saved["sizes"]
    assert [size["size"] for size in saved["sizes"]] == [1, 4]
    assert quarter["costs"]["hid"]["hid_bytes"] == 4 * 4 * round(301 / 4)
    assert whole["costs"]["hid"]["hid_bytes"] == 4 * 4 * 301
    base = yaml.safe_load((home / "runs/studies/quarter/base/size4/seed0/config.yaml").read_text())
    assert base["model"]["item"]["hid_index"] == {"kind": "modulo", "rows": 75}
    assert quarter["against_whole"]["all"]["gauc"]["reference"] == whole["differences"]["all"]["gauc"]["reference"]
    assert any("one scored day" in note for note in saved["notes"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--days", "1"], "--days: expected at least 2"),
        (["--log", "world"], "--days: expected one --log to cut into days, got 2"),
        (["--item", "{kind: sid_coord}"], "--item: expected a kind with HIDs and SIDs that can start"),
        (["--item", "{kind: sid_coord, hid_index: {kind: exact}}"], "expected no hid_index"),
        (["--item", "[]"], "expected a section with a kind"),
        (["--item", "{kind: sid_coord, gat: 1}"], "gat"),
        (["--sizes", "0"], "--sizes: expected divisors of at least 1, got 0"),
        (["--runs", "0"], "--runs: expected at least 1"),
        (["--minutes", "0"], "--minutes: expected a time above 0"),
        (["--name", "a/b"], "--name: expected letters"),
        (["--checkpoint", "runs/none"], "expected a run directory with checkpoints"),
        (["--days", "400"], "expected rows in each of 400 days"),
    ],
)
def test_what_cannot_be_asked_is_refused(words: list[str], message: str, home: Path) -> None:
    with pytest.raises(SidrecError, match=message):
        day_forward([*QUESTION, "--name", "refused", *words])


def test_a_folder_without_later_rows_is_refused(home: Path) -> None:
    with pytest.raises(SidrecError, match="at least two days"):
        day_forward(["--checkpoint", "runs/hid/seed0", "--log", "world", "--item", ITEM])
    words = ["--checkpoint", "runs/hid/seed0", "--log", "world", "--log", "world", "--item", ITEM, "--name", "twice"]
    with pytest.raises(SidrecError, match="give --log in order of time"):
        day_forward(words)


def test_a_run_with_sids_is_refused(home: Path) -> None:
    tree = yaml.safe_load(Path("sids.yaml").read_text())
    tree["data"]["catalog"] = "runs/studies/day_forward/catalogs/fit0/day03"
    tree["model"]["item"]["granularities"] = ["s1", "s2"]
    Path("with_sids.yaml").write_text(yaml.safe_dump(tree))
    assert cli.main(["train", "with_sids.yaml"]) == 0
    with pytest.raises(SidrecError, match="expected a run of item kind hid, which SIDs are added to"):
        day_forward([*QUESTION, "--checkpoint", "runs/sids/seed0", "--name", "sids"])
