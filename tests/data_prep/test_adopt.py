"""A log that another program wrote becomes a data folder, or is refused with everything that is wrong with it."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from data_prep.interactions import Columns, InteractionsCommand
from sidrec import cli
from sidrec.data.rows import Columns as ReadColumns
from sidrec.data.rows import decode, split_index
from sidrec.schema import ContractError, Manifest, load_manifest
from tests.data_prep.own_logs import TRAIN, cast, edit, own_log, parts, prepare, put, run, with_column


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("prepared"))


@pytest.fixture
def own(prepared: Path, tmp_path: Path) -> Path:
    return own_log(prepared, tmp_path / "own")


def report(data: Path, capsys: pytest.CaptureFixture[str], **flags: object) -> str:
    """The report of a folder that is refused. Nothing was written."""
    before = sorted(data.rglob("*"))
    capsys.readouterr()
    with pytest.raises(ContractError, match="listed above; nothing was written"):
        run(data, **flags)
    assert sorted(data.rglob("*")) == before
    return capsys.readouterr().out


def facts(manifest: Manifest) -> Manifest:
    """Without what the rows do not tell."""
    return replace(manifest, source="", seed=0, protocol={}, transforms={})


# Sound folders.


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_prepared_folder_without_its_manifest_is_described_as_before(
    prepared: Path, tmp_path: Path, jobs: int
) -> None:
    data = tmp_path / "copy"
    shutil.copytree(prepared, data)
    before = load_manifest(data / "log")
    (data / "log/manifest.json").unlink()
    run(data, jobs=jobs)
    found = load_manifest(data / "log")
    assert facts(found) == facts(before)
    assert {"rows", "positive_rate", "splits", "cold_share_of_test_rows"} <= before.protocol.keys()
    for key in ("rows", "positive_rate", "splits", "cold_share_of_test_rows"):
        assert found.protocol[key] == before.protocol[key]
    assert not (found.protocol.keys() & {"as_of", "negatives"})  # the rows do not tell
    assert pq.read_table(data / "items.parquet").equals(pq.read_table(prepared / "items.parquet"))
    first = (data / "log/manifest.json").read_bytes()
    run(data, jobs=3 - jobs)
    assert (data / "log/manifest.json").read_bytes() == first


def test_the_log_alone_is_enough(own: Path, prepared: Path) -> None:
    run(own, name="mine", written_by="nightly job", id_rows=("user_id=1000",), history_length=9)
    found, before = load_manifest(own / "log"), load_manifest(prepared / "log")
    assert found.splits == before.splits
    assert found.ids == {**before.ids, "user_id": 1000}
    assert (found.source, found.history_length) == ("mine", 9)
    assert found.protocol["adopted"]["written_by"] == "nightly job"  # type: ignore[index]
    counted, known = (pq.read_table(data / "items.parquet") for data in (own, prepared))
    assert counted.equals(known.select(["item_id", "train_impressions"]))
    for split in found.splits:
        assert sum(group.rows for group in split_index(own / "log", split, found)) == before.rows(split)


def test_parts_as_spark_writes_them(own: Path, prepared: Path, tmp_path: Path) -> None:
    log = own / "log"
    train = pq.read_table(log / TRAIN)
    shutil.rmtree(log / "train")
    shutil.rmtree(log / "validation")
    parts(train.slice(1000), log / "split=train" / "day=2", 700)
    parts(train.slice(0, 1000), log / "split=train" / "day=3", 400)  # earlier rows in the later folder
    parts(train.slice(0, 0), log / "split=train" / "day=4", 1)
    pq.write_table(train.slice(0, 0), log / "split=train" / "day=4" / "part-empty.parquet")
    items = pq.read_table(prepared / "items.parquet").select(["item_id", "source_id"])
    vectors = np.random.default_rng(0).random((len(items), 3))
    items = items.append_column("text", pa.array(vectors.tolist(), pa.list_(pa.float64())))
    items = items.set_column(0, "item_id", items["item_id"].cast(pa.int32()))
    parts(items.slice(20), own / "items", 100)
    pq.write_table(items.slice(0, 20), own / "items" / "part-99999.parquet")  # parts in another order than ids
    for column in ("user_id", "item_id"):
        ids = pq.read_table(prepared / f"ids/{column}.parquet")
        parts(ids.append_column("id", pa.array(range(1, len(ids) + 1))), own / "ids" / column, 17)
    given = {path: path.read_bytes() for path in own.rglob("*") if path.is_file()}

    run(own)
    found, before = load_manifest(log), load_manifest(prepared / "log")
    assert {path: path.read_bytes() for path in given} == given
    assert [file.rows for file in found.files("train")[:4]] == [400, 400, 200, 700]
    assert found.rows("train") == before.rows("train")
    assert len(split_index(log, "train", found)) >= 4
    assert found.id_maps == {column: before.id_maps[column] for column in ("user_id", "item_id")}
    written = pq.read_table(own / "items.parquet")
    assert written.column_names == ["item_id", "train_impressions", "source_id", "text"]
    assert written["train_impressions"].equals(pq.read_table(prepared / "items.parquet")["train_impressions"])
    assert written.schema.field("text").type == pa.list_(pa.float32(), 3)
    assert np.allclose(np.stack(written["text"].to_numpy()), vectors)


def test_a_log_that_grew_is_adopted_again(own: Path, prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log, users = own / "log", pq.read_table(prepared / "ids/user_id.parquet")
    train = pq.read_table(log / TRAIN)
    known = train.filter((pc.field("user_id") <= 50) & (pc.field("item_id") <= 30)).slice(0, 900)
    known = with_column(
        "history", lambda lists: [[item for item in found if item <= 30] for found in lists.to_pylist()]
    )(known)
    shutil.rmtree(log / "test")
    shutil.rmtree(log / "validation")
    pq.write_table(known, log / TRAIN)
    parts(users.slice(0, 50), own / "ids/user_id", 50)
    run(own)
    assert load_manifest(log).id_maps["user_id"].ids == 50
    assert len(pq.read_table(own / "items.parquet")) == 30
    pq.write_table(train, log / TRAIN)
    pq.write_table(users.slice(50), own / "ids/user_id/part-1.parquet")
    run(own)
    assert load_manifest(log).id_maps["user_id"] == load_manifest(prepared / "log").id_maps["user_id"]
    items = pq.read_table(own / "items.parquet")
    assert items.equals(pq.read_table(prepared / "items.parquet").select(items.column_names))
    pq.write_table(items.append_column("title", pa.array(["mine"] * len(items))), own / "items.parquet")
    run(own)
    assert "title" in pq.read_table(own / "items.parquet").column_names
    pq.write_table(users.slice(1), own / "ids/user_id.parquet")
    assert "id map of user_id: expected the ids of its parts (1 file)" in report(own, capsys)


def test_check_writes_nothing(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(own.rglob("*"))
    run(own, check=True)
    assert sorted(own.rglob("*")) == before
    assert "the command writes items.parquet, log/manifest.json" in capsys.readouterr().out


# What is refused.


def test_one_report_names_everything_that_is_wrong(
    own: Path, prepared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(prepared / "ids", own / "ids")
    path = own / "log" / TRAIN
    rows = pq.read_metadata(path).num_rows
    items = load_manifest(prepared / "log").ids["item_id"]
    for change in (
        cast("user_id", pa.int32()),
        cast("label", pa.int32()),
        cast("stat_clicks", pa.float64()),
        cast("history", pa.list_(pa.int32())),
        put("label", r3=2, r600=7),
        put("item_id", r4=-1, r5=items),
        put("history", r6=[1, None], r7=[items]),
        put("int_user_events", r8=float("nan"), r9=None),
        put("stat_exposures", r10=-1.0),
        put("timestamp", r1200=5, r1300=1_700_000_000_000),
        lambda table: table.rename_columns(
            [{"cat_device": "catDevice"}.get(name, name) for name in table.column_names]
        ),
    ):
        edit(path, change)
    found = report(own, capsys, history_length=4, examples=1)
    where = f"log/{TRAIN}, row group"
    for line in (
        f"column user_id: expected int64, got int32 (1 file)\n       log/{TRAIN}\n",
        'change: Spark: .withColumn("user_id", F.col("user_id").cast("bigint"))',
        'change: Spark: .withColumn("label", F.col("label").cast("float"))',
        'change: Spark: .withColumn("stat_clicks", F.col("stat_clicks").cast("float"))  # rounds to 24 bits',
        'change: Spark: .withColumn("history", F.col("history").cast("array<bigint>"))',
        f"column cat_device: expected one, got none (1 file)\n       log/{TRAIN}\n",
        'change: Spark: .withColumnRenamed("catDevice", "cat_device")',
        f"column label: expected 0 or 1 (2 rows)\n       {where} 0, row 3 of the file: 2.0\n       and 1 more\n",
        f"column item_id: expected ids in [0, {items}) (2 rows)\n       {where} 0, row 4 of the file: -1\n",
        f"column history: expected item ids in [0, {items}) (2 rows)\n       {where} 0, row 6 of the file: [1, None]\n",
        f"column int_user_events: expected no missing value (1 row)\n       {where} 0, row 9 of the file: a missing ",
        "column int_user_events: expected finite values (2 rows)\n",
        "column stat_exposures: expected finite counts of at least 0 (1 row)\n",
        f"column timestamp: expected seconds since 1970 (1 row)\n       {where} 2, row 1300 of the file: 1700000",
        f"column timestamp: expected rows sorted by time (2 rows)\n       {where} 2, row 1200 of the file: 5 after ",
        "column history: expected at most 4 items (",
        "columns that sidrec does not read: catDevice",
    ):
        assert line in found, line
    assert rows > 1300


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (cast("timestamp", pa.timestamp("s")), '.withColumn("timestamp", F.col("timestamp").cast("timestamp")'),
        (cast("item_id", pa.string()), "item_id is a whole number: number the values from 1 up"),
        (cast("item_id", pa.float64()), '.withColumn("item_id", F.col("item_id").cast("bigint"))'),
        (cast("label", pa.bool_()), '.withColumn("label", F.col("label").cast("float"))'),
        (with_column("history", lambda lists: pa.array(["1,2"] * len(lists))), 'F.split(F.col("history"), ",")'),
        (cast("history", pa.list_(pa.string())), "number the entries of history"),
        (cast("cat_tags", pa.list_(pa.int32())), 'F.col("cat_tags").cast("array<bigint>")'),
        (lambda table: table.drop_columns(["history"]), 'F.array().cast("array<bigint>")'),
        (lambda table: table.append_column("label", table["label"]), "column label: expected one, got 2 (1 file)"),
    ],
)
def test_other_types_and_missing_columns(
    own: Path, change: object, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = own / "log" / TRAIN
    table = change(pq.read_table(path))  # type: ignore[operator]
    pq.write_table(table, path)
    assert said in report(own, capsys)


def test_lists_of_other_writers_are_read(own: Path, prepared: Path) -> None:
    """Polars writes large lists, Spark entries that are "not null"."""
    edit(own / "log" / TRAIN, cast("history", pa.large_list(pa.int64())))
    edit(own / "log" / TRAIN, cast("cat_tags", pa.list_(pa.field("element", pa.int64(), nullable=False))))
    run(own)
    found, before = (histories_and_tags(data / "log") for data in (own, prepared))
    assert before[0].any()
    assert before[1].any()
    assert all(map(np.array_equal, found, before))


def histories_and_tags(log: Path) -> tuple[np.ndarray, np.ndarray]:
    """Histories and lists of the train split, as training reads them."""
    manifest = load_manifest(log)
    columns = ReadColumns(manifest, ("cat_tags",), 5)
    groups = split_index(log, "train", manifest)
    rows = [decode(pq.ParquetFile(group.path), group, columns, refuse=True)[0] for group in groups]
    return np.concatenate([part.history_NT for part in rows]), np.concatenate([part.context_NC for part in rows])


def test_a_column_that_is_only_the_name_of_a_folder(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = pq.read_table(own / "log" / TRAIN)
    (own / "log" / TRAIN).unlink()
    parts(table.drop_columns(["cat_device"]), own / "log/train/cat_device=1", 5000)
    assert "Spark leaves columns of partitionBy out of the files: partition by a copy of cat_device" in report(
        own, capsys
    )


def test_files_of_a_split_follow_one_another(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = own / "log"
    train = pq.read_table(log / TRAIN)
    pq.write_table(train.slice(0, 900), log / TRAIN)
    pq.write_table(train.slice(800), log / "train/part-00001.parquet")
    found = report(own, capsys)
    assert (
        "files of train: expected one after the other in time (1 file)\n       log/train/part-00001.parquet: " in found
    )
    assert '.repartitionByRange(n, "timestamp").sortWithinPartitions("timestamp")' in found


def test_damaged_and_foreign_files(own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = own / "log"
    whole = (log / TRAIN).read_bytes()
    (log / "train/cut.parquet").write_bytes(whole[:500])
    (log / "train/rows.csv").write_text("1,2\n")
    (log / "loose.parquet").write_bytes(whole)
    (log / "test/_temporary").mkdir()
    (log / "validation/_delta_log").mkdir()
    (tmp_path / "elsewhere.parquet").write_bytes(whole)
    (log / "train/link.parquet").symlink_to(tmp_path / "elsewhere.parquet")
    found = report(own, capsys)
    for said in (
        f"a whole Parquet file (1 file)\n       {log / 'train/cut.parquet'}: ",
        f"a job that has ended (1 file)\n       {log / 'test/_temporary'}\n",
        f"plain Parquet files, not a Delta table (1 file)\n       {log / 'validation/_delta_log'}: ",
        f"files in a folder of their split, such as log/train (1 file)\n       {log / 'loose.parquet'}\n",
        f"files inside the log folder (1 file)\n       {log / 'train/link.parquet'}: a link to ",
        f"files whose names do not end in .parquet are not read: 1, {log / 'train/rows.csv'} first",
    ):
        assert said in found, said


def test_items_that_do_not_fit(own: Path, prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    items = pq.read_table(prepared / "items.parquet")
    most_shown = int(np.argmax(items["train_impressions"].to_numpy())) + 1
    listed = items.filter(pa.array(items["item_id"].to_numpy() != most_shown))
    pq.write_table(listed.drop_columns(["train_impressions"]), own / "items.parquet")
    found = report(own, capsys, examples=1)
    assert "items, column train_impressions: expected one, got none (1 file)" in found
    assert "change: --replace adds the column" in found
    assert "column item_id: expected an item of items.parquet, or 0 (" in found
    assert f" of the file: {most_shown}\n" in found
    assert "column history: expected items of items.parquet (" in found
    order = pa.array([1, 0, *range(2, len(items))])
    pq.write_table(items.take(order), own / "items.parquet")
    assert "expected every item once, in the order of ids (1 file)" in report(own, capsys)
    fewer = with_column("train_impressions", lambda counts: np.maximum(counts.to_numpy() - 1, 0))
    pq.write_table(fewer(items), own / "items.parquet")
    assert "items, column train_impressions: expected at least the item's rows in train (" in report(own, capsys)


def test_replace_writes_items_anew(own: Path, prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    items = pq.read_table(prepared / "items.parquet")
    parts(items.drop_columns(["train_impressions"]), own / "items.parquet", 100)
    assert f"change: mv {own / 'items.parquet'} {own / 'items'}, or the flag --replace" in report(own, capsys)
    run(own, replace=True)
    assert pq.read_table(own / "items.parquet").equals(items)
    assert (own / "items/part-00000-c0.snappy.parquet").is_file()


def test_maps_that_do_not_fit(own: Path, prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    users = pq.read_table(prepared / "ids/user_id.parquet")
    (own / "ids").mkdir()
    pq.write_table(users.slice(0, 10), own / "ids/user_id.parquet")
    assert "column user_id: expected ids in [0, 11) (" in report(own, capsys)
    pq.write_table(pa.concat_tables([users, users.slice(0, 2)]), own / "ids/user_id.parquet")
    assert "id map of user_id: expected every source id once (1 file)" in report(own, capsys)
    pq.write_table(users.rename_columns(["name"]), own / "ids/user_id.parquet")
    assert "id map of user_id: expected a text column source_id (1 file)" in report(own, capsys)
    (own / "ids/user_id.parquet").unlink()
    parts(users.append_column("id", pa.array(range(len(users)))), own / "ids/user_id", 10)
    assert "id map of user_id: expected rows in the order of ids, from 1 up (1 file)" in report(own, capsys)


# What stays.


def test_a_manifest_of_other_origin_stays(own: Path, prepared: Path) -> None:
    shutil.copy(prepared / "log/manifest.json", own / "log/manifest.json")
    with pytest.raises(ContractError, match="or the flag --replace"):
        run(own)
    assert (own / "log/manifest.json").read_bytes() == (prepared / "log/manifest.json").read_bytes()
    run(own, check=True)
    run(own, replace=True)
    assert "adopted" in load_manifest(own / "log").protocol


def test_no_preparation_replaces_an_adopted_folder(own: Path, prepared: Path) -> None:
    run(own)
    before = sorted(own.rglob("*"))
    columns = Columns(label_column="label")
    command = InteractionsCommand(prepared.parent / "raw.parquet", own, columns)
    with pytest.raises(ContractError, match="a folder that data_prep wrote"):
        replace(command, log=replace(command.log, overwrite=True)).run()
    assert sorted(own.rglob("*")) == before


def test_flags(own: Path) -> None:
    for flags, said in (
        ({"jobs": 0}, "--jobs: expected at least 1"),
        ({"examples": 0}, "--examples: expected at least 1"),
        ({"id_rows": ("user=7",)}, "did you mean user_id"),
        ({"id_rows": ("user_id=7",)}, "at least 61 rows for user_id"),
    ):
        with pytest.raises(ContractError, match=said):
            run(own, **flags)


# The folder trains.


def test_the_command_and_a_training(own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["prep", "adopt", str(own), "--jobs", "2"]) == 0
    assert "3,000 rows" in capsys.readouterr().out
    recipe = {
        "name": "own",
        "data": {"path": str(own), "catalog": "none", "batch_size": 500, "lanes": 2, "history_length": 5, "workers": 0},
        "model": {"item": {"kind": "hid"}, "embedding_dim": 4, "context": ["user_id", "cat_device", "cat_tags"]},
        "train": {"runs": str(tmp_path / "runs"), "epochs": 1},
    }
    (tmp_path / "own.yaml").write_text(json.dumps(recipe))
    assert cli.main(["doctor", str(tmp_path / "own.yaml"), "--json"]) in (0, 1)
    findings = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    for name in ("labels", "values", "splits in time", "sampled rows", "checksums"):
        assert findings[name]["state"] == "ok", findings[name]
    assert cli.main(["train", str(tmp_path / "own.yaml")]) == 0
    assert (tmp_path / "runs/own/seed0/metrics.json").is_file()
