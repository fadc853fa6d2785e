"""A store for tests: S3's requests for objects, in memory, in a process of its own on loopback, with faults on demand.

    python -m tests.s3_server          prints its port

Clients' signatures are not checked; requests without one are denied. Two paths are not S3's: POST /-/faults sets the
faults to come, GET /-/requests returns and clears the requests that were answered.
"""

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from urllib.request import Request, urlopen
from xml.sax.saxutils import escape

ROOT = Path(__file__).parents[1]
XMLNS = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
REASONS = {403: "AccessDenied", 404: "NoSuchKey", 500: "InternalError", 503: "SlowDown"}


@dataclass
class Contents:
    """What the server holds. buckets: bucket -> key -> bytes. uploads: id -> part number -> bytes."""

    buckets: dict[str, dict[str, bytes]] = field(default_factory=dict)
    uploads: dict[str, dict[int, bytes]] = field(default_factory=dict)
    faults: list[dict[str, Any]] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def fault(self, method: str, path: str) -> dict[str, Any] | None:
        """The fault for this request, if one is left."""
        with self.lock:
            for fault in self.faults:
                if fault["times"] and fault["method"] in ("*", method) and fault["part"] in path:
                    fault["times"] -= 1
                    return fault
        return None


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm, wbufsize = True, 1 << 16
    contents: Contents

    def _answer(self) -> None:
        url = urlsplit(self.path)
        bucket, _, key = unquote(url.path).lstrip("/").partition("/")
        query = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
        body = self._body()
        if bucket == "-":
            self._control(key, body)
            return
        self.contents.requests.append(f"{self.command} {url.path}{'?' + url.query if url.query else ''}")
        fault = self.contents.fault(self.command, self.path)
        if fault and fault["do"] == "cut":
            self._cut(self.contents.buckets.get(bucket, {}).get(key, b""))
        elif fault and fault["do"] == "stall":
            time.sleep(3600)
        elif fault:
            self._error(fault["do"])
        elif "Authorization" not in self.headers:
            self._error(403)
        elif self.command == "PUT" and not key:
            self.contents.buckets.setdefault(bucket, {})
            self._send(200)
        elif bucket not in self.contents.buckets:
            self._error(404, "NoSuchBucket")
        else:
            self._object(self.contents.buckets[bucket], bucket, key, query, body)

    def handle_expect_100(self) -> bool:
        """Clients wait a second for this answer, which the buffer would hold back."""
        found = super().handle_expect_100()
        self.wfile.flush()
        return found

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _answer

    def _object(self, bucket: dict[str, bytes], name: str, key: str, query: Mapping[str, str], body: bytes) -> None:
        match self.command:
            case "GET" | "HEAD" if not key:
                self._send(200, _listing(bucket, name, query))
            case "GET" | "HEAD" if key in bucket:
                self._content(bucket[key])
            case "PUT" if "uploadId" in query:
                self.contents.uploads[query["uploadId"]][int(query["partNumber"])] = body
                self._send(200, ETag=_etag(body))
            case "PUT":
                bucket[key] = body
                self._send(200, ETag=_etag(body))
            case "POST" if "uploads" in query:
                upload = os.urandom(8).hex()
                self.contents.uploads[upload] = {}
                self._send(200, _xml("InitiateMultipartUploadResult", Bucket=name, Key=key, UploadId=upload))
            case "POST" if "uploadId" in query:
                parts = self.contents.uploads.pop(query["uploadId"])
                bucket[key] = b"".join(parts[number] for number in sorted(parts))
                self._send(200, _xml("CompleteMultipartUploadResult", Key=key, ETag=_etag(bucket[key])))
            case "DELETE":
                self.contents.uploads.pop(query.get("uploadId", ""), None)
                bucket.pop(key, None)
                self._send(204)
            case _:
                self._error(404)

    def _content(self, content: bytes) -> None:
        asked = self.headers.get("Range")
        if not asked or self.command == "HEAD":
            self._send(200, content, ETag=_etag(content))
            return
        first, last = asked.removeprefix("bytes=").split("-")
        part = content[int(first) : int(last) + 1 if last else None]
        self._send(206, part, **{"ETag": _etag(content), "Content-Range": f"bytes {first}-{last}/{len(content)}"})

    def _cut(self, content: bytes) -> None:
        """Half of an answer, then the end of the connection."""
        self.send_response(200)
        self.send_header("Content-Length", str(len(content) or 100))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2])
        self.close_connection = True

    def _control(self, what: str, body: bytes) -> None:
        if what == "faults":
            self.contents.faults[:] = json.loads(body)
            self._send(200)
        else:
            found, self.contents.requests[:] = json.dumps(self.contents.requests), []
            self._send(200, found.encode())

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        else:
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            body = b"".join(parts)
        return _decoded(body) if "aws-chunked" in self.headers.get("Content-Encoding", "") else body

    def _send(self, status: int, content: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT", **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _error(self, status: int, code: str | None = None) -> None:
        self._send(status, _xml("Error", Code=code or REASONS[status], Message="as the test asked"))

    def log_message(self, *_: object) -> None:
        pass


def _decoded(body: bytes) -> bytes:
    """The content of aws-chunked: sizes in hexadecimal, then as many bytes; trailers after the last."""
    content: list[bytes] = []
    place = 0
    while True:
        end = body.index(b"\r\n", place)
        size = int(body[place:end].partition(b";")[0], 16)
        if not size:
            return b"".join(content)
        content.append(body[end + 2 : end + 2 + size])
        place = end + 4 + size


def _etag(content: bytes) -> str:
    return f'"{hashlib.md5(content).hexdigest()}"'


def _xml(name: str, **values: object) -> bytes:
    inside = "".join(f"<{key}>{escape(str(value))}</{key}>" for key, value in values.items())
    return f'<?xml version="1.0" encoding="UTF-8"?><{name} {XMLNS}>{inside}</{name}>'.encode()


def _listing(bucket: Mapping[str, bytes], name: str, query: Mapping[str, str]) -> bytes:
    prefix, mark = query.get("prefix", ""), query.get("delimiter", "")
    entries, folders = "", set()
    for key in sorted(key for key in bucket if key.startswith(prefix))[: int(query.get("max-keys", 1000))]:
        if mark and mark in key[len(prefix) :]:
            folders.add(prefix + key[len(prefix) :].partition(mark)[0] + mark)
            continue
        entries += f"<Contents><Key>{escape(key)}</Key><Size>{len(bucket[key])}</Size></Contents>"
    entries += "".join(f"<CommonPrefixes><Prefix>{escape(each)}</Prefix></CommonPrefixes>" for each in sorted(folders))
    count = entries.count("<Key>") + len(folders)
    head = f"<Name>{name}</Name><KeyCount>{count}</KeyCount><IsTruncated>false</IsTruncated>"
    return (
        f'<?xml version="1.0" encoding="UTF-8"?><ListBucketResult {XMLNS}>{head}{entries}</ListBucketResult>'.encode()
    )


# The server as tests see it.


@dataclass(frozen=True)
class Store:
    """A running server. environment: variables by which clients reach it."""

    port: int

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": "key-of-tests",
            "AWS_SECRET_ACCESS_KEY": "secret-of-tests",
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def call(self, method: str, path: str, body: bytes = b"") -> bytes:
        request = Request(f"http://127.0.0.1:{self.port}/{path}", body, {"Authorization": "test"}, method=method)
        with urlopen(request) as answer:
            content: bytes = answer.read()
        return content

    def bucket(self, name: str, folder: Path | None = None) -> str:
        """Makes a bucket, with a copy of a local folder in it; returns its URI."""
        self.call("PUT", name)
        for path in sorted(folder.rglob("*")) if folder else ():
            if path.is_file():
                assert folder is not None
                self.call("PUT", f"{name}/{path.relative_to(folder)}", path.read_bytes())
        return f"s3://{name}"

    def faults(self, *faults: tuple[str, str, int, int | str]) -> None:
        """Sets the faults to come: (method or *, part of the path, how many times, status or cut or stall)."""
        named = [dict(zip(("method", "part", "times", "do"), fault, strict=True)) for fault in faults]
        self.call("POST", "-/faults", json.dumps(named).encode())

    def requests(self) -> list[str]:
        """Requests since the last call, as "GET /bucket/key"."""
        found: list[str] = json.loads(self.call("GET", "-/requests"))
        return found


@contextmanager
def running_store(command: Sequence[str] = (sys.executable, "-m", "tests.s3_server")) -> Iterator[Store]:
    """A server in a process of its own, which ends with the block."""
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        yield Store(int(server.stdout.readline()))
    finally:
        server.kill()
        server.wait()


def main() -> None:
    Handler.contents = Contents()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    parent = os.getppid()

    def end_with_parent() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(0)

    threading.Thread(target=end_with_parent, daemon=True).start()
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
