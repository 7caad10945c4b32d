"""What the HTTP service refuses: requests, images, and what cannot be served at all."""

from __future__ import annotations

import asyncio
import importlib
import io
import socket
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from benchmarks.service import BOUNDARY, HEADERS, multipart, png, scene
from PIL import Image
from starlette.requests import Request
from timm.models.vision_transformer import VisionTransformer

from dinoneck import ConfigError, DataError, DinoneckError, save_head, wrap_backbone
from dinoneck.data import Preprocessing
from dinoneck.serve import Settings, create_app, serve
from dinoneck.serve.models import Model, open_model
from dinoneck.serve.refusal import Refusal
from dinoneck.serve.worker import Worker
from tests import kit
from tests.refusals import Row
from tests.refusals.command_line import detector
from tests.refusals.head_files import sound_file

IMAGE = scene("PNG", 48, 32)
JPEG = scene("JPEG")
LIMITS = Settings(max_upload_mb=0.1, max_images=2, max_pixels=1_000_000)
NO_BOUNDARY = {"Content-Type": "multipart/form-data"}
TEXT_FIELD = multipart(("", b"1")).replace(b'; filename=""', b"")
RECIPE = Preprocessing(16, size=(32, 48))
MODEL = Model(
    predict=lambda image, maps: {},
    preprocess=RECIPE,
    recipe=lambda size: RECIPE,
    backbones=(),
    facts={},
)


def request_of(body: bytes, headers: dict[str, str] | None = None, *, ends: bool = True) -> Request:
    """A request with this body, which arrives whole, or not to its end."""
    sent = HEADERS if headers is None else headers
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/predict",
        "query_string": b"",
        "app": None,  # the parser then reports as in an app
        "headers": [(name.lower().encode(), value.encode()) for name, value in sent.items()],
    }
    parts = [{"type": "http.request", "body": body, "more_body": not ends}]

    async def receive() -> Any:
        if not parts:
            await asyncio.Event().wait()
        return parts.pop()

    return Request(scope, receive)


def answered(
    work: Callable[[Worker], Awaitable[Any]], settings: Settings = LIMITS, model: Model = MODEL
) -> Any:
    """Let a worker of this model do something."""
    worker = Worker(model, settings)

    async def run() -> Any:
        return await work(worker)

    return asyncio.run(run())


def sent(body: bytes, headers: dict[str, str] | None = None) -> Callable[[], Any]:
    """Predict from this body."""
    return lambda: answered(lambda worker: worker.predict(request_of(body, headers), "none"))


def image_file(content: bytes) -> Callable[[], Any]:
    """Predict from one file with this content."""
    return sent(multipart(("field.png", content)))


def animation() -> bytes:
    file = io.BytesIO()
    first = Image.new("L", (16, 16), 0)
    second = Image.new("L", (16, 16), 255)
    first.save(file, "GIF", save_all=True, append_images=[second])
    return file.getvalue()


def second_request() -> Any:
    """Send a request while the only slot is taken."""

    async def work(worker: Worker) -> Any:
        unfinished = request_of(multipart(("a.png", IMAGE))[:100], ends=False)
        first = asyncio.create_task(worker.predict(unfinished, "none"))
        await asyncio.sleep(0)
        try:
            return await worker.predict(request_of(multipart(("b.png", IMAGE))), "none")
        finally:
            first.cancel()

    return answered(work, Settings(concurrency=1, queue=0))


def connection_that_ends() -> Any:
    request = request_of(multipart(("a.png", IMAGE))[:100], ends=False)
    receive = request.receive

    async def receive_and_end() -> Any:
        message = await receive()
        request._receive = lambda: asyncio.sleep(0, {"type": "http.disconnect"})
        return message

    request._receive = receive_and_end
    return answered(lambda worker: worker.predict(request, "none"))


def upload_that_stops() -> Any:
    unfinished = request_of(multipart(("a.png", IMAGE))[:100], ends=False)
    return answered(lambda worker: worker.predict(unfinished, "none"), Settings(timeout=0.01))


def slow_prediction() -> Any:
    """Predict with a model that waits until its request was refused."""
    refused = threading.Event()

    def wait(image: Any, maps: str) -> dict[str, Any]:
        assert refused.wait(60)
        return {}

    async def work(worker: Worker) -> Any:
        try:
            return await worker.predict(request_of(multipart(("a.png", IMAGE))), "none")
        finally:
            refused.set()

    model = MODEL._replace(predict=wait)
    return answered(work, Settings(timeout=0.3), model)


def image_below_a_patch(folder: Path) -> Any:
    """Predict from 10 x 40 px with a head that takes images in their own size."""
    backbone = kit.backbone()
    inputs = backbone.preprocess.changed(resize="crop")
    save_head(folder / "h.safetensors", kit.head(), backbone=backbone, preprocess=inputs)
    model = open_model(folder / "h.safetensors", Settings())
    body = multipart(("small.png", scene("PNG", 40, 10)))
    return answered(lambda worker: worker.predict(request_of(body), "none"), LIMITS, model)


def unknown_maps(folder: Path) -> Any:
    app = create_app(sound_file(folder))
    [predict] = [route.endpoint for route in app.routes if route.path == "/predict"]
    return asyncio.run(predict(request_of(multipart(("a.png", IMAGE))), maps="all"))


# what is served


def detector_file(folder: Path) -> Path:
    (folder / "d.safetensors").write_bytes(detector())
    return folder / "d.safetensors"


def head_of_four_bands(folder: Path) -> Any:
    model = VisionTransformer(
        img_size=32, patch_size=16, in_chans=4, embed_dim=24, depth=1, num_heads=2, num_classes=0
    )
    backbone = wrap_backbone(model, mean=(0.5,) * 4, std=(0.2,) * 4)
    save_head(
        folder / "h.safetensors",
        kit.head(width=24),
        backbone=backbone,
        preprocess=backbone.preprocess,
        backbone_weights=backbone.state_dict(),
    )
    return open_model(folder / "h.safetensors", Settings())


def maps_of_a_detector(folder: Path) -> Any:
    model = open_model(detector_file(folder), Settings())
    return model.predict(kit.images(1)[0], "lists")


def port_in_use(folder: Path) -> Any:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        serve(sound_file(folder), port=taken.getsockname()[1])


def without_fastapi() -> Any:
    with kit.without("fastapi"), pytest.MonkeyPatch.context() as patch:
        patch.delitem(sys.modules, "dinoneck.serve.app")
        return importlib.import_module("dinoneck.serve.app")


ROWS: list[Row] = [
    # the body
    (sent(b"{}", {"Content-Type": "application/json"}), Refusal, "'application/json'"),
    (sent(b"{}", {}), Refusal, "''"),
    (
        sent(b"", {**HEADERS, "Content-Length": "200000"}),
        Refusal,
        ("200000 bytes", "100000 at most"),
    ),
    (image_file(bytes(100_000)), Refusal, ("more than 100000 bytes", "100000 at most")),
    (sent(multipart(("a.png", IMAGE)), NO_BOUNDARY), Refusal, "boundary"),
    (sent(b"\0garbage" * 50), Refusal, "malformed"),
    (sent(multipart(("a.png", IMAGE), end=f"--{BOUNDARY}\r\n")), Refusal, "last boundary"),
    (sent(TEXT_FIELD), Refusal, "'image'"),
    (sent(b"", {**HEADERS, "Content-Encoding": "gzip"}), Refusal, ("'gzip'", "send it plain")),
    (connection_that_ends, Refusal, "the connection ended"),
    (sent(multipart()), Refusal, "no file"),
    (sent(multipart(*[("a.png", IMAGE)] * 3)), Refusal, ("3 files", "2 at most")),
    # images
    (image_file(b""), Refusal, ("'field.png' (0 bytes)", "is empty")),
    (image_file(IMAGE[:20]), Refusal, ("'field.png' (20 bytes)", "Send it again")),
    (image_file(b"a letter"), Refusal, ("'field.png' (8 bytes)", "JPEG, PNG")),
    (image_file(png(60_000, 60_000)), Refusal, ("'field.png'", "far more pixels", "1000000")),
    (image_file(png(2_000, 1_000)), Refusal, ("'field.png'", "2000000 pixels", "Shrink it")),
    (image_file(png(60_000, 1)), Refusal, ("'field.png'", "60000x1 px", "1000000", "Crop it")),
    (image_file(animation()), Refusal, "'field.png'"),
    (image_file(JPEG[: len(JPEG) // 2]), Refusal, ("'field.png'", "truncated")),
    (image_below_a_patch, Refusal, ("'small.png'", "10x40 px", "16x16 px")),
    (unknown_maps, Refusal, ("'all'", "none, lists, png")),
    # time
    (second_request, Refusal, ("1 requests", "retry in 1 s")),
    (upload_that_stops, Refusal, "0.01 s"),
    (slow_prediction, Refusal, "0.3 s"),
    # what is served
    (
        lambda folder: open_model(detector_file(folder), Settings(batch=4)),
        ConfigError,
        "batch is 4",
    ),
    (
        lambda folder: open_model(detector_file(folder), Settings(tta="flip4")),
        ConfigError,
        "tta is 'flip4'",
    ),
    (head_of_four_bands, ConfigError, ("4 channels", "dinoneck.Predictor")),
    (maps_of_a_detector, DataError, "'lists'"),
    (lambda folder: serve(sound_file(folder), port=99_999), ConfigError, "99999"),
    (port_in_use, DinoneckError, ("127.0.0.1", "free port")),
    (
        lambda folder: serve(sound_file(folder), host="192.0.2.1", port=0),
        DinoneckError,
        "192.0.2.1:0",
    ),
    (without_fastapi, ImportError, "dinoneck[serve]"),
]
