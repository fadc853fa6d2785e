"""What footers and a sample tell of data that is not as it should be."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from zlib import crc32

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sidrec.data.item_tables import impressions_by_id
from sidrec.preflight import Finding
from sidrec.preflight.data_checks import check_values, evenly, footer_findings, read_footers, semantic_id_finding
from sidrec.preflight.data_sample import SplitSample, checksum_finding, read_sample, sample_findings
from sidrec.preflight.resource_estimate import PlannedRun
from sidrec.schema import ITEM_ID, ITEMS, LOG, ContractError, LogFile, load_manifest, save_manifest
from tests.preflight.planned import planned
from tests.small_log import small_recipe, write_small_log
from tests.train.refusals import TEST, TRAIN, edit, put


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_small_log(tmp_path)


def findings(folder: Path, **sections: object) -> dict[str, Finding]:
    run = planned(small_recipe(folder, **sections), 1)
    return {finding.name: finding for finding in footer_findings(run, footers(run))}


def footers(run: PlannedRun) -> Mapping:
    log = run.recipe.data.path / LOG
    return {split: read_footers(log, run.manifest.files(split)) for split in ("train", "test")}


def samples(folder: Path, *, whole: bool = True) -> dict[str, Finding]:
    log = folder / "data" / LOG
    manifest = load_manifest(log)
    read = {split: read_sample(log, manifest, split, whole=whole) for split in manifest.splits}
    return {finding.name: finding for finding in sample_findings(read)}


def constant(path: Path, column: str, value: float) -> None:
    def change(table: pa.Table) -> pa.Table:
        kind = table.schema.field(column).type
        place = table.schema.get_field_index(column)
        return table.set_column(place, table.schema.field(column), pa.array([value] * len(table), kind))

    edit(path, change)


def test_sound_data(folder: Path) -> None:
    assert {finding.state for finding in (*findings(folder).values(), *samples(folder).values())} == {"ok"}


def test_labels_of_one_kind_are_a_problem_where_training_learns_from_them(folder: Path) -> None:
    constant(folder / TEST, "label", 0.0)
    assert findings(folder)["labels"].state == "note"
    assert "every label of test is 0 (2 of 2 files' footers)" in findings(folder)["labels"].found
    constant(folder / TRAIN, "label", 1.0)
    assert findings(folder)["labels"].state == "problem"
    assert "every label of train is 1" in findings(folder)["labels"].found
    assert samples(folder)["label rates"].state == "problem"


@pytest.mark.parametrize(
    ("column", "value", "found"), [("item_id", 61, "0 to 60, got 61"), ("cat_a", -2, "0 to 4, got -2")]
)
def test_an_id_outside_of_its_table_is_found_without_reading_rows(
    column: str, value: int, found: str, folder: Path
) -> None:
    put(folder / TRAIN, column, 177, value)
    assert findings(folder)["values"] == Finding(
        "values",
        "problem",
        f"train, column {column}: expected {found}",
        "prepare the log again, or set data.bad_rows to quarantine",
    )
    assert findings(folder, data={"bad_rows": "quarantine"})["values"].state == "note"
    run = planned(small_recipe(folder), 1)
    with pytest.raises(ContractError, match=rf"row group 3, row 177 of the file, column {column}"):
        check_values(run, footers(run))
    assert f"train: 1 rows break column {column}" in samples(folder)["sampled rows"].found


def test_a_column_that_the_model_does_not_read_refuses_nothing(folder: Path) -> None:
    put(folder / TRAIN, "cat_a", 177, -2)
    run = planned(small_recipe(folder, model={"context": ["user_id"]}), 1)
    check_values(run, footers(run))
    assert findings(folder, model={"context": ["user_id"]})["values"].state == "ok"


def test_a_missing_value_and_an_item_of_a_history(folder: Path) -> None:
    put(folder / TEST, "user_id", 3, None)
    put(folder / TRAIN, "history", 9, [1, 99])
    found = findings(folder)["values"].found
    assert "train, column history: expected 0 to 60, got 99" in found
    assert "test, column user_id: expected no missing value, got 1" in found


def test_dense_columns_that_say_nothing_or_drown_the_others(folder: Path) -> None:
    constant(folder / TRAIN, "int_a", 2.5)
    put(folder / TRAIN, "int_b", 0, -3e7)
    assert findings(folder)["dense columns"].state == "note"
    assert findings(folder)["dense columns"].found.startswith("int_a is always 2.5; int_b reaches 3e+07")


@pytest.mark.parametrize(
    ("protocol", "state"),
    [
        ({}, "note"),
        ({"split": {"kind": "global"}}, "problem"),
        ({"split": {"kind": "per-user-last"}}, "ok"),
        ({"split": {"kind": "last"}}, "ok"),
    ],
)
def test_splits_that_overlap_in_time(protocol: dict, state: str, folder: Path) -> None:
    log = folder / "data" / LOG
    manifest = load_manifest(log)
    early = replace(manifest.files("test")[0], first_timestamp=10)
    manifest = replace(manifest, protocol=protocol, splits={**manifest.splits, "test": (early,)})
    run = replace(planned(small_recipe(folder), 1), manifest=manifest)
    found = next(finding for finding in footer_findings(run, footers(run)) if finding.name == "splits in time")
    assert found.state == state
    if state != "ok":
        assert "test begins at 10, train ends at 599" in found.found


def test_items_without_semantic_ids(folder: Path) -> None:
    impressions_I = impressions_by_id(folder / "data" / ITEMS, 61)
    popular = int(impressions_I.argmax())
    run = planned(small_recipe(folder), 1)
    whole = semantic_id_finding(run, impressions_I)
    assert whole is not None
    assert whole.state == "ok"
    run.tables.rows_IF[popular, 1:] = 0
    found = semantic_id_finding(run, impressions_I)
    share = impressions_I[popular] / impressions_I.sum()
    assert found is not None
    assert found.state == "note"
    assert f"{share:.1%} of its rows" in found.found
    assert semantic_id_finding(planned(small_recipe(folder, model={"item": {"kind": "hid"}}), 1), impressions_I) is None


def test_repeated_rows_and_rows_out_of_order(folder: Path) -> None:
    def change(table: pa.Table) -> pa.Table:
        return pa.concat_tables([table.slice(0, 10), table.slice(0, 10), table.slice(20)])

    edit(folder / TRAIN, change)
    found = samples(folder)
    assert found["repeated rows"].state == "note"
    assert "train 1.67%" in found["repeated rows"].found
    assert found["sampled rows"].state == "problem"
    assert "expected rows sorted by time" in found["sampled rows"].found


@pytest.mark.parametrize(("rate", "state"), [(0.5, "ok"), (0.6, "ok"), (0.05, "note")])
def test_rates_far_apart(rate: float, state: str) -> None:
    read = {"train": SplitSample(10_000, 10_000, 5000), "test": SplitSample(10_000, 10_000, int(10_000 * rate))}
    assert next(found for found in sample_findings(read) if found.name == "label rates").state == state


def test_a_small_difference_of_few_rows_is_not_significant() -> None:
    read = {"train": SplitSample(30, 30, 20), "test": SplitSample(30, 30, 10)}
    assert next(found for found in sample_findings(read) if found.name == "label rates").state == "ok"


def test_a_sample_is_a_few_row_groups(folder: Path) -> None:
    """600 rows in twelve groups of 50."""
    log = folder / "data" / LOG
    sample = read_sample(log, load_manifest(log), "train", whole=False)
    assert (sample.rows, sample.of) == (200, 600)
    assert "200 of 600 rows of train" in sample_findings({"train": sample})[0].found


def test_checksums(folder: Path) -> None:
    log = folder / "data" / LOG
    manifest = load_manifest(log)
    splits = list(manifest.splits)
    assert checksum_finding(log, manifest, splits, whole=True).state == "note"
    files = {
        split: tuple(replace(file, crc32=crc32((log / file.path).read_bytes())) for file in of)
        for split, of in manifest.splits.items()
    }
    save_manifest(replace(manifest, splits=files), log)
    manifest = load_manifest(log)
    found = checksum_finding(log, manifest, splits, whole=False)
    assert (found.state, found.found) == ("ok", "2 of 2 files are what was written")
    path = log / files["test"][0].path
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    found = checksum_finding(log, manifest, splits, whole=False)
    assert found.state == "problem"
    written = files["test"][0].crc32
    assert found.found.startswith(
        f"{path}: expected the CRC-32 {written} of the manifest, got {crc32(content)}; 1 of 2"
    )


def test_files_asked_lie_at_equal_distances_and_have_rows() -> None:
    files = [LogFile(str(number), number % 5, 0, 0) for number in range(10)]
    assert [file.path for file in evenly(files, 3)] == ["1", "6", "9"]
    assert {file.path for file in evenly(files, None)} == {str(n) for n in range(10) if n % 5}


def test_a_file_that_is_cut_off_is_named(folder: Path) -> None:
    path = folder / TRAIN
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ContractError, match=r"part-0.parquet: expected a whole parquet file"):
        read_footers(folder / "data" / LOG, load_manifest(folder / "data" / LOG).files("train"))


def test_a_file_without_statistics_is_unknown_and_not_sane(folder: Path) -> None:
    path = folder / TRAIN
    pq.write_table(pq.read_table(path), path, row_group_size=50, write_statistics=False)
    asked = read_footers(folder / "data" / LOG, load_manifest(folder / "data" / LOG).files("train"))
    assert not asked.columns[ITEM_ID].known
    assert asked.largest_group == 50
