"""MovieLens: `python -m data_prep.movielens SRC OUT`, for latest-small, 20M, 25M, 32M (CSV), 1M (`::` files), 100K."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated
from zipfile import is_zipfile

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import tyro

from sidrec.command_line import metavar
from sidrec.errors import ContractError

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
from .source_files import DAT_SEPARATOR, blocks, dat_blocks, whole

MOVIE, TITLE, GENRES = "movieId", "title", "genres"
RATING_COLUMNS = ("userId", MOVIE, "rating", "timestamp")
NO_GENRE = "(no genres listed)"


@dataclass(frozen=True)
class MovieLensCommand:
    """Writes log/ and items.parquet from MovieLens (latest-small, 100K, 1M, 20M, 25M or 32M)."""

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
        check_folder(self.src)
        source = MovieLens(self.src, self.threshold)
        prepare(source, self.out, self.log, implicit=False, vectors=self.vectors, inputs=(self.src,))


@dataclass(frozen=True)
class Layout:
    """Names of the two files, and how to read them. separator: between values; empty for CSV with a header."""

    ratings: str
    movies: str
    movie_columns: tuple[str, ...] = (MOVIE, TITLE, GENRES)
    separators: tuple[bytes, bytes] = (b"", b"")


FLAGS = (
    *(
        "unknown",
        "Action",
        "Adventure",
        "Animation",
        "Children's",
        "Comedy",
        "Crime",
        "Documentary",
        "Drama",
        "Fantasy",
    ),
    *("Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)
"""Genres of 100K, in the order of its columns of 0 and 1."""
LAYOUTS = (
    Layout("ratings.csv", "movies.csv"),
    Layout("ratings.dat", "movies.dat", separators=(DAT_SEPARATOR, DAT_SEPARATOR)),
    Layout("u.data", "u.item", (MOVIE, TITLE, "released", "video", "url", *FLAGS), (b"\t", b"|")),
)


def layout_of(folder: Path) -> Layout | None:
    """The layout whose ratings are in the folder; `::` files before CSV, if both are."""
    return next((layout for layout in reversed(LAYOUTS) if (folder / layout.ratings).is_file()), None)


def check_folder(folder: Path) -> None:
    """Raises ContractError for an archive or another file, and for a folder that is there and holds no ratings."""
    expected = f"a folder with {', '.join(layout.ratings for layout in LAYOUTS[:-1])} or {LAYOUTS[-1].ratings}"
    if folder.is_file():
        got = "an archive; unzip it and name the folder" if is_zipfile(folder) else "a file; name the folder it is in"
        raise ContractError(folder, expected, got)
    if not folder.is_dir() or layout_of(folder) is not None:
        return
    inside = sorted(path for path in folder.iterdir() if layout_of(path) or path.suffix.lower() == ".zip")
    got = "none in it"
    if inside:
        got += f"; name {inside[0]}" if inside[0].is_dir() else f"; unzip {inside[0]} and name its folder"
    raise ContractError(folder, expected, got)


@dataclass(frozen=True)
class MovieLens:
    """A MovieLens folder as a source of events."""

    folder: Path
    threshold: float

    @property
    def name(self) -> str:
        return f"movielens {Path(os.path.realpath(self.folder)).name}"

    @property
    def _layout(self) -> Layout:
        return layout_of(self.folder) or LAYOUTS[0]

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.folder / self._layout.ratings, self.folder / self._layout.movies)

    event_columns: EventColumns = field(default=EventColumns(), init=False)

    @property
    def labels(self) -> str:
        return f"1 where the rating is at least {self.threshold:g} stars; every rating is a row"

    @cached_property
    def _movies(self) -> pa.Table:
        path, columns, separator = self.files[1], self._layout.movie_columns, self._layout.separators[1]
        if not separator:
            return whole(blocks(path, columns, free_text=(TITLE, GENRES)), path, MOVIE)
        movies = whole(dat_blocks(path, columns, separator), path, MOVIE)
        return movies if GENRES in columns else movies.append_column(GENRES, _named_genres(movies))

    def catalog(self) -> list[str]:
        return list(self._movies[MOVIE].to_pylist())

    def events(self) -> Iterator[pa.Table]:
        path, separator = self.files[0], self._layout.separators[0]
        found = dat_blocks(path, RATING_COLUMNS, separator) if separator else blocks(path, RATING_COLUMNS)
        for lines, table in found:
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


def _named_genres(movies: pa.Table) -> pa.Array:
    """The flags of 100K as the other layouts write them: `Action|Comedy`."""
    flags = zip(*(movies[name].to_pylist() for name in FLAGS[1:]), strict=True)
    named = ["|".join(name for name, flag in zip(FLAGS[1:], row, strict=True) if flag == "1") for row in flags]
    return pa.array(named, pa.string())


if __name__ == "__main__":
    run(MovieLensCommand, "data_prep.movielens", "raw/ml-25m data/ml-25m")
