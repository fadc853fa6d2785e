"""Pictures show the figures of the quality report."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from sidrec.sid.catalog import Catalog
from sidrec.sid.pictures import _code_usage, _collision_groups, _training, draw_pictures, draw_training

CATALOG = Catalog(np.arange(1, 5), np.array([[0, 0], [0, 1], [0, 1], [1, 2]]), (2, 4))


def test_code_usage_is_load_relative_to_even_use() -> None:
    axes = _code_usage(CATALOG, "four items").axes[0]
    first, second, _even = axes.get_lines()
    assert np.asarray(first.get_ydata()).tolist() == [1.5, 0.5]  # 3/4 and 1/4 of the items, times 2 codes
    assert np.asarray(second.get_ydata()).tolist() == [2, 1, 1, 0]
    assert "four items" in axes.get_title(loc="left")


def test_collision_bars_are_shares_of_items() -> None:
    axes = _collision_groups(CATALOG, "four items").axes[0]
    heights = [bar.get_height() for bar in axes.patches]  # type: ignore[attr-defined]
    assert heights == [0.5, 0.5] + [0] * 8


def test_groups_beyond_the_last_bar_are_counted_in_it() -> None:
    crowd = Catalog(np.arange(1, 41), np.zeros((40, 1), dtype=np.int64), (2,))
    heights = [bar.get_height() for bar in _collision_groups(crowd, "").axes[0].patches]  # type: ignore[attr-defined]
    assert heights == [0] * 9 + [1]


@pytest.mark.parametrize("levels", [1, 9])
def test_files_are_pictures_with_something_on_them(tmp_path: Path, levels: int) -> None:
    codes = np.random.default_rng(0).integers(16, size=(100, levels))
    draw_pictures(Catalog(np.arange(1, 101), codes, (16,) * levels), "random codes", tmp_path / "pictures")
    found = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert found == ["code_usage.png", "collision_groups.png"]
    for name in found:
        assert imread(tmp_path / "pictures" / name)[:, :, :3].std() > 0.05


def journal_entry(epoch: int, loss: float) -> dict[str, object]:
    usage = {"utilisation": [0.5, 1.0], "perplexity": [1.5, 3.0 + epoch], "dead_codes": [4, 0]}
    seen = {"contrast/pairs": 7.0, "router/strength": 1e-8}
    return {"epoch": epoch, "loss": loss, "contrast": loss / 2, **seen, **usage, "revived_codes": 3}


def test_training_shows_terms_of_the_loss_and_each_level_s_use() -> None:
    figure = _training([journal_entry(1, 4.0), journal_entry(2, 3.0)], "two epochs")
    losses, utilisation, perplexity = figure.axes
    assert {line.get_label(): list(line.get_ydata()) for line in losses.get_lines()} == {  # type: ignore[arg-type]
        "loss": [4, 3],
        "contrast": [2, 1.5],
    }
    assert [list(line.get_ydata()) for line in utilisation.get_lines()] == [[0.5, 0.5], [1, 1]]  # type: ignore[arg-type]
    assert [list(line.get_ydata()) for line in perplexity.get_lines()] == [[1.5, 1.5], [4, 5]]  # type: ignore[arg-type]
    assert list(losses.get_lines()[0].get_xdata()) == [1, 2]  # type: ignore[arg-type]
    assert "two epochs" in losses.get_title(loc="left")


def test_a_single_epoch_is_seen(tmp_path: Path) -> None:
    draw_training([journal_entry(1, 4.0)], "one epoch", tmp_path)
    assert imread(tmp_path / "training.png")[:, :, :3].std() > 0.05
