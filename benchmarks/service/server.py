"""The service as a process of its own, and a plain client for it."""

from __future__ import annotations

import contextlib
import http.client
import json
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
BOUNDARY = "a-boundary-that-no-image-holds"


class Answer(NamedTuple):
    """What came back."""

    status: int
    body: bytes
    headers: Mapping[str, str]

    def json(self) -> Any:
        """Return the body as JSON."""
        return json.loads(self.body)


class Service:
    """A running service.

    Attributes:
        host: where it listens.
        port: where it listens.
        process: the process.
        log: what it has written to standard error so far.
    """

    def __init__(self, head: Path, *options: str, ready_within_s: float = 240.0) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "dinoneck", "serve", str(head), "--port", "0", *options],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.log: list[str] = []
        told: queue.Queue[str] = queue.Queue()
        self._readers = [
            threading.Thread(target=_follow, args=(stream, keep, end), daemon=True)
            for stream, keep, end in (
                (self.process.stdout, told.put, lambda: told.put("")),
                (self.process.stderr, self.log.append, lambda: None),
            )
        ]
        for reader in self._readers:
            reader.start()
        try:
            found = re.search(r"http://(.+):(\d+)$", told.get(timeout=ready_within_s).strip())
            if found is None:
                self.process.wait(60)
                raise RuntimeError(f"the service did not say where it listens: {''.join(self.log)}")
            self.host, self.port = found[1], int(found[2])
            self._wait(time.monotonic() + ready_within_s)
        except BaseException:
            self.kill()
            raise

    def connection(self, timeout_s: float = 120.0) -> http.client.HTTPConnection:
        """Return a connection of one's own."""
        return http.client.HTTPConnection(self.host, self.port, timeout=timeout_s)

    def get(self, path: str) -> Answer:
        """GET a path over a connection that is closed again."""
        with contextlib.closing(self.connection()) as connection:
            connection.request("GET", path)
            return received(connection)

    def predict(self, *files: tuple[str, bytes], query: str = "") -> Answer:
        """POST files to /predict over a connection that is closed again."""
        with contextlib.closing(self.connection()) as connection:
            connection.request("POST", f"/predict{query}", multipart(*files), HEADERS)
            return received(connection)

    def metric(self, name: str) -> float:
        """Return a number from /metrics."""
        for line in self.get("/metrics").body.decode().splitlines():
            if line.startswith(f"{name} "):
                return float(line.split()[-1])
        raise KeyError(name)

    def stop(self, within_s: float = 60.0) -> int:
        """Send SIGTERM and return the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(within_s)

    def kill(self) -> None:
        """End it whatever it does."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for reader in self._readers:
            reader.join()

    def _wait(self, until: float) -> None:
        while self.get("/ready").status != 200:
            if self.process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"the service did not become ready: {''.join(self.log)}")
            time.sleep(0.05)


HEADERS = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}


@contextlib.contextmanager
def running(head: Path, *options: str) -> Iterator[Service]:
    """Run a service inside the block; it is ready there, and gone after."""
    service = Service(head, *options)
    try:
        yield service
    finally:
        service.kill()


def received(connection: http.client.HTTPConnection) -> Answer:
    """Return the answer that a connection waits for."""
    answer = connection.getresponse()
    return Answer(answer.status, answer.read(), {key.lower(): value for key, value in answer.getheaders()})


def multipart(*files: tuple[str, bytes], field: str = "image") -> bytes:
    """Return a multipart body of these files."""
    parts = [part(name, data, field) for name, data in files]
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


def part(name: str, data: bytes, field: str = "image") -> bytes:
    """Return one file of a multipart body."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n\r\n'
    return head.encode() + data + b"\r\n"


def _follow(stream: Any, keep: Any, end: Any) -> None:
    with stream:
        for line in stream:
            keep(line)
    end()
