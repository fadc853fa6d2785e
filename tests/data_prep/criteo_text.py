"""Raw Criteo text for tests, and a plain reading of it: one line and one field at a time."""

import gzip
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np


def line(label: int | str, dense: Mapping[int, object] | None = None, values: Mapping[int, str] | None = None) -> str:
    """A line with I<n> and C<n> given by number and all other fields empty."""
    fields = [str(label)]
    fields += [str((dense or {}).get(number, "")) for number in range(1, 14)]
    fields += [(values or {}).get(number, "") for number in range(1, 27)]
    return "\t".join(fields)


def random_lines(rows: int, seed: int) -> list[str]:
    random = np.random.default_rng(seed)
    lines = []
    for _ in range(rows):
        dense = {n: int(random.integers(-2, 5000)) for n in range(1, 14) if random.random() < 0.8}
        values = {
            n: f"{random.geometric(0.02) * 2654435 * n % 2**32:08x}" for n in range(1, 27) if random.random() < 0.9
        }
        lines.append(line(int(random.random() < 0.3), dense, values))
    return lines


def write(path: Path, lines: list[str], end: str = "\n") -> Path:
    text = ("\n".join(lines) + end).encode()
    path.write_bytes(gzip.compress(text, mtime=0) if path.suffix == ".gz" else text)
    return path


def dense_of(text: str) -> np.float32:
    value = float(text or 0)
    return np.float32(math.log1p(max(value, 0.0)) if math.isfinite(value) else 0.0)


def plain_reading(days: list[list[str]], threshold: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Dense, sparse, labels of every day, with ids by a vocabulary over all of them."""
    rows = [[text.split("\t") for text in lines] for lines in days]
    ids: list[dict[str, int]] = []
    for column in range(26):
        counts = Counter(fields[14 + column] for day in rows for fields in day if fields[14 + column])
        kept = sorted((v for v, n in counts.items() if n >= threshold), key=lambda v: (-counts[v], int(v, 16)))
        ids.append(dict.fromkeys(counts, 1) | {"": 0} | {value: place + 2 for place, value in enumerate(kept)})
    return [
        (
            np.array([[dense_of(text) for text in fields[1:14]] for fields in day], np.float32),
            np.array([[ids[c].get(fields[14 + c], 0) for c in range(26)] for fields in day], np.int32),
            np.array([[int(fields[0])] for fields in day], np.int32),
        )
        for day in rows
    ]
