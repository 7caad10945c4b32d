"""A thousand requests at once, and bad uploads, while 200 connections idle: ``python -m benchmarks service``.

The service is a process of its own; the clients are threads of this process, on the same machine.
Predictions are compared with those of the same head in this process. Meanwhile ``/health`` is
requested again and again.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import io
import json
import os
import re
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from benchmarks.measure import Row
from dinoneck import PatchMeanHead, Predictor, Task, load_backbone, save_head

ROUNDS = 1
BOUNDARY = "a-boundary-that-no-image-holds"
HEADERS = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
VIT = "vit_small_patch16_dinov3.lvd1689m"
RUNS = (
    ("dinoneck_tiny", (64, 64), 1),
    ("dinoneck_tiny", (64, 64), 8),
    (VIT, (224, 224), 1),
    (VIT, (224, 224), 8),
)
MAX_UPLOAD_MB, MAX_IMAGES, IDLE = 2, 4, 200
PROBE = """
import http.client, sys, time

while True:
    connection = http.client.HTTPConnection(sys.argv[1], int(sys.argv[2]), timeout=600)
    begin = time.perf_counter()
    connection.request("GET", "/health")
    status = connection.getresponse().status
    print(time.perf_counter() - begin if status == 200 else "inf")
    connection.close()
    time.sleep(0.05)
"""
LIMITS = (
    "--max-upload-mb",
    str(MAX_UPLOAD_MB),
    "--max-images",
    str(MAX_IMAGES),
    "--max-pixels",
    "4000000",
)


class Reply(NamedTuple):
    """A response of the service."""

    status: int
    body: bytes
    headers: Mapping[str, str]

    def json(self) -> Any:
        """Return the body as JSON."""
        return json.loads(self.body)


class Service:
    """``dinoneck serve`` as a process, which listens when this is made.

    Attributes:
        address: where it listens.
        process: the process.
        log: the lines of its standard error so far.
    """

    def __init__(self, head: Path, *options: str, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "dinoneck", "serve", str(head), "--port", "0", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        self.log: list[str] = []
        self._reader = threading.Thread(target=lambda: self.log.extend(self.process.stderr or ()))
        self._reader.start()
        assert self.process.stdout is not None
        found = re.search(r"http://(.+):(\d+)$", self.process.stdout.readline().strip())
        if found is None:
            self.stop()
            raise RuntimeError(f"the service does not listen: {''.join(self.log)}")
        self.address = found[1], int(found[2])

    def request(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] = HEADERS
    ) -> Reply:
        """Send one request over a connection of its own."""
        with contextlib.closing(
            http.client.HTTPConnection(*self.address, timeout=600)
        ) as connection:
            with contextlib.suppress(BrokenPipeError):  # refused before the end of its body
                connection.request(
                    method, path, body, dict(headers), encode_chunked="Transfer-Encoding" in headers
                )
            return _reply(connection.getresponse())

    def get(self, path: str) -> Reply:
        """Send GET."""
        return self.request("GET", path)

    def predict(self, *files: tuple[str, bytes], query: str = "") -> Reply:
        """Send files to ``/predict``."""
        return self.request("POST", f"/predict{query}", multipart(*files))

    def connect(self, sent: bytes = b"") -> socket.socket:
        """Open a connection and send some bytes."""
        connection = socket.create_connection(self.address, timeout=600)
        connection.sendall(sent)
        return connection

    def stop(self) -> int:
        """Send SIGTERM and return the exit status."""
        self.process.terminate()
        status = self.process.wait()
        self._reader.join()
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()
        return status


def _reply(response: http.client.HTTPResponse) -> Reply:
    return Reply(
        response.status,
        response.read(),
        {name.lower(): value for name, value in response.getheaders()},
    )


def received(connection: socket.socket) -> Reply:
    """Return the response to a request that was sent as raw bytes."""
    response = http.client.HTTPResponse(connection)
    response.begin()
    return _reply(response)


@contextlib.contextmanager
def running(head: Path, *options: str, **environment: str) -> Iterator[Service]:
    """Run a service inside the block."""
    service = Service(head, *options, **environment)
    try:
        yield service
    finally:
        service.stop()


def multipart(*files: tuple[str, bytes], end: str = f"--{BOUNDARY}--\r\n") -> bytes:
    """Return a multipart body of files."""
    line = f"--{BOUNDARY}\r\nContent-Disposition: form-data; name="
    return b"".join(
        f'{line}"image"; filename="{name}"\r\n\r\n'.encode() + data + b"\r\n"
        for name, data in files
    ) + (end.encode())


def half_upload(image: bytes) -> tuple[bytes, bytes]:
    """Return a raw request in two parts, the second of which may come late."""
    body = multipart(("a.jpg", image))
    lines = ["POST /predict HTTP/1.1", "Host: x", f"Content-Type: {HEADERS['Content-Type']}"]
    head = "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode()
    return head + body[:100], body[100:]


def scene(
    suffix: str = "JPEG", width: int = 640, height: int = 480, seed: int = 0, **options: Any
) -> bytes:
    """Return a smooth coloured image as a file, which has the size of a photograph's."""
    drawn = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(drawn).resize((width, height), Image.Resampling.BICUBIC).save(
        file, suffix, **options
    )
    return file.getvalue()


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """Return a small black PNG of up to 300 rows, with further chunks; a bomb where it states many more pixels."""
    rows = zlib.compress((b"\0" * (1 + width)) * min(height, 300), 9)
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = [(b"IHDR", head), *chunks, (b"IDAT", rows), (b"IEND", b"")]
    packed = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


class Bad(NamedTuple):
    """A request that the service refuses, with the status and the code of the refusal."""

    kind: str
    status: int
    code: str
    body: Any
    headers: Mapping[str, str] = HEADERS


def bad_requests() -> list[Bad]:
    """Return uploads that are oversized, malformed, truncated, bombs or of a wrong type."""
    image, large = scene(), b"x" * (MAX_UPLOAD_MB * 1_000_000 + 1)
    frames = [Image.new("L", (16, 16), shade) for shade in (0, 255)]
    animation = io.BytesIO()
    frames[0].save(animation, "GIF", save_all=True, append_images=frames[1:])
    field = (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="n"\r\n\r\n1\r\n--{BOUNDARY}--\r\n'
    ).encode()
    chunked = {**HEADERS, "Transfer-Encoding": "chunked"}
    files = {
        "0 bytes": (422, "not_an_image", b""),
        "text": (422, "not_an_image", b"a letter\n" * 50),
        "SVG": (422, "not_an_image", b'<svg xmlns="http://www.w3.org/2000/svg"/>'),
        "truncated JPEG": (422, "broken_image", image[: len(image) // 2]),
        "truncated PNG": (422, "broken_image", scene("PNG")[:-5000]),
        "PNG bomb": (413, "too_many_pixels", png(60_000, 60_000)),
        "thin PNG": (413, "too_many_pixels", png(60_000, 1)),
        "zTXt bomb": (
            422,
            "not_an_image",
            png(16, 16, (b"zTXt", b"Comment\0\0" + zlib.compress(b"a" * 40_000_000))),
        ),
        "animation": (422, "animated", animation.getvalue()),
    }
    return [
        *(
            Bad(kind, status, code, multipart(("a.jpg", data)))
            for kind, (status, code, data) in files.items()
        ),
        Bad("oversized, by its Content-Length", 413, "too_large", multipart(("a.jpg", large))),
        Bad("oversized, streamed", 413, "too_large", [multipart(("a.jpg", large))], chunked),
        Bad(
            "too many files",
            413,
            "too_many_images",
            multipart(*[("a.jpg", image)] * (MAX_IMAGES + 1)),
        ),
        Bad("JSON", 415, "not_multipart", b"{}", {"Content-Type": "application/json"}),
        Bad("text field", 422, "no_image", field),
        Bad(
            "no last boundary",
            400,
            "malformed_upload",
            multipart(("a.jpg", image), ("b.jpg", image), end=""),
        ),
        Bad(
            "cut within a file",
            400,
            "malformed_upload",
            multipart(("a.jpg", image), ("b.jpg", image))[:-2000],
        ),
        Bad("no multipart inside", 400, "malformed_upload", b"\0garbage" * 50),
        Bad(
            "no boundary",
            400,
            "malformed_upload",
            multipart(("a.jpg", image)),
            {"Content-Type": "multipart/form-data"},
        ),
    ]


def saved_head(folder: Path, name: str, size: tuple[int, int]) -> Path:
    """Save an untrained head on a random backbone: neither time nor equality depends on the weights."""
    torch.manual_seed(0)
    backbone = load_backbone(name, pretrained=False, seed=0)
    head = PatchMeanHead(backbone.embed_dim, [Task("mass", unit="g", activation="softplus")])
    save_head(
        folder / "head.safetensors",
        head,
        backbone=backbone,
        preprocess=backbone.preprocess.changed(size=size),
    )
    return folder / "head.safetensors"


def expected_values(head: Path, images: Sequence[bytes]) -> list[dict[str, Any]]:
    """Return the values of each image from a ``Predictor`` in this process, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    predictor = Predictor(head)
    found = [predictor(Image.open(io.BytesIO(data)))[0] for data in images]
    torch.set_num_threads(threads)
    return found


@contextlib.contextmanager
def probed(service: Service, seconds: list[float]) -> Iterator[None]:
    """Request ``/health`` inside the block, 20 times a second, from a process without other work; keep the times."""
    command = [sys.executable, "-u", "-c", PROBE, *map(str, service.address)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield
        finally:
            process.terminate()
            seconds += map(float, process.stdout.read().split())


def load(head: Path, count: int, batch: int = 1) -> dict[str, Any]:
    """Send ``count`` images at once, and every bad upload five times, to a service that holds 200 idle connections."""
    images = [scene(seed=seed) for seed in range(20)]
    expected, bad = expected_values(head, images), bad_requests()
    wrong: list[str] = []
    seconds: list[float] = []
    options = ("--queue", str(2 * count + 200), "--timeout", "3600", "--batch", str(batch), *LIMITS)

    def good(number: int) -> None:
        reply, own = service.predict(("a.jpg", images[number % 20])), expected[number % 20]
        values = reply.json()["images"][0]["values"] if reply.status == 200 else {}
        if values != own and (
            batch == 1 or not np.allclose(values.get("mass", np.nan), own["mass"])
        ):
            wrong.append(f"image {number}: {reply.status} {reply.body[:200]!r}")

    def refused(one: Bad) -> None:
        reply = service.request("POST", "/predict", one.body, one.headers)
        if (reply.status, reply.json().get("code")) != (one.status, one.code):
            wrong.append(f"{one.kind}: {reply.status} {reply.body[:200]!r}")

    with running(head, *options, OMP_NUM_THREADS="1") as service, contextlib.ExitStack() as stack:
        for number in range(IDLE):  # half of them have sent half the head of a request
            stack.enter_context(service.connect(b"GET /health HTTP/1.1\r\nX-" * (number % 2)))
        with probed(service, seconds), ThreadPoolExecutor(count + 5 * len(bad)) as clients:
            begin = time.perf_counter()
            tasks = [clients.submit(good, number) for number in range(count)]
            tasks += [clients.submit(refused, one) for one in bad * 5]
            for task in tasks:
                task.result()
            took = time.perf_counter() - begin
        peak = next(
            line
            for line in Path(f"/proc/{service.process.pid}/status").read_text().splitlines()
            if "HWM" in line
        )
    health = {"asked": len(seconds), "p50_ms": 1e3 * statistics.median(seconds)}
    health |= {
        "p95_ms": 1e3 * statistics.quantiles(seconds, n=20)[-1],
        "max_ms": 1e3 * max(seconds),
    }
    return {
        "images": count,
        "refused": 5 * len(bad),
        "wrong": wrong[:20],
        "per_s": count / took,
        "peak_mb": int(peak.split()[1]) / 1e3,
        "idle": IDLE,
        "health": health,
        "tracebacks": sum("Traceback" in line for line in service.log),
    }


def late_upload(head: Path) -> tuple[int, str]:
    """Return the status and the code for an upload that stops, with a timeout of 2 s."""
    with (
        running(head, "--timeout", "2") as service,
        service.connect(half_upload(scene())[0]) as connection,
    ):
        reply = received(connection)
        return reply.status, reply.json()["code"]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--images", type=int, default=1000)


def measure(options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Row]]]:
    """Yield the runs, one row per model and images in a pass.

    Raises:
        SystemExit: for a prediction, a status or a code that is wrong.
    """
    table: dict[str, Row] = {}
    wrong: list[str] = []
    runs = RUNS[:1] if options.short else RUNS
    for name, size, batch in runs:
        with tempfile.TemporaryDirectory() as folder:
            head = saved_head(Path(folder), name, size)
            found = load(head, 20 if options.short else options.images, batch)
            if (late := late_upload(head)) != (408, "too_slow"):
                found["wrong"].append(f"an upload that stops: {late}")
        wrong += found["wrong"]
        table[f"`{name.split('.')[0]}`, {size[0]} × {size[1]} px, {batch} in a pass"] = {
            "images": found["images"],
            "wrong": len(found["wrong"]),
            "refused": found["refused"],
            "images / s": found["per_s"],
            "`/health` p50, ms": found["health"]["p50_ms"],
            "p95, ms": found["health"]["p95_ms"],
            "peak MB": found["peak_mb"],
        }
    yield "load", table
    if wrong:
        raise SystemExit("\n".join(wrong))
