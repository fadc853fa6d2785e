"""What `sidrec fit` refuses before any training of a gradient-trained learner, and what an artifact refuses later."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sidrec import cli
from sidrec.schema import ContractError
from sidrec.sid.catalog import load_catalog
from sidrec.sid.learners.registry import load_tokenizer
from tests.sid.gradient_recipe import BEHAVIOR, ITEMS, TEXT, write_world
from tests.sid.item_files import vector_column, write_items

BOTH = ("text", "behavior")
Spoil = Callable[[Path], None]


def changed(column: str, row: int, value: float) -> Spoil:
    """All values of a row."""

    def spoil(path: Path) -> None:
        columns = {"text": TEXT.copy(), "behavior": BEHAVIOR.copy()}
        columns[column][row] = value
        write_items(path, np.arange(1, ITEMS + 1), None, **columns)

    return spoil


def missing(path: Path) -> None:
    """Row 5 has a behaviour vector without its second value."""
    columns = {"item_id": pa.array(np.arange(1, ITEMS + 1)), "text": vector_column(TEXT)}
    values = pa.array(BEHAVIOR.ravel(), mask=np.arange(BEHAVIOR.size) == 5 * 4 + 1)
    columns["behavior"] = pa.FixedSizeListArray.from_arrays(values, 4)
    pq.write_table(pa.table(columns), path)


def few(path: Path) -> None:
    write_items(path, np.arange(1, 6), text=TEXT[:5], behavior=BEHAVIOR[:5])


def twice(path: Path) -> None:
    write_items(path, [*range(1, ITEMS), 3], text=TEXT, behavior=BEHAVIOR)


def unused(path: Path) -> None:
    write_items(path, np.arange(1, ITEMS + 1), text=TEXT, behavior=BEHAVIOR * 0)


def text_alone(path: Path) -> None:
    write_items(path, np.arange(1, ITEMS + 1), text=TEXT)


def as_it_is(_: Path) -> None:
    return


@pytest.mark.parametrize(
    ("kind", "vectors", "spoil", "sentence"),
    [
        ("rqvae", BOTH, changed("text", 5, np.nan), "row 5 (item 6), column text: expected finite values, got NaN"),
        ("adc_sid", BOTH, changed("behavior", 7, np.inf), "row 7 (item 8), column behavior: expected finite values"),
        ("rqvae", BOTH, changed("behavior", 5, 0), "row 5 (item 6), column behavior: expected a vector with some"),
        ("multi_vq", BOTH, changed("behavior", 5, 0), "(only adc_sid and mm_rqvae learn from items without behaviour)"),
        ("mm_rqvae", BOTH, few, "expected at least 8 items for codebook_size 8, got 5 items"),
        ("rqvae", BOTH, twice, "row 119, column item_id: expected every item once, got 3, already in row 2"),
        ("rqvae", BOTH, missing, "row 5 (item 6), column behavior: expected a whole vector, got missing values"),
        ("adc_sid", BOTH, missing, "row 5 (item 6), column behavior: expected a whole vector, got missing values"),
        ("rqvae", BOTH, text_alone, "expected a vector column behavior, got vector columns ['text']"),
        ("adc_sid", BOTH, unused, "column behavior: expected behaviour of some items, got all zeros"),
        ("letter", ("text",), text_alone, "as `sidrec prep behavior` adds it"),
        ("quasid", ("text",), as_it_is, "pairs.parquet: expected"),
        ("mm_rqvae", (*BOTH, "visual"), as_it_is, "expected a vector column visual"),
    ],
)
def test_one_message_and_no_file(
    kind: str,
    vectors: tuple[str, ...],
    spoil: Spoil,
    sentence: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = write_world(tmp_path / "world", kind, vectors)
    spoil(recipe.with_name("data") / "items.parquet")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    monkeypatch.setattr("sidrec.sid.training.trainer.Trainer.run", lambda _: pytest.fail("it trained"))
    assert cli.main(["fit", str(recipe)]) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.startswith("sidrec: error: ")
    assert said.count("\n") == 1
    assert sorted(path.name for path in recipe.parent.iterdir()) == ["data", "recipe.yaml"]
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize(
    ("flag", "value", "sentence"),
    [("lr", "1e30", "the loss is "), ("least-utilisation", "1", "of its codes are in use after the training")],
)
def test_a_training_that_fails_leaves_nothing_either(
    flag: str, value: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Four vectors for eight codes, or steps so long that the loss overflows."""
    recipe = write_world(tmp_path, epochs=4)
    write_items(tmp_path / "data" / "items.parquet", np.arange(1, ITEMS + 1), text=np.repeat(TEXT[:4], 30, axis=0))
    assert cli.main(["fit", str(recipe), f"--tokenizer.learner.training.{flag}", value]) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "recipe.yaml"]


@pytest.mark.parametrize("kind", ["rqvae", "multi_vq", "residual_kmeans", "opq", "random"])
def test_vectors_of_another_width_do_not_fit_the_artifact(kind: str, tmp_path: Path) -> None:
    recipe = write_world(tmp_path, kind)
    if kind in ("residual_kmeans", "opq", "random"):
        learner = f"  learner: {{kind: {kind}, levels: 2, codebook_size: 8}}\n"
        recipe.write_text(recipe.read_text().split("  learner:")[0] + learner)
    assert cli.main(["fit", str(recipe)]) == 0
    catalog, (tokenizer, _) = load_catalog(tmp_path / "catalog"), load_tokenizer(tmp_path / "catalog" / "tokenizer")
    sentence = r"item vectors: expected shape \[items, 8\], as the tokenizer was fitted, got \(2, 7\)"
    with pytest.raises(ContractError, match=sentence):
        tokenizer.encode(TEXT[:2, :7])
    with pytest.raises(ContractError, match=sentence):
        catalog.extend(np.array([200, 201]), TEXT[:2, :7], tokenizer)
    assert len(catalog.extend(np.array([200, 201]), TEXT[:2], tokenizer)) == ITEMS + 2
