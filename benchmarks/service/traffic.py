"""A thousand requests, one in ten bad in any of the ways there are, from many clients at once."""

from __future__ import annotations

import contextlib
import http.client
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.service.pictures import bad
from benchmarks.service.server import BOUNDARY, HEADERS, Answer, Service, multipart, part, received

Send = Callable[[http.client.HTTPConnection], None]
DISCONNECTED = (http.client.HTTPException, ConnectionError, TimeoutError)


@dataclass(frozen=True)
class Request:
    """One request and what has to come back.

    Attributes:
        kind: what is sent: a picture's name, or the name of what is wrong.
        send: sends it.
        status: the status it must be answered with.
        code: the code of its refusal; empty for good ones.
        expected: the image's entry in the response, without its name; None = not compared.
    """

    kind: str
    send: Send
    status: int = 200
    code: str = ""
    expected: Mapping[str, Any] | None = None

    def wrong(self, answer: Answer) -> str | None:
        """Say what is wrong with an answer; None if nothing is."""
        if answer.status != self.status:
            return f"{self.kind}: status {answer.status}, not {self.status}: {answer.body[:300]!r}"
        told = answer.json()
        if self.status != 200:
            good = bool(told.get("error")) and told.get("code") == self.code
            return None if good else f"{self.kind}: {told}"
        found = [{key: value for key, value in image.items() if key != "name"} for image in told["images"]]
        good = self.expected is None or found == [self.expected]
        return None if good else f"{self.kind}: {found}, not {self.expected}"


def good_requests(pictures: Mapping[str, bytes], expected: Mapping[str, Mapping[str, Any]]) -> list[Request]:
    """Return a request for every picture, with the entry that its response must have."""
    return [
        Request(name, _post(multipart((name, data))), expected=expected.get(name)) for name, data in pictures.items()
    ]


def bad_requests(max_upload_bytes: int, max_images: int) -> list[Request]:
    """Return a request for every way to be wrong that HTTP and multipart allow, and every bad picture."""
    found = [
        Request(name, _post(multipart((name, data))), status, code) for name, (data, status, code) in bad().items()
    ]
    body = multipart(("a.jpg", b"x" * 100))
    large = multipart(("large.jpg", b"x" * (max_upload_bytes + 1)))
    many = multipart(*[("a.jpg", b"x")] * (max_images + 1))
    text = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="n"\r\n\r\n1\r\n--{BOUNDARY}--\r\n'.encode()
    return [
        *found,
        Request("too large", _post(large), 413, "too_large"),
        Request("too large, no length told", _chunked(large), 413, "too_large"),
        Request("too many files", _post(many), 413, "too_many_images"),
        Request("a text field", _post(text), 422, "no_image"),
        Request("no part", _post(f"--{BOUNDARY}--\r\n".encode()), 422, "no_image"),
        Request("no last boundary", _post(part("a.jpg", b"x" * 100)), 400, "malformed_upload"),
        Request("garbage for a body", _post(b"\x00\x01garbage" * 50), 400, "malformed_upload"),
        Request("no body", _post(b""), 400, "malformed_upload"),
        Request("another boundary", _post(body.replace(BOUNDARY.encode(), b"other")), 400, "malformed_upload"),
        Request("no boundary told", _post(body, {"Content-Type": "multipart/form-data"}), 400, "malformed_upload"),
        Request("JSON", _post(b'{"image": 1}', {"Content-Type": "application/json"}), 415, "not_multipart"),
        Request("no type", _post(body, {}), 415, "not_multipart"),
        Request("maps of no kind", _post(body, path="/predict?maps=all"), 422, "invalid"),
        Request("another method", _get("/predict"), 405, "no_route"),
        Request("another path", _get("/../etc/passwd"), 404, "no_route"),
    ]


@dataclass
class Outcome:
    """What a run gave.

    Attributes:
        seconds: per good request, from its first byte to its answer.
        refused: how many were refused as they had to be.
        wrong: what was not as it must be.
        resident_bytes: the server's memory, asked for along the way.
        wall_s: of the whole run.
    """

    seconds: list[float] = field(default_factory=list)
    refused: int = 0
    wrong: list[str] = field(default_factory=list)
    resident_bytes: list[float] = field(default_factory=list)
    wall_s: float = 0.0


def mixed(good: Sequence[Request], wrong: Sequence[Request], count: int, bad_share: float, seed: int) -> list[Request]:
    """Return so many requests in random order: exactly this share bad, every kind as often as any other of its sort."""
    drawn = random.Random(seed)
    bad_count = round(count * bad_share)
    requests = [wrong[i % len(wrong)] for i in range(bad_count)] if bad_count else []
    requests += [good[i % len(good)] for i in range(count - bad_count)]
    drawn.shuffle(requests)
    return requests


def run(service: Service, requests: Sequence[Request], clients: int, every: int = 25) -> Outcome:
    """Send the requests from so many clients at once, each on a connection that it keeps while the server does."""
    outcome, lock, left = Outcome(), threading.Lock(), iter(enumerate(requests))

    def take() -> tuple[int, Request] | None:
        with lock:
            return next(left, None)

    def client() -> None:
        connection = service.connection()
        while (taken := take()) is not None:
            number, request = taken
            began = time.perf_counter()
            try:
                request.send(connection)
                wrong = request.wrong(received(connection))
            except DISCONNECTED as error:
                wrong = f"{request.kind}: {type(error).__name__}: {error}"
                connection.close()
            took = time.perf_counter() - began
            resident = service.metric("process_resident_memory_bytes") if number % every == 0 else None
            with lock:
                if wrong is not None:
                    outcome.wrong.append(wrong)
                elif request.status == 200:
                    outcome.seconds.append(took)
                else:
                    outcome.refused += 1
                if resident is not None:
                    outcome.resident_bytes.append(resident)
        connection.close()

    threads = [threading.Thread(target=client) for _ in range(clients)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    outcome.wall_s = time.perf_counter() - began
    return outcome


@contextlib.contextmanager
def slow_clients(service: Service, count: int) -> Iterator[None]:
    """Hold ``count`` connections that stop within the head of a request, and as many that stop within a body."""
    head = b"GET /health HTTP/1.1\r\nX-"
    fields = {"Host": "x", **HEADERS, "Content-Length": "5000"}
    lines = ["POST /predict HTTP/1.1", *(f"{key}: {value}" for key, value in fields.items())]
    body = "".join(f"{line}\r\n" for line in [*lines, ""]).encode() + multipart(("a.jpg", b"x"))[:50]
    with contextlib.ExitStack() as stack:
        for sent in (head, body) * count:
            client = stack.enter_context(socket.create_connection((service.host, service.port), timeout=60))
            client.sendall(sent)
        yield


def _post(body: bytes, headers: Mapping[str, str] = HEADERS, path: str = "/predict") -> Send:
    return lambda connection: connection.request("POST", path, body, dict(headers))


def _get(path: str) -> Send:
    return lambda connection: connection.request("GET", path)


def _chunked(body: bytes) -> Send:
    def pieces() -> Iterator[bytes]:
        for begin in range(0, len(body), 65_536):
            yield body[begin : begin + 65_536]

    def send(connection: http.client.HTTPConnection) -> None:
        with contextlib.suppress(BrokenPipeError):
            connection.request("POST", "/predict", pieces(), dict(HEADERS), encode_chunked=True)

    return send
