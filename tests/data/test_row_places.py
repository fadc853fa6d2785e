"""Numbers of rows within a split, and within its files."""

from pathlib import Path

from sidrec.data.rows import RowGroup, row_places


def test_rows_are_found_in_their_files() -> None:
    one, two = Path("one"), Path("two")
    groups = (RowGroup(one, 0, 0, 0, 3, 0, 0), RowGroup(one, 1, 3, 3, 2, 0, 0), RowGroup(two, 0, 5, 0, 4, 0, 0))
    assert row_places(groups, [8, 2, 3, 5]) == {one: [2, 3], two: [0, 3]}
    assert row_places(groups, []) == {}
