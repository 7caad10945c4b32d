"""The routes, and errors as JSON."""

from __future__ import annotations

import os
from typing import Any

from dinoneck.errors import Refusal, missing_extra

try:
    from fastapi import FastAPI, Request
    from fastapi.responses import JSONResponse, Response
    from starlette.exceptions import HTTPException

    from dinoneck.serve.uploads import quoted
    from dinoneck.serve.worker import Worker
except ImportError as error:
    raise missing_extra(error.name or "fastapi", "serve") from error

from dinoneck.serve.models import MAPS, open_model
from dinoneck.serve.settings import Settings
from dinoneck.version import versions

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
    model = open_model(head, settings)
    worker = Worker(model, settings)

    app = FastAPI(openapi_url=None, exception_handlers={Refusal: _refused, HTTPException: _unknown, Exception: _failed})

    @app.post("/predict")
    async def predict(request: Request, maps: str = "none") -> Response:
        """Predictions for every image of a multipart body, in its order; all of them, or an error."""
        if maps not in MAPS:
            raise Refusal(422, "invalid", f"maps is {quoted(maps)}; expected one of {', '.join(MAPS)}")
        return Response(await worker.predict(request, maps), media_type="application/json")

    @app.get("/health")
    async def health() -> dict[str, str]:
        """The service runs, and its model is loaded."""
        return {"status": "alive"}

    @app.get("/")
    async def facts() -> dict[str, Any]:
        """What the model predicts, and the limits."""
        names = ("max_upload_bytes", "max_images", "concurrency", "queue", "timeout", "batch")
        limits = {"max_pixels": worker.max_pixels, **{name: getattr(settings, name) for name in names}}
        return {**model.facts, "limits": limits, "versions": versions()}

    return app


async def _refused(_: Request, refusal: Any) -> JSONResponse:
    return JSONResponse(refusal.body(), refusal.status, refusal.headers())


async def _unknown(request: Request, error: Any) -> JSONResponse:
    sentence = f"{request.method} {quoted(request.url.path)}: {error.detail}; expected one of {', '.join(ROUTES)}"
    return JSONResponse({"error": sentence, "code": "no_route"}, error.status_code, error.headers)


async def _failed(_: Request, __: Exception) -> JSONResponse:  # Starlette raises it again, and the server logs it
    return JSONResponse({"error": "the prediction failed; the service's log has the cause", "code": "failed"}, 500)
