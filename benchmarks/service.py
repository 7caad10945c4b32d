"""A thousand requests at once, and bad uploads, while 200 connections idle: ``python -m benchmarks service``.

The service is a process of its own; the clients are threads of this process, on the same machine.
Predictions are compared with those of the same head in this process. Meanwhile ``/health`` is
requested again and again. Then two services, of which one may use OpenVINO, get images of 30 sizes.
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
PARTS = ("load", "sizes")
BOUNDARY = "a-boundary-that-no-image-holds"
HEADERS = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
VIT = "vit_small_patch16_dinov3.lvd1689m"
RUNS = (  # backbone, size of the images, images in a pass, runtime
    ("dinoneck_tiny", (64, 64), 1, "torch"),
    ("dinoneck_tiny", (64, 64), 8, "torch"),
    (VIT, (224, 224), 1, "torch"),
    (VIT, (224, 224), 8, "torch"),
    (VIT, (224, 224), 1, "openvino"),
)
MAX_UPLOAD_MB = 2
MAX_IMAGES = 4
IDLE = 200  # connections
TIMES_REFUSED = 5  # how often each bad upload is sent
NUM_SCENES = 20
SHOWN = 20  # wrong replies that are listed
SHORT_IMAGES = 20
NUM_SIZES = 30
SHORT_SIZES = 2
SIZES_ROUNDS = 7
# requests /health 20 times a second and prints the seconds
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
        match = re.search(r"http://(.+):(\d+)$", self.process.stdout.readline().strip())
        if match is None:
            self.stop()
            raise RuntimeError(f"the service does not listen: {''.join(self.log)}")
        self.address = (match[1], int(match[2]))

    def request(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] = HEADERS
    ) -> Reply:
        """Send one request over a connection of its own."""
        host, port = self.address
        is_chunked = "Transfer-Encoding" in headers
        with contextlib.closing(http.client.HTTPConnection(host, port, timeout=600)) as connection:
            with contextlib.suppress(BrokenPipeError):  # refused before the end of its body
                connection.request(method, path, body, dict(headers), encode_chunked=is_chunked)
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
    headers = {name.lower(): value for name, value in response.getheaders()}
    return Reply(response.status, response.read(), headers)


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
    body = b""
    for name, data in files:
        head = (
            f"--{BOUNDARY}\r\n"
            f'Content-Disposition: form-data; name="image"; filename="{name}"\r\n\r\n'
        )
        body += head.encode() + data + b"\r\n"
    return body + end.encode()


def half_upload(image: bytes) -> tuple[bytes, bytes]:
    """Return a raw request in two parts, the second of which may come late."""
    body = multipart(("a.jpg", image))
    lines = ["POST /predict HTTP/1.1", "Host: x", f"Content-Type: {HEADERS['Content-Type']}"]
    head = "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode()
    return head + body[:100], body[100:]


def scene(
    suffix: str = "JPEG", width: int = 640, height: int = 480, seed: int = 0, **options: Any
) -> bytes:
    """Return the file of a smooth coloured image, which is as large as a photograph's."""
    coarse = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, suffix, **options)
    return file.getvalue()


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """Return a small black PNG with further chunks, kind and data.

    It has at most 300 rows: with a larger height it is a bomb, whose header states many more pixels
    than the file has.
    """
    row = b"\0" * (1 + width)
    pixels = zlib.compress(row * min(height, 300), 9)
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    file = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", header), *chunks, (b"IDAT", pixels), (b"IEND", b"")):
        length = struct.pack(">I", len(data))
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        file += length + kind + data + checksum
    return file


class BadRequest(NamedTuple):
    """A request that the service refuses, with the status and the code of the refusal."""

    kind: str
    status: int
    code: str
    body: Any
    headers: Mapping[str, str] = HEADERS


def bad_requests() -> list[BadRequest]:
    """Return uploads that are oversized, malformed, truncated, bombs or of a wrong type."""
    return [*bad_files(), *bad_uploads()]


def bad_files() -> list[BadRequest]:
    """Return well-formed uploads of files that are no images, broken or too large to decode."""
    image = scene()
    long_text = b"Comment\0\0" + zlib.compress(b"a" * 40_000_000)
    files = (  # kind, status, code, content
        ("0 bytes", 422, "not_an_image", b""),
        ("text", 422, "not_an_image", b"a letter\n" * 50),
        ("SVG", 422, "not_an_image", b'<svg xmlns="http://www.w3.org/2000/svg"/>'),
        ("truncated JPEG", 422, "broken_image", image[: len(image) // 2]),
        ("truncated PNG", 422, "broken_image", scene("PNG")[:-5000]),
        ("PNG bomb", 413, "too_many_pixels", png(60_000, 60_000)),
        ("thin PNG", 413, "too_many_pixels", png(60_000, 1)),
        ("zTXt bomb", 422, "not_an_image", png(16, 16, (b"zTXt", long_text))),
        ("animation", 422, "animated", gif()),
    )
    requests = []
    for kind, status, code, content in files:
        requests.append(BadRequest(kind, status, code, multipart(("a.jpg", content))))
    return requests


def bad_uploads() -> list[BadRequest]:
    """Return requests that are too large or malformed, whatever files they hold."""
    image = scene()
    one_image = multipart(("a.jpg", image))
    two_images = multipart(("a.jpg", image), ("b.jpg", image))
    without_end = multipart(("a.jpg", image), ("b.jpg", image), end="")
    too_many_images = multipart(*[("a.jpg", image)] * (MAX_IMAGES + 1))
    too_large = multipart(("a.jpg", b"x" * (MAX_UPLOAD_MB * 1_000_000 + 1)))
    text_field = (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="n"\r\n\r\n1\r\n--{BOUNDARY}--\r\n'
    ).encode()
    garbage = b"\0garbage" * 50
    chunked = {**HEADERS, "Transfer-Encoding": "chunked"}
    json_type = {"Content-Type": "application/json"}
    no_boundary = {"Content-Type": "multipart/form-data"}
    return [
        BadRequest("oversized, by its Content-Length", 413, "too_large", too_large),
        BadRequest("oversized, streamed", 413, "too_large", [too_large], chunked),
        BadRequest("too many files", 413, "too_many_images", too_many_images),
        BadRequest("JSON", 415, "not_multipart", b"{}", json_type),
        BadRequest("text field", 422, "no_image", text_field),
        BadRequest("no last boundary", 400, "malformed_upload", without_end),
        BadRequest("cut within a file", 400, "malformed_upload", two_images[:-2000]),
        BadRequest("no multipart inside", 400, "malformed_upload", garbage),
        BadRequest("no boundary", 400, "malformed_upload", one_image, no_boundary),
    ]


def gif() -> bytes:
    """Return an animation of two frames."""
    black = Image.new("L", (16, 16), 0)
    white = Image.new("L", (16, 16), 255)
    file = io.BytesIO()
    black.save(file, "GIF", save_all=True, append_images=[white])
    return file.getvalue()


def saved_head(folder: Path, name: str, size: tuple[int, int] | None) -> Path:
    """Save an untrained head on a random backbone: neither time nor equality depends on the weights.

    Args:
        folder: of the file.
        name: of the backbone.
        size: to which the service resizes images, (height, width); None = their own.
    """
    torch.manual_seed(0)
    backbone = load_backbone(name, pretrained=False, seed=0)
    task = Task("mass", unit="g", activation="softplus")
    head = PatchMeanHead(backbone.embed_dim, [task])
    file = folder / "head.safetensors"
    save_head(file, head, backbone=backbone, preprocess=backbone.preprocess.changed(size=size))
    return file


def expected_values(head: Path, images: Sequence[bytes]) -> list[dict[str, Any]]:
    """Return the values of each image from a ``Predictor`` in this process, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    predictor = Predictor(head)
    values = [predictor(Image.open(io.BytesIO(data)))[0] for data in images]
    torch.set_num_threads(threads)
    return values


@contextlib.contextmanager
def probed(service: Service, seconds: list[float]) -> Iterator[None]:
    """Request ``/health`` inside the block, 20 times a second, from a process of its own.

    The seconds of the requests are appended to ``seconds``.
    """
    command = [sys.executable, "-u", "-c", PROBE, *map(str, service.address)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield
        finally:
            process.terminate()
            seconds += map(float, process.stdout.read().split())


def load(head: Path, count: int, batch: int = 1, runtime: str = "torch") -> dict[str, Any]:
    """Send ``count`` images at once, and every bad upload five times.

    Meanwhile the service has 200 idle connections. Its predictions are those of a ``Predictor`` in
    torch: to the bit where it computes one image in a pass in torch, else up to rounding.
    """
    to_the_bit = batch == 1 and runtime == "torch"
    images = [scene(seed=seed) for seed in range(NUM_SCENES)]
    expected = expected_values(head, images)
    bad = bad_requests() * TIMES_REFUSED
    wrong: list[str] = []
    health_seconds: list[float] = []
    queue = 2 * count + 200
    options = ["--queue", str(queue), "--timeout", "3600", "--batch", str(batch)]
    options += ["--runtime", runtime, *LIMITS]

    def send_image(number: int) -> None:
        scene_number = number % NUM_SCENES
        reply = service.predict(("a.jpg", images[scene_number]))
        values = {}
        if reply.status == 200:
            values = reply.json()["images"][0]["values"]
        if not _same_values(values, expected[scene_number], to_the_bit=to_the_bit):
            wrong.append(f"image {number}: {reply.status} {reply.body[:200]!r}")

    def send_bad(request: BadRequest) -> None:
        reply = service.request("POST", "/predict", request.body, request.headers)
        if (reply.status, reply.json().get("code")) != (request.status, request.code):
            wrong.append(f"{request.kind}: {reply.status} {reply.body[:200]!r}")

    # torch computes as many requests at once as there are cores, OpenVINO one on all of them
    threads = 1
    if runtime == "openvino":
        threads = os.cpu_count() or 1
    with (
        running(head, *options, OMP_NUM_THREADS=str(threads)) as service,
        contextlib.ExitStack() as stack,
    ):
        for number in range(IDLE):
            # every second one has sent half the head of a request
            sent = b"GET /health HTTP/1.1\r\nX-" if number % 2 == 1 else b""
            stack.enter_context(service.connect(sent))
        with probed(service, health_seconds), ThreadPoolExecutor(count + len(bad)) as clients:
            begin = time.perf_counter()
            replies = [clients.submit(send_image, number) for number in range(count)]
            replies += [clients.submit(send_bad, request) for request in bad]
            for reply in replies:
                reply.result()
            seconds = time.perf_counter() - begin
        peak_kb = _peak_kb(service.process.pid)
    return {
        "images": count,
        "refused": len(bad),
        "wrong": wrong[:SHOWN],
        "per_s": count / seconds,
        "peak_mb": peak_kb / 1e3,
        "idle": IDLE,
        "health": {
            "asked": len(health_seconds),
            "p50_ms": 1e3 * statistics.median(health_seconds),
            "p95_ms": 1e3 * statistics.quantiles(health_seconds, n=20)[-1],
            "max_ms": 1e3 * max(health_seconds),
        },
        "tracebacks": sum("Traceback" in line for line in service.log),
    }


def _same_values(
    values: Mapping[str, Any], expected: Mapping[str, Any], *, to_the_bit: bool
) -> bool:
    """Whether predictions are equal, exactly or up to rounding."""
    if to_the_bit:
        return values == expected
    return bool(np.allclose(values.get("mass", np.nan), expected["mass"]))


def _peak_kb(process_id: int) -> int:
    """Return the peak of a process's memory."""
    for line in Path(f"/proc/{process_id}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1])
    raise ValueError(f"/proc/{process_id}/status has no field 'VmHWM'")


def late_upload(head: Path) -> tuple[int, str]:
    """Return the status and the code for an upload that stops, with a timeout of 2 s."""
    first_part, _ = half_upload(scene())
    with (
        running(head, "--timeout", "2") as service,
        service.connect(first_part) as connection,
    ):
        reply = received(connection)
        return reply.status, reply.json()["code"]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--images", type=int, default=1000)


def measure(options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Row]]]:
    """Yield the runs under load, one row per model and images in a pass, and the images of many sizes.

    Raises:
        SystemExit: for a prediction, a status or a code that is wrong.
    """
    parts = options.only or PARTS
    if "load" in parts:
        yield from measure_load(options)
    if "sizes" in parts:
        yield "30 sizes", measure_sizes(SHORT_SIZES if options.short else NUM_SIZES)


def measure_sizes(num_sizes: int) -> dict[str, Row]:
    """Return the time of a request over that with ``--runtime torch``; each image has a size of its own.

    Both services get an image one after the other, in turns. The head fixes no size, so that
    ``auto``, the default, has no program for any of them.
    """
    sizes = [(160 + 16 * (number % 6), 160 + 16 * (number // 6)) for number in range(num_sizes)]
    images = [scene(width=width, height=height) for height, width in sizes]
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        head = saved_head(Path(folder), VIT, None)
        with running(head, "--runtime", "torch") as reference, running(head) as service:
            for image in images:
                seconds: dict[Service, list[float]] = {reference: [], service: []}
                for number in range(SIZES_ROUNDS):
                    order = (reference, service) if number % 2 else (service, reference)
                    for target in order:
                        seconds[target].append(seconds_of_request(target, image))
                ratios.append(
                    statistics.median(seconds[service]) / statistics.median(seconds[reference])
                )
    quartiles = statistics.quantiles(ratios, n=4)
    row = {
        "sizes": num_sizes,
        "requests of each size": SIZES_ROUNDS,
        "× `--runtime torch`": statistics.median(ratios),
        "quartiles": f"{quartiles[0]:.2f} … {quartiles[2]:.2f}",
        "largest": max(ratios),
    }
    return {"`vit_small_patch16_dinov3`, 160 … 304 px": row}


def seconds_of_request(service: Service, image: bytes) -> float:
    """Return how long a prediction takes.

    Raises:
        SystemExit: if it is refused.
    """
    begin = time.perf_counter()
    reply = service.predict(("a.jpg", image))
    seconds = time.perf_counter() - begin
    if reply.status != 200:
        raise SystemExit(f"an image of its own size: {reply.status}, {reply.body!r}")
    return seconds


def measure_load(options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Row]]]:
    """Yield the runs under load, one row per model and images in a pass.

    Raises:
        SystemExit: for a prediction, a status or a code that is wrong.
    """
    table: dict[str, Row] = {}
    wrong: list[str] = []
    runs = RUNS[:1] if options.short else RUNS
    count = SHORT_IMAGES if options.short else options.images
    for name, size, batch, runtime in runs:
        with tempfile.TemporaryDirectory() as folder:
            head = saved_head(Path(folder), name, size)
            measured = load(head, count, batch, runtime)
            late = late_upload(head)
        if late != (408, "too_slow"):
            measured["wrong"].append(f"an upload that stops: {late}")
        wrong += measured["wrong"]
        model_name, *_ = name.split(".")
        height, width = size
        table[f"`{model_name}`, {height} × {width} px, {batch} in a pass, {runtime}"] = {
            "images": measured["images"],
            "wrong": len(measured["wrong"]),
            "refused": measured["refused"],
            "images / s": measured["per_s"],
            "`/health` p50, ms": measured["health"]["p50_ms"],
            "p95, ms": measured["health"]["p95_ms"],
            "peak MB": measured["peak_mb"],
        }
    yield "load", table
    if wrong:
        raise SystemExit("\n".join(wrong))
