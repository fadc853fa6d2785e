"""Benchmarks on Criteo: the losses of two readers are compared, and preparations that read the same rows."""

from pathlib import Path

import numpy as np
import polars as pl

from benchmarks.criteo_losses import (
    MIXED,
    OURS,
    TORCHREC,
    differences,
    draw,
    readers,
    report,
    table_rows,
    training_losses,
    write_days,
)
from benchmarks.criteo_prep import COLUMNS, count_rows, table, write_log
from benchmarks.criteo_prep_alone import CONTENDERS, measure
from tests.data_prep.criteo_text import random_lines, write


def test_equal_on_three_days_and_not_with_other_batches(tmp_path: Path) -> None:
    head = write(tmp_path / "train.txt", random_lines(300, 0))
    npy = write_days(head, 900, 3, tmp_path)
    assert [len(np.load(npy / f"day_{day}_labels.npy")) for day in range(3)] == [300] * 3
    tables = table_rows(npy)
    losses = {name: training_losses(name, batches, tables) for name, batches in readers(npy, 128).items()}
    assert [len(own) for own in losses.values()] == [8, 8, 8]
    assert losses[OURS] == losses[TORCHREC]
    assert losses[OURS][-1] < losses[OURS][0], "it learns"
    found = differences(losses)
    assert found[OURS] == 0 < found[MIXED] < 1e-4
    shifted = readers(npy, 128)[OURS]
    other = training_losses("shifted", list(shifted)[1:], tables)
    assert differences({TORCHREC: losses[TORCHREC][:7], OURS: other})[OURS] > 1e-3
    draw(tmp_path / "losses.png", losses)
    assert (tmp_path / "losses.png").stat().st_size > 10_000
    assert "| CriteoBatches | 8 |" in report(losses, {"rows_of_days": [300] * 3})


def test_rare_values_become_others_in_every_repetition_and_nothing_else_does(tmp_path: Path) -> None:
    head, log = write(tmp_path / "head.txt.gz", random_lines(200, 0)), tmp_path / "log.txt"
    write_log(head, 600, log)
    assert count_rows(log) == 600
    first, whole = (
        pl.read_csv(path, separator="\t", has_header=False, new_columns=COLUMNS, infer_schema=False, quote_char=None)
        for path in (head, log)
    )
    assert whole[:200].equals(first)
    rare = (first.select(pl.len().over(COLUMNS[14])).to_series() < 3) & first[COLUMNS[14]].is_not_null()
    for part in (whole[200:400], whole[400:]):
        assert part.select(COLUMNS[:14]).equals(first.select(COLUMNS[:14]))
        assert ((part[COLUMNS[14]] != first[COLUMNS[14]]).fill_null(False) == rare).all()


def test_every_contender_reads_the_same_rows(tmp_path: Path) -> None:
    source = write(tmp_path / "train.txt", random_lines(300, 0))
    labels = []
    for number, name in enumerate(CONTENDERS):
        out = tmp_path / str(number)
        out.mkdir()
        told = measure(name, source, out)
        assert told["peak_mib"] >= told["before_mib"] > 0
        labels.append(np.load(out / "out/day_0_labels.npy"))
        assert np.load(out / "out/day_0_sparse.npy").shape == (300, 26)
    assert all(np.array_equal(labels[0], other) for other in labels)


def test_table() -> None:
    line = {"contender": "a", "rows": 5000, "rows_per_cpu_s": [1000, 900, 1100], "peak_mib": 20.5, "before_mib": 10.0}
    assert table([line]).splitlines()[-1] == "| a | 5,000 | 1,000 [900-1,100] | 20.5 | 10.0 |"
