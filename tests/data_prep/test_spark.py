"""Preparation on Spark makes the rows of the specification: on any number of partitions, and on a cluster.

Needs PySpark and Java, which are no part of the test environment: `pip install 'sidrec[spark]'` and a Java runtime.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data_prep.build import LogSettings
from data_prep.interactions import Columns
from tests.data_prep.event_lists import read_rows
from tests.data_prep.plain_log import plain_rows
from tests.data_prep.test_engines import SETTINGS, hard_log, prepare, write_log
from tests.data_prep.test_log_state import LABELS, POSITIVES, Stream, three_days
from tests.digests import digest

pyspark = pytest.importorskip("pyspark", reason="Spark is not installed: pip install 'sidrec[spark]'")
if shutil.which("java") is None:
    pytest.skip("no Java runtime", allow_module_level=True)


@pytest.fixture
def spark(request: pytest.FixtureRequest) -> Iterator[None]:
    """Sets the number of partitions of the session that `prepare` will find, and stops it."""
    from pyspark.sql import SparkSession

    from data_prep.spark_engine import spark_session

    spark_session("local[2]", 1 << 30).conf.set("spark.sql.shuffle.partitions", request.param)
    yield
    if (session := SparkSession.getActiveSession()) is not None:
        session.stop()


@pytest.mark.parametrize("spark", [1, 3, 8], indirect=True)
def test_partitions_change_no_row(spark: None, tmp_path: Path) -> None:
    events = hard_log(600, days=40)
    log = write_log(events, tmp_path / "log")
    for implicit in (False, True):
        out, by_duckdb = tmp_path / f"spark-{implicit}", tmp_path / f"duckdb-{implicit}"
        found = prepare(log, out, implicit=implicit, engine="spark", master="local[2]", **SETTINGS)
        assert found == plain_rows(events, LogSettings(**SETTINGS), implicit=implicit)
        prepare(log, by_duckdb, implicit=implicit, **SETTINGS)
        assert digest(out) == digest(by_duckdb)


@pytest.mark.parametrize("spark", [3], indirect=True)
@pytest.mark.parametrize("columns", [LABELS, POSITIVES], ids=["labels", "negatives"])
def test_days_one_by_one_are_those_of_duckdb(spark: None, columns: Columns, tmp_path: Path) -> None:
    found = []
    for engine in ("spark", "duckdb"):
        stream = Stream(tmp_path / engine, three_days(), columns, engine=engine, master="local[2]")
        found.append([stream.first(), stream.day(1)])
    for here, there in zip(*found, strict=True):
        assert digest(here / "state") == digest(there / "state")
        assert read_rows(here) == read_rows(there)


def _start(words: list[str], log: Path, ready: str) -> "subprocess.Popen[bytes]":
    """A process of Spark's, once its log says `ready`."""
    command = [str(Path(pyspark.__file__).parent / "bin" / "spark-class"), *words]
    python = {"PYSPARK_PYTHON": sys.executable, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, stdout=stream, stderr=stream, env=os.environ | python, start_new_session=True
        )
    deadline = time.monotonic() + 120
    while ready not in log.read_text(errors="replace"):
        assert process.poll() is None, log.read_text(errors="replace")
        assert time.monotonic() < deadline, f"{words} is not ready:\n{log.read_text(errors='replace')}"
        time.sleep(0.2)
    return process


def test_a_cluster_of_a_master_and_two_workers(tmp_path: Path) -> None:
    """Four processes of their own: master, two workers and the command, with paths that all of them reach."""
    events = hard_log(600, days=40)
    log, found = write_log(events, tmp_path / "log"), []
    deploy, started = "org.apache.spark.deploy", []
    try:
        words = [f"{deploy}.master.Master", "--host", "localhost", "--port", "0", "--webui-port", "0"]
        started.append(_start(words, tmp_path / "master.log", "I have been elected leader"))
        text = (tmp_path / "master.log").read_text()
        url = "spark://" + text.partition("spark://")[2].split()[0].rstrip(".,")
        for number in range(2):
            words = [f"{deploy}.worker.Worker", "--cores", "1", "--memory", "1g", "--host", "localhost"]
            words += ["--webui-port", "0", "--work-dir", str(tmp_path / f"worker{number}"), url]
            started.append(_start(words, tmp_path / f"worker{number}.log", "Successfully registered with master"))
        command: list[Any] = [
            sys.executable,
            "-m",
            "data_prep.interactions",
            log,
            tmp_path / "out",
            "--engine",
            "spark",
        ]
        flags = {f"--{name.replace('_', '-')}": value for name, value in SETTINGS.items()}
        command += ["--master", url, *(word for pair in flags.items() for word in pair)]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        found = [path for number in range(2) for path in (tmp_path / f"worker{number}").glob("app-*/*")]
    finally:
        for process in reversed(started):
            os.killpg(process.pid, 9)
            process.wait()
    assert len(found) == 2, "an executor on each worker"
    prepare(log, tmp_path / "duckdb", implicit=True, **SETTINGS)
    assert digest(tmp_path / "out") == digest(tmp_path / "duckdb")
