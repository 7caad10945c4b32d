"""The service as a process, asked over loopback: right answers for good images, reasons for bad ones."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import socket
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.service.pictures import good
from benchmarks.service.server import HEADERS, Service, multipart, received, running
from benchmarks.service.traffic import bad_requests, good_requests
from PIL import Image

from dinoneck import ConfigError, DinoneckError, PatchMeanHead, Predictor, STAPyramid, Task, load_backbone, save_head
from dinoneck import serve as serving
from dinoneck.detection import DetectionHead, Detector
from dinoneck.serve.models import open_model

pytestmark = pytest.mark.skipif(
    None in map(find_spec, ("fastapi", "uvicorn", "python_multipart")), reason="the extra serve is not installed"
)
CONCURRENCY, QUEUE, MAX_IMAGES, MAX_UPLOAD_BYTES = 2, 4, 4, 1_500_000
OPTIONS = (
    *("--concurrency", str(CONCURRENCY), "--queue", str(QUEUE), "--max-images", str(MAX_IMAGES)),
    *("--max-upload-mb", str(MAX_UPLOAD_BYTES / 1e6), "--max-pixels", "1000000", "--threads", "1"),
    *("--timeout", "120", "--body-timeout", "120"),
)


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    backbone = load_backbone("dinoneck_tiny")
    tasks = [Task("mass", unit="g", activation="softplus"), Task("parts", dim=3, kind="ratio", labels=("a", "b", "c"))]
    path = tmp_path_factory.mktemp("service") / "head.safetensors"
    save_head(path, PatchMeanHead(64, tasks), backbone=backbone, preprocess=backbone.preprocess.changed(size=(48, 64)))
    return path


@pytest.fixture(scope="module")
def service(head: Path) -> Iterator[Service]:
    with running(head, *OPTIONS) as found:
        yield found
        assert 'status="500"' not in found.get("/metrics").body.decode()
        assert "Traceback" not in "".join(found.log)
        assert found.process.poll() is None


@pytest.fixture(scope="module")
def lone(head: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What a predictor in this process predicts for every good picture, from files; on one thread, as the service's."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("pictures")
    predictor, found = Predictor(head), {}
    for name, data in good(160, 120).items():
        (folder / name).write_bytes(data)
        found[name] = predictor(folder / name, maps=True)[0]
    torch.set_num_threads(threads)
    return found


def values(answer: dict[str, Any]) -> dict[str, Any]:
    return {
        key: value.tolist() if isinstance(value, np.ndarray) else value
        for key, value in answer.items()
        if key != "maps"
    }


def test_every_kind_of_picture_is_answered_as_by_a_lone_predictor(service: Service, lone: dict[str, Any]) -> None:
    requests = good_requests(good(160, 120), {name: {"values": values(answer)} for name, answer in lone.items()})
    with contextlib.closing(service.connection()) as connection:
        for request in requests:
            request.send(connection)
            assert request.wrong(received(connection)) is None
    assert len({json.dumps(values(answer)) for answer in lone.values()}) > 10  # the pictures differ


@pytest.mark.parametrize("request_", bad_requests(MAX_UPLOAD_BYTES, MAX_IMAGES), ids=lambda one: one.kind)
def test_every_bad_request_is_refused_with_its_reason(service: Service, request_: Any) -> None:
    with contextlib.closing(service.connection()) as connection:
        request_.send(connection)
        answer = received(connection)
    assert request_.wrong(answer) is None
    assert answer.headers["content-type"] == "application/json"
    sentence = answer.json()["error"]
    assert "expected" in sentence or "Input should be" in sentence, sentence


def test_several_images_are_answered_in_their_order_or_refused_together(service: Service, lone: dict[str, Any]) -> None:
    pictures = good(160, 120)
    names = ["turned.jpg", "plain.png", "cmyk.jpg"]
    result = service.predict(*[(name, pictures[name]) for name in names]).json()["images"]
    assert [image["name"] for image in result] == names
    assert [image["values"] for image in result] == [values(lone[name]) for name in names]
    refused = service.predict(("plain.png", pictures["plain.png"]), ("empty.jpg", b""))
    assert refused.status == 422
    assert "empty.jpg" in refused.json()["error"]


def test_maps_come_as_lists_or_as_pictures(service: Service, lone: dict[str, Any]) -> None:
    name, wanted = "plain.png", lone["plain.png"]["maps"]["mass"]
    data = good(160, 120)[name]
    lists = service.predict((name, data), query="?maps=lists").json()["images"][0]["maps"]["mass"]
    assert np.array_equal(np.asarray(lists, dtype=np.float32), wanted)
    [drawn] = service.predict((name, data), query="?maps=png").json()["images"][0]["maps"]["mass"]
    grey = np.asarray(Image.open(io.BytesIO(base64.b64decode(drawn["png"]))), dtype=np.float32) / 255
    step = (drawn["white"] - drawn["black"]) / 255
    np.testing.assert_allclose(drawn["black"] + grey * 255 * step, wanted[0], atol=step)


def test_an_encoded_body_is_refused_by_name(service: Service) -> None:
    body, headers = multipart(("a.png", good(160, 120)["plain.png"])), {**HEADERS, "Content-Encoding": "gzip"}
    with contextlib.closing(service.connection()) as connection:
        connection.request("POST", "/predict", body, headers)
        answer = received(connection)
    assert (answer.status, answer.json()["code"]) == (415, "not_multipart")
    assert "encoded as 'gzip'; send it plain" in answer.json()["error"]


def test_names_are_only_ever_shown(service: Service) -> None:
    data = good(160, 120)["plain.png"]
    for name in ("../../etc/passwd", "x" * 300 + ".png", "späße 😀.png", "<script>.png", ""):
        assert service.predict((name, data)).json()["images"][0]["name"] == name
    result = service.predict(("\x1b[31mred.jpg", b"no picture")).json()["error"]
    assert "\x1b" not in result


def test_facts_health_and_metrics(service: Service) -> None:
    assert service.get("/health").json() == {"status": "alive"}
    assert service.get("/ready").json() == {"status": "ready"}
    facts = service.get("/").json()
    assert [(task["name"], task["unit"], task["labels"]) for task in facts["tasks"]] == [
        ("mass", "g", []),
        ("parts", "", ["a", "b", "c"]),
    ]
    assert facts["size"] == [48, 64] and facts["digests"][0].startswith("sha256:")
    assert facts["limits"]["max_upload_bytes"] == MAX_UPLOAD_BYTES
    refused = 'dinoneck_requests_total{route="/predict",status="422"}'
    assert service.predict(("a.jpg", b"")).status == 422
    before = service.metric(refused)
    assert service.predict(("a.jpg", b"")).status == 422
    assert service.metric(refused) == before + 1
    assert service.metric("process_resident_memory_bytes") > 1e7
    assert service.metric("dinoneck_requests_running") == 0
    assert "multipart/form-data" in json.dumps(service.get("/openapi.json").json()["paths"]["/predict"])


def test_a_detector_gives_boxes_in_pixels_of_each_image(tmp_path: Path) -> None:
    backbone = load_backbone("dinoneck_tiny")
    detector = Detector(DetectionHead("fcos", ("red", "blue"), STAPyramid(64, 32)), backbone, (64, 96))
    detector.head.model.head.classification_head.cls_logits.bias.data.fill_(0.0)  # untrained scores are low
    detector.save(tmp_path / "d.safetensors")
    data = good(160, 120)["plain.png"]
    (tmp_path / "plain.png").write_bytes(data)
    [wanted] = Detector.load(tmp_path / "d.safetensors").predict(tmp_path / "plain.png")
    with running(tmp_path / "d.safetensors", *OPTIONS) as service:
        assert service.get("/").json()["classes"] == ["red", "blue"]
        [image] = service.predict(("plain.png", data)).json()["images"]
        assert service.predict(("plain.png", data), query="?maps=png").json()["code"] == "unfit"
    assert len(image["boxes"]) == len(wanted["names"]) > 0
    assert [row["label"] for row in image["boxes"]] == wanted["names"]
    np.testing.assert_allclose([row["box"] for row in image["boxes"]], wanted["boxes"].numpy(), atol=0.01)


def test_what_cannot_be_served_is_one_sentence(tmp_path: Path) -> None:
    backbone = load_backbone("dinoneck_tiny")
    for name in "ab":
        head = DetectionHead("fcos", ("red", "blue"), STAPyramid(64, 32))
        Detector(head, backbone, (64, 96)).save(tmp_path / f"{name}.safetensors")
    with pytest.raises(ConfigError, match="holds 2 files and the first is a detector; serve one detector file"):
        open_model(tmp_path, serving.Settings())
    with pytest.raises(DinoneckError, match=r"cannot listen on 300\.1\.1\.1:0; expected an address of this machine"):
        serving.serve(tmp_path / "a.safetensors", host="300.1.1.1", port=0)


def test_a_full_queue_answers_with_the_time_to_retry(service: Service, lone: dict[str, Any]) -> None:
    """Places are taken before the body is read: uploads that are half here hold all of them."""
    name = "image.jpg"
    body = multipart((name, good(160, 120)[name]))
    held = []
    with contextlib.ExitStack() as stack:
        for _ in range(CONCURRENCY + QUEUE):
            connection = stack.enter_context(contextlib.closing(service.connection()))
            connection.putrequest("POST", "/predict")
            for key, value in {**HEADERS, "Content-Length": str(len(body))}.items():
                connection.putheader(key, value)
            connection.endheaders(body[:100])
            held.append(connection)
        while service.metric("dinoneck_requests_waiting") < CONCURRENCY + QUEUE:
            pass
        refused = service.predict((name, good(160, 120)[name]))
        assert (refused.status, refused.json()["code"], refused.headers["retry-after"]) == (503, "busy", "1")
        assert service.get("/health").status == 200
        for connection in held:
            connection.send(body[100:])
        for connection in held:
            assert received(connection).json()["images"][0]["values"] == values(lone[name])


def test_clients_that_leave_early_or_lie_about_lengths_cost_nothing(service: Service, lone: dict[str, Any]) -> None:
    body = multipart(("a.jpg", good(160, 120)["image.jpg"]))
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: {HEADERS['Content-Type']}\r\n"
    for sent in (
        head.encode(),
        (head + f"Content-Length: {len(body)}\r\n\r\n").encode() + body[:500],
        (head + "Transfer-Encoding: chunked\r\n\r\n1f4\r\n").encode() + body[:300],
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc" + bytes(200),
    ):
        with socket.create_connection((service.host, service.port), timeout=60) as raw:
            raw.sendall(sent)
    for length in ("-1", "12abc", "9" * 40):
        with socket.create_connection((service.host, service.port), timeout=60) as raw:
            raw.sendall((head + f"Content-Length: {length}\r\n\r\n").encode() + body)
            assert raw.recv(100).split()[1] in (b"400", b"413")
    with socket.create_connection((service.host, service.port), timeout=60) as raw:  # less than is sent
        raw.sendall((head + "Content-Length: 200\r\n\r\n").encode() + body)
        assert raw.recv(100).startswith(b"HTTP/1.1 400 ")
    while service.metric("dinoneck_requests_waiting"):
        pass
    name = "plain.png"
    assert service.predict((name, good(160, 120)[name])).json()["images"][0]["values"] == values(lone[name])
