"""The service under load and under attack, each with a process of its own."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import pytest
from benchmarks.service import (
    Service,
    half_upload,
    late_upload,
    load,
    png,
    received,
    running,
    saved_head,
    scene,
)
from tests import kit

from dinoneck import save_head

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        None in map(find_spec, ("fastapi", "uvicorn", "python_multipart")),
        reason="the extra serve is not installed",
    ),
]


@pytest.mark.parametrize(("count", "batch"), [(1000, 1), (200, 8)])
def test_many_requests_at_once_with_bad_uploads_and_idle_connections(
    count: int, batch: int, tmp_path: Path
) -> None:
    """Every image gets the values of a Predictor, bit for bit without batches, and every bad upload its reason."""
    result = load(saved_head(tmp_path, "dinoneck_tiny", (64, 64)), count, batch)
    assert result["wrong"] == [] and result["tracebacks"] == 0
    assert result["idle"] == 200 and result["refused"] >= 50
    # each had status 200
    assert result["health"]["asked"] >= 1 and math.isfinite(result["health"]["max_ms"])


def test_an_upload_that_stops_is_refused_and_frees_its_slot(tmp_path: Path) -> None:
    assert late_upload(saved_head(tmp_path, "dinoneck_tiny", (32, 32))) == (408, "too_slow")


def test_a_prediction_that_takes_too_long_is_503_and_its_slot_is_free_again(tmp_path: Path) -> None:
    head = saved_head(tmp_path, "dinoneck_tiny", (1024, 1024))
    with running(head, "--timeout", "0.05", "--concurrency", "1", "--queue", "0") as service:
        reply = service.predict(("a.jpg", scene()))
        assert (reply.status, reply.json()["code"]) == (503, "too_long")
        while (code := service.predict(("a.jpg", scene())).json()["code"]) == "busy":
            pass  # the thread finishes its image first
        assert code == "too_long"


def test_large_images_wait_for_each_other(tmp_path: Path) -> None:
    """Eight images of 16 million pixels need more memory than the service takes for images at once."""
    head = saved_head(tmp_path, "dinoneck_tiny", (32, 32))
    image = scene(width=4000, height=4000, quality=50)
    with running(head, "--concurrency", "8") as service, ThreadPoolExecutor(8) as clients:
        replies = [clients.submit(service.predict, ("a.jpg", image)) for _ in range(8)]
        assert len({reply.result().body for reply in replies}) == 1
        assert replies[0].result().status == 200
        assert peak_bytes(service) < 5e9


def test_sigterm_finishes_what_runs(tmp_path: Path) -> None:
    begin, rest = half_upload(scene())
    head = saved_head(tmp_path, "dinoneck_tiny", (32, 32))
    with (
        running(head, "--concurrency", "1", "--queue", "0") as service,
        service.connect(begin) as connection,
    ):
        while service.predict(("a.jpg", scene())).status != 503:
            pass  # until the half upload has the one slot
        service.process.terminate()
        while not any("Shutting down" in line for line in service.log):
            pass
        connection.sendall(rest)
        assert received(connection).status == 200
        assert service.process.wait(60) == 0


@pytest.mark.parametrize("form", ["size of its own", "crop"])
def test_images_that_few_bytes_make_large_are_refused_by_their_header(
    form: str, tmp_path: Path
) -> None:
    path, own = tmp_path / "head.safetensors", kit.backbone()
    changes = (
        {"resize": "pad"} if form == "size of its own" else {"size": (64, 64), "resize": "crop"}
    )
    save_head(path, kit.head(), backbone=own, preprocess=own.preprocess.changed(**changes))
    with running(path, "--max-pixels", "1000000") as service:
        assert service.predict(("a.png", scene("PNG", 160, 120))).status == 200
        for width, height in ((40_000, 1), (60_000, 60_000), (1001, 1000)):
            reply = service.predict(("a.png", png(width, height)))
            if (form, height) == ("size of its own", 1):  # 40,000 x 16 pixels after padding
                assert reply.status == 200
            else:
                assert (reply.status, reply.json()["code"]) == (413, "too_many_pixels")
        assert peak_bytes(service) < 2e9


def peak_bytes(service: Service) -> int:
    """The largest resident memory of the service."""
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024
