"""The README's example runs as it stands."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.metrics.made_up_log import Log

README = Path(__file__).parents[2] / "README.md"


def test_the_example_prints_the_tail_auc(capsys: pytest.CaptureFixture[str]) -> None:
    section = README.read_text().split("\n## Metrics\n")[1].split("\n## ")[0]
    code = section.split("```python\n")[1].split("```")[0]
    log, impressions = Log.drawn(400, 30), np.arange(20, dtype=np.int64)
    loader = [
        SimpleNamespace(score=score, label=label, user=user, item=item)
        for (score, label, user), item in zip(log.batches(100), torch.from_numpy(log.item).split(100), strict=True)
    ]
    names = {
        "item_ids": np.arange(1, 21),
        "train_impressions": impressions,
        "device": torch.device("cpu"),
        "loader": loader,
        "model": lambda batch: batch.score[:, None],
    }
    exec(code, names)
    expected = log.measured(log.item <= 10)["auc"]  # the ten items with the fewest impressions
    assert capsys.readouterr().out == str(torch.tensor(expected, dtype=torch.float64)) + "\n"
