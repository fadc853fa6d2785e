"""The comparison of losses with TorchRec's reader and with ours: equal, and not equal as soon as something differs."""

from pathlib import Path

import numpy as np

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
