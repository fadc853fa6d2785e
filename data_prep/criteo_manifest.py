"""What manifest.json says about prepared Criteo files.

format, rows; dense: the transform in words; categorical: how ids came to be, table_rows by column (largest id + 1)
and, with a vocabulary, distinct values by column; days: each one's source, rows and positives, and how many raw values
were missing, not finite, negative, by column; files: size and sha256 of every file.
"""

import json
from pathlib import Path
from typing import cast

from data_prep.criteo_days import Day, Steps
from data_prep.criteo_layout import VOCABULARY
from data_prep.criteo_rows import CATEGORICAL, DENSE_TRANSFORM
from sidrec import schema

FORMAT = 1


def ids_in_words(threshold: int, hash_rows: int | None) -> dict[str, object]:
    if hash_rows is not None:
        return {"kind": "hashing", "ids": f"0 missing, else 1 + value mod {hash_rows - 1}"}
    words = "0 missing; 1 in all files less often than the threshold; from 2 on the most frequent first, then by value"
    return {"kind": VOCABULARY, "threshold": threshold, "ids": words}


def manifest(days: tuple[Day, ...], steps: Steps) -> dict[str, object]:
    """Of days that all steps have been done for."""
    told: list[dict[str, object]] = []
    files: dict[str, object] = {}
    numbers: dict[str, object] = {"table_rows": [steps.hash_rows] * len(CATEGORICAL)}
    if steps.hash_rows is None:
        numbers = steps.done(VOCABULARY)
        files |= cast(dict[str, object], numbers.pop("files"))
    for day in days:
        read = steps.done(day.reading)
        told.append(
            {"day": day.number, "source": {"name": day.source.name, "bytes": read["source"][1]}, **read["tally"]}
        )
        own = read["files"] if steps.hash_rows else read["files"] | steps.done(day.encoding)["files"]
        files |= {name: own[name] for name in day.files}
    return {
        "format": FORMAT,
        "rows": sum(map(steps.rows, days)),
        "dense": DENSE_TRANSFORM,
        "categorical": ids_in_words(steps.threshold, steps.hash_rows) | numbers,
        "days": told,
        "files": files,
    }


def summary(out: Path) -> str:
    """What came out, in a sentence."""
    told = json.loads((out / schema.MANIFEST).read_text())
    rows, tables = told["rows"], sum(told["categorical"]["table_rows"])
    positive = sum(day["positives"] for day in told["days"]) / rows
    return f"{len(told['days'])} files, {rows:,} rows, {positive:.2%} positive, tables of {tables:,} rows in all"
