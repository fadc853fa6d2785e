"""`sidrec serve`: a bundle behind HTTP, by the Open Inference Protocol, version 2.

    GET  /v2, /v2/health/live, /v2/health/ready, /v2/models/NAME, /v2/models/NAME/ready
    POST /v2/models/NAME/infer          also /v2/models/NAME/versions/VERSION/infer
    GET  /metrics                       Prometheus

One process with a thread per worker. Scoring runs in these threads, parsing and answering in the event loop. When the
bundle's link names another version, that is opened beside the one in use and takes its place between two requests. On
SIGTERM the server is no longer ready, answers what it has accepted, and ends.
"""

import asyncio
import json
import logging
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import uvicorn
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sidrec.errors import SidrecError
from sidrec.serve.feature_log import FeatureLog
from sidrec.serve.protocol import (
    BYTES,
    CALIBRATED,
    CANDIDATES,
    FP32,
    HEADER_LENGTH,
    HISTORY_INPUT,
    SCORE,
    USER_INPUT,
    Columns,
    Limits,
    RankRequest,
    RequestError,
    answer,
    parse,
)
from sidrec.serve.scorer import Floats, Model, Ranked, Scorer

LOG = logging.getLogger("sidrec.serve")
SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
DRAIN_SECONDS = 30
"""Time to answer accepted requests after SIGTERM."""


@dataclass(frozen=True)
class Settings:
    """name: of the model in URLs. workers: threads that score. waiting: most requests that wait for one of them; more
    are refused with 503. reload_seconds: between two looks at the bundle's link; 0: never. feature_log: None for none;
    feature_log_share: of requests that it holds."""

    name: str
    host: str
    port: int
    workers: int
    waiting: int
    reload_seconds: float
    limits: Limits
    feature_log: Path | None = None
    feature_log_share: float = 0.01


class _Metrics:
    """What /metrics tells."""

    def __init__(self, version: str) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("sidrec_requests", "Answers, by status", ["status"], registry=self.registry)
        self.seconds = Histogram("sidrec_request_seconds", "Time to answer", buckets=SECONDS, registry=self.registry)
        self.scoring = Histogram("sidrec_scoring_seconds", "Time in the model", buckets=SECONDS, registry=self.registry)
        self.items = Counter("sidrec_items", "Items of requests", ["place", "known"], registry=self.registry)
        self.users = Counter("sidrec_users", "Users of requests", ["known"], registry=self.registry)
        self.waiting = Gauge("sidrec_waiting", "Requests that are scored or wait", registry=self.registry)
        self.logged = Counter("sidrec_feature_log_rows", "Rows of drawn requests", ["ended"], registry=self.registry)
        self.reloads = Counter("sidrec_reloads", "Switches to another version", ["ended"], registry=self.registry)
        self.version = Gauge("sidrec_version", "1 for the version in use", ["version"], registry=self.registry)
        self.use(version)

    def count_logged(self, ended: str, rows: int) -> None:
        self.logged.labels(ended).inc(rows)

    def use(self, version: str) -> None:
        self.version.clear()
        self.version.labels(version).set(1)


class Service:
    """The handlers, their scorer and its threads."""

    def __init__(self, scorer: Scorer, settings: Settings) -> None:
        self.scorer, self.settings = scorer, settings
        self.metrics = _Metrics(scorer.model.version)
        self.ready = True
        self._waiting = 0
        self._feature_log = None
        if settings.feature_log is not None:
            self._feature_log = FeatureLog(settings.feature_log, settings.feature_log_share, self.metrics.count_logged)
        self._threads = ThreadPoolExecutor(settings.workers, thread_name_prefix="score")

    def app(self) -> Starlette:
        """The routes."""
        model = f"/v2/models/{self.settings.name}"
        return Starlette(
            routes=[
                Route("/v2", self._about_server),
                Route("/v2/health/live", self._live),
                Route("/v2/health/ready", self._is_ready),
                Route(model, self._about_model),
                Route(f"{model}/ready", self._is_ready),
                Route(f"{model}/infer", self._infer, methods=["POST"]),
                Route(f"{model}/versions/{{version}}/infer", self._infer, methods=["POST"]),
                Route("/metrics", self._metrics),
            ],
            lifespan=self._lifespan,
            exception_handlers={404: _not_found, 405: _not_allowed, Exception: self._fault},
        )

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        watching = asyncio.create_task(self._watch()) if self.settings.reload_seconds else None
        yield
        self.ready = False
        if watching:
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching
        self._threads.shutdown()
        if self._feature_log:
            await asyncio.to_thread(self._feature_log.close)

    # The model's versions.

    async def _watch(self) -> None:
        said = ""
        while True:
            await asyncio.sleep(self.settings.reload_seconds)
            before = self.scorer.model.version
            try:
                changed = await asyncio.to_thread(self.scorer.reload)
            except (SidrecError, OSError, ValueError) as error:
                self.metrics.reloads.labels("failed").inc()
                if str(error) != said:  # once, not every second
                    _log("reload_failed", error=str(error), version=before)
                said = str(error)
                continue
            said = ""
            if changed:
                self.metrics.reloads.labels("done").inc()
                self.metrics.use(self.scorer.model.version)
                _log("reloaded", version=self.scorer.model.version, before=before)

    # Handlers.

    async def _live(self, _: Request) -> Response:
        return JSONResponse({"live": True})

    async def _is_ready(self, _: Request) -> Response:
        return JSONResponse({"ready": self.ready}, 200 if self.ready else 503)

    async def _about_server(self, _: Request) -> Response:
        return JSONResponse(
            {"name": "sidrec", "version": self.scorer.model.version, "extensions": ["binary_tensor_data"]}
        )

    async def _about_model(self, _: Request) -> Response:
        model = self.scorer.model
        columns = columns_of(model)
        inputs = [
            _tensor(CANDIDATES, BYTES),
            _tensor(USER_INPUT, BYTES, 1),
            _tensor(HISTORY_INPUT, BYTES),
            *(_tensor(name, FP32) for name in columns.numbers),
            *(_tensor(name, BYTES) for name in columns.ids),
        ]
        found = {"name": self.settings.name, "versions": [model.version], "platform": "sidrec_bundle"}
        return JSONResponse({**found, "inputs": inputs, "outputs": [_tensor(name, FP32) for name in columns.outputs]})

    async def _metrics(self, _: Request) -> Response:
        return Response(generate_latest(self.metrics.registry), media_type="text/plain; version=0.0.4")

    async def _infer(self, request: Request) -> Response:
        begun = time.perf_counter()
        name = request.headers.get("X-Request-Id", "")
        request_id = name if name.isascii() and name.isprintable() and 0 < len(name) <= 100 else uuid4().hex
        facts: dict[str, Any] = {"request": request_id}
        try:
            response = await self._answer(request, facts)
        except (RequestError, SidrecError) as error:
            response = _error(400, str(error))
        except _RefusedError as error:
            response = _error(error.status, str(error))
        response.headers["X-Request-Id"] = request_id
        seconds = time.perf_counter() - begun
        self.metrics.requests.labels(str(response.status_code)).inc()
        self.metrics.seconds.observe(seconds)
        _log("request", status=response.status_code, ms=round(1000 * seconds, 2), **facts)
        return response

    async def _answer(self, request: Request, facts: dict[str, Any]) -> Response:
        body, wanted = await self._body(request), request.path_params.get("version")
        model = self.scorer.model
        if wanted is not None and wanted != model.version:
            raise _RefusedError(404, f"version: expected {model.version}, which is in use, got {wanted[:40]!r}")
        asked = parse(body, request.headers.get(HEADER_LENGTH), columns_of(model), self.settings.limits)
        ranked = await self._scored(model, asked)
        facts |= {"version": ranked.version, "candidates": len(asked.candidates), "history": len(asked.history)}
        facts |= {"unknown_candidates": ranked.unknown_candidates, "unknown_user": ranked.unknown_user}
        self._count(asked, ranked.unknown_candidates, ranked.unknown_history, ranked.unknown_user)
        if self._feature_log:
            self._feature_log.offer(facts["request"], asked, ranked, model.description)
        content, headers = answer(asked, outputs_of(ranked), self.settings.name, ranked.version)
        return Response(content, headers=headers)

    async def _body(self, request: Request) -> bytes:
        most = self.settings.limits.body
        too_large = f"body: expected at most {most:,} bytes, got more"
        stated = request.headers.get("Content-Length", "0")
        if stated.isascii() and stated.isdigit() and int(stated[:20]) > most:
            raise _RefusedError(413, too_large)
        parts, size = [], 0
        try:
            async for part in request.stream():
                size += len(part)
                if size > most:
                    raise _RefusedError(413, too_large)
                parts.append(part)
        except ClientDisconnect:
            raise _RefusedError(400, "body: expected all of it, got a closed connection") from None
        return b"".join(parts)

    async def _scored(self, model: Model, asked: RankRequest) -> Ranked:
        if self._waiting >= self.settings.waiting + self.settings.workers:
            raise _RefusedError(
                503, f"expected at most {self.settings.waiting:,} waiting requests, got more; try later"
            )
        self._waiting += 1
        self.metrics.waiting.set(self._waiting)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, self._rank, model, asked)
        finally:
            self._waiting -= 1
            self.metrics.waiting.set(self._waiting)

    def _rank(self, model: Model, asked: RankRequest) -> Ranked:
        about = model.description
        statistics = {name: asked.numbers[name] for name in about.stats}
        dense = {name: asked.numbers[name] for name in about.dense}
        with self.metrics.scoring.time():
            return model.rank(asked.user, asked.candidates, asked.history, statistics, dense, asked.ids)

    def _count(self, asked: RankRequest, candidates: int, history: int, user: bool) -> None:
        for place, count, unknown in (
            ("candidates", len(asked.candidates), candidates),
            ("history", len(asked.history), history),
        ):
            self.metrics.items.labels(place, "yes").inc(count - unknown)
            self.metrics.items.labels(place, "no").inc(unknown)
        self.metrics.users.labels("no" if user else "yes").inc()

    async def _fault(self, request: Request, error: Exception) -> Response:
        self.metrics.requests.labels("500").inc()
        LOG.error("fault", exc_info=error, extra={"facts": {"path": request.url.path}})
        return _error(500, "a fault of the server; its log has more")


def columns_of(model: Model) -> Columns:
    """The columns that a request and its answer may have."""
    about = model.description
    outputs = (SCORE,) if about.calibration is None else (SCORE, CALIBRATED)
    return Columns((*about.stats, *about.dense), model.id_columns, outputs)


def outputs_of(ranked: Ranked) -> dict[str, Floats]:
    """Output of the protocol -> its value for each candidate."""
    found = {SCORE: ranked.score_C}
    return found if ranked.calibrated_C is None else found | {CALIBRATED: ranked.calibrated_C}


def _tensor(name: str, datatype: str, size: int = -1) -> dict[str, Any]:
    """A tensor of one dimension, as the protocol describes it. size: -1 for any."""
    return {"name": name, "datatype": datatype, "shape": [size]}


class _RefusedError(Exception):
    """status: of the answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def _error(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": message}, status)


async def _not_found(request: Request, _: Exception) -> Response:
    return _error(404, f"path: expected one of the Open Inference Protocol, got {request.url.path[:200]!r}")


async def _not_allowed(request: Request, _: Exception) -> Response:
    return _error(405, f"method: expected another one for {request.url.path[:200]!r}, got {request.method[:20]}")


# Running.


class _Json(logging.Formatter):
    """A line of JSON per event."""

    def format(self, record: logging.LogRecord) -> str:
        facts: dict[str, Any] = {"time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"), "event": record.getMessage()}
        facts |= getattr(record, "facts", {})
        if record.exc_info:
            facts["traceback"] = self.formatException(record.exc_info)
        return json.dumps(facts)


def _log(event: str, **facts: Any) -> None:
    LOG.info(event, extra={"facts": facts})


def serve(scorer: Scorer, settings: Settings) -> None:
    """Serves until SIGTERM or SIGINT. Raises OSError if the port cannot be had."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_Json())
    LOG.addHandler(handler)
    LOG.propagate = False
    LOG.setLevel(logging.INFO)
    service = Service(scorer, settings)
    config = uvicorn.Config(
        service.app(),
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )
    server = _Server(config, service)
    _log("serving", version=scorer.model.version, host=settings.host, port=settings.port, workers=settings.workers)
    server.run()
    _log("ended", version=scorer.model.version)


class _Server(uvicorn.Server):
    """Says that it is not ready as soon as it is asked to end, while it still answers; then ends with status 0."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """In place of uvicorn's, which raises the signal again when all is answered."""
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: Any) -> None:
        self._service.ready = False
        super().handle_exit(sig, frame)
