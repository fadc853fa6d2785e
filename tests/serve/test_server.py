"""A server process: answers, refusals, a switch of versions under load, a drained end."""

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from sidrec import cli
from sidrec.serve.bundle import Bundle
from sidrec.serve.versions import use
from tests.serve.conftest import World
from tests.serve.test_protocol import tensor

INFER = "/v2/models/shop/infer"
PATIENCE = 60  # seconds, on a busy machine


class Server:
    """A process of `sidrec serve`."""

    def __init__(self, bundle: Path, log: Path, *flags: str) -> None:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self.port = found.getsockname()[1]
        words = ["serve", str(bundle), "--name", "shop", "--port", str(self.port), "--reload-seconds", "0.1", *flags]
        self._events = log
        with log.open("w") as events:  # a pipe that nobody reads would stop the server
            self.process = subprocess.Popen([sys.executable, "-m", "sidrec", *words], stdout=events)
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            try:
                if self.ask("GET", "/v2/health/ready")[0] == 200:
                    return
            except OSError:
                time.sleep(0.05)
        raise AssertionError("the server is not ready after a minute")

    def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, Any, dict[str, str]]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request(method, path, body or None, headers)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        is_json = answer.headers.get("Content-Type", "").startswith("application/json")
        return answer.status, json.loads(content) if is_json else content, dict(answer.headers)

    def end(self) -> list[dict[str, Any]]:
        """Sends SIGTERM; returns the events that were logged."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(timeout=60) == 0
        return [json.loads(line) for line in self._events.read_text().splitlines()]


def body_of(row: dict[str, Any]) -> bytes:
    inputs = [
        tensor("candidates", "BYTES", [row["item_id"]]),
        tensor("user", "BYTES", [row["user_id"]]),
        tensor("history", "BYTES", row["history"]),
        *(tensor(name, "FP32", [row[name]]) for name in ("stat_exposures", "stat_clicks", "int_a", "int_b")),
    ]
    if row["cat_a"] is not None:
        inputs.append(tensor("cat_a", "BYTES", [row["cat_a"]]))
    return json.dumps({"id": "r", "inputs": inputs}).encode()


@pytest.fixture(scope="module")
def bodies(world: World) -> list[bytes]:
    return [body_of(row) for row in pq.read_table(world.rows).to_pylist()]


@pytest.fixture(scope="module")
def server(world: World) -> Iterator[Server]:
    found = Server(world.bundle, world.folder / "events", "--most-body-bytes", "100000")
    yield found
    if found.process.poll() is None:
        found.end()


def test_answers_are_the_trained_models(world: World, server: Server, bodies: list[bytes]) -> None:
    for body, probability in zip(bodies[:20], world.probability_N, strict=False):
        status, found, headers = server.ask("POST", INFER, body, **{"X-Request-Id": "mine"})
        assert status == 200
        assert abs(found["outputs"][0]["data"][0] - probability) <= 1e-6
        assert (found["model_version"], found["id"]) == (Bundle(world.bundle).version, "r")
        assert headers["x-request-id"] == "mine"


def test_what_the_protocol_tells_of_server_and_model(world: World, server: Server) -> None:
    assert server.ask("GET", "/v2/health/live")[0] == 200
    assert server.ask("GET", "/v2/models/shop/ready")[0] == 200
    about = server.ask("GET", "/v2/models/shop")[1]
    assert about["versions"] == [Bundle(world.bundle).version]
    names = [each["name"] for each in about["inputs"]]
    assert names == ["candidates", "user", "history", "stat_exposures", "stat_clicks", "int_a", "int_b", "cat_a"]
    assert server.ask("POST", f"/v2/models/shop/versions/{about['versions'][0]}/infer", b"{}")[0] == 400
    assert b'sidrec_requests_total{status="400"}' in server.ask("GET", "/metrics")[1]


@pytest.mark.parametrize(
    ("path", "body", "status", "sentence"),
    [
        (INFER, b"{", 400, "body: expected JSON"),
        (INFER, b'{"inputs": []}', 400, "inputs: expected ['candidates'"),
        (INFER, b" " * 100_001, 413, "body: expected at most 100,000 bytes"),
        ("/v2/models/shop/versions/v9/infer", b"{}", 404, "version: expected"),
        ("/v2/models/other/infer", b"{}", 404, "path: expected one of the Open Inference Protocol"),
        ("/../../etc/passwd", b"", 404, "path: expected"),
    ],
)
def test_wrong_requests_get_one_clear_answer(
    server: Server, path: str, body: bytes, status: int, sentence: str
) -> None:
    found, content, _ = server.ask("POST", path, body)
    assert found == status
    assert sentence in content["error"]


def test_other_methods_are_refused(server: Server) -> None:
    assert server.ask("GET", INFER)[0] == 405


def test_a_body_cut_short_does_not_stop_the_server(server: Server, bodies: list[bytes]) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as raw:
        raw.sendall(f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\n{{".encode())
    assert server.ask("POST", INFER, bodies[0])[0] == 200


def test_versions_switch_under_load_without_a_failed_or_mixed_answer(
    world: World, tmp_path: Path, bodies: list[bytes]
) -> None:
    bundle = tmp_path / "bundle"
    for store in ("int8", "f32"):
        assert cli.main(["export", str(world.run), str(bundle), "--store", store]) == 0
    versions = {path.name: path for path in (bundle / "versions").iterdir()}
    server = Server(bundle, tmp_path / "events")
    alone = {name: Server(path, tmp_path / name) for name, path in versions.items()}
    expected = {name: [of.ask("POST", INFER, body)[1] for body in bodies[:10]] for name, of in alone.items()}
    for of in alone.values():
        of.end()
    until = time.monotonic() + PATIENCE
    seen: list[str] = []

    def is_done() -> bool:
        """Whether both versions have answered, and each has come back."""
        return sum(one != other for one, other in pairwise(list(seen))) >= 3 or time.monotonic() > until

    def load(worker: int) -> int:
        answers = 0
        while not is_done():
            place = (worker + answers) % 10
            status, found, _ = server.ask("POST", INFER, bodies[place])
            assert status == 200
            seen.append(found["model_version"])
            assert found["outputs"] == expected[found["model_version"]][place]["outputs"]
            answers += 1
        return answers

    with ThreadPoolExecutor(3) as threads:
        loads = [threads.submit(load, worker) for worker in range(3)]
        names = list(versions)
        while not is_done():
            use(bundle, names[0])
            names.reverse()
            time.sleep(0.7)
        answers = sum(each.result() for each in loads)
    assert set(seen) == set(versions)
    events = server.end()
    assert [event["event"] for event in (events[0], events[-1])] == ["serving", "ended"]
    assert sum(event["event"] == "request" and event["status"] == 200 for event in events) == answers


def test_a_damaged_version_is_not_taken_up(world: World, tmp_path: Path, bodies: list[bytes]) -> None:
    bundle = tmp_path / "bundle"
    for store in ("f32", "f16"):
        assert cli.main(["export", str(world.run), str(bundle), "--store", store]) == 0
    damaged, sound = (
        path.name for path in sorted((bundle / "versions").iterdir(), key=lambda path: path.stat().st_mtime)
    )
    server = Server(bundle, tmp_path / "events")
    (bundle / "versions" / damaged / "rows.onnx").write_bytes(b"damaged")
    use(bundle, damaged)
    until = time.monotonic() + PATIENCE
    while "reload_failed" not in (tmp_path / "events").read_text() and time.monotonic() < until:
        time.sleep(0.05)
    assert server.ask("POST", INFER, bodies[0])[1]["model_version"] == sound
    (failed,) = (event for event in server.end() if event["event"] == "reload_failed")
    assert "rows.onnx" in failed["error"]


def test_requests_are_logged_and_the_rest_is_written_on_the_way_out(
    world: World, tmp_path: Path, bodies: list[bytes]
) -> None:
    folder = tmp_path / "features"
    flags = ["--feature-log", str(folder), "--feature-log-share", "1"]
    server = Server(world.bundle, tmp_path / "events", *flags)
    answers = [server.ask("POST", INFER, body, **{"X-Request-Id": f"r{n}"})[1] for n, body in enumerate(bodies[:9])]
    assert not list(folder.iterdir())
    server.end()
    (part,) = folder.iterdir()
    table = pq.read_table(part)
    assert table["request"].to_pylist() == [f"r{number}" for number in range(9)]
    assert table["score"].to_pylist() == [pytest.approx(found["outputs"][0]["data"][0]) for found in answers]
    assert all(abs(seconds - time.time()) < 3600 for seconds in table["timestamp"].to_pylist())
