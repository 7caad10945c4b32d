"""The routes, errors as JSON, and the process that serves them until SIGTERM or Ctrl-C."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import socket  # noqa: TID251 - the service listens
from collections.abc import Callable
from typing import Any

import torch

from dinoneck.errors import ConfigError, DinoneckError
from dinoneck.extras import missing_extra
from dinoneck.serve.refusal import Refusal

try:
    import uvicorn
    from fastapi import FastAPI, Request
    from fastapi.responses import JSONResponse, Response
    from starlette.exceptions import HTTPException

    from dinoneck.serve.uploads import quoted
    from dinoneck.serve.worker import Worker
except ImportError as error:
    raise missing_extra(error.name or "fastapi", "serve") from error

from dinoneck.backbones.openvino import is_installed
from dinoneck.runtime.names import is_exported
from dinoneck.serve.models import MAPS, Model, open_model
from dinoneck.serve.settings import Settings
from dinoneck.version import versions

logger = logging.getLogger("dinoneck.serve")
LARGEST_PORT = 65_535
ROUTES = ("/", "/predict", "/health")


def create_app(head: str | os.PathLike[str], *, settings: Settings | None = None) -> FastAPI:
    """Load the model and return the service as a FastAPI app.

    Args:
        head: a head file, a folder of head files, or a Hub repository.
        settings: the limits.

    Raises:
        CheckpointError: if a file cannot be used.
        BackboneError: if the backbone cannot be loaded.
        ConfigError: for views or batches of a detector.
        DataError: if a prediction is not finite.
        ImportError: if the extra ``serve`` is missing.
    """
    settings = settings or Settings()
    return _app_of(open_model(head, settings), settings)


def _app_of(model: Model, settings: Settings) -> FastAPI:
    """Return the service of a loaded model."""
    worker = Worker(model, settings)

    app = FastAPI(
        openapi_url=None,
        exception_handlers={Refusal: _refused, HTTPException: _unknown, Exception: _failed},
    )

    @app.post("/predict")
    async def predict(request: Request, maps: str = "none") -> Response:
        """Predictions for every image of a multipart body, in its order; all of them, or an error."""
        if maps not in MAPS:
            raise Refusal(
                422, "invalid", f"maps is {quoted(maps)}; expected one of {', '.join(MAPS)}"
            )
        return Response(await worker.predict(request, maps), media_type="application/json")

    @app.get("/health")
    async def health() -> dict[str, str]:
        """The service runs, and its model is loaded."""
        return {"status": "alive"}

    @app.get("/")
    async def facts() -> dict[str, Any]:
        """What the model predicts, and the limits."""
        limits = {
            "max_pixels": worker.max_pixels,
            "max_upload_bytes": settings.max_upload_bytes,
            "max_images": settings.max_images,
            "concurrency": settings.concurrency,
            "queue": settings.queue,
            "timeout": settings.timeout,
            "body_timeout": settings.body_timeout,
            "batch": settings.batch,
        }
        return {**model.facts, "limits": limits, "versions": versions()}

    return app


async def _refused(_: Request, refusal: Any) -> JSONResponse:
    return JSONResponse(refusal.body(), refusal.status, refusal.headers())


async def _unknown(request: Request, error: Any) -> JSONResponse:
    sentence = (
        f"{request.method} {quoted(request.url.path)}: {error.detail}; expected one of "
        f"{', '.join(ROUTES)}"
    )
    return JSONResponse({"error": sentence, "code": "no_route"}, error.status_code, error.headers)


# Starlette raises it again, and the server logs it
async def _failed(_: Request, __: Exception) -> JSONResponse:
    return JSONResponse(
        {"error": "the prediction failed; the service's log has the cause", "code": "failed"}, 500
    )


def serve(
    head: str | os.PathLike[str],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    settings: Settings | None = None,
    announce: Callable[[str], object] | None = None,
) -> None:
    """Serve a head or a detector over HTTP until SIGTERM or Ctrl-C; accepted requests are completed first.

    It has no authentication, TLS or rate limit: run it behind a proxy that has them. Torch's
    threads are shared among ``settings.concurrency``, except with ``batch`` and where programs of
    OpenVINO are used, which compute one request after the other.

    Args:
        head: a head file, a folder of head files, or a Hub repository.
        host: address to listen on; the default is reachable from this machine only.
        port: 0 = any free port.
        settings: the limits.
        announce: called with a line that has the address, when the head is loaded; None = the line
            is logged.

    Raises:
        CheckpointError: if the head cannot be read.
        ConfigError: if there is no such port, or for views or batches of a detector.
        DinoneckError: if its backbone cannot be loaded, or it cannot listen on the address.
        ImportError: if the extra ``serve`` is missing.
    """
    settings = settings or Settings()
    # a client that connects before the head is loaded waits
    with _listener(host, port) as listener:
        app = _app_of(open_with_threads(head, settings), settings)
        # a request that was just accepted may take its whole time, and a second for its answer
        shutdown_seconds = math.ceil(settings.timeout) + 1
        config = uvicorn.Config(
            app, access_log=False, server_header=False, timeout_graceful_shutdown=shutdown_seconds
        )
        url_host = f"[{host}]" if ":" in host else host  # brackets around an IPv6 address
        bound_port = listener.getsockname()[1]
        announce = announce or logger.info
        announce(f"listening on http://{url_host}:{bound_port}")
        # uvicorn raises a signal again after the shutdown
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listener])


def open_with_threads(head: str | os.PathLike[str], settings: Settings) -> Model:
    """Return the model; torch's threads are then shared among the requests that are computed at once.

    Programs of OpenVINO compute one request after the other, with all threads; exported files have
    threads of their own.
    """
    num_threads = torch.get_num_threads()
    share = num_threads
    if settings.batch == 1:
        share = max(1, num_threads // settings.concurrency)
    if is_exported(head):
        return open_model(head, settings)
    if settings.runtime in (None, "torch") or not is_installed():
        torch.set_num_threads(share)
        return open_model(head, settings)
    model = open_model(head, settings)
    if all(backbone.runtime == "torch" for backbone in model.backbones):  # auto found it faster
        torch.set_num_threads(share)
    return model


def _listener(host: str, port: int) -> socket.socket:
    if not 0 <= port <= LARGEST_PORT:
        raise ConfigError(f"port is {port}; expected 0 ... {LARGEST_PORT}")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family)
        # else a body waits 40 ms for its header's ACK
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except OSError as error:
        expected = "expected an address of this machine and a free port"
        raise DinoneckError(
            f"cannot listen on {host}:{port}: {error.strerror}; {expected}"
        ) from error
