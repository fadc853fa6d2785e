"""examples/spark_log.py writes what a slow loop over the clicks computes, and `prep adopt` accepts it.

Needs PySpark and Java, which the suite does not install: `pip install pyspark`, and a Java runtime on PATH.
"""

import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sidrec.errors import printed_warnings
from sidrec.schema import load_manifest
from tests.data_prep.own_logs import run

pytest.importorskip("pyspark", reason="needs PySpark, which is not among the project's packages")
if shutil.which("java") is None:
    pytest.skip("needs a Java runtime", allow_module_level=True)

SCRIPT = Path(__file__).parents[2] / "examples/spark_log.py"
BEGIN, DAY = 1_714_521_600, 86_400  # 2024-05-01
HISTORY, RECENT = 4, 7 * DAY
CUTS = {"train": (0, 7), "validation": (7, 8), "test": (8, 10)}  # days
Row = dict[str, Any]


def clicks(rows: int = 1200) -> list[Row]:
    """Made-up clicks of ten days: many at equal times, some without a device."""
    random = np.random.default_rng(0)
    return [
        {
            "user": f"u{random.zipf(1.5) % 30}",
            "item": f"i{random.zipf(1.4) % 25:02}",
            "device": ("tv", "phone", "desk", None)[random.integers(4)],
            "time": BEGIN + int(random.integers(0, 10 * DAY // 3600)) * 3600,
            "clicked": int(random.random() < 0.4),
        }
        for _ in range(rows)
    ]


def expected(listed: list[Row]) -> list[Row]:
    """Rows of the log, each by a look at all others."""
    ids = {name: {value: k for k, value in enumerate(sorted({row[name] or "" for row in listed} - {""}), start=1)}
           for name in ("user", "item", "device")}  # fmt: skip
    found = []
    for row in listed:
        shown = [other for other in listed if other["item"] == row["item"] and other["time"] < row["time"]]
        recent = [other for other in shown if other["time"] >= row["time"] - RECENT]
        earlier = [other for other in listed if other["user"] == row["user"] and other["time"] < row["time"]]
        liked = sorted((other["time"], ids["item"][other["item"]]) for other in earlier if other["clicked"])
        found.append(
            {
                "timestamp": row["time"],
                "user_id": ids["user"][row["user"]],
                "item_id": ids["item"][row["item"]],
                "cat_device": ids["device"].get(row["device"], 0),
                "label": float(row["clicked"]),
                "int_user_events": np.float32(math.log1p(len(earlier))),
                "int_user_click_rate": np.float32((len(liked) + 1) / (len(earlier) + 2)),
                "stat_exposures": len(shown),
                "stat_clicks": sum(other["clicked"] for other in shown),
                "stat_exposures_recent": len(recent),
                "stat_clicks_recent": sum(other["clicked"] for other in recent),
                "history": [item for _, item in liked[-HISTORY:]],
            }
        )
    return found


def in_order(rows: list[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: tuple(row[name] for name in sorted(row)))


def test_the_job_writes_what_a_loop_over_the_clicks_computes(tmp_path: Path) -> None:
    listed = clicks()
    table = pa.Table.from_pylist(listed)
    times = pa.array(table["time"].to_numpy() * 1_000_000).cast(pa.timestamp("us", "UTC"))
    pq.write_table(table.set_column(3, "time", times), tmp_path / "clicks.parquet")
    days = ["--validation-from", "2024-05-08", "--test-from", "2024-05-09"]
    words = [str(tmp_path / "clicks.parquet"), str(tmp_path / "data"), *days, "--history", str(HISTORY), "--files", "3"]
    settings = "--master local[2] --conf spark.ui.enabled=false --conf spark.sql.shuffle.partitions=3 pyspark-shell"
    environment = os.environ | {"PYSPARK_SUBMIT_ARGS": settings, "PYSPARK_PYTHON": sys.executable}
    subprocess.run([sys.executable, str(SCRIPT), *words], check=True, env=environment, cwd=tmp_path)

    printed_warnings.clear()
    run(tmp_path / "data", jobs=1)
    assert printed_warnings == []
    manifest = load_manifest(tmp_path / "data/log")
    assert str(manifest.protocol["adopted"]["written_by"]).startswith("Spark ")  # type: ignore[index]
    assert manifest.history_length == HISTORY
    assert set(manifest.id_maps) == {"user_id", "item_id", "cat_device"}
    truth = expected(listed)
    for split, (first, last) in CUTS.items():
        wanted = [row for row in truth if BEGIN * (first > 0) + first * DAY <= row["timestamp"] < BEGIN + last * DAY]
        files = [tmp_path / "data/log" / file.path for file in manifest.files(split)]
        found = [row for file in files for row in pq.read_table(file).to_pylist()]
        assert len(wanted) > 50
        assert in_order(found) == in_order(wanted)
