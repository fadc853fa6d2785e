"""The load that `sidrec serve` holds on loopback, and how long answers take at each load.

    OMP_NUM_THREADS=1 python -m benchmarks.serving_load beauty [--seconds 10] [--write]

The server is a process of its own with one scoring thread, on the bundle of the claim's `recommended` that
`benchmarks.serving_speed` trains and exports. Requests have CANDIDATES candidates and a history of POSITIONS items of
real users, as bodies that were made before, in JSON and with binary tensors.

Requests are sent at random times (a Poisson process) at a given rate, whether or not earlier ones were answered, and
an answer's time counts from the moment it was to be sent: a server that falls behind is not spared. A rate is held if
every answer has status 200 and 99% come within LIMIT milliseconds. Rates grow by half until one is not held. The
clients are threads of this process, which has a core of its own if the machine has two.
"""

import argparse
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import RESULTS
from benchmarks.serving_speed import TWIN, WORK, Requests, bundle_of, record
from benchmarks.tables import markdown_table
from sidrec.config.load import load_mapping
from sidrec.serve.protocol import HEADER_LENGTH
from sidrec.study.results import conditions

CANDIDATES, POSITIONS = 500, 50
LIMIT = 100.0
FIRST, GROWTH = 20.0, 1.5
CLIENTS = 64
BODIES = 64
PATH = "/v2/models/sidrec/infer"
START = 120.0  # seconds that the server may take to be ready


def bodies(requests: Requests, binary: bool) -> list[tuple[bytes, dict[str, str]]]:
    """Bodies with their headers."""
    return [_body(requests.draw(CANDIDATES, POSITIONS), binary) for _ in range(BODIES)]


def _body(asked: Mapping[str, Any], binary: bool) -> tuple[bytes, dict[str, str]]:
    texts = {"candidates": asked["candidates"], "user": [asked["user"]], "history": asked["history"]}
    numbers = {name: np.asarray(value, dtype="<f4") for name, value in asked["statistics"].items()}
    numbers |= {name: np.asarray([value], dtype="<f4") for name, value in asked["dense"].items()}
    inputs: list[dict[str, Any]] = []
    tail = b""
    for name, values in texts.items():
        inputs.append({"name": name, "datatype": "BYTES", "shape": [len(values)]})
        if binary:
            raw = b"".join(len(text).to_bytes(4, "little") + text for text in (str(each).encode() for each in values))
            inputs[-1]["parameters"] = {"binary_data_size": len(raw)}
            tail += raw
        else:
            inputs[-1]["data"] = list(map(str, values))
    for name, array in numbers.items():
        inputs.append({"name": name, "datatype": "FP32", "shape": [len(array)]})
        if binary:
            inputs[-1]["parameters"] = {"binary_data_size": array.nbytes}
            tail += array.tobytes()
        else:
            inputs[-1]["data"] = array.tolist()
    head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": binary}}).encode()
    return head + tail, {HEADER_LENGTH: str(len(head))} if binary else {"Content-Type": "application/json"}


@contextmanager
def serving(bundle: Path) -> Iterator[int]:
    """A server on a free port; yields the port. Raises RuntimeError if it is not ready in time."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = int(found.getsockname()[1])
    words = ["serve", str(bundle), "--port", str(port), "--workers", "1"]
    process = subprocess.Popen([sys.executable, "-m", "sidrec", *words], stdout=subprocess.DEVNULL)
    try:
        until = time.monotonic() + START
        while not _is_ready(port):
            if time.monotonic() > until or process.poll() is not None:
                raise RuntimeError("sidrec serve is not ready")
            time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait()


def _is_ready(port: int) -> bool:
    try:
        connection = HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("GET", "/v2/health/ready")
        return connection.getresponse().status == 200
    except OSError:
        return False


def load(port: int, sent: Sequence[tuple[bytes, dict[str, str]]], rate: float, seconds: float) -> dict[str, Any]:
    """Sends at this rate. Returns the times of answers, and how many were no answers."""
    random = np.random.default_rng(int(rate))
    due_N = np.cumsum(random.exponential(1 / rate, size=int(rate * seconds)))
    own, begun = threading.local(), time.monotonic() + 0.5

    def ask(number: int) -> float | None:
        wait = begun + due_N[number] - time.monotonic()
        if wait > 0:
            time.sleep(wait)
        try:
            if not hasattr(own, "connection"):
                own.connection = HTTPConnection("127.0.0.1", port, timeout=30)
            body, headers = sent[number % len(sent)]
            own.connection.request("POST", PATH, body, headers)
            answer = own.connection.getresponse()
            answer.read()
        except OSError:
            del own.connection
            return None
        return 1000 * (time.monotonic() - begun - due_N[number]) if answer.status == 200 else None

    with ThreadPoolExecutor(CLIENTS) as pool:
        answers = list(pool.map(ask, range(len(due_N))))
    known = [each for each in answers if each is not None]
    p50, p99 = np.quantile(known, [0.5, 0.99]).tolist() if known else (float("inf"), float("inf"))
    return {"rate": rate, "sent": len(answers), "failed": len(answers) - len(known), "p50": p50, "p99": p99}


def rates(port: int, sent: Sequence[tuple[bytes, dict[str, str]]], seconds: float) -> list[dict[str, Any]]:
    """Growing rates, up to the first that is not held."""
    found: list[dict[str, Any]] = []
    rate = FIRST
    while not found or (found[-1]["failed"] == 0 and found[-1]["p99"] <= LIMIT):
        found.append(load(port, sent, rate, seconds))
        print(found[-1], file=sys.stderr)
        rate *= GROWTH
    return found


def report(found: Mapping[str, Any]) -> str:
    """Markdown."""
    facts = found["conditions"]
    rows = [
        [kind, f"{line['rate']:.0f}", f"{line['sent']:,}", line["failed"], f"{line['p50']:.1f}", f"{line['p99']:.1f}"]
        for kind, lines in found["rates"].items()
        for line in lines
    ]
    return "\n\n".join(
        [
            f"# Load: {found['set']}",
            f"`python -m benchmarks.serving_load {found['set']} --write`, whose docstring has the conditions; "
            f"{CANDIDATES} candidates, {POSITIONS} history positions, one scoring thread, {facts['cpu']}, "
            f"{facts['cores']} cores, commit {facts['commit']}.",
            markdown_table(["body", "requests a second", "sent", "failed", "p50, ms", "p99, ms"], rows),
        ]
    )


def main(argv: Sequence[str]) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving_load",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("set", choices=["beauty", "yelp"])
    parser.add_argument("--seconds", type=float, default=10.0, help="of each rate")
    parser.add_argument("--write", action="store_true", help="record results/serving_load/SET.{json,md}")
    options = parser.parse_args(argv)
    bundle = bundle_of(options.set, "recommended")
    bundle_of(options.set, TWIN)  # whose recipe names the data
    requests = Requests(Path(load_mapping(WORK / options.set / f"{TWIN}.yaml", "a recipe")["data"]["path"]))
    found: dict[str, Any] = {"set": options.set, "conditions": dict(conditions()), "rates": {}}
    with serving(bundle) as port:
        for kind in ("JSON", "binary"):
            found["rates"][kind] = rates(port, bodies(requests, kind == "binary"), options.seconds)
    print(report(found))
    if options.write:
        record(RESULTS / "serving_load", found, report(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
