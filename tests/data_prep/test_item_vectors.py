"""Vector columns added to items.parquet."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.item_vectors import ItemVectors, add_vectors
from sidrec.schema import ContractError


@pytest.fixture
def items(tmp_path: Path) -> Path:
    path = tmp_path / "items.parquet"
    content = ["red nail lacquer", "crimson nail polish", "garden hose", "", "   "]
    table = pa.table({"item_id": [1, 2, 3, 4, 5], "train_impressions": [3, 2, 1, 0, 0], "content": content})
    pq.write_table(table, path, row_group_size=2)
    return path


def vectors_of(items: Path, column: str = "text") -> np.ndarray:
    return np.array(pq.read_table(items)[column].to_pylist(), dtype=np.float32)


def test_wordllama_knows_meaning_and_empty_text_is_zero(items: Path) -> None:
    said = add_vectors(items, "wordllama")
    vectors = vectors_of(items)
    assert vectors.shape == (5, 256)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 1, 1, 0, 0], abs=1e-5)
    assert vectors[0] @ vectors[1] > 0.3 + vectors[0] @ vectors[2]
    assert "2 of the items have a zero vector" in said


def test_ready_vectors_by_row_and_replacing(items: Path) -> None:
    ready = items.parent / "ready.npy"
    np.save(ready, np.arange(15, dtype=np.float16).reshape(5, 3))
    add_vectors(items, "wordllama")
    ItemVectors(items.parent, str(ready)).run()
    ItemVectors(items.parent, str(ready), column="visual").run()
    assert vectors_of(items).tolist() == np.arange(15).reshape(5, 3).tolist()
    assert vectors_of(items, "visual").tolist() == np.arange(15).reshape(5, 3).tolist()
    assert pq.read_schema(items).field("text").type == pa.list_(pa.float32(), 3)
    assert pq.read_table(items)["train_impressions"].to_pylist() == [3, 2, 1, 0, 0]


@pytest.mark.parametrize(
    ("vectors", "words"),
    [
        (np.zeros((4, 3)), r"floats of shape \[5, width\], one row per item, got float64 of shape \[4, 3\]"),
        (np.zeros((5, 3), dtype=int), "floats of shape"),
        (np.array([[1.0], [2.0], [np.nan], [1.0], [1.0]]), r"bad.npy, row 2: expected finite numbers"),
    ],
)
def test_ready_vectors_that_do_not_fit(items: Path, vectors: np.ndarray, words: str) -> None:
    bad = items.parent / "bad.npy"
    np.save(bad, vectors)
    before = items.read_bytes()
    with pytest.raises(ContractError, match=words):
        add_vectors(items, str(bad))
    assert items.read_bytes() == before
    assert sorted(path.name for path in items.parent.iterdir()) == ["bad.npy", "items.parquet"]


@pytest.mark.parametrize(("source", "words"), [("word2vec", "wordllama"), ("absent.npy", "no such file")])
def test_unknown_source(items: Path, source: str, words: str) -> None:
    with pytest.raises(ContractError, match=words):
        add_vectors(items, source)
