"""The routes, and the middleware that counts and limits requests and turns errors into JSON."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from dinoneck.errors import Refusal, missing_extra
from dinoneck.serve.metrics import Metrics, memory_bytes
from dinoneck.serve.responses import Maps
from dinoneck.serve.settings import Settings
from dinoneck.serve.uploads import quoted
from dinoneck.serve.worker import RETRY_AFTER_S, Worker
from dinoneck.version import versions

try:
    from fastapi import FastAPI, Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse, PlainTextResponse
    from starlette.exceptions import HTTPException
    from starlette.types import ASGIApp, Message, Receive, Scope, Send
except ImportError as error:
    raise missing_extra("fastapi", "serve") from error

from dinoneck.serve.uploads import read_uploads

logger = logging.getLogger("dinoneck.serve")
ROUTES = ("/", "/predict", "/health", "/ready", "/metrics", "/openapi.json")
_FILES = {"type": "object", "properties": {"image": {"type": "array", "items": {"type": "string", "format": "binary"}}}}
_BODY = {"required": True, "content": {"multipart/form-data": {"schema": _FILES}}}


def create_app(
    head: str | os.PathLike[str],
    *,
    settings: Settings | None = None,
    on_failure: Callable[[str], None] = lambda failure: None,
) -> ASGIApp:
    """Return the service as an ASGI app; its model is loaded at startup, in the background.

    Args:
        head: a head file, a folder of head files, or a Hub repository.
        settings: the limits.
        on_failure: called with the reason if the head cannot be loaded; until then, and after it, /predict gives 503.

    Raises:
        ImportError: if the extra ``serve`` is missing.
    """
    settings = settings or Settings()
    worker, metrics = Worker(head, settings), Metrics()

    async def load() -> None:
        await asyncio.to_thread(worker.load)
        if worker.failure is not None:
            on_failure(worker.failure)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        loading = asyncio.create_task(load())
        yield
        await loading
        await asyncio.to_thread(worker.close)

    app = FastAPI(title="dinoneck", lifespan=lifespan, docs_url=None, redoc_url=None)
    _add_predict(app, worker, metrics, settings)
    _add_facts(app, worker, metrics, settings)
    _add_errors(app)
    return _Middleware(app, metrics, settings)


def _add_predict(app: FastAPI, worker: Worker, metrics: Metrics, settings: Settings) -> None:
    @app.post("/predict", openapi_extra={"requestBody": _BODY})
    async def predict(request: Request, maps: Maps = "none") -> dict[str, Any]:
        """Predictions for every image of a multipart body, in its order; all of them, or an error."""
        slot = worker.enter()
        try:
            uploads = await read_uploads(request, settings)
            images = await worker.predict(uploads, maps, slot)
        finally:
            slot.release()
        metrics.images(len(images))
        return {"images": images}


def _add_facts(app: FastAPI, worker: Worker, metrics: Metrics, settings: Settings) -> None:
    @app.get("/health")
    async def health() -> dict[str, str]:
        """The process is alive."""
        return {"status": "alive"}

    @app.get("/ready")
    async def ready() -> dict[str, str]:
        """The model is loaded and checked, and a slot is free."""
        worker.enter().release()
        return {"status": "ready"}

    @app.get("/metrics", response_class=PlainTextResponse)
    async def numbers() -> PlainTextResponse:
        """Counters and gauges for Prometheus."""
        now, peak = memory_bytes()
        text = metrics.text(
            {
                "dinoneck_requests_running": ("Requests being computed.", worker.running),
                "dinoneck_requests_waiting": ("Accepted requests that wait.", worker.waiting),
                "dinoneck_ready": ("Whether the model is loaded.", int(worker.model is not None)),
                "process_resident_memory_bytes": ("Resident memory.", now),
                "process_resident_memory_peak_bytes": ("Resident memory at its peak.", peak),
            }
        )
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    @app.get("/")
    async def facts() -> dict[str, Any]:
        """What the model predicts, and the limits."""
        limits = ("max_upload_bytes", "max_images", "max_pixels", "concurrency", "queue", "timeout", "body_timeout")
        bounds = {name: getattr(settings, name) for name in limits}
        return {**worker.loaded().facts, "limits": bounds, "versions": versions()}


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(Refusal)
    async def refused(_: Request, refusal: Refusal) -> JSONResponse:
        return JSONResponse(refusal.body(), refusal.status, refusal.headers())

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        sentence = f"{first['loc'][-1]} is {quoted(str(first.get('input')))}: {first['msg']}"
        return JSONResponse({"error": sentence, "code": "invalid"}, 422)

    @app.exception_handler(Exception)  # the middleware logs it
    async def failed(_: Request, __: Exception) -> JSONResponse:
        refusal = Refusal(500, "failed", "the service failed by a fault of its own; its log has the details")
        return JSONResponse(refusal.body(), refusal.status)

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> JSONResponse:
        sentence = f"{request.method} {quoted(request.url.path)}: {error.detail}; expected one of {', '.join(ROUTES)}"
        return JSONResponse({"error": sentence, "code": "no_route"}, error.status_code, error.headers)


class _Middleware:
    """Counts and times requests, limits their number and duration, and logs unexpected errors.

    ``/health`` is outside the limit of requests in progress: a busy service is not a dead one.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, settings: Settings) -> None:
        self._app, self._metrics = app, metrics
        self._longest = settings.timeout + 2 * settings.body_timeout + 5  # the last for a client that reads slowly
        self._most, self._open = settings.connections, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 0

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self._open += 1
        try:
            if self._open > self._most and scope["path"] != "/health":
                message = f"{self._open} requests are open, of {self._most} at most; retry in {RETRY_AFTER_S} s"
                await _refuse(Refusal(503, "busy", message, RETRY_AFTER_S), watched)
                return
            async with asyncio.timeout(self._longest):
                await self._app(scope, receive, watched)
        except Exception as error:
            logger.exception("%s %s failed", scope["method"], quoted(scope["path"]))
            if status or not isinstance(error, TimeoutError):
                raise
            refusal = Refusal(503, "too_long", f"no response within {self._longest:g} s; retry later", RETRY_AFTER_S)
            await _refuse(refusal, watched)
        finally:
            self._open -= 1
            route = scope["path"] if scope["path"] in ROUTES else "other"
            self._metrics.request(route, status, time.perf_counter() - began)


async def _refuse(refusal: Refusal, send: Send) -> None:
    headers = {"content-type": "application/json", **refusal.headers()}
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": refusal.status, "headers": raw})
    await send({"type": "http.response.body", "body": json.dumps(refusal.body()).encode()})
