"""The benchmark for very many items: items as the contract wants them, costs that are those of the child, sums."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from benchmarks import sid_scale
from benchmarks.sid_scale import Cost, cost_of, result, table, write_vectors
from sidrec.sid.item_vectors import read_item_vectors

COST = Cost(
    wall_seconds=100, cpu_seconds=50, own_bytes=2 * 10**9, mapped_bytes=3 * 10**9, scratch_bytes=10**9, read_bytes=0
)


def test_items_are_whole_seeded_and_in_small_row_groups(tmp_path: Path) -> None:
    paths = [tmp_path / name / "items.parquet" for name in ("one", "again", "other")]
    for path, seed in zip(paths, (0, 0, 1), strict=True):
        write_vectors(path, 1001, 16, seed, group_rows=400)
    one, again, other = (read_item_vectors(path, ("text",), normalize=False) for path in paths)
    assert one.item_ids_N.tolist() == list(range(1, 1002))
    assert np.array_equal(one.vectors_NV, again.vectors_NV)
    assert not np.array_equal(one.vectors_NV, other.vectors_NV)
    assert len(np.unique(one.vectors_NV, axis=0)) == 1001
    assert one.vectors_NV.var() == pytest.approx(1 + 1 / 4 + 1 / 16, rel=0.1)
    assert pq.ParquetFile(paths[0]).num_row_groups == 3
    assert [path.name for path in paths[0].parent.iterdir()] == ["items.parquet"]


CHILD = """
import mmap, pathlib, tempfile, time
own = bytearray(b"1") * 150_000_000
with tempfile.TemporaryFile(dir=".") as file:
    file.truncate(100_000_000)
    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    touched = sum(mapped[page] for page in range(0, len(mapped), 4096))
with tempfile.NamedTemporaryFile() as scratch:
    scratch.write(bytes(20_000_000))
    scratch.flush()
    time.sleep(2)
    while not pathlib.Path("seen").exists():
        time.sleep(0.05)
"""


def test_costs_are_the_childs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """150 MB of its own, 100 MB mapped, 20 MB in TMPDIR; an interpreter takes some 10 MB beside."""
    monkeypatch.chdir(tmp_path)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    looks = 0

    def pause(seconds: float) -> None:
        """Lets the child end after a look that began with the whole scratch file on disk."""
        nonlocal looks
        written = any(path.stat().st_size >= 20_000_000 for path in scratch.iterdir())
        looks = looks + 1 if written else 0
        if looks > 1:
            Path("seen").touch()
        time.sleep(seconds)

    cost = cost_of([sys.executable, "-c", CHILD], {}, scratch, pause)
    assert 150e6 < cost.own_bytes < 180e6
    assert 250e6 < cost.mapped_bytes < 290e6
    assert cost.scratch_bytes == pytest.approx(20e6, rel=0.01)
    assert cost.cpu_seconds > 0
    assert cost.wall_seconds > 2


def test_a_command_that_fails_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError, match="exit status 3"):
        cost_of([sys.executable, "-c", "raise SystemExit(3)"], {}, tmp_path)


def test_parts_add_up_and_epochs_are_extrapolated_from_the_fit_alone() -> None:
    """read 5, fit 20, encode 10 of 50 s leave 15; 30 epochs are 50 + 29 * 20 = 630 s = 0.175 h."""
    seconds = {"read_cpu_seconds": 5, "fit_cpu_seconds": 20, "encode_cpu_seconds": 10}
    quality = {"items": 1000, "unexplained_variance": 0.5, "collision_rate": 0.1, "utilisation": [1.0]}
    report = {**seconds, "quality": quality, "tokenizer": {"learner": {"training": {"epochs": 1}}}}
    figures = result(COST, report, 7)
    assert figures["parts_cpu_seconds"] == {"read": 5, "fit": 20, "encode": 10, "rest": 15}
    assert figures["extrapolated"] == {"epochs": 30, "cpu_hours_at_most": pytest.approx(0.175)}
    assert "extrapolated" not in result(COST, {**report, "tokenizer": {"learner": {}}}, 7)
    assert "| rqvae | 1,000 | 5 s (200/s) | 20 s (50/s) | 10 s (100/s) |  | 15 s | 50 s | 100 s | 0.2 h |" in table(
        {"rqvae": figures}
    )


def test_one_fit_is_run_as_a_person_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = {"kind": "residual_kmeans", "levels": 2, "codebook_size": 8}
    monkeypatch.setitem(sid_scale.TOKENIZERS, "small, resolved", {"learner": learner, "resolve_collisions": True})
    write_vectors(tmp_path / "items.parquet", 400, 8, 0)
    figures = sid_scale.fit_cost("small, resolved", tmp_path, keep=False)
    assert figures["quality"]["items"] == 400
    assert set(figures["parts_cpu_seconds"]) == {"read", "fit", "encode", "resolve", "rest"}
    assert figures["catalog_bytes"] > 0
    assert not list((tmp_path / "fits").iterdir())
