"""A preparation on Spark: `--engine spark --master URL`, the same relations on a cluster.

The relations are the folders that Spark writes below the work folder, which all machines must reach, as they reach OUT.
This process reads the source and the results that are small; everything else runs on the executors, which need the
same Python environment. Nothing is kept in memory from one relation to the next.

With a master such as `local[2]`, Spark runs in this process's machine.
"""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from sidrec.errors import ContractError

from .engine import Engine, MapFunction, WriteFunction

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

MISSING = "PySpark and Java: pip install 'sidrec[spark]', and a Java runtime of version 17 or later"


def spark_session(master: str, memory: int) -> "SparkSession":
    """A session whose driver may use `memory` bytes. Raises ContractError without PySpark, Java or the master."""
    try:
        from pyspark.sql import SparkSession
    except ImportError:
        raise ContractError("--engine spark", MISSING, "no module pyspark") from None
    if shutil.which("java") is None and "JAVA_HOME" not in os.environ:
        raise ContractError("--engine spark", MISSING, "no java on PATH, no JAVA_HOME")
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    settings = {
        "spark.driver.memory": f"{memory >> 20}m",
        "spark.sql.ansi.enabled": "true",
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.execution.arrow.pyspark.enabled": "true",
        "spark.sql.parquet.compression.codec": "lz4_raw",
        "spark.executorEnv.PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "spark.ui.enabled": "false",
    }
    builder = SparkSession.builder.appName("sidrec prep").master(master)
    for name, setting in settings.items():
        builder = builder.config(name, setting)
    try:
        session = builder.getOrCreate()
    except Exception as error:
        raise ContractError(f"--master {master}", "a Spark master that answers", str(error).splitlines()[0]) from error
    session.sparkContext.setLogLevel("ERROR")
    return session


class SparkEngine(Engine):
    """Relations as folders of Parquet files below `folder`."""

    local = False

    def __init__(self, session: "SparkSession", folder: Path) -> None:
        self._session, self._folder = session, folder.resolve()
        self._folder.mkdir(parents=True, exist_ok=True)
        for path in self._folder.iterdir():
            if path.suffix == ".partial":
                _delete(path)
            else:
                self.view(path.name)

    def path(self, name: str) -> Path:
        return self._folder / name

    def make(self, name: str, query: str) -> None:
        self._store(name, self._session.sql(query))

    def map(self, name: str, query: str, function: MapFunction, arrow: pa.Schema) -> None:
        from pyspark.sql.pandas.types import from_arrow_schema

        kinds = from_arrow_schema(arrow)
        self._store(name, self._session.sql(query).mapInArrow(_each(function), kinds))

    def drop(self, name: str) -> None:
        self._session.catalog.dropTempView(name)
        _delete(self.path(name))

    def read(self, query: str) -> Iterator[pa.RecordBatch]:
        """By way of files, as the rows may be many."""
        folder = self._folder / "read.partial"
        _delete(folder)
        self._session.sql(query).write.parquet(str(folder))
        for file in sorted(folder.glob("part-*.parquet")):  # Spark numbers them in the order of an ORDER BY
            yield from pq.ParquetFile(file).iter_batches()
        _delete(folder)

    def write_parts(self, query: str, order: str, function: WriteFunction) -> Iterator[int]:
        rows = self._session.sql(query)
        sorted_rows = rows.repartition("part").sortWithinPartitions("part", *order.split(", "))

        def write(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            yield pa.RecordBatch.from_pydict({"rows": [sum(function(batches))]})

        for row in sorted_rows.mapInArrow(write, "rows bigint").toLocalIterator():
            yield int(row["rows"])

    def list_of(self, value: str, order: str) -> str:
        return f"TRANSFORM(ARRAY_SORT(COLLECT_LIST(STRUCT({order} AS place, {value} AS value))), x -> x.value)"

    def exploded(self, relation: str, key: str, values: str) -> str:
        places = f"LATERAL VIEW POSEXPLODE({values}) AS at, text"
        return f"SELECT {key}, CAST(at + 1 AS BIGINT) AS place, text FROM {relation} {places}"

    def attach(self, name: str, path: Path) -> None:
        self._session.read.parquet(str(path.resolve())).createOrReplaceTempView(name)

    def _store(self, name: str, rows: "DataFrame") -> None:
        partial = self.path(name).with_name(f"{name}.partial")
        _delete(partial)
        rows.write.parquet(str(partial))
        partial.rename(self.path(name))
        self.view(name)


def _each(function: MapFunction) -> Any:
    """A function of batches; at a distance from the engine, which cannot be sent to executors."""

    def mapped(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        yield from map(function, batches)

    return mapped


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
