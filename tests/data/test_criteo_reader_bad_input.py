"""What is wrong with Criteo's .npy files is said in one sentence when they are opened."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.criteo import CriteoCommand
from sidrec.data.criteo import CriteoBatches, criteo_paths
from sidrec.schema import ContractError
from tests.data.criteo_npy import write_days
from tests.data_prep.criteo_text import random_lines, write

TABLES = [41] * 26


def opened(folder: Path, **arguments: Any) -> CriteoBatches:
    return CriteoBatches("train", *criteo_paths(folder), **({"batch_size": 8, "rank": 0, "world_size": 1} | arguments))


def changed(kind: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / f"day_1_{kind}.npy"
        np.save(path, change(np.load(path)))

    return apply


def put(row: int, column: int, value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array[row, column] = value
        return array

    return change


def cut_off(folder: Path) -> None:
    path = folder / "day_1_sparse.npy"
    path.write_bytes(path.read_bytes()[:-100])


def no_npy(folder: Path) -> None:
    (folder / "day_1_dense.npy").write_bytes(b"PK\x03\x04 not an array")


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (cut_off, r"day_1_sparse.npy: expected 3120 bytes of data for the 30 rows of its header, got 3020 bytes"),
        (no_npy, r"day_1_dense.npy: expected a .npy file, got the magic string is not correct"),
        (lambda folder: (folder / "day_1_labels.npy").unlink(), r"day_1_labels.npy: expected a .npy file of labels"),
        (
            changed("sparse", lambda a: a[:, :25]),
            r"day_1_sparse.npy: expected shape \[rows, 26\].*got shape \[30, 25\]",
        ),
        (changed("dense", lambda a: a[:, :12]), r"day_1_dense.npy: expected shape \[rows, 13\]"),
        (changed("dense", np.asfortranarray), r"stored by columns"),
        (changed("dense", lambda a: a.astype(np.float64)), r"day_1_dense.npy: expected float32, got float64"),
        (changed("sparse", lambda a: a.astype(np.int64)), r"day_1_sparse.npy: expected int32, as day_0_sparse.npy has"),
        (changed("sparse", lambda a: a.astype(np.uint32)), r"expected int32 or int64, got uint32"),
        (changed("labels", lambda a: a[:29]), r"day_1_labels.npy: expected 30 rows, as day_1_dense.npy has, got 29"),
        (changed("labels", lambda a: a.reshape(-1)), r"day_1_labels.npy: expected shape \[rows, 1\].*\[30\]"),
        (changed("dense", put(29, 4, np.nan)), r"day_1_dense.npy, row 29, column 4: expected finite numbers, got nan"),
        (changed("labels", put(3, 0, -1)), r"day_1_labels.npy, row 3, column 0: expected 0 or 1, got -1"),
        (
            changed("sparse", put(7, 2, 41)),
            r"day_1_sparse.npy, row 7, column 2 \(C3\): expected ids in \[0, 41\), got 41",
        ),
        (changed("sparse", put(0, 25, -1)), r"row 0, column 25 \(C26\): expected ids in \[0, 41\), got -1"),
    ],
)
def test_files(tmp_path: Path, damage: Callable[[Path], None], sentence: str) -> None:
    write_days(tmp_path, [20, 30])
    opened(tmp_path, table_rows=TABLES)
    damage(tmp_path)
    with pytest.raises(ContractError, match=sentence):
        opened(tmp_path, table_rows=TABLES)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"batch_size": 0}, "batch_size: expected at least 1"),
        ({"world_size": 0}, "world_size: expected at least 1"),
        ({"rank": 2, "world_size": 2}, r"rank: expected a rank in \[0, 2\), got 2"),
        ({"world_size": 21}, "rows: expected at least 21 for 21 ranks, got 20"),
        ({"batch_size": 32, "drop_last": True}, "rows: expected at least 32"),
        ({"table_rows": [41] * 25}, "table_rows: expected 26 numbers"),
        ({"hashes": [41] * 25}, "hashes, table_rows: expected 26 numbers"),
        ({"hashes": [41] * 25 + [0]}, r"hashes, column 25 \(C26\): expected from 1 to"),
        ({"hashes": [42] * 26, "table_rows": TABLES}, r"hashes, column 0 \(C1\): expected from 1 to 41, got 42"),
    ],
)
def test_arguments(tmp_path: Path, arguments: dict[str, Any], sentence: str) -> None:
    write_days(tmp_path, [20])
    with pytest.raises(ContractError, match=sentence):
        opened(tmp_path, **arguments)


def test_stage_paths_and_folder(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=r"expected files day_K_dense.npy"):
        criteo_paths(tmp_path)
    dense, sparse, labels = write_days(tmp_path, [20, 30])
    with pytest.raises(ContractError, match="stage: expected train, val or test, got 'dev'"):
        CriteoBatches("dev", dense, sparse, labels, 8, 0, 1)  # type: ignore[arg-type]
    with pytest.raises(ContractError, match=r"equally many files, at least one, got \[2, 1, 2\]"):
        CriteoBatches("train", dense, sparse[:1], labels, 8, 0, 1)
    with pytest.raises(ContractError, match=r"a step in \[0, 7\], got \(0, 8\)"):
        opened(tmp_path).seek(0, 8)


def test_what_a_sample_cannot_see_a_full_look_does(tmp_path: Path) -> None:
    write_days(tmp_path, [9000])
    hidden = next(row for row in range(64, 9000) if all(not 0 <= row - s * 8936 // 63 < 64 for s in range(64)))
    path = tmp_path / "day_0_sparse.npy"
    array = np.load(path)
    array[hidden, 3] = 99
    np.save(path, array)
    batches = opened(tmp_path, table_rows=TABLES)
    with pytest.raises(ContractError, match=rf"row {hidden}, column 3 \(C4\): expected ids in \[0, 41\), got 99"):
        opened(tmp_path, table_rows=TABLES, look="full")
    with pytest.raises(ContractError, match=rf"day_0_sparse.npy, row {hidden}, column 3"):  # rather than table row 0
        list(batches)


def test_the_manifest_lists_table_rows_and_source_files(tmp_path: Path) -> None:
    CriteoCommand((write(tmp_path / "day_0", random_lines(600, 0)), tmp_path / "out")).run()
    needed = json.loads((tmp_path / "out/manifest.json").read_text())["categorical"]["table_rows"]
    opened(tmp_path / "out", table_rows=needed, look="full")
    small = [*needed[:4], needed[4] - 1, *needed[5:]]
    with pytest.raises(ContractError, match=rf"table_rows: expected at least {needed[4]} rows for column 4 \(C5\)"):
        opened(tmp_path / "out", table_rows=small)
    path = tmp_path / "out/day_0_labels.npy"
    np.save(path, 1 - np.load(path))
    opened(tmp_path / "out", table_rows=needed)
    with pytest.raises(ContractError, match=r"day_0_labels.npy: expected the sha256 that manifest.json says"):
        opened(tmp_path / "out", look="full")


@pytest.mark.parametrize("told", [[], {"table_rows": 3}, {"table_rows": [[1]] * 26}, {"table_rows": [1, 2]}])
def test_a_manifest_whose_tables_are_no_numbers(told: object, tmp_path: Path) -> None:
    write_days(tmp_path, [20])
    (tmp_path / "manifest.json").write_text(json.dumps({"categorical": told}))
    with pytest.raises(ContractError, match=r"categorical.table_rows: expected 26 whole numbers, one per column, got"):
        opened(tmp_path, table_rows=TABLES)
