"""Files of rows get the trained model's probabilities, part by part, and a killed scoring goes on."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pcsv
import pyarrow.parquet as pq
import pytest

from sidrec import cli
from sidrec.errors import ContractError
from sidrec.serve.batch_scoring import Input, score_files, score_table
from sidrec.serve.bundle import Bundle
from sidrec.serve.scorer import Model
from tests.serve.conftest import World
from tests.train.refusals import refusal


@pytest.fixture(scope="module")
def model(world: World) -> Model:
    return Model(Bundle(world.bundle), threads=1)


def read(out: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(path) for path in sorted(out.glob("part-*.parquet"))])


@pytest.mark.parametrize("form", ["parquet", "csv", "folder"])
def test_files_get_the_trained_models_probabilities(world: World, tmp_path: Path, form: str) -> None:
    table, source = pq.read_table(world.rows), tmp_path / f"rows.{form}"
    if form == "csv":
        history = pa.array(["|".join(each) for each in table["history"].to_pylist()])
        pcsv.write_csv(table.set_column(table.column_names.index("history"), "history", history), source)
    elif form == "parquet":
        pq.write_table(table, source, row_group_size=37)
    else:
        source.mkdir()
        for number in range(3):
            pq.write_table(table.slice(number * 70, 70), source / f"{number}.parquet")
    assert cli.main(["score", str(world.bundle), str(source), str(tmp_path / "out")]) == 0
    found = read(tmp_path / "out")
    assert np.abs(found["score"].to_numpy() - world.probability_N).max() <= 1e-6
    assert found["user_id"].to_pylist() == table["user_id"].to_pylist()
    assert set(found["version"].to_pylist()) == {Bundle(world.bundle).version}
    index = json.loads((tmp_path / "out/scores.json").read_text())
    assert (index["complete"], index["rows"], index["unknown_items"]) == (True, 200, 0)


def test_parts_do_not_depend_on_their_size_and_are_not_made_twice(world: World, model: Model, tmp_path: Path) -> None:
    whole = score_files(model, world.rows, tmp_path / "whole")
    rows: list[int] = []
    parts = score_files(model, world.rows, tmp_path / "parts", rows.append, chunk=30)
    assert (whole.parts, parts.parts, rows) == (1, 7, [30] * 6 + [20])
    assert read(tmp_path / "parts")["score"].to_pylist() == read(tmp_path / "whole")["score"].to_pylist()
    for name in ("part-00003.parquet", "scores.json"):
        (tmp_path / "parts" / name).unlink()
    with pytest.raises(ContractError, match="expected a folder of sidrec score, an empty one, or none"):
        score_files(model, world.rows, tmp_path / "parts", chunk=30)


def test_a_killed_scoring_goes_on(world: World, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def counted(model: Model, table: pa.Table, where: str, explain: bool) -> pa.Table:
        made.append(where)
        if len(made) == 4:
            raise KeyboardInterrupt
        return score_table(model, table, where)

    monkeypatch.setattr("sidrec.serve.batch_scoring.score_table", counted)
    with pytest.raises(KeyboardInterrupt):
        score_files(model, world.rows, tmp_path / "out", chunk=30)
    assert not json.loads((tmp_path / "out/scores.json").read_text())["complete"]
    (tmp_path / "out/part-00003.parquet.partial").write_bytes(b"half")
    score_files(model, world.rows, tmp_path / "out", chunk=30)
    assert len(made) == 8
    assert np.abs(read(tmp_path / "out")["score"].to_numpy() - world.probability_N).max() <= 1e-6
    assert not list((tmp_path / "out").glob("*.partial"))


def test_other_parts_are_refused(world: World, model: Model, tmp_path: Path) -> None:
    score_files(model, world.rows, tmp_path / "out")
    other = tmp_path / "other.parquet"
    pq.write_table(pq.read_table(world.rows).slice(0, 50), other)
    with pytest.raises(
        ContractError, match=r"expected scores of \{'input': .* give another folder, or delete this one"
    ):
        score_files(model, other, tmp_path / "out")


def changed(world: World, **columns: Any) -> pa.Table:
    table = pq.read_table(world.rows)
    for name, values in columns.items():
        place = table.column_names.index(name)
        table = table.remove_column(place) if values is None else table.set_column(place, name, pa.array(values))
    return table


def test_columns_are_bound_by_name(world: World, model: Model) -> None:
    table = pq.read_table(world.rows)
    other_order = table.select(table.column_names[::-1])
    assert score_table(model, other_order, "here")["score"].equals(score_table(model, table, "here")["score"])


def test_unknown_ids_and_missing_columns_that_may_be(world: World, model: Model) -> None:
    table = changed(world, item_id=["new"] * 200, user_id=[None] * 200, history=None, cat_a=None)
    found = score_table(model, table, "here")
    assert found["unknown_item"].to_pylist() == found["unknown_user"].to_pylist() == [True] * 200


def test_lists_of_ids_are_averaged_alike_in_files_and_requests(world: World) -> None:
    bundle = Bundle(world.bundle)
    about = bundle.description
    user, category = about.context
    bundle.description = replace(about, context=(user, replace(category, lists=True)))
    model, rows = Model(bundle, threads=1), pq.read_table(world.rows).to_pylist()
    lists = [[f"cat_a-{number % 4}" for number in range(length)] for length in range(4)] * 50
    found = score_table(model, changed(world, cat_a=lists), "here")["score"].to_numpy()
    for place in range(0, 200, 37):
        row = rows[place]
        asked = model.rank(
            row["user_id"],
            [row["item_id"]],
            row["history"],
            {name: row[name] for name in about.stats},
            {name: row[name] for name in about.dense},
            {"cat_a": lists[place]},
        )
        assert abs(asked.score_C[0] - found[place]) <= 1e-6


@pytest.mark.parametrize(
    ("column", "values", "sentence"),
    [
        ("item_id", None, "here: expected a column item_id, got columns"),
        ("stat_clicks", None, "here: expected a column stat_clicks"),
        ("stat_clicks", ["x"] * 200, "here, column stat_clicks: expected numbers"),
        (
            "stat_clicks",
            [1.0] * 7 + [float("inf")] * 193,
            "column stat_clicks: expected finite numbers, got inf in its row 8",
        ),
        ("int_a", [None] * 200, "column int_a: expected finite numbers"),
        ("history", [1] * 200, "column history: expected lists of ids, got int64"),
        ("item_id", [1.5] * 200, "column item_id: expected texts or whole numbers"),
    ],
)
def test_wrong_columns_are_named(world: World, model: Model, column: str, values: Any, sentence: str) -> None:
    with pytest.raises(ContractError, match=sentence):
        score_table(model, changed(world, **{column: values}), "here")


def test_no_input_and_no_bundle_are_said(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["score", str(world.bundle), str(tmp_path), str(tmp_path / "out")]
    assert "expected a CSV or Parquet file, or a folder of them, got none" in refusal(capsys, cli.main(words))
    words = ["score", str(tmp_path / "no"), str(world.rows), str(tmp_path / "out")]
    assert "expected a bundle, as sidrec export writes it, got nothing" in refusal(capsys, cli.main(words))
    assert not (tmp_path / "out").exists()


def test_rows_are_counted_ahead_where_files_say_how_many(world: World, tmp_path: Path) -> None:
    assert Input.of(world.rows).rows == 200
    (tmp_path / "a.csv").write_text("user_id\n1\n")
    assert Input.of(tmp_path / "a.csv").rows is None
