"""The feature log holds what requests were scored with; `sidrec skew` names columns that were prepared otherwise."""

import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sidrec import cli
from sidrec.errors import ContractError
from sidrec.serve import feature_log
from sidrec.serve.batch_scoring import score_table
from sidrec.serve.bundle import Bundle
from sidrec.serve.feature_log import FeatureLog
from sidrec.serve.protocol import RankRequest, parse
from sidrec.serve.scorer import Model
from sidrec.serve.server import columns_of
from tests.serve.conftest import World
from tests.serve.test_protocol import LIMITS
from tests.serve.test_scorer import ranked
from tests.serve.test_server import body_of


@pytest.fixture(scope="module")
def model(world: World) -> Model:
    return Model(Bundle(world.bundle), threads=1)


def asked(model: Model, row: dict[str, Any]) -> RankRequest:
    return parse(body_of(row), None, columns_of(model), LIMITS)


def write_log(model: Model, rows: Path, folder: Path, share: float = 1.0, part_rows: int = 70) -> Counter[str]:
    """Each row as a request of one candidate, in order; returns the rows by what became of them."""
    counted: Counter[str] = Counter()
    log = FeatureLog(folder, share, lambda ended, count: counted.update({ended: count}), part_rows)
    for number, row in enumerate(pq.read_table(rows).to_pylist()):
        log.offer(f"r{number}", asked(model, row), ranked(model, row), model.description)
    log.close()
    return counted


def prepared(world: World, to: Path, by_request: bool = True, **changes: Any) -> Path:
    """The rows as preparation makes them later, with changed columns."""
    table = pq.read_table(world.rows)
    if by_request:
        table = table.append_column("request", pa.array([f"r{number}" for number in range(200)]))
    for name, change in changes.items():
        column = table.schema.get_field_index(name)
        table = table.set_column(column, name, change(table[name]))
    pq.write_table(table.slice(20).take(np.random.default_rng(3).permutation(180)), to)
    return to


@pytest.fixture(scope="module")
def log(world: World, model: Model) -> Path:
    folder = world.folder / "features"
    assert write_log(model, world.rows, folder) == {"written": 200}
    return folder


def test_logged_rows_are_rows_to_score_and_get_their_score(world: World, model: Model, log: Path) -> None:
    parts = sorted(log.iterdir())
    assert 2 <= len(parts) <= 3
    table = pa.concat_tables([pq.read_table(path) for path in parts], promote_options="default")
    order = np.argsort([int(name.as_py()[1:]) for name in table["request"]])
    table = table.take(order)
    source = pq.read_table(world.rows)
    for name in ("user_id", "item_id", "cat_a", "stat_clicks", "int_a"):
        assert table[name].to_pylist() == source[name].to_pylist()
    assert table["history"].to_pylist() == [each[-4:] for each in source["history"].to_pylist()]
    assert set(table["version"].to_pylist()) == {model.version}
    again = score_table(model, table, "the log")["score"].to_numpy()
    assert np.abs(again - table["score"].to_numpy()).max() <= 1e-6


def test_a_share_of_the_requests_is_drawn_and_the_same_ones_everywhere(
    world: World, model: Model, tmp_path: Path
) -> None:
    drawn = []
    for name in ("one", "other"):
        count = write_log(model, world.rows, tmp_path / name, share=0.2)["written"]
        assert 20 <= count <= 60
        drawn.append(
            {each for path in (tmp_path / name).iterdir() for each in pq.read_table(path)["request"].to_pylist()}
        )
    assert drawn[0] == drawn[1]
    assert write_log(model, world.rows, tmp_path / "none", share=0.0) == {}


def test_a_disk_that_cannot_be_written_costs_rows_and_no_request(world: World, model: Model, tmp_path: Path) -> None:
    counted: Counter[str] = Counter()
    log = FeatureLog(tmp_path / "log", 1.0, lambda ended, count: counted.update({ended: count}))
    (tmp_path / "log").rmdir()
    row = pq.read_table(world.rows).to_pylist()[0]
    log.offer("r", asked(model, row), ranked(model, row), model.description)
    log.close()
    assert counted == {"dropped": 1}


def test_a_full_queue_costs_rows_and_no_time(
    world: World, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: Counter[str] = Counter()
    go_on = threading.Event()
    monkeypatch.setattr(FeatureLog, "_write", lambda log, waiting: go_on.wait(60))
    monkeypatch.setattr(feature_log, "WAITING", 5)
    log = FeatureLog(tmp_path / "log", 1.0, lambda ended, count: counted.update({ended: count}), part_rows=1)
    row = pq.read_table(world.rows).to_pylist()[0]
    for number in range(20):
        log.offer(f"r{number}", asked(model, row), ranked(model, row), model.description)
    assert 14 <= counted["dropped"] <= 15
    go_on.set()
    log.close()


def test_a_share_beyond_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=r"--feature-log-share: expected a share in \[0, 1\], got 1.5"):
        FeatureLog(tmp_path, 1.5, lambda ended, count: None)


# `sidrec skew`.


def skew(world: World, log: Path, rows: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> tuple[int, list[str]]:
    """Exit status, and the columns that differ."""
    capsys.readouterr()
    status = cli.main(["skew", str(world.bundle), str(log), str(rows), *flags])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("180 rows by ")
    assert [line.split()[0] for line in lines[2:]] == [
        *("stat_exposures", "stat_clicks", "int_a", "int_b", "history", "user_id", "cat_a", "score")
    ]
    return status, [line.split()[0] for line in lines if line.endswith("DIFFERS")]


def test_equal_preparation_is_equal(
    world: World, log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert skew(world, log, prepared(world, tmp_path / "rows.parquet"), capsys) == (0, [])


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("int_a", lambda column: pa.array(column.to_numpy() * 1000)),
        ("cat_a", lambda column: pa.array([None] * len(column), pa.string())),
        ("history", lambda column: pa.array([each[:-1] for each in column.to_pylist()])),
    ],
)
def test_a_column_that_is_made_otherwise_is_named_with_the_score(
    world: World, log: Path, tmp_path: Path, name: str, change: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = prepared(world, tmp_path / "rows.parquet", **{name: change})
    status, differing = skew(world, log, rows, capsys)
    assert (status, differing) == (1, [name, "score"])
    assert skew(world, log, rows, capsys, "--most-differing", "1")[0] == 0


def test_rows_of_another_unit_show_the_unit(
    world: World, log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = prepared(world, tmp_path / "rows.parquet", stat_clicks=lambda column: pa.array(column.to_numpy() / 1000))
    cli.main(["skew", str(world.bundle), str(log), str(rows)])
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("stat_clicks"))
    assert line.split()[-2:] == ["1000", "DIFFERS"]


def test_rows_that_cannot_be_matched_are_refused(
    world: World, log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = prepared(world, tmp_path / "rows.parquet", by_request=False)
    assert cli.main(["skew", str(world.bundle), str(log), str(rows)]) == 2
    assert "expected rows with equal user_id, item_id, timestamp in both, got none" in capsys.readouterr().err
    pq.write_table(pq.read_table(rows).drop_columns(["timestamp"]), rows)
    assert cli.main(["skew", str(world.bundle), str(log), str(rows)]) == 2
    assert (
        "expected the columns user_id, item_id, timestamp to match rows by, got no timestamp" in capsys.readouterr().err
    )
