"""Engines of a preparation: what makes relations from SQL, here by DuckDB in this process.

A preparation is a sequence of named relations (`data_prep.log_relations`), each a query over earlier ones in the SQL
that DuckDB and Spark have in common: joins, GROUP BY, window functions. Where the two differ, an engine has a method.
An engine stores each relation as Parquet below one folder. A stored relation is whole, as it gets its name last; a
preparation that was killed finds it again and goes on after it.

Results do not depend on threads, memory or the number of partitions: every order that matters is stated, sums are of
integers, and functions of NumPy are applied row by row.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from sidrec.errors import ContractError
from sidrec.io.files import replaced_file
from sidrec.io.progress import Bar, looking

BATCH = 1 << 17  # rows that a function is given
ROW_GROUP = 1 << 17
PYTHON = 700 << 20  # bytes of this process besides DuckDB's: libraries, blocks of the source, row groups to write
LEAST = 200 << 20  # bytes that DuckDB is given in any case
SECONDS = 0.5  # between looks at the progress of a query

MapFunction = Callable[[pa.RecordBatch], pa.RecordBatch]
"""A function of rows alone: the same result, whatever batches the rows come in."""
WriteFunction = Callable[[Iterable[pa.RecordBatch]], Iterator[int]]
"""Writes sorted rows, and yields how many as they are written."""


class Engine(ABC):
    """Named relations. Names and columns are lower-case words.

    local: whether this process alone makes all rows, so that they may depend on files that it maps into memory.
    """

    local: bool

    @abstractmethod
    def path(self, name: str) -> Path:
        """The file or folder of a relation, which may not be there yet."""

    @abstractmethod
    def attach(self, name: str, path: Path) -> None:
        """Lets queries name Parquet files, perhaps of another folder."""

    @abstractmethod
    def make(self, name: str, query: str) -> None:
        """Stores the rows of a query."""

    @abstractmethod
    def map(self, name: str, query: str, function: MapFunction, arrow: pa.Schema) -> None:
        """Stores the function's results on the rows of a query. arrow: their columns."""

    @abstractmethod
    def drop(self, name: str) -> None:
        """Deletes a relation that no later query needs."""

    @abstractmethod
    def read(self, query: str) -> Iterator[pa.RecordBatch]:
        """The rows of a query, in batches."""

    @abstractmethod
    def write_parts(self, query: str, order: str, function: WriteFunction) -> Iterator[int]:
        """Calls the function with the rows of a query, sorted by part and `order`; each part in one call.

        Yields numbers of rows as they are written.
        """

    @abstractmethod
    def list_of(self, value: str, order: str) -> str:
        """SQL of an aggregate: the list of `value` in the order of `order`."""

    @abstractmethod
    def exploded(self, relation: str, key: str, values: str) -> str:
        """A query of columns `key`, place (bigint) and text: a row for each element of the list column `values`."""

    def stored(self, name: str) -> bool:
        """Whether the relation is there, perhaps from an earlier process."""
        return self.path(name).exists()

    def view(self, name: str) -> None:
        """Lets queries name a stored relation."""
        self.attach(name, self.path(name))

    @contextmanager
    def writer(self, name: str, arrow: pa.Schema) -> Iterator[pq.ParquetWriter]:
        """Yields a writer of rows, which become the relation when the block ends."""
        with (
            replaced_file(self.path(name), one_writer=True) as partial,
            pq.ParquetWriter(partial, arrow, compression="lz4") as writer,
        ):
            yield writer
        self.view(name)

    def put(self, name: str, table: pa.Table) -> None:
        """Stores a small table."""
        with self.writer(name, table.schema) as writer:
            writer.write_table(table)


def table(engine: Engine, query: str) -> pa.Table:
    """All rows of a query, which are few."""
    batches = list(engine.read(query))
    return pa.Table.from_batches(batches) if batches else pa.table({})


def value(engine: Engine, query: str) -> Any:
    """The one value of a query."""
    return table(engine, query).column(0)[0].as_py()


class DuckEngine(Engine):
    """DuckDB in this process, one Parquet file for each relation.

    folder: holds the relations, and what DuckDB spills. memory: bytes of the whole process; DuckDB gets what Python
    leaves, and spills beyond it. threads: of DuckDB.
    """

    local = True

    def __init__(self, folder: Path, memory: int, threads: int) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._duck = duckdb.connect()
        settings: Mapping[str, object] = {
            "threads": threads,
            "memory_limit": f"{max(LEAST, memory - PYTHON)}B",
            "temp_directory": str(folder / "spill"),
            "preserve_insertion_order": False,
            "enable_progress_bar": True,  # or there is no progress to ask for
            "enable_progress_bar_print": False,
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
        }
        for name, setting in settings.items():
            self._duck.execute(f"SET {name} = {_literal(setting)}")
        for path in sorted(folder.glob("*.parquet")):
            self.view(path.stem)

    def path(self, name: str) -> Path:
        return self._folder / f"{name}.parquet"

    def make(self, name: str, query: str) -> None:
        with replaced_file(self.path(name), one_writer=True) as partial:
            options = f"FORMAT parquet, COMPRESSION lz4, ROW_GROUP_SIZE {ROW_GROUP}"
            with self._progress(f"making {name}"):
                self._run(f"COPY ({query}) TO {_literal(str(partial))} ({options})")
        self.view(name)

    def map(self, name: str, query: str, function: MapFunction, arrow: pa.Schema) -> None:
        with self.writer(name, arrow) as writer:
            for batch in self.read(query):
                writer.write_batch(function(batch))

    def drop(self, name: str) -> None:
        self._duck.execute(f"DROP VIEW IF EXISTS {name}")
        self.path(name).unlink(missing_ok=True)

    def read(self, query: str) -> Iterator[pa.RecordBatch]:
        try:
            yield from self._duck.sql(query).to_arrow_reader(BATCH)
        except duckdb.Error as error:
            raise _refused(error) from error

    def write_parts(self, query: str, order: str, function: WriteFunction) -> Iterator[int]:
        yield from function(self.read(f"SELECT * FROM ({query}) AS r ORDER BY part, {order}"))

    def list_of(self, value: str, order: str) -> str:
        return f"LIST({value} ORDER BY {order})"

    def exploded(self, relation: str, key: str, values: str) -> str:
        places = f"CAST(GENERATE_SUBSCRIPTS({values}, 1) AS BIGINT)"
        return f"SELECT {key}, {places} AS place, UNNEST({values}) AS text FROM {relation}"

    def attach(self, name: str, path: Path) -> None:
        self._duck.execute(f"CREATE OR REPLACE VIEW {name} AS SELECT * FROM {_literal(str(path))}")

    @contextmanager
    def _progress(self, what: str) -> Iterator[None]:
        """A progress bar over DuckDB's estimate of the progress of the block's query, in percent."""
        with Bar(total=100, desc=what, unit="%", disable=None, leave=False) as bar:
            seen = 0.0

            def look() -> None:
                nonlocal seen
                now = max(seen, self._duck.query_progress())  # -1 before it is known
                bar.update(now - seen)
                seen = now

            with looking(look, SECONDS):
                yield

    def _run(self, statement: str) -> None:
        try:
            self._duck.execute(statement)
        except duckdb.Error as error:
            raise _refused(error) from error


def _literal(value: object) -> str:
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return str(value)


def _refused(error: Exception) -> Exception:
    """A sentence for memory and disk that do not suffice; other errors as they are."""
    if isinstance(error, duckdb.OutOfMemoryException):
        return ContractError("--memory", "more memory, or a disk with more room to spill", str(error).splitlines()[0])
    return error
