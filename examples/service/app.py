"""The routes, and around them what counts, bounds and words every answer."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dinoneck.version import versions
from examples.service.answers import Maps
from examples.service.metrics import Metrics, memory_bytes
from examples.service.refusal import Refusal, shown
from examples.service.settings import Settings
from examples.service.uploads import read_uploads
from examples.service.work import Worker

logger = logging.getLogger("dinoneck.service")
ROUTES = ("/", "/predict", "/health", "/ready", "/metrics", "/openapi.json")
_BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "properties": {"photo": {"type": "array", "items": {"type": "string", "format": "binary"}}},
            }
        }
    },
}


def build(settings: Settings, failed: Callable[[], None] = lambda: None) -> ASGIApp:
    """Return the service.

    Args:
        settings: head and bounds.
        failed: called when the head cannot be loaded.
    """
    worker, metrics = Worker(settings), Metrics()

    async def loading() -> None:
        await asyncio.to_thread(worker.load)
        if worker.failure is not None:
            failed()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        load = asyncio.create_task(loading())
        yield
        await load
        await asyncio.to_thread(worker.close)

    app = FastAPI(title="dinoneck", lifespan=lifespan, docs_url=None, redoc_url=None)
    _add_predict(app, worker, metrics, settings)
    _add_facts(app, worker, metrics, settings)
    _add_errors(app)
    return Watch(app, metrics, settings)


def _add_predict(app: FastAPI, worker: Worker, metrics: Metrics, settings: Settings) -> None:
    @app.post("/predict", openapi_extra={"requestBody": _BODY})
    async def predict(request: Request, maps: Maps = "none") -> dict[str, Any]:
        """Values in natural units for every photo of a multipart body, in its order; all of them, or a refusal."""
        slot = worker.enter()
        try:
            uploads = await read_uploads(request, settings)
            photos = await worker.answer(uploads, maps, slot)
        finally:
            slot.release()
        metrics.photos(len(photos))
        return {"photos": photos}


def _add_facts(app: FastAPI, worker: Worker, metrics: Metrics, settings: Settings) -> None:
    @app.get("/health")
    async def health() -> dict[str, str]:
        """The process lives."""
        return {"status": "alive"}

    @app.get("/ready")
    async def ready() -> dict[str, str]:
        """The head is loaded and has passed its self-check."""
        worker.enter().release()
        return {"status": "ready"}

    @app.get("/metrics", response_class=PlainTextResponse)
    async def numbers() -> PlainTextResponse:
        """Counters and gauges for Prometheus."""
        now, peak = memory_bytes()
        told = metrics.text(
            {
                "dinoneck_requests_running": ("Requests that are worked on.", worker.running),
                "dinoneck_requests_waiting": ("Requests that were let in and wait.", worker.waiting),
                "dinoneck_ready": ("Whether the head is loaded.", int(worker.predictor is not None)),
                "process_resident_memory_bytes": ("Resident memory.", now),
                "process_resident_memory_peak_bytes": ("Resident memory at its peak.", peak),
            }
        )
        return PlainTextResponse(told, media_type="text/plain; version=0.0.4")

    @app.get("/")
    async def facts() -> dict[str, Any]:
        """What this head answers, and within which bounds."""
        worker.enter().release()
        predictor = worker.predictor
        if predictor is None:
            raise Refusal(503, "not_ready", "the head is not ready; ask again", 5)
        tasks = [
            {"name": task.name, "kind": task.kind, "unit": task.unit, "dim": task.dim, "labels": list(task.labels)}
            for task in predictor.tasks
        ]
        limits = ("max_upload_bytes", "max_photos", "max_pixels", "concurrency", "queue", "timeout", "body_timeout")
        return {
            "tasks": tasks,
            "digests": worker.digests,
            "backbone": predictor.backbone.name,
            "size": predictor.preprocess.size,
            "tta": predictor.tta,
            "device": str(predictor.device),
            "limits": {name: getattr(settings, name) for name in limits},
            "versions": versions(),
        }


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(Refusal)
    async def refused(_: Request, refusal: Refusal) -> JSONResponse:
        return JSONResponse(refusal.body(), refusal.status, refusal.headers())

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        sentence = f"{first['loc'][-1]} is {shown(str(first.get('input')))}: {first['msg']}"
        return JSONResponse({"error": sentence, "code": "invalid"}, 422)

    @app.exception_handler(Exception)  # Watch writes it to the log
    async def failed(_: Request, __: Exception) -> JSONResponse:
        refusal = Refusal(500, "failed", "the service failed, which is a fault of its own; it is in its log")
        return JSONResponse(refusal.body(), refusal.status)

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> JSONResponse:
        sentence = f"{request.method} {shown(request.url.path)}: {error.detail}; expected one of {', '.join(ROUTES)}"
        return JSONResponse({"error": sentence, "code": "no_route"}, error.status_code, error.headers)


class Watch:
    """Counts and times every request, ends those that outlast every bound, and logs what nobody foresaw.

    Args:
        app: the application.
        metrics: where requests are counted.
        settings: with the bounds.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, settings: Settings) -> None:
        self._app, self._metrics = app, metrics
        self._longest = settings.timeout + 2 * settings.body_timeout + 5  # the last for a client that reads slowly

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 0

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            async with asyncio.timeout(self._longest):
                await self._app(scope, receive, watched)
        except Exception as error:
            logger.exception("%s %s failed", scope["method"], shown(scope["path"]))
            if status or not isinstance(error, TimeoutError):
                raise
            refusal = Refusal(503, "too_long", f"there was no answer within {self._longest:g} s; ask again later", 1)
            status = refusal.status
            body = json.dumps(refusal.body()).encode()
            headers = {"content-type": "application/json", **refusal.headers()}
            raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
            await send({"type": "http.response.start", "status": status, "headers": raw})
            await send({"type": "http.response.body", "body": body})
        finally:
            route = scope["path"] if scope["path"] in ROUTES else "other"
            self._metrics.request(route, status, time.perf_counter() - began)
