import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sidrec.data.item_tables import ContentVectors
from sidrec.schema import ContractError


def write_items(folder: Path) -> Path:
    """Items 3, 1 and 9 with a text vector of length 5, and a visual one of length 2."""
    vectors = {"text": [[3, 4], [0, 5], [-5, 0]], "visual": [[2, 0, 0], [0, 2, 0], [0, 0, 2]]}
    columns = {"item_id": pa.array([3, 1, 9])}
    for name, values in vectors.items():
        columns[name] = pa.array(values, pa.list_(pa.float32(), len(values[0])))
    path = folder / "items.parquet"
    pq.write_table(pa.table(columns), path)
    return path


def test_vectors_are_found_by_item_id(tmp_path: Path) -> None:
    content = ContentVectors(write_items(tmp_path), ("text",), 5)  # the log does not know item 9
    assert content.width == 2
    expected = [[0, 0], [0, 1], [0, 0], [0.6, 0.8], [0, 0]]
    np.testing.assert_allclose(content[np.arange(5)], expected)
    np.testing.assert_allclose(content[np.array([3, 3, 1])], [expected[3], expected[3], expected[1]])
    assert content[np.array([], np.int64)].shape == (0, 2)
    assert content[np.array([1])].dtype == np.float32


def test_columns_are_joined_after_scaling(tmp_path: Path) -> None:
    content = ContentVectors(write_items(tmp_path), ("visual", "text"), 5)
    np.testing.assert_allclose(content[np.array([3])], [[1, 0, 0, 0.6, 0.8]])


def test_another_process_reads_the_same_file_and_leaves_it_there(tmp_path: Path) -> None:
    content = ContentVectors(write_items(tmp_path), ("text",), 5)
    sent = pickle.dumps(content)
    assert len(sent) < 2000, "vectors travel by their file"
    copy = pickle.loads(sent)
    np.testing.assert_array_equal(copy[np.arange(5)], content[np.arange(5)])
    folder = content._folder
    del copy
    assert folder.exists()
    del content
    assert not folder.exists()


def test_a_missing_column_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ContractError, match=r"expected a vector column behavior, got vector columns \['text', 'visual'\]"
    ):
        ContentVectors(write_items(tmp_path), ("text", "behavior"), 5)
