"""Vector columns added to items.parquet."""

import io
import logging
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


def test_the_import_of_an_embedding_changes_no_logging(items: Path) -> None:
    program = "import logging, sys; from data_prep.item_vectors import add_vectors; from pathlib import Path; "
    program += "add_vectors(Path(sys.argv[1]), 'wordllama'); print(logging.getLogger().handlers, logging.root.level)"
    command = [sys.executable, "-c", program, str(items)]
    said = subprocess.run(command, capture_output=True, text=True, check=True)
    assert said.stdout == f"[] {logging.WARNING}\n"
    assert said.stderr == ""


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


READY = np.arange(15, dtype=np.float32).reshape(5, 3)


def saved(array: object, **options: Any) -> bytes:
    content = io.BytesIO()
    np.save(content, array, **options)  # type: ignore[arg-type]
    return content.getvalue()


def zipped(**arrays: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **arrays)
    return content.getvalue()


FILES = {
    "objects": saved(np.array([[1.0], [2.0], [3.0], [4.0], None], dtype=object), allow_pickle=True),
    "lists": saved(np.array([row.tolist() for row in READY], dtype=object), allow_pickle=True),
    "a dict": saved(np.array({"a": 1}), allow_pickle=True),
    "pickled": pickle.dumps(READY),
    "cut in the values": saved(READY)[:-9],
    "cut in the header": saved(READY)[:40],
    "the magic alone": saved(READY)[:6],
    "empty": b"",
    "CSV": b"1,2\n3,4\n",
    "a binary": bytes(range(256)) * 4,
    "npz": zipped(vectors=READY),
    "width 0": saved(READY[:, :0]),
    "a vector": saved(READY[:, 0]),
    "three dimensions": saved(READY[None]),
    "text": saved(np.array([["a"]] * 5)),
    "complex": saved(READY.astype(complex)),
    "times": saved(READY.astype("datetime64[s]")),
    "structures": saved(np.zeros((5, 3), dtype=[("x", "f4")])),
    "too many rows": saved(np.vstack([READY, READY])),
    "beyond float32": saved(READY.astype(float) * 1e300),
}


@pytest.mark.parametrize("kind", FILES)
def test_files_that_hold_no_vectors_are_one_sentence(items: Path, kind: str) -> None:
    bad = items.parent / "bad.npy"
    bad.write_bytes(FILES[kind])
    before = items.read_bytes()
    with pytest.raises(ContractError, match=r"bad.npy[^\n]*: expected [^\n]*, got [^\n]+$"):
        add_vectors(items, str(bad))
    assert items.read_bytes() == before
    assert sorted(path.name for path in items.parent.iterdir()) == ["bad.npy", "items.parquet"]


def items_of(ids: object, name: str = "item_id") -> bytes:
    content = io.BytesIO()
    pq.write_table(pa.table({name: ids, "content": ["x"] * 5}), content)
    return content.getvalue()


ITEMS: dict[str, Callable[[bytes], bytes]] = {
    "cut at the end": lambda whole: whole[:-50],
    "cut at the start": lambda whole: whole[50:],
    "cut in the middle": lambda whole: whole[:100] + bytes(200) + whole[300:],
    "empty": lambda _: b"",
    "CSV": lambda _: b"item_id,content\n1,x\n",
    "ids from 0": lambda _: items_of([0, 1, 2, 3, 4]),
    "ids with a gap": lambda _: items_of([1, 2, 3, 4, 6]),
    "ids twice": lambda _: items_of([1, 2, 3, 4, 4]),
    "ids as text": lambda _: items_of(["1", "2", "3", "4", "5"]),
    "ids missing": lambda _: items_of([1, 2, 3, 4, None]),
    "no ids": lambda _: items_of([1, 2, 3, 4, 5], "other_id"),
}


@pytest.mark.parametrize("kind", ITEMS)
def test_broken_items_are_one_sentence(items: Path, kind: str) -> None:
    ready = items.parent / "ready.npy"
    np.save(ready, READY)
    items.write_bytes(broken := ITEMS[kind](items.read_bytes()))
    with pytest.raises(ContractError, match=r"items.parquet[^\n]*: expected [^\n]*, got [^\n]+$"):
        add_vectors(items, str(ready))
    assert items.read_bytes() == broken
    assert sorted(path.name for path in items.parent.iterdir()) == ["items.parquet", "ready.npy"]


@pytest.mark.parametrize(("source", "words"), [("word2vec", "wordllama"), ("absent.npy", "no such file")])
def test_unknown_source(items: Path, source: str, words: str) -> None:
    with pytest.raises(ContractError, match=words):
        add_vectors(items, source)
