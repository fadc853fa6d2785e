"""Item vectors from real files: what is right comes out ready, what is wrong is one sentence saying where."""

import errno
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sidrec.config.learners import AdcSidConfig, MmRqVaeConfig
from sidrec.schema import ContractError
from sidrec.sid import item_vectors
from sidrec.sid.item_vectors import map_item_vectors, read_item_vectors
from sidrec.sid.learners.registry import learner_inputs
from sidrec.sid.tokenizer import LearnerInputs
from tests.sid.item_files import clustered_vectors, vector_column, write_items

TEXT = np.array([[3, 4], [0, 2], [1, 0]])
VISUAL = np.array([[1], [-2], [5]])
BEHAVIOR = np.array([[3, 4], [0, 0], [0, 0.5]])


def items(tmp_path: Path) -> Path:
    return tmp_path / "items.parquet"


def refusal(path: Path, columns: tuple[str, ...] = ("text",), normalize: bool = True, batch_rows: int = 100) -> str:
    with pytest.raises(ContractError) as error:
        read_item_vectors(path, columns, normalize, batch_rows=batch_rows)
    sentence = str(error.value)
    assert str(path) in sentence
    assert "\n" not in sentence
    return sentence


def test_columns_are_normalized_each_and_concatenated_in_order(tmp_path: Path) -> None:
    path = write_items(items(tmp_path), [5, 2, 9], text=TEXT, visual=VISUAL)
    found = read_item_vectors(path, ("visual", "text"), normalize=True)
    assert found.item_ids_N.tolist() == [5, 2, 9]
    assert found.vectors_NV.dtype == np.float32
    assert found.vectors_NV == pytest.approx(np.array([[1, 0.6, 0.8], [-1, 0, 1], [1, 1, 0]]))
    assert found.side.columns == (("visual", 1), ("text", 2))
    assert found.side.train_impressions_N is None
    raw = read_item_vectors(path, ("text",), normalize=False)
    assert raw.vectors_NV.tolist() == TEXT.tolist()


def test_batches_and_a_scratch_file_change_nothing(tmp_path: Path) -> None:
    vectors = clustered_vectors(100)
    path = write_items(items(tmp_path), np.arange(1, 101), row_group_size=7, text=vectors)
    mapped = read_item_vectors(path, ("text",), False, scratch=tmp_path, batch_rows=10).vectors_NV
    assert isinstance(mapped, np.memmap)
    assert np.array_equal(mapped, vectors)


def test_another_process_maps_the_vectors(tmp_path: Path) -> None:
    path = write_items(items(tmp_path), [5, 2, 9], text=TEXT, behavior=BEHAVIOR)

    with pytest.raises(ContractError, match=r"left_out\.npy: expected a file that the first .* got No such file"):
        map_item_vectors(path, ("text",), tmp_path, LearnerInputs(behavior=True))
    read = read_item_vectors(path, ("text",), True, tmp_path, LearnerInputs(behavior=True))
    found = map_item_vectors(path, ("text",), tmp_path, LearnerInputs(behavior=True))
    assert found.item_ids_N.tolist() == [5, 2, 9]
    assert np.array_equal(found.vectors_NV, read.vectors_NV)
    assert found.side.columns == read.side.columns
    assert found.side.behavior_NE is not None
    assert np.array_equal(found.side.behavior_NE, BEHAVIOR)
    assert not found.vectors_NV.flags.writeable


def test_a_disk_without_room_is_known_before_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.posix_fallocate", full)
    path = write_items(items(tmp_path), [5, 2, 9], text=TEXT)
    sentence = r"expected room for 24 B of item_ids; TMPDIR names another folder, got No space left on device, \d"
    with pytest.raises(ContractError, match=sentence):
        read_item_vectors(path, ("text",), True, tmp_path)


def test_reading_keeps_little_of_the_file_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One row group of 50 MB; pyarrow's own settings keep all of it."""
    path = write_items(items(tmp_path), np.arange(1, 100_001), text=clustered_vectors(100_000, width=128))
    held = []
    vectors_of = item_vectors._vectors

    def spied(*arguments: object) -> np.ndarray:
        held.append(pa.total_allocated_bytes())
        return vectors_of(*arguments)  # type: ignore[arg-type]

    before = pa.total_allocated_bytes()
    monkeypatch.setattr(item_vectors, "_vectors", spied)
    read_item_vectors(path, ("text",), True, tmp_path, batch_rows=1000)
    assert max(held) - before < 10e6


def test_train_impressions_reach_the_learners(tmp_path: Path) -> None:
    table = pa.table({"item_id": [1, 2], "text": vector_column(TEXT[:2]), "train_impressions": [7, 0]})
    pq.write_table(table, items(tmp_path))
    side = read_item_vectors(items(tmp_path), ("text",), True).side
    assert side.train_impressions_N is not None
    assert side.train_impressions_N.tolist() == [7, 0]


def test_files_that_are_no_items(tmp_path: Path) -> None:
    path = items(tmp_path)
    assert "expected item vectors, as data_prep writes them, got no such file" in refusal(path)
    path.write_bytes(b"")
    assert "expected a readable parquet file" in refusal(path)
    write_items(path, np.arange(1, 101), text=clustered_vectors(100))
    path.write_bytes(path.read_bytes()[:-100])
    assert "expected a readable parquet file" in refusal(path)
    write_items(path, [], text=np.zeros((0, 2)))
    assert "expected at least one item, got no rows" in refusal(path)


def test_damage_inside_the_file_is_refused_too(tmp_path: Path) -> None:
    path = write_items(items(tmp_path), np.arange(1, 5001), text=clustered_vectors(5000))
    content = bytearray(path.read_bytes())
    content[len(content) // 3 : len(content) // 3 + 2000] = b"\xff" * 2000
    path.write_bytes(content)
    assert "expected" in refusal(path)


def test_columns_that_are_not_there_or_not_vectors(tmp_path: Path) -> None:
    path = write_items(items(tmp_path), [1, 2, 3], text=TEXT)
    sentence = refusal(path, ("visual",))
    assert "expected a vector column visual, got vector columns ['text'] among ['item_id', 'text']" in sentence
    pq.write_table(pa.table({"text": vector_column(TEXT)}), path)
    assert "expected a column item_id, got columns ['text']" in refusal(path)
    pq.write_table(pa.table({"item_id": ["a", "b", "c"], "text": vector_column(TEXT)}), path)
    assert "column item_id: expected int64, got string" in refusal(path)
    lists = pa.array([[1.0, 2.0], [3.0], [4.0, 5.0]])
    for wrong, kind in ((lists, "list<element: double>"), (pa.array([1.0, 2.0, 3.0]), "double")):
        pq.write_table(pa.table({"item_id": [1, 2, 3], "text": wrong}), path)
        assert f"column text: expected fixed-size lists of float32, got {kind}" in refusal(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(tmp_path: Path, value: float) -> None:
    vectors = clustered_vectors(10)
    vectors[6, 2] = vectors[7, 0] = value
    path = write_items(items(tmp_path), np.arange(101, 111), text=vectors)
    sentence = "row 6 (item 107), column text: expected finite values, got NaN or infinity (2 such rows)"
    assert sentence in refusal(path, batch_rows=4)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("to_disk", [True, False])
def test_items_without_content_are_left_out_and_named(tmp_path: Path, normalize: bool, to_disk: bool) -> None:
    """Zeros and missing vectors are the same: nothing is known. Some content is enough."""
    text = pa.array([[1, 0], None, [0, 0], [0, 1], [0, 0]], pa.list_(pa.float32(), 2))
    visual = pa.array([[1], [0], [0], None, [2]], pa.list_(pa.float32(), 1))
    path, columns = items(tmp_path), ("visual", "text")
    pq.write_table(pa.table({"item_id": [5, 2, 9, 7, 1], "text": text, "visual": visual}), path)
    pq.write_table(pa.table({"item_id": [5, 5, 2], "other_id": [7, 2, 9]}), path.with_name("pairs.parquet"))
    pairs = LearnerInputs(pairs=True)
    found = [read_item_vectors(path, columns, normalize, tmp_path if to_disk else None, pairs, batch_rows=2)]
    assert found[0].partly == 2
    if to_disk:
        found.append(map_item_vectors(path, columns, tmp_path, pairs))
    for one in found:
        assert one.item_ids_N.tolist() == [5, 7, 1]
        assert one.vectors_NV.tolist() == [[1, 1, 0], [0, 0, 1], [1 if normalize else 2, 0, 0]]
        assert one.left_out_M.tolist() == [2, 9]
        assert one.side.pairs_P2 is not None
        assert one.side.pairs_P2.tolist() == [[0, 1]]


def test_pairs_of_items_without_content_alone(tmp_path: Path) -> None:
    path = write_items(items(tmp_path), [5, 2, 9], text=TEXT * [[1], [0], [1]])
    pq.write_table(pa.table({"item_id": [5], "other_id": [2]}), path.with_name("pairs.parquet"))
    with pytest.raises(ContractError, match="expected at least one pair of items with content, got none"):
        read_item_vectors(path, ("text",), True, None, LearnerInputs(pairs=True))


def test_ids_of_items_without_content_are_checked_too(tmp_path: Path) -> None:
    write_items(items(tmp_path), [5, 2, 5], text=TEXT * [[1], [1], [0]])
    assert "row 2, column item_id: expected every item once, got 5, already in row 0" in refusal(items(tmp_path))


def test_vectors_with_some_values_missing(tmp_path: Path) -> None:
    lists = pa.array([None, [1, 2], [1, None], [3, 4]], pa.list_(pa.float32(), 2))
    pq.write_table(pa.table({"item_id": [1, 2, 3, 4], "text": lists}), items(tmp_path))
    assert "row 2 (item 3), column text: expected a whole vector, got missing values" in refusal(items(tmp_path))


@pytest.mark.parametrize("scale", [1e-44, 1e-38, 1e-30, 1e-20, 1e-13, 1.0, 1e13, 1e20, 1e30, 5e37])
def test_the_length_of_vectors_that_are_scaled_does_not_matter(tmp_path: Path, scale: float) -> None:
    """Of the same directions in float64. 1e-44 is among the numbers of float32 that have few digits."""
    vectors = (clustered_vectors(20) * scale).astype(np.float32)
    exact = vectors.astype(np.float64)
    path = write_items(items(tmp_path), np.arange(1, 21), text=vectors)
    found = read_item_vectors(path, ("text",), normalize=True)
    kept = exact.any(axis=1)
    expected = exact[kept] / np.linalg.norm(exact[kept], axis=1, keepdims=True)
    assert found.vectors_NV == pytest.approx(expected, rel=1e-5, abs=1e-7)
    assert len(found.left_out_M) == 20 - kept.sum()


def test_one_long_vector_among_short_ones_is_scaled_alone(tmp_path: Path) -> None:
    path = write_items(items(tmp_path), [1, 2, 3], text=TEXT * np.array([[1e37], [1], [1e-37]], np.float32))
    found = read_item_vectors(path, ("text",), normalize=True)
    assert found.vectors_NV == pytest.approx(np.array([[0.6, 0.8], [0, 1], [1, 0]]), rel=1e-6)


@pytest.mark.parametrize(
    ("scales", "where", "length"),
    [
        ((1, 1e30, 1e-30), "row 1 (item 2), column text", "2e+30"),
        ((1, 2e19, 1), "row 1 (item 2), column text", "4e+19"),
        ((1e-30, 1e-30, 1e-30), "column text", "5e-30"),
        ((1e-40, 1e-17, 0), "column text", "2e-17"),
    ],
)
def test_lengths_that_nothing_scales_must_have_squares(
    tmp_path: Path, scales: tuple[float, ...], where: str, length: str
) -> None:
    write_items(items(tmp_path), [1, 2, 3], text=TEXT * np.array(scales, np.float32)[:, None])
    expected = f"{where}: expected vectors of length 1e-15 to 1e+18, whose squares float32 holds, got {length}; "
    assert expected in refusal(items(tmp_path), normalize=False)


def test_item_ids_must_be_there_positive_and_once(tmp_path: Path) -> None:
    path = items(tmp_path)
    for ids, sentence in (
        ([4, None, 6], "row 1, column item_id: expected an item id, got no value"),
        ([4, 5, 0], "row 2, column item_id: expected ids above 0, got 0"),
        ([4, -5, 6], "row 1, column item_id: expected ids above 0, got -5"),
        ([4, 6, 4], "row 2, column item_id: expected every item once, got 4, already in row 0"),
    ):
        write_items(path, ids, text=TEXT)
        assert sentence in refusal(path)


def test_side_information_is_passed_unchanged(tmp_path: Path) -> None:
    """Behaviour stays raw, zero vectors included, while vectors are normalised; pairs are row numbers."""
    path = write_items(items(tmp_path), [5, 2, 9], text=TEXT, behavior=BEHAVIOR)
    pq.write_table(pa.table({"item_id": [9, 2], "other_id": [5, 9]}), tmp_path / "pairs.parquet")
    for scratch in (None, tmp_path):
        found = read_item_vectors(path, ("text",), True, scratch, LearnerInputs(pairs=True, behavior=True))
        assert found.vectors_NV == pytest.approx(np.array([[0.6, 0.8], [0, 1], [1, 0]]))
        assert found.side.columns == (("text", 2),)
        assert found.side.behavior_NE is not None
        assert isinstance(found.side.behavior_NE, np.memmap) == (scratch is not None)
        assert found.side.behavior_NE.tolist() == BEHAVIOR.tolist()
        assert found.side.pairs_P2 is not None
        assert found.side.pairs_P2.tolist() == [[2, 0], [1, 2]]
    nothing = read_item_vectors(path, ("text",), True).side
    assert (nothing.behavior_NE, nothing.pairs_P2) == (None, None)


def test_side_information_that_is_not_there(tmp_path: Path) -> None:
    path = write_items(items(tmp_path), [5, 2, 9], text=TEXT)
    with pytest.raises(ContractError, match=r"items\.parquet: expected a column behavior .*sidrec prep behavior"):
        read_item_vectors(path, ("text",), True, None, LearnerInputs(behavior=True))
    with pytest.raises(ContractError, match=r"pairs\.parquet: expected item pairs .* got no such file"):
        read_item_vectors(path, ("text",), True, None, LearnerInputs(pairs=True))


def test_behavior_as_a_vector_column(tmp_path: Path) -> None:
    """Raw where the learner uses the norm; zeros only where the learner can tell what they mean."""
    path = write_items(items(tmp_path), [5, 2, 9], text=TEXT, behavior=BEHAVIOR)
    columns = ("text", "behavior")
    raw = read_item_vectors(path, columns, True, None, learner_inputs(AdcSidConfig())).vectors_NV
    assert raw == pytest.approx(np.array([[0.6, 0.8, 3, 4], [0, 1, 0, 0], [1, 0, 0, 0.5]]))
    unit = read_item_vectors(path, columns, True, None, learner_inputs(MmRqVaeConfig())).vectors_NV
    assert unit[:, 2:] == pytest.approx(np.array([[0.6, 0.8], [0, 0], [0, 1]]))
    sentence = r"row 1 \(item 2\), column behavior: expected a vector with some content \(only adc_sid and mm_rqvae "
    with pytest.raises(ContractError, match=sentence):
        read_item_vectors(path, columns, True)
    write_items(path, [5, 2, 9], text=TEXT * [[1], [0], [0]], behavior=BEHAVIOR)
    found = read_item_vectors(path, columns, True, None, learner_inputs(AdcSidConfig()))
    assert (found.item_ids_N.tolist(), found.left_out_M.tolist(), found.partly) == ([5, 9], [2], 1)


@pytest.mark.parametrize("to_disk", [False, True])
def test_items_without_behavior_are_left_out_where_it_is_all_there_is(tmp_path: Path, to_disk: bool) -> None:
    behavior = np.array([[3, 4], [0, 0], [0, 0.5], [0, 0]])
    path = write_items(items(tmp_path), [5, 2, 9, 7], behavior=behavior)
    counts = pa.array([4, 3, 2, 1], pa.int64())
    pq.write_table(pq.read_table(path).append_column("train_impressions", counts), path)
    scratch = tmp_path if to_disk else None
    found = [read_item_vectors(path, ("behavior",), True, scratch, batch_rows=2)]
    if to_disk:
        found.append(map_item_vectors(path, ("behavior",), tmp_path))
    for one in found:
        assert one.left_out_M.tolist() == [2, 7]
        assert one.item_ids_N.tolist() == [5, 9]
        assert one.vectors_NV == pytest.approx(np.array([[0.6, 0.8], [0, 1]]))
        assert one.side.train_impressions_N is not None
        assert one.side.train_impressions_N.tolist() == [4, 2]
    unknown_too = read_item_vectors(path, ("behavior",), True, None, learner_inputs(AdcSidConfig()))
    assert unknown_too.left_out_M.tolist() == [2, 7]


def test_no_item_with_behavior(tmp_path: Path) -> None:
    path = write_items(items(tmp_path), [5, 2, 9], behavior=BEHAVIOR * 0)
    assert "column behavior: expected vectors with some content, got all zeros" in refusal(path, ("behavior",))
