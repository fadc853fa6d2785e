"""What a command left: its files with their schemas and contents, and its words, without what no two runs share."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from safetensors.numpy import load_file

from tests.golden.product import product_version

MASK = "#"
VOLATILE = re.compile(
    r"seconds|samples_per|memory|^torch$|^torchrec$|^sidrec$|^versions$|^started$|^fitted$|^commit$|^stack$"
    r"|^processor$|^cores$|^ddr$|crc|sha256"
)
"""Keys whose values differ from run to run or from machine to machine; that they are there is still compared."""
PROSE = 4
"""Spaces that make a value a sentence: what it says may be said otherwise."""
MANY = 20
"""Tensors of a file from which they are described together."""


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """What tells whether a file was written again, for every file below `folder` by its relative path."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.stat().st_ino) for path in files}


def changed(folder: Path, before: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
    """Describes the files below `folder` that were written since `before`; None for those that are gone."""
    after = snapshot(folder)
    found = {_name(name): describe(folder / name) for name in after if after[name] != before.get(name)}
    return found | {_name(name): None for name in before.keys() - after.keys()}


def describe(path: Path) -> Any:
    """A file's schema and contents as plain data that JSON can hold."""
    if path.suffix == ".json":
        content = json.loads(path.read_text())
        special: dict[str, Callable[[Any], Any]] = {"index.json": _index, "bench.json": keys}
        return special.get(path.name, masked)(content)
    readers: dict[str, Callable[[Path], Any]] = {
        ".parquet": parquet,
        ".jsonl": lambda path: [masked(json.loads(line)) for line in path.read_text().splitlines()],
        ".yaml": lambda path: yaml.safe_load(path.read_text()),
        ".npy": lambda path: array(np.load(path, allow_pickle=False)),
        ".safetensors": lambda path: _tensors(load_file(path)),
        ".html": lambda path: "page" if path.name == "bench.html" else _cells(path.read_text()),
        ".png": lambda path: "picture",
        ".txt": lambda path: "text",
    }
    if path.name.startswith("events.out"):
        return "TensorBoard"
    if path.suffix in readers:
        return readers[path.suffix](path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def parquet(path: Path) -> dict[str, Any]:
    """Columns with their types and values, in their order."""
    table = pq.read_table(path)
    return {"rows": table.num_rows, "columns": {name: _column(table[name]) for name in table.column_names}}


def array(values: np.ndarray) -> dict[str, Any]:
    """Type, shape and digest; of floating-point numbers also two means, for machines that round otherwise."""
    facts: dict[str, Any] = {"type": str(values.dtype), "shape": list(values.shape)}
    facts["sha256"] = hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()[:16]
    if values.dtype.kind == "f":
        wide = values.astype(np.float64)
        facts |= {"mean": float(wide.mean()), "mean_magnitude": float(np.abs(wide).mean())} if values.size else {}
    return facts


def masked(value: Any) -> Any:
    """JSON content with MASK in the place of times, versions, checksums, memory and sentences."""
    if isinstance(value, dict):
        return {key: MASK if VOLATILE.search(key) else masked(inner) for key, inner in value.items()}
    if isinstance(value, str) and value.count(" ") >= PROSE:
        return MASK
    return [masked(inner) for inner in value] if isinstance(value, list) else value


def keys(value: Any) -> Any:
    """The keys of JSON content, and the types of what stands under them; of a list, its first entry's."""
    if isinstance(value, dict):
        return {key: keys(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [keys(value[0])] if value else []
    return type(value).__name__


def words(text: str, folder: Path) -> list[str]:
    """Lines of a command's output without times, speeds, versions and the folder it worked in."""
    text = text.replace(str(folder), "HERE").replace(product_version(), "VERSION")
    for pattern, mask in (
        (r"[\d,]+ samples/s", f"{MASK} samples/s"),
        (r"ETA (\d+:\d\d:\d\d|\?)", f"ETA {MASK}"),
        (r"\b\d[\d,]*(\.\d+)? s\b", f"{MASK} s"),
        (r"\d[\d,]* rows/s", f"{MASK} rows/s"),
        (r"(fit|encode)(ted|d) in \S+ s", f"{MASK} s"),
    ):
        text = re.sub(pattern, mask, text)
    return [line.rstrip() for line in text.splitlines() if not line.startswith("preflight: ")]


def without_numbers(lines: list[str]) -> list[str]:
    """The same lines for a machine whose last digits differ."""
    masked_lines = [re.sub(r"-?\d+\.\d+(e-?\d+)?|fingerprint [0-9a-f]+", MASK, line) for line in lines]
    return [re.sub(r"\s+", " ", line) for line in masked_lines]


def _tensors(tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    states = [name for name in tensors if "/random/" in name]  # of generators that belong to the process
    found = {name: f"{tensors[name].dtype} {list(tensors.pop(name).shape)}" for name in sorted(states)}
    if len(tensors) < MANY:
        return found | {name: array(tensor) for name, tensor in sorted(tensors.items())}
    floats = [tensor.ravel() for _, tensor in sorted(tensors.items()) if tensor.dtype.kind == "f"]
    return found | {"tensors": len(tensors), **array(np.concatenate(floats))}


def _index(content: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint's index, whose `tensors` and `files` hold one entry a name: the keys of the first of each."""
    first = {key: next(iter(value.items())) for key, value in content.items() if isinstance(value, dict)}
    return {key: keys(dict([first[key]])) if key in first else keys(value) for key, value in content.items()}


def _cells(page: str) -> list[str]:
    return [re.sub(r"<[^>]*>", "", cell) for cell in re.findall(r"<td.*?</td>", page, re.DOTALL)]


def _name(name: str) -> str:
    return re.sub(r"events\.out\.tfevents\.\S+", "events.out.tfevents", name)


def _column(column: pa.ChunkedArray) -> dict[str, Any]:
    combined = column.combine_chunks()
    facts: dict[str, Any] = {"column_type": str(column.type), "nulls": column.null_count}
    if pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type):
        lengths = array(np.array([0 if entry is None else len(entry) for entry in column.to_pylist()]))["sha256"]
        return facts | {"lengths": lengths, "values": _flat(combined.flatten())}
    return facts | {"values": _flat(combined)}


def _flat(values: pa.Array) -> dict[str, Any]:
    if pa.types.is_floating(values.type) or pa.types.is_integer(values.type):
        return array(values.fill_null(0).to_numpy(zero_copy_only=False))
    text = json.dumps(values.to_pylist(), default=str)
    return {"sha256": hashlib.sha256(text.encode()).hexdigest()[:16]}
