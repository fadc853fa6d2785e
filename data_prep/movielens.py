"""MovieLens: `python -m data_prep.movielens SRC OUT`, for latest-small, 20M, 25M, 32M (CSV) and 1M (`::` files)."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import tyro

from sidrec.command_line import metavar

from .build import LogSettings, prepare
from .command import run
from .events import (
    CATALOG_TEXT,
    CATALOG_TITLE,
    ITEM,
    LABEL,
    TIMESTAMP,
    USER,
    EventColumns,
    IdMap,
    Items,
    by_item,
    check_events,
)
from .source_columns import numbers, seconds, texts
from .source_files import blocks, dat_blocks, whole

MOVIE, TITLE, GENRES = "movieId", "title", "genres"
RATING_COLUMNS = ("userId", MOVIE, "rating", "timestamp")
NO_GENRE = "(no genres listed)"


@dataclass(frozen=True)
class MovieLensCommand:
    """Writes log/ and items.parquet from MovieLens (latest-small, 1M, 20M, 25M or 32M)."""

    src: tyro.conf.Positional[Annotated[Path, metavar("SRC")]]
    """Folder with ratings and movies, as published (unzipped)."""
    out: tyro.conf.Positional[Annotated[Path, metavar("OUT")]]
    """Data folder to write."""
    log: Annotated[LogSettings, tyro.conf.arg(name="")] = field(default_factory=LogSettings)
    threshold: float = 4.0
    """Ratings of at least this are positive."""
    vectors: Annotated[str, metavar("SOURCE")] = "wordllama"
    """Item vectors from wordllama, sentence-transformers, none, or FILE.npy (row = item_id - 1)."""

    def run(self) -> None:
        source = MovieLens(self.src, self.threshold)
        prepare(source, self.out, self.log, implicit=False, vectors=self.vectors, inputs=(self.src,))


@dataclass(frozen=True)
class MovieLens:
    """A MovieLens folder as a source of events."""

    folder: Path
    threshold: float

    @property
    def name(self) -> str:
        return f"movielens {self.folder.resolve().name}"

    @property
    def _is_dat(self) -> bool:
        return (self.folder / "ratings.dat").is_file()

    @property
    def files(self) -> tuple[Path, ...]:
        suffix = "dat" if self._is_dat else "csv"
        return (self.folder / f"ratings.{suffix}", self.folder / f"movies.{suffix}")

    event_columns: EventColumns = field(default=EventColumns(), init=False)

    @property
    def labels(self) -> str:
        return f"1 where the rating is at least {self.threshold:g} stars; every rating is a row"

    @cached_property
    def _movies(self) -> pa.Table:
        columns = (MOVIE, TITLE, GENRES)
        path = self.files[1]
        found = dat_blocks(path, columns) if self._is_dat else blocks(path, columns, free_text=(TITLE, GENRES))
        return whole(found, path, MOVIE)

    def catalog(self) -> list[str]:
        return list(self._movies[MOVIE].to_pylist())

    def events(self) -> Iterator[pa.Table]:
        path = self.files[0]
        read = dat_blocks if self._is_dat else blocks
        for lines, table in read(path, RATING_COLUMNS):
            rating = numbers(table["rating"], pa.float64(), "rating", lines)
            events = pa.table(
                {
                    USER: texts(table["userId"]),
                    ITEM: texts(table[MOVIE]),
                    TIMESTAMP: seconds(table["timestamp"], 1, "timestamp", lines),
                    LABEL: pc.cast(pc.greater_equal(rating, self.threshold), pa.float32()),
                }
            )
            yield check_events(events, lines)

    def items(self, ids: IdMap) -> Items:
        movies = self._movies
        title = pc.utf8_trim_whitespace(pc.fill_null(movies[TITLE], ""))
        genres = pc.fill_null(movies[GENRES], "")
        genres = pc.if_else(pc.equal(genres, NO_GENRE), "", genres)
        year = pc.struct_field(pc.extract_regex(title, r"\((?P<year>\d{4})\)\s*$"), "year")
        decade = pc.fill_null(pc.binary_join_element_wise(pc.utf8_slice_codeunits(year, 0, 3), "0s", ""), "")
        text = pc.utf8_trim_whitespace(pc.binary_join_element_wise(title, pc.replace_substring(genres, "|", " "), " "))
        first_genre = pc.list_element(pc.split_pattern(genres, "|"), 0)
        item_M = ids.ids_of(movies[MOVIE])

        def padded(column: pa.ChunkedArray) -> pa.Array:
            return by_item(column, item_M, len(ids))

        table = pa.table(
            {
                "source_id": pa.array(ids.source_ids(), pa.string()),
                CATALOG_TITLE: padded(title),
                "genres": padded(genres),
                CATALOG_TEXT: padded(text),
            }
        )
        categories = {"cat_genre": padded(first_genre), "cat_decade": padded(decade)}
        notes = {"items": len(ids), "rated_but_not_in_movies_file": len(ids) - movies.num_rows}
        return Items(table, categories, {}, notes, listed=np.isin(np.arange(1, len(ids) + 1), item_M))


if __name__ == "__main__":
    run(MovieLensCommand, "data_prep.movielens", "raw/ml-25m data/ml-25m")
