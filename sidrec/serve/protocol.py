"""Requests and answers of the Open Inference Protocol, version 2 (KServe), with its binary tensors.

A request ranks the candidates of one user. Its tensors, each of one dimension:

    candidates            BYTES or INT64 [C]    item ids
    user                  BYTES or INT64 [1]    left out: an unknown user
    history               BYTES or INT64 [T]    items that the user liked, oldest first; may be left out
    STATISTIC             FP32 [C]              one for each statistic of the model
    DENSE                 FP32 [1] or [C]       one for each dense column
    COLUMN                BYTES or INT64        other id columns; may be left out

The answer has `score`, FP32 [C], the version of the bundle that gave it, and where the bundle calibrates, `calibrated`,
FP32 [C]. A request may name the outputs that it wants.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

CANDIDATES, USER_INPUT, HISTORY_INPUT = "candidates", "user", "history"
SCORE, CALIBRATED = "score", "calibrated"
HEADER_LENGTH = "Inference-Header-Content-Length"
BYTES, FP32 = "BYTES", "FP32"
NUMBERS = {FP32: "<f4", "FP64": "<f8", "INT32": "<i4", "INT64": "<i8"}
WHOLE = ("INT32", "INT64")


class RequestError(ValueError):
    """A request that cannot be answered: what was expected and what came, in a sentence."""


@dataclass(frozen=True)
class Limits:
    """candidates, history: most of a request. body: most bytes of its body. text: most letters of an id."""

    candidates: int
    body: int
    history: int = 1_000
    text: int = 1_024


Ids = list[str] | list[int]


@dataclass(frozen=True)
class RankRequest:
    """numbers: statistics and dense columns. ids: further id columns. outputs: those that are wanted. binary: whether
    they are sent as bytes."""

    candidates: Ids
    user: str | int | None
    history: Ids
    numbers: Mapping[str, NDArray[np.float32]]
    ids: Mapping[str, Ids]
    outputs: Sequence[str]
    id: str = ""
    binary: bool = False


@dataclass(frozen=True)
class Columns:
    """The columns of the model: numbers (statistics and dense columns), further id columns, and outputs."""

    numbers: Sequence[str]
    ids: Sequence[str]
    outputs: Sequence[str]


def parse(body: bytes, header_length: str | None, columns: Columns, limits: Limits) -> RankRequest:
    """Reads a request. Raises RequestError."""
    content, tail = _split(body, header_length)
    request = _json(content)
    tensors = _tensors(request, tail)
    allowed = {CANDIDATES, USER_INPUT, HISTORY_INPUT, *columns.numbers, *columns.ids}
    if unknown := sorted(tensors.keys() - allowed):
        raise RequestError(f"inputs: expected some of {sorted(allowed)}, got {unknown[:5]}")
    if missing := [name for name in (CANDIDATES, *columns.numbers) if name not in tensors]:
        raise RequestError(f"inputs: expected {missing[:5]}, got none of that name")
    candidates = tensors[CANDIDATES].ids(limits.candidates, limits.text)
    user = tensors[USER_INPUT].ids(1, limits.text) if USER_INPUT in tensors else []
    outputs, binary = _outputs(request, columns.outputs)
    return RankRequest(
        candidates=candidates,
        user=user[0] if user else None,
        history=tensors[HISTORY_INPUT].ids(limits.history, limits.text) if HISTORY_INPUT in tensors else [],
        numbers={name: tensors[name].numbers(len(candidates)) for name in columns.numbers},
        ids={name: tensors[name].ids(limits.candidates, limits.text) for name in columns.ids if name in tensors},
        outputs=outputs,
        id=_text(request.get("id", ""), "id"),
        binary=binary,
    )


def answer(
    request: RankRequest, values: Mapping[str, NDArray[np.float32]], model: str, version: str
) -> tuple[bytes, dict[str, str]]:
    """Body and headers of the answer. values: output -> a number for each candidate; sends those that are wanted."""
    tensors, tails = [], []
    for name in request.outputs:
        tensor: dict[str, Any] = {"name": name, "shape": [len(values[name])], "datatype": FP32}
        if request.binary:
            tails.append(values[name].astype("<f4").tobytes())
            tensor["parameters"] = {"binary_data_size": len(tails[-1])}
        else:
            tensor["data"] = values[name].tolist()
        tensors.append(tensor)
    head = {"model_name": model, "model_version": version, "outputs": tensors}
    if request.id:
        head["id"] = request.id
    content = json.dumps(head).encode()
    if not request.binary:
        return content, {"Content-Type": "application/json"}
    headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(content))}
    return b"".join([content, *tails]), headers


# Reading.


@dataclass(frozen=True)
class Tensor:
    """An input. data: its values as JSON lists them, or an array of its binary form."""

    name: str
    datatype: str
    size: int
    data: Any = field(repr=False)

    def ids(self, most: int, letters: int) -> Ids:
        """Its values as ids. Raises RequestError."""
        if self.size > most:
            raise RequestError(f"{self.name}: expected at most {most:,} ids, got {self.size:,}")
        found = self.data.tolist() if isinstance(self.data, np.ndarray) else self.data
        kind: type = str if self.datatype == BYTES else int
        if self.datatype not in (BYTES, *WHOLE) or not all(type(value) is kind for value in found):
            raise RequestError(f"{self.name}: expected texts as BYTES, or whole numbers as INT64, got {self.datatype}")
        if kind is str and any(len(value) > letters for value in found):
            raise RequestError(f"{self.name}: expected ids of at most {letters:,} letters, got a longer one")
        if kind is str:
            _check_text(found, self.name)
        return list(found)

    def numbers(self, count: int) -> NDArray[np.float32]:
        """Its values as numbers, one or `count`. Raises RequestError."""
        if self.datatype == BYTES:
            raise RequestError(f"{self.name}: expected numbers, got {BYTES}")
        if self.size not in (1, count):
            raise RequestError(f"{self.name}: expected one number, or {count:,}, got {self.size:,}")
        if isinstance(self.data, list) and not all(type(value) in (int, float) for value in self.data):
            raise RequestError(f"{self.name}: expected numbers, got other values")
        try:
            with np.errstate(over="ignore"):
                found = np.asarray(self.data, dtype=np.float64).astype(np.float32)
        except (OverflowError, ValueError):
            raise RequestError(f"{self.name}: expected numbers that fit 32 bits, got larger ones") from None
        if not np.isfinite(found).all():
            raise RequestError(f"{self.name}: expected finite numbers, got others")
        return found if self.size == count else np.broadcast_to(found, (count,))


def _split(body: bytes, header_length: str | None) -> tuple[bytes, bytes]:
    if header_length is None:
        return body, b""
    if not (header_length.isascii() and header_length.isdigit()) or len(header_length) > 12:
        raise RequestError(f"header {HEADER_LENGTH}: expected a number of bytes, got {header_length[:20]!r}")
    length = int(header_length)
    if length > len(body):
        raise RequestError(f"header {HEADER_LENGTH}: expected at most the body's {len(body):,} bytes, got {length:,}")
    return body[:length], body[length:]


def _json(content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content, parse_constant=_refused_constant)
    except (ValueError, RecursionError):  # no JSON, no UTF-8, numbers of thousands of digits, values nested too deep
        raise RequestError("body: expected JSON, got something else") from None
    if not isinstance(found, dict) or not isinstance(found.get("inputs"), list):
        raise RequestError("body: expected a JSON object with a list `inputs`, got something else")
    return found


def _refused_constant(name: str) -> float:
    raise ValueError(name)


def _tensors(request: Mapping[str, Any], tail: bytes) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    place = 0
    for number, raw in enumerate(request["inputs"]):
        tensor, place = _tensor(raw, f"input {number}", tail, place)
        if tensor.name in found:
            raise RequestError(f"inputs: expected every name once, got {tensor.name} twice")
        found[tensor.name] = tensor
    if place != len(tail):
        raise RequestError(f"body: expected {place:,} bytes of binary tensors, got {len(tail):,}")
    return found


def _tensor(raw: object, where: str, tail: bytes, place: int) -> tuple[Tensor, int]:
    if not isinstance(raw, dict):
        raise RequestError(f"{where}: expected an object, got another value")
    name = _text(raw.get("name"), f"{where}, name")
    datatype, shape = raw.get("datatype"), raw.get("shape")
    if datatype not in (BYTES, *NUMBERS):
        raise RequestError(f"{name}: expected a datatype of {[BYTES, *NUMBERS]}, got {str(datatype)[:20]!r}")
    if not isinstance(shape, list) or len(shape) != 1 or type(shape[0]) is not int or shape[0] < 0:
        raise RequestError(f"{name}: expected a shape of one dimension, got {str(shape)[:40]}")
    parameters = raw.get("parameters")
    size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
    if size is None:
        data = raw.get("data")
        if not isinstance(data, list) or len(data) != shape[0]:
            got = f"{len(data):,}" if isinstance(data, list) else "no list"
            raise RequestError(f"{name}: expected {shape[0]:,} values in `data`, got {got}")
        return Tensor(name, datatype, shape[0], data), place
    if type(size) is not int or not 0 <= size <= len(tail) - place:
        raise RequestError(f"{name}: expected binary_data_size of at most {len(tail) - place:,}, got {str(size)[:20]}")
    return Tensor(name, datatype, shape[0], _binary(name, datatype, shape[0], tail[place : place + size])), place + size


def _binary(name: str, datatype: str, count: int, data: bytes) -> Any:
    if datatype != BYTES:
        width = np.dtype(NUMBERS[datatype]).itemsize
        if len(data) != count * width:
            raise RequestError(
                f"{name}: expected {count * width:,} bytes for {count:,} of {datatype}, got {len(data):,}"
            )
        return np.frombuffer(data, dtype=NUMBERS[datatype])
    texts, place = [], 0
    for _ in range(count):
        length = int.from_bytes(data[place : place + 4], "little")
        if place + 4 + length > len(data):
            break
        texts.append(_decoded(data[place + 4 : place + 4 + length], name))
        place += 4 + length
    if len(texts) != count or place != len(data):
        raise RequestError(f"{name}: expected {count:,} texts with their lengths, got other bytes")
    return texts


def _decoded(data: bytes, name: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise RequestError(f"{name}: expected texts in UTF-8, got other bytes") from None


def _text(value: object, where: str) -> str:
    if not isinstance(value, str) or len(value) > 200:
        raise RequestError(f"{where}: expected a text of at most 200 letters, got another value")
    _check_text([value], where)
    return value


def _check_text(texts: Sequence[str], where: str) -> None:
    """JSON may hold lone surrogates, which no UTF-8 has."""
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        raise RequestError(f"{where}: expected texts in UTF-8, got a lone surrogate") from None


def _outputs(request: Mapping[str, Any], known: Sequence[str]) -> tuple[Sequence[str], bool]:
    """The outputs that a request wants, and whether as bytes. Raises RequestError for one that there is not."""
    parameters = request.get("parameters")
    binary = isinstance(parameters, dict) and parameters.get("binary_data_output") is True
    outputs = request.get("outputs", [])
    if not isinstance(outputs, list) or not all(isinstance(each, dict) for each in outputs):
        raise RequestError("outputs: expected a list of objects, got another value")
    for each in outputs:
        if each.get("name") not in known:
            raise RequestError(f"outputs: expected {' or '.join(known)}, got {str(each.get('name'))[:40]!r}")
        own = each.get("parameters")
        binary |= isinstance(own, dict) and own.get("binary_data") is True
    return list(dict.fromkeys(each["name"] for each in outputs)) or known, binary
