"""The page on serving: its proxy and its metrics work."""

from __future__ import annotations

import base64
import contextlib
import http.client
import os
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from benchmarks.service import (
    HEADERS,
    Reply,
    Service,
    expected_values,
    half_upload,
    multipart,
    received,
    running,
    saved_head,
    scene,
)

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "serve.md"
USER = {"Authorization": f"Basic {base64.b64encode(b'farm:secret').decode()}"}
needs_service = pytest.mark.skipif(
    None in map(find_spec, ("fastapi", "uvicorn", "python_multipart")),
    reason="the extra serve is not installed",
)


@contextlib.contextmanager
def proxy(service: Service) -> Iterator[str]:
    """Run nginx with the page's configuration, but for TLS and a shorter time for the head; yield its Unix socket."""
    [block] = re.findall(r"^```nginx\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    nginx = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if nginx is None:
        pytest.skip("nginx is not installed")
    with tempfile.TemporaryDirectory(prefix="proxy") as name:
        folder, (host, port) = Path(name), service.address
        changes = {
            r"listen 443 ssl;": f"listen unix:{folder}/socket;",
            r"ssl_certificate.*;": "",
            r"( *server 127\.0\.0\.1:\d+ max_fails=0;\n)+": f"server {host}:{port} max_fails=0;",
            r"/etc/nginx/heads.users": f"{folder}/users",
            r"client_header_timeout 10s;": "client_header_timeout 1s;",
        }
        for pattern, text in changes.items():
            block, count = re.subn(pattern, text, block)
            assert count, pattern
        (folder / "users").write_text("farm:{PLAIN}secret\n")
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        folders = "".join(f"{kind}_temp_path {folder}/{kind};\n" for kind in kinds)
        user = "user root;\n" if os.geteuid() == 0 else ""
        page = (
            f"{user}pid {folder}/pid;\nevents {{}}\nhttp {{\naccess_log off;\n{folders}{block}}}\n"
        )
        (folder / "nginx.conf").write_text(page)
        options = [
            nginx,
            "-p",
            name,
            "-c",
            f"{folder}/nginx.conf",
            "-g",
            "daemon off; error_log stderr;",
        ]
        subprocess.run([*options, "-t"], check=True, capture_output=True)
        process = subprocess.Popen(options, stderr=subprocess.DEVNULL)
        try:
            while True:
                with contextlib.suppress(OSError), connected(f"{folder}/socket"):
                    break
                assert process.poll() is None
            yield f"{folder}/socket"
        finally:
            process.terminate()
            process.wait()


def connected(path: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(path)
    except OSError:
        connection.close()
        raise
    return connection


def post(path: str, body: bytes, headers: Mapping[str, str]) -> Reply:
    with contextlib.closing(http.client.HTTPConnection("proxy")) as connection:
        connection.sock = connected(path)
        with contextlib.suppress(BrokenPipeError):
            connection.request("POST", "/predict", body, dict(headers))
        response = connection.getresponse()
        return Reply(response.status, response.read(), {})


@pytest.mark.slow
@needs_service
def test_the_proxy_of_the_page_guards_the_service(tmp_path: Path) -> None:
    """The service has one slot; what nginx keeps away from it does not take the slot."""
    head, image = saved_head(tmp_path, "dinoneck_tiny", (32, 32)), scene()
    [expected] = expected_values(head, [image])
    body = multipart(("a.jpg", image))
    with (
        running(head, "--concurrency", "1", "--queue", "0", OMP_NUM_THREADS="1") as service,
        proxy(service) as path,
        connected(path) as slow_body,
        connected(path) as slow_head,
    ):
        begin, rest = half_upload(image)
        authorized = begin.replace(
            b"\r\nHost:", f"\r\nAuthorization: {USER['Authorization']}\r\nHost:".encode(), 1
        )
        slow_body.sendall(authorized)
        slow_head.sendall(b"POST /predict HTTP/1.1\r\nX-")
        reply = post(path, body, {**HEADERS, **USER})
        assert reply.json()["images"] == [{"name": "a.jpg", "values": expected}]
        assert post(path, body, HEADERS).status == 401
        assert (
            post(path, multipart(("a.jpg", b"x" * 22_000_000)), {**HEADERS, **USER}).status == 413
        )
        slow_body.sendall(rest)
        assert received(slow_body).json()["images"] == reply.json()["images"]
        assert slow_head.recv(1000)[:12] in (b"", b"HTTP/1.1 408")


@needs_service
def test_the_page_s_metrics_count_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = pytest.importorskip("prometheus_client")
    # the page uses the one of the process, which has a name once
    registry = client.CollectorRegistry()
    monkeypatch.setattr(client, "Histogram", partial(client.Histogram, registry=registry))
    monkeypatch.setattr(client, "make_asgi_app", partial(client.make_asgi_app, registry))
    testclient = pytest.importorskip("fastapi.testclient")
    monkeypatch.chdir(tmp_path)
    saved_head(tmp_path, "dinoneck_tiny", (32, 32))
    [block] = [
        block
        for block in re.findall(
            r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE
        )
        if "prometheus_client" in block
    ]
    space: dict[str, Any] = {}
    exec(block, space)
    service = testclient.TestClient(space["app"])
    assert service.post("/predict", files={"image": ("a.jpg", scene())}).status_code == 200
    assert service.post("/predict", files={"image": ("a.jpg", b"")}).status_code == 422
    shown = service.get("/metrics/").text
    for status in (200, 422):
        assert f'request_seconds_count{{path="/predict",status="{status}"}} 1.0' in shown
