"""Requests of every legal form are read alike; every other one is refused in a sentence."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidrec.serve.protocol import HEADER_LENGTH, Columns, Limits, RankRequest, RequestError, answer, parse

COLUMNS = Columns(("stat_clicks", "int_price"), ("cat_device",), ("score", "calibrated"))
LIMITS = Limits(candidates=50, history=20, body=1 << 16, text=30)


def tensor(name: str, datatype: str, data: list[Any]) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": [len(data)], "data": data}


def request(**changes: Any) -> dict[str, Any]:
    inputs = {
        "candidates": tensor("candidates", "BYTES", ["a", "b", "ç"]),
        "user": tensor("user", "BYTES", ["u"]),
        "history": tensor("history", "BYTES", ["b"]),
        "stat_clicks": tensor("stat_clicks", "FP32", [1, 2.5, 3]),
        "int_price": tensor("int_price", "FP64", [0.5]),
        "cat_device": tensor("cat_device", "BYTES", ["phone"]),
    } | changes
    return {"id": "r1", "inputs": [of for of in inputs.values() if of is not None]}


def read(body: dict[str, Any]) -> RankRequest:
    return parse(json.dumps(body).encode(), None, COLUMNS, LIMITS)


def test_a_request_in_json() -> None:
    found = read(request())
    assert (found.candidates, found.user, found.history, found.id) == (["a", "b", "ç"], "u", ["b"], "r1")
    assert found.numbers["stat_clicks"].tolist() == [1, 2.5, 3]
    assert found.numbers["int_price"].tolist() == [0.5, 0.5, 0.5]
    assert found.ids == {"cat_device": ["phone"]}
    assert not found.binary


def test_what_may_be_left_out() -> None:
    found = read(request(user=None, history=None, cat_device=None))
    assert (found.user, found.history, found.ids) == (None, [], {})


def test_whole_numbers_are_ids() -> None:
    assert read(request(candidates=tensor("candidates", "INT64", [3, 1, 2]))).candidates == [3, 1, 2]


def binary(body: dict[str, Any]) -> tuple[bytes, str]:
    tail = b""
    for of in body["inputs"]:
        data = of.pop("data")
        if of["datatype"] == "BYTES":
            part = b"".join(len(each.encode()).to_bytes(4, "little") + each.encode() for each in data)
        else:
            part = np.asarray(data, {"FP32": "<f4", "FP64": "<f8", "INT64": "<i8"}[of["datatype"]]).tobytes()
        of["parameters"] = {"binary_data_size": len(part)}
        tail += part
    content = json.dumps(body).encode()
    return content + tail, str(len(content))


def test_the_binary_form_gives_the_same() -> None:
    body, length = binary(request())
    found, expected = parse(body, length, COLUMNS, LIMITS), read(request())
    assert (found.candidates, found.user, found.history, found.ids) == (
        expected.candidates,
        expected.user,
        expected.history,
        expected.ids,
    )
    assert {name: of.tolist() for name, of in found.numbers.items()} == {
        name: of.tolist() for name, of in expected.numbers.items()
    }


@pytest.mark.parametrize("asks", [{"parameters": {"binary_data_output": True}}, {"outputs": [{"name": "score"}]}])
def test_answers_in_both_forms(asks: dict[str, Any]) -> None:
    score_C = np.array([0.25, 0.5, 0.125], dtype=np.float32)
    content, headers = answer(read(request() | asks), {"score": score_C, "calibrated": score_C[::-1]}, "shop", "v1")
    if HEADER_LENGTH in headers:
        assert asks.keys() == {"parameters"}
        head = json.loads(content[: int(headers[HEADER_LENGTH])])
        both = np.frombuffer(content[int(headers[HEADER_LENGTH]) :], "<f4").tolist()
        found = both[:3]
        assert both[3:] == score_C[::-1].tolist()
        assert [each["name"] for each in head["outputs"]] == ["score", "calibrated"]
        assert head["outputs"][0]["parameters"] == {"binary_data_size": 12}
    else:
        head = json.loads(content)
        (output,) = head["outputs"]
        assert output["name"] == "score"
        found = output["data"]
    assert found == score_C.tolist()
    assert (head["model_name"], head["model_version"], head["id"]) == ("shop", "v1", "r1")
    assert head["outputs"][0]["shape"] == [3]


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no candidates": (request(candidates=None), r"expected \['candidates'\]"),
    "no statistics": (request(stat_clicks=None), r"expected \['stat_clicks'\]"),
    "another column": (request(x=tensor("stat_click", "FP32", [1])), r"got \['stat_click'\]"),
    "a name twice": (request(x=tensor("user", "BYTES", ["v"])), "user twice"),
    "too many candidates": (request(candidates=tensor("candidates", "BYTES", ["a"] * 51)), "at most 50 ids, got 51"),
    "two users": (request(user=tensor("user", "BYTES", ["a", "b"])), "at most 1 ids, got 2"),
    "a long id": (request(user=tensor("user", "BYTES", ["a" * 31])), "at most 30 letters"),
    "numbers as texts": (request(candidates=tensor("candidates", "BYTES", [1, 2, 3])), "expected texts as BYTES"),
    "texts as numbers": (request(candidates=tensor("candidates", "INT64", ["1"])), "got INT64"),
    "true as an id": (request(candidates=tensor("candidates", "INT64", [True])), "whole numbers"),
    "floats as ids": (request(candidates=tensor("candidates", "FP32", [1.0])), "got FP32"),
    "another length": (request(stat_clicks=tensor("stat_clicks", "FP32", [1, 2])), "expected one number, or 3, got 2"),
    "a text among numbers": (request(stat_clicks=tensor("stat_clicks", "FP32", [1, "2", 3])), "expected numbers"),
    "a huge number": (request(stat_clicks=tensor("stat_clicks", "FP32", [1e39])), "finite numbers"),
    "a huge whole number": (request(stat_clicks=tensor("stat_clicks", "FP32", [10**400])), "fit 32 bits"),
    "a lone surrogate": (request(user=tensor("user", "BYTES", ["\ud800"])), "surrogate"),
    "two dimensions": (request(user={**tensor("user", "BYTES", ["u"]), "shape": [1, 1]}), "one dimension"),
    "a shape that lies": (request(user={**tensor("user", "BYTES", ["u"]), "shape": [2]}), "expected 2 values"),
    "another datatype": (request(user=tensor("user", "STRING", ["u"])), "datatype"),
    "another output": (request() | {"outputs": [{"name": "logit"}]}, "expected score or calibrated, got 'logit'"),
    "an id that is no text": (request() | {"id": 3}, "id: expected a text"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_requests_are_refused_with_what_is_wrong(name: str) -> None:
    body, sentence = WRONG[name]
    with pytest.raises(RequestError, match=sentence):
        read(body)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"\xff", b'{"inputs": 3}', b'{"inputs": [NaN]}', b'{"inputs":' + b"[" * 100_000, b"1" * 5000],
)
def test_no_json_is_refused(body: bytes) -> None:
    with pytest.raises(RequestError, match=r"body: expected|input 0"):
        parse(body, None, COLUMNS, LIMITS)


@pytest.mark.parametrize("length", ["-1", "x", "99999999", "1e3", "٣", "9" * 50])
def test_a_wrong_length_of_the_header_is_refused(length: str) -> None:
    with pytest.raises(RequestError, match=HEADER_LENGTH):
        parse(b"{}", length, COLUMNS, LIMITS)


def refusal(body: bytes, length: str | None) -> str | None:
    """The sentence that refuses a request; None if it is read. Another exception is a fault."""
    try:
        parse(body, length, COLUMNS, LIMITS)
    except RequestError as error:
        return str(error)
    return None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=700, deadline=None)
@given(data=st.data())
def test_any_change_of_a_request_is_read_or_refused(data: st.DataObject) -> None:
    body = request()
    for _ in range(data.draw(st.integers(1, 3))):
        at: Any = body
        while isinstance(at, dict | list) and at and data.draw(st.integers(0, 2)):
            key = data.draw(st.sampled_from(list(at) if isinstance(at, dict) else range(len(at))))
            if not isinstance(at[key], dict | list) or not at[key]:
                break
            at = at[key]
        if at:
            at[data.draw(st.sampled_from(list(at) if isinstance(at, dict) else range(len(at))))] = data.draw(JSON)
    found = refusal(json.dumps(body).encode(), None)
    assert found is None or ": expected" in found


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_change_of_the_binary_form_is_read_or_refused(data: st.DataObject) -> None:
    body, length = binary(request())
    cut = data.draw(st.integers(0, len(body)))
    changed = bytearray(body[:cut] + data.draw(st.binary(max_size=6)) + body[cut + data.draw(st.integers(0, 4)) :])
    found = refusal(bytes(changed), data.draw(st.sampled_from([length, None, "0", "1"])))
    assert found is None or "expected" in found
