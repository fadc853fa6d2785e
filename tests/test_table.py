"""`sidrec table list | export`: what others read is what the checkpoint holds, or one sentence and no file."""

import json
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from sidrec import cli
from sidrec.checkpoint import stored_tables, table_export
from sidrec.config import Recipe, save
from sidrec.io.places import local_path
from sidrec.sid.catalog import load_catalog
from tests.checkpoint.made_up_checkpoint import HID, HID_SUM, USER, grid, numbered, write_checkpoint
from tests.small_log import small_recipe, write_small_log

HID_RD, SUM_RD = numbered(13, 4), numbered(13, 4, first=1000)
TENSORS = {HID: grid(HID_RD, 3, 2), HID_SUM: grid(SUM_RD, 1, 2), USER: grid(numbered(5, 4), 2, 1)}


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of two tables, written and read in parts of three rows."""
    monkeypatch.setattr(table_export, "PART", 48)
    monkeypatch.setattr(stored_tables.StoredTable.parts, "__defaults__", (48,))
    return write_checkpoint(tmp_path / "run" / "checkpoints" / "step-7", TENSORS)


def refusal(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert cli.main(["table", *map(str, words)]) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


def test_list(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["table", "list", str(checkpoint.parents[1])]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        str(checkpoint),
        "table rows x width type bytes optimizer's state bytes cut",
        "hid 13 x 4 F32 208 sum [13, 4] 208 3 ranges of rows x 2 blocks of columns",
        "user_id 5 x 4 F32 80 none 0 2 ranges of rows",
    ]
    assert cli.main(["table", "list", str(checkpoint), "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed["tables"]["hid"]["state"] == {"sum": {"shape": [13, 4], "bytes": 208}}


def test_safetensors(checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "out" / "hid.safetensors"
    assert cli.main(["table", "export", str(checkpoint), "hid", str(file)]) == 0
    found = load_file(file)
    assert list(found) == ["hid"]
    assert torch.equal(found["hid"], HID_RD)
    assert cli.main(["table", "export", str(checkpoint), "hid", str(file), "--optimizer", "--overwrite"]) == 0
    found = load_file(file)
    assert set(found) == {"hid", "hid/sum"}
    assert torch.equal(found["hid"], HID_RD)
    assert torch.equal(found["hid/sum"], SUM_RD)
    assert [path.name for path in file.parent.iterdir()] == ["hid.safetensors"]


def test_parquet(checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "hid.parquet"
    assert cli.main(["table", "export", str(checkpoint), "hid", str(file), "--optimizer"]) == 0
    found = pq.read_table(file)
    assert found.column_names == ["row", "embedding", "sum"]
    assert str(found.schema.field("embedding").type) == "fixed_size_list<element: float>[4]"
    assert found["row"].to_pylist() == list(range(13))
    for column, values_RD in (("embedding", HID_RD), ("sum", SUM_RD)):
        assert found[column].to_pylist() == values_RD.tolist()
    assert pq.ParquetFile(file).num_row_groups == 13, "a row of table and state together is 32 of the 48 bytes"


def run_of(folder: Path, tensors: dict, **sections: object) -> tuple[Recipe, Path]:
    """A run of the small log whose checkpoint holds these tables."""
    write_small_log(folder)
    recipe = small_recipe(folder, **sections)
    catalog = load_catalog(recipe.data.catalog).fingerprint
    write_checkpoint(recipe.run / "checkpoints" / "step-7", tensors, catalog)
    save(recipe, recipe.run / "config.yaml")
    return recipe, recipe.run


def test_ids_of_rows(tmp_path: Path) -> None:
    """A SID table's rows carry the codes that the catalog gives the items which are looked up there."""
    s23 = "model/items.embedding_bags.s23.weight"
    write_small_log(tmp_path / "probe")
    codes_NL = load_catalog(tmp_path / "probe" / "catalog").codes_NL
    pairs = sorted({(int(b), int(c)) for _, b, c in codes_NL})
    tensors = {HID: grid(numbered(61, 4), 1, 1), s23: grid(numbered(len(pairs) + 1, 4), 2, 1)}
    _, run = run_of(tmp_path, tensors)
    expected: dict[str, dict[str, list[int | None]]] = {"hid": {"item_id": [*range(61)]}}
    expected["s23"] = {"sid_2": [None, *(b for b, _ in pairs)], "sid_3": [None, *(c for _, c in pairs)]}
    for table, columns in expected.items():
        assert cli.main(["table", "export", str(run), table, str(tmp_path / f"{table}.parquet"), "--ids"]) == 0
        found = pq.read_table(tmp_path / f"{table}.parquet")
        assert {name: found[name].to_pylist() for name in columns} == columns


def test_ids_that_rows_do_not_have(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    s1 = "model/items.embedding_bags.s1.weight"
    shared = {"model": {"item": {"kind": "sid_coord", "hid_index": {"kind": "modulo", "rows": 13}}}}
    recipe, run = run_of(tmp_path, {HID: grid(HID_RD, 1, 1), s1: grid(numbered(9, 4), 1, 1)}, **shared)
    said = refusal(capsys, "export", run, "hid", tmp_path / "hid.parquet", "--ids")
    assert "--ids: expected a table with a row for each id, got hid, whose rows ids share or swap" in said
    said = refusal(capsys, "export", run, "s1", tmp_path / "s1.parquet", "--ids")
    assert "as the checkpoint was trained with, 9 rows of s1, got 5" in said
    write_small_log(tmp_path / "other", seed=1)
    catalog = local_path(recipe.data.catalog, "catalog")
    (catalog / "codes.parquet").write_bytes((tmp_path / "other/catalog/codes.parquet").read_bytes())
    (catalog / "catalog.json").write_bytes((tmp_path / "other/catalog/catalog.json").read_bytes())
    said = refusal(capsys, "export", run, "s1", tmp_path / "s1.parquet", "--ids")
    assert "--ids: expected the catalog" in said
    assert not list(tmp_path.glob("*.parquet"))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["hidd", "a.parquet"], "expected one of the tables hid, user_id, got hidd; did you mean hid?"),
        (["hid", "a.csv"], "expected a file name that ends in .safetensors or .parquet, got '.csv'"),
        (["hid", "a.safetensors", "--ids"], "--ids: expected a file name that ends in .parquet, got"),
        (["user_id", "a.parquet", "--optimizer"], "expected a checkpoint with optimizer state of user_id, got none"),
        (["hid", "there.parquet"], "there.parquet: expected no such file yet, or --overwrite, got one that exists"),
        (["hid", "folder.parquet", "--overwrite"], "folder.parquet: expected a file to replace, got a folder"),
        (["hid", "there.parquet/a.parquet"], "expected a folder that can be written, got"),
    ],
)
def test_refusals(
    words: list[str], sentence: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "there.parquet").write_text("mine")
    (tmp_path / "folder.parquet").mkdir()
    before = sorted(tmp_path.rglob("*"))
    assert sentence in refusal(capsys, "export", checkpoint, words[0], tmp_path / words[1], *words[2:])
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "there.parquet").read_text() == "mine"


def test_a_damaged_checkpoint_is_not_exported(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = checkpoint / "rank-1.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\xff")
    assert "expected the CRC-32" in refusal(capsys, "export", checkpoint, "hid", tmp_path / "a.parquet")
    assert cli.main(["table", "export", str(checkpoint), "hid", str(tmp_path / "a.parquet"), "--no-check"]) == 0


def limit_files(size: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.parametrize("suffix", [".safetensors", ".parquet"])
def test_a_full_disk_leaves_nothing(suffix: str, tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "step-7", {HID: grid(numbered(5000, 16), 2, 1)})
    out = tmp_path / "out"
    out.mkdir()
    command = "import signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); from sidrec.cli import main; "
    words = ["table", "export", str(path), "hid", str(out / f"hid{suffix}")]
    done = subprocess.run(
        [sys.executable, "-c", f"{command}sys.exit(main(sys.argv[1:]))", *words],
        check=False,
        preexec_fn=limit_files(200_000),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    assert "expected a file that can be written, got" in done.stderr
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(out.iterdir()) == []


EXPORT_TWICE = """
import sys
from sidrec.cli import main
for checkpoint in sys.argv[1:]:
    for suffix in ("safetensors", "parquet"):
        main(["table", "export", checkpoint, "hid", f"{checkpoint}.{suffix}"])
    print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.fixture
def large_files() -> Iterator[Path]:
    """A folder that is removed at once, where pytest would keep those of three sessions."""
    with TemporaryDirectory() as folder:
        yield Path(folder)


def test_memory_does_not_grow_with_the_table(large_files: Path) -> None:
    """256 MB of a table take what 32 MB do, but for what the allocator keeps of parts that it has freed."""
    paths = []
    for megabytes in (32, 256):
        table_RD = torch.from_numpy(np.random.default_rng(0).random((megabytes << 12, 64), np.float32))
        paths.append(str(write_checkpoint(large_files / f"step-{megabytes}", {HID: grid(table_RD, 1, 2)})))
    command = [sys.executable, "-c", EXPORT_TWICE, *paths]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    small, large = map(int, done.stdout.split())  # KiB
    assert large - small < 64 << 10
