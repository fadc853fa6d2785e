"""The golden set on disk, and how it is compared: to the last bit where that is possible.

Numbers are compared exactly on a machine like the one that made the set: same processor, instruction set and
libraries. Other processors run other kernels, which add in another order. There a loss may differ by RTOL, 1e-5 of its
golden value, and digests of floating-point arrays are left out.

Why 1e-5: with torch, MKL, OpenBLAS, oneDNN and faiss restricted to AVX2 or to SSE on an AVX-512 processor, no loss of
any case moves by more than 2.4e-7 of its value (FBGEMM's kernels cannot be restricted). A learning rate of the tables
that is 0.1% larger moves some loss of each starting recipe by 2.5e-5 to 2.9e-3 of its value.

Counts and ranks move in steps: a metric such as an AUC may differ by RANKED, a few pairs of nearly equal scores. Codes
of a learner may flip where two codewords are equally near; see test_learners.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tests.golden.product import machine

SET = Path(__file__).parent / "v0.1.0"
"""The committed set."""
RTOL = 1e-5
"""Relative tolerance of losses on other machines."""
RANKED = 2e-3
"""Absolute tolerance of metrics on other machines."""
DIGEST = "sha256"
FINGERPRINT = "fingerprint"
"""Of a catalog, whose token weights are floating-point numbers. Its codes are compared by themselves."""


class Tolerance(NamedTuple):
    """How far numbers may be apart. Zeros mean: to the last bit."""

    relative: float
    absolute: float

    @property
    def exact(self) -> bool:
        """Whether digests of floating-point arrays count."""
        return self == (0.0, 0.0)


EXACT = Tolerance(0.0, 0.0)
LOSSES = Tolerance(RTOL, 0.0)
METRICS = Tolerance(RTOL, RANKED)
LEARNED = Tolerance(1e-4, 1e-4)


def read(subject: str, folder: Path = SET) -> Any:
    """What was recorded of a subject."""
    return json.loads((folder / f"{subject}.json").read_text())


def write(subject: str, content: dict[str, Any], folder: Path) -> None:
    """Writes FOLDER/SUBJECT.json: an entry of an entry is a line."""
    entries = [f"{json.dumps(name)}: {_lines(entry)}" for name, entry in content.items()]
    (folder / f"{subject}.json").write_text("{\n" + ",\n".join(entries) + "\n}\n")


def allowed(other: Tolerance) -> Tolerance:
    """Exact on a machine like the one that made the set, else `other`."""
    return tolerance(read("machine"), machine(), other)


def tolerance(golden_machine: dict[str, Any], this_machine: dict[str, Any], other: Tolerance) -> Tolerance:
    """EXACT where the golden set was made on a machine like this one, else `other`."""
    return EXACT if golden_machine == this_machine else other


def differences(golden: Any, found: Any, allowed: Tolerance, place: str = "") -> list[str]:
    """One line for each difference, with its place; empty where there is none."""
    return list(_differences(golden, found, allowed, place))


def _lines(entry: Any) -> str:
    if not isinstance(entry, dict):
        return json.dumps(entry)
    return "{\n" + ",\n".join(f" {json.dumps(key)}: {json.dumps(value)}" for key, value in entry.items()) + "\n}"


def _differences(golden: Any, found: Any, allowed: Tolerance, place: str) -> Iterator[str]:
    if isinstance(golden, dict) and isinstance(found, dict):
        yield from _keys(golden, found, place)
        float_array = "mean_magnitude" in golden
        for key in golden:
            inexact = (key == DIGEST and float_array) or key == FINGERPRINT
            if key in found and (allowed.exact or not inexact):
                yield from _differences(golden[key], found[key], allowed, f"{place}.{key}" if place else str(key))
    elif isinstance(golden, list) and isinstance(found, list):
        if len(golden) != len(found):
            yield f"{place}: {len(golden)} entries in the golden set, {len(found)} found"
        for number, pair in enumerate(zip(golden, found, strict=False)):
            yield from _differences(*pair, allowed, f"{place}[{number}]")
    elif not _alike(golden, found, allowed):
        yield f"{place}: {golden!r} in the golden set, {found!r} found"


def _keys(golden: dict[str, Any], found: dict[str, Any], place: str) -> Iterator[str]:
    for key in golden.keys() - found.keys():
        yield f"{place}: {key} is in the golden set and was not found"
    for key in found.keys() - golden.keys():
        yield f"{place}: {key} was found and is not in the golden set"


def _alike(golden: Any, found: Any, allowed: Tolerance) -> bool:
    if type(golden) is not type(found):
        return False
    if isinstance(golden, float) and not allowed.exact:
        return math.isclose(golden, found, rel_tol=allowed.relative, abs_tol=allowed.absolute)
    return golden == found or (golden != golden and found != found)  # NaN stands for "no such rows"
