"""Adds a vector column to items.parquet: `python -m data_prep.item_vectors DATA --from wordllama`."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tyro

from sidrec import schema
from sidrec.command_line import metavar
from sidrec.errors import ContractError
from sidrec.io.files import column_type, readable, replaced_file
from sidrec.io.output_lock import locked
from sidrec.text import near_file

from .command import rows_bar, run
from .events import CATALOG_TEXT

Embed = Callable[[list[str]], np.ndarray]
NONE = "none"
TEXT_SOURCES = {"wordllama": "wordllama", "sentence-transformers": "sentence_transformers"}
SENTENCE_MODEL = "sentence-transformers/all-MiniLM-L6-v2"


@dataclass(frozen=True)
class ItemVectors:
    """Adds or replaces a vector column of DATA/items.parquet."""

    data: tyro.conf.Positional[Annotated[Path, metavar("DATA")]]
    """Data folder that holds items.parquet."""
    source: Annotated[str, tyro.conf.arg(name="from", metavar="wordllama|sentence-transformers|FILE.npy")] = "wordllama"
    """Source of the vectors. FILE.npy: one row per item, row = item_id - 1."""
    column: Literal["text", "visual", "behavior"] = "text"
    """Vector column to write."""
    model: str = SENTENCE_MODEL
    """Model name or folder for sentence-transformers."""

    def run(self) -> None:
        with locked(self.data):
            print(add_vectors(self.data / schema.ITEMS, self.source, self.column, self.model))


def add_vectors(items: Path, source: str, column: str = "text", model: str = SENTENCE_MODEL) -> str:
    """Rewrites items.parquet with the column, by row groups. The file is replaced in one step.

    source: "wordllama", "sentence-transformers", or the path of a float .npy [items, width]. Items without text get
    zeros. Returns a message for the user. Raises ContractError for an invalid source, or one that does not
    match the items.
    """
    check_vector_source(source)
    if not items.is_file():
        raise ContractError(items, "an items.parquet, as data_prep writes it", f"no such file{near_file(items)}")
    with readable(items, "a readable items.parquet"):
        file = pq.ParquetFile(items)
        _check_ids(file, items)
    vectors_of = _from_text(source, model, file, items) if source in TEXT_SOURCES else _from_file(Path(source), file)
    with replaced_file(items, one_writer=True) as partial:
        without, width = _rewrite(file, partial, column, vectors_of, items)
    rows = file.metadata.num_rows
    return f"column {column}: {rows} vectors of width {width} from {source}; {without} of the items have a zero vector"


def _check_ids(file: pq.ParquetFile, items: Path) -> None:
    """Raises ContractError unless the item ids are 1, 2, ... up to the number of rows: a vector's row is its id - 1."""
    kind = column_type(file.schema_arrow, schema.ITEM_ID, items)
    rows = file.metadata.num_rows
    ids = file.read([schema.ITEM_ID])[schema.ITEM_ID]
    if not pa.types.is_integer(kind) or not np.array_equal(np.sort(ids.to_numpy()), np.arange(1, rows + 1)):
        expected = f"the integers 1 to {rows:,}, each once, as data_prep writes them"
        raise ContractError(f"{items}, column {schema.ITEM_ID}", expected, f"{kind} with other values")


def check_vector_source(source: str) -> None:
    """Raises ContractError for a source that cannot be used: an unknown name, a missing file or package."""
    if source in TEXT_SOURCES:
        if find_spec(TEXT_SOURCES[source]) is None:
            raise ContractError(f"vectors from {source}", f"the package {source}", "it is not installed")
    elif not source.endswith(".npy"):
        raise ContractError("--from, --vectors", f"{', '.join(TEXT_SOURCES)} or a file FILE.npy", repr(source))
    elif not Path(source).is_file():
        raise ContractError(source, "a .npy file of item vectors", f"no such file{near_file(Path(source))}")
    else:
        _array(Path(source))


def _rewrite(
    file: pq.ParquetFile, partial: Path, column: str, vectors_of: Callable[[pa.Table], np.ndarray], items: Path
) -> tuple[int, int]:
    without, width = 0, 0
    writer: pq.ParquetWriter | None = None
    try:
        with rows_bar(f"vectors: {column}", file.metadata.num_rows) as bar:
            for group in range(file.num_row_groups):
                with readable(items, "a readable items.parquet"):
                    table = file.read_row_group(group)
                vectors = vectors_of(table)
                without += int((~vectors.any(axis=1)).sum())
                width = vectors.shape[1]
                if column in table.column_names:
                    table = table.drop_columns([column])
                table = table.append_column(column, vector_column(vectors))
                writer = writer or pq.ParquetWriter(partial, table.schema)
                writer.write_table(table)
                bar.update(table.num_rows)
    finally:
        if writer is not None:
            writer.close()
    return without, width


def vector_column(vectors: np.ndarray) -> pa.FixedSizeListArray:
    """float [items, width] as a column of fixed-size float32 lists."""
    flat = np.ascontiguousarray(vectors, dtype=np.float32).reshape(-1)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), vectors.shape[1])


def _array(path: Path) -> np.ndarray:
    """The float array [rows, width] of a .npy file, mapped. Raises ContractError for any other content."""
    expected = "floats of shape [items, width], as numpy.save writes them"
    try:
        vectors = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:  # objects, a file that is cut or empty, or no .npy at all
        raise ContractError(path, expected, " ".join(str(error).split())) from None
    if not isinstance(vectors, np.ndarray):
        raise ContractError(path, expected, f"an .npz archive of the arrays {list(vectors)}")
    if vectors.ndim != 2 or vectors.dtype.kind != "f" or not vectors.size:
        raise ContractError(path, expected, f"{vectors.dtype} of shape {list(vectors.shape)}")
    return vectors


def _from_file(path: Path, file: pq.ParquetFile) -> Callable[[pa.Table], np.ndarray]:
    vectors, items = _array(path), file.metadata.num_rows
    if len(vectors) != items:
        expected = f"floats of shape [{items}, width], one row per item"
        raise ContractError(path, expected, f"{vectors.dtype} of shape {list(vectors.shape)}")

    def rows(table: pa.Table) -> np.ndarray:
        ids = table[schema.ITEM_ID].to_numpy()
        with np.errstate(over="ignore"):  # float64 beyond float32 becomes infinite, which is refused
            values = np.asarray(vectors[ids - 1], dtype=np.float32)
        bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
        if len(bad):
            raise ContractError(f"{path}, row {ids[bad[0]] - 1}", "finite numbers", "NaN or infinity")
        return values

    return rows


def _from_text(source: str, model: str, file: pq.ParquetFile, items: Path) -> Callable[[pa.Table], np.ndarray]:
    if CATALOG_TEXT not in file.schema_arrow.names:
        raise ContractError(items, f"a text column {CATALOG_TEXT}", f"columns {file.schema_arrow.names}")
    embed = _wordllama() if source == "wordllama" else _sentence_transformers(model)

    def rows(table: pa.Table) -> np.ndarray:
        texts = [text or "" for text in table[CATALOG_TEXT].to_pylist()]
        vectors = embed([text or " " for text in texts]).astype(np.float32)
        vectors[[not text.strip() for text in texts]] = 0.0
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.where(np.isfinite(norms) & (norms > 0), vectors / np.maximum(norms, 1e-12), 0.0).astype(np.float32)

    return rows


def _wordllama() -> Embed:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    import wordllama  # optional, like sentence_transformers below

    root.handlers[:] = before  # the import makes the whole process log to stderr
    root.setLevel(level)
    folder = Path(wordllama.__file__).parent
    model = wordllama.WordLlama.load(cache_dir=folder, disable_download=True)
    return lambda texts: np.asarray(model.embed(texts))


def _sentence_transformers(model: str) -> Embed:
    from sentence_transformers import SentenceTransformer

    encoder = SentenceTransformer(model)
    return lambda texts: np.asarray(encoder.encode(texts, show_progress_bar=False))


if __name__ == "__main__":
    run(ItemVectors, "data_prep.item_vectors", "data/beauty", "data/beauty --from images.npy --column visual")
