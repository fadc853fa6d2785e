"""Pictures show the figures of the quality report."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from sidrec.sid.catalog import Catalog
from sidrec.sid.pictures import _code_usage, _collision_groups, draw_pictures

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
