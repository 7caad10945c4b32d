"""The service under load and under attack, each with a process of its own."""

from __future__ import annotations

import contextlib
import socket
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from benchmarks.service.__main__ import (
    DETECTOR,
    LIMITS,
    MODELS,
    PATIENT,
    lone_entries,
    mixed_run,
    saved_detector,
    saved_head,
)
from benchmarks.service.pictures import bomb, good
from benchmarks.service.server import HEADERS, multipart, received, running
from benchmarks.service.traffic import good_requests

from dinoneck import PatchMeanHead, Task, load_backbone, save_head

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        None in map(find_spec, ("fastapi", "uvicorn", "python_multipart")), reason="the extra serve is not installed"
    ),
]


@pytest.mark.parametrize("kind", ["head", "detector"])
def test_a_thousand_mixed_requests(kind: str, tmp_path: Path) -> None:
    """One in ten bad, ten clients: every good one gets a lone predictor's bits, every bad one its reason."""
    if kind == "head":
        model = saved_head(tmp_path, "dinoneck_tiny", (64, 64))
    else:
        model = saved_detector(tmp_path, MODELS[DETECTOR])
    pictures = good(480, 360)
    requests = good_requests(pictures, lone_entries(model, pictures, tmp_path))
    with running(model, *LIMITS, *PATIENT, "--threads", "1") as service:
        result = mixed_run(service, requests, 1000, clients=10)
        assert result["wrong"] == []
        assert (result["answered"], result["refused"], result["failures_inside"], result["alive"]) == (
            900,
            100,
            0,
            True,
        )
        assert result["resident_second_half_mb"] < 1.05 * result["resident_first_half_mb"] + 32
        assert "Traceback" not in "".join(service.log)
        assert service.stop() == 0


def test_slow_clients_are_let_go(tmp_path: Path) -> None:
    head = saved_head(tmp_path, "dinoneck_tiny", (32, 32))
    post = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: {HEADERS['Content-Type']}\r\n"
    with running(head, "--body-timeout", "2", "--queue", "8") as service, contextlib.ExitStack() as stack:
        silent, half_head, half_body, twice = (
            stack.enter_context(socket.create_connection((service.host, service.port), timeout=60)) for _ in range(4)
        )
        half_head.sendall(b"GET /health HTTP/1.1\r\nX-")
        half_body.sendall((post + "Content-Length: 5000\r\n\r\n").encode() + multipart(("a.jpg", b"x"))[:50])
        twice.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\nGET /hea")
        assert half_body.recv(100).startswith(b"HTTP/1.1 408 ")
        assert silent.recv(100) == b""
        assert half_head.recv(100) == b""
        while result := twice.recv(1000):
            assert b"500" not in result
        assert service.get("/ready").status == 200


def test_health_is_served_however_many_clients_hold_connections(tmp_path: Path) -> None:
    """Clients that never complete a request fill the limit of open connections, which is 64 above --connections."""
    head = saved_head(tmp_path, "dinoneck_tiny", (32, 32))
    with running(head, *PATIENT, "--connections", "1") as service, contextlib.ExitStack() as stack:
        for number in range(80):
            slow = stack.enter_context(socket.create_connection((service.host, service.port), timeout=60))
            if number % 2:
                slow.sendall(b"GET /health HTTP/1.1\r\nX-")
        assert service.get("/health").status == 200
        body = stack.enter_context(contextlib.closing(service.connection()))
        body.putrequest("POST", "/predict")
        for key, value in {**HEADERS, "Content-Length": "5000"}.items():
            body.putheader(key, value)
        body.endheaders(multipart(("a.jpg", b"x"))[:50])
        while (refused := service.get("/ready")).status == 200:
            pass
        assert (refused.status, refused.json()["code"]) == (503, "busy")
        assert service.get("/health").status == 200


def test_sigterm_finishes_what_runs(tmp_path: Path) -> None:
    head = saved_head(tmp_path, "dinoneck_tiny", (32, 32))
    body = multipart(("a.jpg", good(160, 120)["image.jpg"]))
    with running(head, *PATIENT) as service, contextlib.closing(service.connection()) as connection:
        connection.putrequest("POST", "/predict")
        for key, value in {**HEADERS, "Content-Length": str(len(body))}.items():
            connection.putheader(key, value)
        connection.endheaders(body[:100])
        while not service.metric("dinoneck_requests_waiting"):
            pass
        service.process.terminate()
        while not any("Shutting down" in line for line in service.log):
            pass
        connection.send(body[100:])
        assert received(connection).status == 200
        assert service.process.wait(60) == 0


def test_images_that_few_bytes_make_large_are_refused_by_their_header(tmp_path: Path) -> None:
    backbone = load_backbone("dinoneck_tiny")
    head = PatchMeanHead(64, [Task("mass")])
    recipes = {
        "free": backbone.preprocess.changed(resize="pad"),
        "crop": backbone.preprocess.changed(size=(64, 64), resize="crop"),
    }
    torch.manual_seed(0)
    for name, recipe in recipes.items():
        path = tmp_path / f"{name}.safetensors"
        save_head(path, head, backbone=backbone, preprocess=recipe)
        with running(path, "--max-patches", "100", "--max-pixels", "1000000") as service:
            assert service.predict(("a.png", good(160, 120)["plain.png"])).status == 200
            refused = service.predict(("a.png", bomb(40_000, 1) if name == "crop" else bomb(800, 600)))
            assert (refused.status, refused.json()["code"]) == (413, "too_many_pixels")
            assert service.metric("process_resident_memory_peak_bytes") < 2e9
