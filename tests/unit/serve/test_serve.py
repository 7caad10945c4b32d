"""The service as a process: predictions equal a Predictor's, and what cannot be used is refused with its reason."""

from __future__ import annotations

import base64
import contextlib
import io
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.service import (
    HEADERS,
    LIMITS,
    MAX_UPLOAD_MB,
    Reply,
    Service,
    bad_requests,
    expected_values,
    half_upload,
    multipart,
    received,
    running,
    scene,
)
from PIL import Image
from tests import kit

from dinoneck import (
    ConfigError,
    DenseHead,
    DinoneckError,
    Predictor,
    STAPyramid,
    Task,
    load_backbone,
    save_head,
)
from dinoneck.detection import DetectionHead, Detector
from dinoneck.serve import Settings, create_app, serve
from dinoneck.serve.models import open_model

pytestmark = pytest.mark.skipif(
    None in map(find_spec, ("fastapi", "uvicorn", "python_multipart")),
    reason="the extra serve is not installed",
)
SLOTS = 5
TIMES = ("--timeout", "120", "--body-timeout", "120")  # half sent uploads keep their slots
OPTIONS = ("--concurrency", "2", "--queue", str(SLOTS - 2), *TIMES, *LIMITS)
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
SMALL = scene("PNG", 160, 120)


def saved(scene_: bytes, mode: str, suffix: str) -> bytes:
    file = io.BytesIO()
    Image.open(io.BytesIO(scene_)).convert(mode).save(file, suffix)
    return file.getvalue()


KINDS = {
    "plain JPEG": scene(width=160, height=120),
    "CMYK JPEG": saved(SMALL, "CMYK", "JPEG"),
    "PNG of one pixel": scene("PNG", 1, 1),
    "GIF of one frame": saved(SMALL, "P", "GIF"),
}


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    module = kit.head(kit.MASS, Task("parts", dim=3, kind="ratio", labels=("a", "b", "c")))
    return kit.saved_head(tmp_path_factory.mktemp("service") / "head.safetensors", module, (48, 64))


@pytest.fixture(scope="module")
def service(head: Path) -> Iterator[Service]:
    with running(head, *OPTIONS, **ONE_THREAD) as process:
        yield process
        assert process.process.poll() is None
    assert "Traceback" not in "".join(process.log)


def as_lists(prediction: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value.tolist() if isinstance(value, np.ndarray) else value
        for name, value in prediction.items()
    }


@pytest.mark.slow
def test_images_of_every_kind_give_the_values_of_a_predictor_in_their_order(
    service: Service, head: Path
) -> None:
    expected = [as_lists(values) for values in expected_values(head, list(KINDS.values()))]
    # not all of them hold the same pixels
    assert len({values["mass"] for values in expected}) > len(KINDS) // 2
    reply = service.predict(*KINDS.items())
    assert reply.status == 200, reply.json()
    assert reply.json()["images"] == [
        {"name": name, "values": values} for name, values in zip(KINDS, expected, strict=True)
    ]


@pytest.mark.parametrize("request_", bad_requests(), ids=lambda request: request.kind)
def test_every_bad_request_is_refused_with_its_reason(service: Service, request_: Any) -> None:
    reply = service.request("POST", "/predict", request_.body, request_.headers)
    assert (reply.status, reply.json()["code"]) == (request_.status, request_.code)
    assert reply.headers["content-type"] == "application/json"
    assert "expected" in reply.json()["error"]


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/predict", 405, "no_route"),
        ("GET", "/../etc/passwd", 404, "no_route"),
        ("POST", "/predict?maps=all", 422, "invalid"),
    ],
)
def test_a_wrong_route_or_parameter_is_named(
    service: Service, method: str, path: str, status: int, code: str
) -> None:
    reply = service.request(method, path, multipart(("a.png", SMALL)))
    assert (reply.status, reply.json()["code"]) == (status, code)
    assert path.partition("=")[2] in reply.json()["error"] and "expected" in reply.json()["error"]


def test_one_bad_image_refuses_the_request_and_is_named(service: Service) -> None:
    reply = service.predict(("plain.png", SMALL), ("empty.jpg", b""))
    assert reply.status == 422
    assert "empty.jpg" in reply.json()["error"]


def test_maps_come_as_lists_or_as_images(service: Service, head: Path) -> None:
    expected = Predictor(head)(Image.open(io.BytesIO(SMALL)), maps="patch")[0]["maps"]["mass"]
    lists = service.predict(("a.png", SMALL), query="?maps=lists").json()["images"][0]["maps"][
        "mass"
    ]
    np.testing.assert_allclose(np.asarray(lists, dtype=np.float32), expected, rtol=1e-5)
    [drawn] = service.predict(("a.png", SMALL), query="?maps=png").json()["images"][0]["maps"][
        "mass"
    ]
    grey = np.asarray(Image.open(io.BytesIO(base64.b64decode(drawn["png"]))), dtype=np.float32)
    step = (drawn["white"] - drawn["black"]) / 255
    np.testing.assert_allclose(drawn["black"] + grey * step, expected[0], atol=step)


def test_normals_come_as_one_picture_of_red_green_and_blue(tmp_path: Path) -> None:
    task = Task("normals", kind="dense", dim=3, activation="unit")
    head = DenseHead(64, [task], hidden_dim=8)
    file = kit.saved_head(tmp_path / "normals.safetensors", head, (48, 64))
    image = torch.rand(3, 48, 64)
    expected = Predictor(file)(image, maps="patch")[0]["maps"]["normals"]

    drawn = open_model(file, Settings()).predict(image, "png")["maps"]["normals"]

    colours = np.asarray(Image.open(io.BytesIO(base64.b64decode(drawn["png"]))))
    assert (drawn["black"], drawn["white"]) == (-1.0, 1.0)
    vectors = colours.transpose(2, 0, 1) / 127.5 - 1
    np.testing.assert_allclose(vectors, expected, atol=0.51 / 127.5)


def test_a_name_is_returned_as_it_is_and_shown_without_control_characters(service: Service) -> None:
    for name in ("../../etc/passwd", "x" * 300 + ".png", "späße 😀.png", "<script>.png", ""):
        assert service.predict((name, SMALL)).json()["images"][0]["name"] == name
    assert "\x1b" not in service.predict(("\x1b[31mred.jpg", b"no image")).json()["error"]


def test_health_and_facts(service: Service) -> None:
    assert service.get("/health").status == 200
    facts = service.get("/").json()
    assert [(task["name"], task["unit"], task["labels"]) for task in facts["tasks"]] == [
        ("mass", "g", []),
        ("parts", "", ["a", "b", "c"]),
    ]
    assert facts["size"] == [48, 64] and facts["digests"][0].startswith("sha256:")
    assert (
        facts["limits"].items()
        >= {"max_upload_bytes": MAX_UPLOAD_MB * 1_000_000, "max_pixels": 4_000_000}.items()
    )


def test_a_full_queue_is_503_with_the_time_to_retry(service: Service) -> None:
    """Slots are taken before the body is read: uploads that are half sent hold all of them."""
    head, rest = half_upload(SMALL)
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(service.connect(head)) for _ in range(SLOTS)]
        while (reply := service.predict(("a.png", SMALL))).status == 200:
            pass  # until the service has read the heads of all of them
        assert (reply.status, reply.json()["code"], reply.headers["retry-after"]) == (
            503,
            "busy",
            "1",
        )
        assert service.get("/health").status == 200
        for connection in held:
            connection.sendall(rest)
        replies = [received(connection) for connection in held]
    assert [reply.status for reply in replies] == [200] * SLOTS
    assert len({reply.body for reply in replies}) == 1


def test_clients_that_leave_early_or_state_wrong_lengths_keep_no_slot(service: Service) -> None:
    body = multipart(("a.png", SMALL))
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: {HEADERS['Content-Type']}\r\n"
    for sent in (
        head.encode(),
        f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body[:500],
        f"{head}Transfer-Encoding: chunked\r\n\r\n1f4\r\n".encode() + body[:300],
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc" + bytes(200),  # TLS
    ):
        for _ in range(SLOTS):
            service.connect(sent).close()
    for length in ("-1", "12abc", "9" * 40, "200"):  # the last is less than is sent
        with service.connect(
            f"{head}Content-Length: {length}\r\n\r\n".encode() + body
        ) as connection:
            assert received(connection).status in (400, 413)
    while (reply := service.predict(("a.png", SMALL))).status == 503:
        pass  # until the service has seen that they left
    assert reply.status == 200


def test_a_detector_gives_boxes_in_pixels_of_each_image(tmp_path: Path) -> None:
    detector = Detector(
        DetectionHead("fcos", ("red", "blue"), STAPyramid(64, 32)),
        load_backbone("dinoneck_tiny"),
        (64, 96),
    )
    # untrained scores are low
    detector.head.model.head.classification_head.cls_logits.bias.data.fill_(0.0)
    detector.thresholds = (0.3, 1.0)  # no blue box
    detector.save(tmp_path / "d.safetensors")
    [expected] = Detector.load(tmp_path / "d.safetensors").predict(Image.open(io.BytesIO(SMALL)))
    with served(tmp_path / "d.safetensors") as service:
        facts = service.client.get("/").json()
        assert (facts["classes"], facts["thresholds"]) == (["red", "blue"], [0.3, 1.0])
        [image] = service.predict(("plain.png", SMALL)).json()["images"]
        assert service.predict(("plain.png", SMALL), query="?maps=png").json()["code"] == "unfit"
    assert len(image["boxes"]) == len(expected["names"]) > 0
    assert [row["label"] for row in image["boxes"]] == expected["names"]
    assert {*expected["names"]} == {"red"}
    np.testing.assert_allclose(
        [row["box"] for row in image["boxes"]], expected["boxes"].numpy(), atol=0.01
    )


def test_labels_stand_beside_the_values(tmp_path: Path) -> None:
    task = Task(
        "tags", kind="multilabel", labels=("crack", "rust", "moss"), thresholds=(0.0, 1.0, 0.0)
    )
    path = kit.saved_head(tmp_path / "head.safetensors", kit.head(task))
    with served(path) as service:
        [reply] = service.predict(("wall.png", SMALL)).json()["images"]
        facts = service.client.get("/").json()
    assert reply["labels"] == {"tags": ["crack", "moss"]}
    assert len(reply["values"]["tags"]) == 3
    [described] = facts["tasks"]
    assert described["thresholds"] == [0.0, 1.0, 0.0]


def test_what_cannot_be_served_is_named(tmp_path: Path) -> None:
    for name in "ab":
        detector = DetectionHead("fcos", ("red", "blue"), STAPyramid(64, 32))
        Detector(detector, load_backbone("dinoneck_tiny"), (64, 96)).save(
            tmp_path / f"{name}.safetensors"
        )
    with pytest.raises(ConfigError, match="2 heads are given"):
        create_app(tmp_path)
    with pytest.raises(ConfigError, match="batch is 4"):
        create_app(tmp_path / "a.safetensors", settings=Settings(batch=4))
    with pytest.raises(DinoneckError, match=r"300\.1\.1\.1:0"):
        serve(tmp_path / "a.safetensors", host="300.1.1.1", port=0)


class Served:
    """A service in this process: what needs no second one is cheaper so."""

    def __init__(self, client: Any) -> None:
        self.client = client

    def predict(self, *images: tuple[str, bytes], query: str = "") -> Reply:
        found = self.client.post(f"/predict{query}", content=multipart(*images), headers=HEADERS)
        return Reply(found.status_code, found.content, {})


@contextlib.contextmanager
def served(file: Path) -> Iterator[Served]:
    client = pytest.importorskip("fastapi.testclient").TestClient(create_app(file))
    with client:
        yield Served(client)


@pytest.fixture(scope="module")
def free_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Of a head that takes images in their own size."""
    path, own = tmp_path_factory.mktemp("service") / "head.safetensors", kit.backbone()
    save_head(path, kit.head(), backbone=own, preprocess=own.preprocess.changed(resize="crop"))
    with served(path) as service:
        yield service


@pytest.mark.parametrize("size", [(10, 40), (40, 10)])
def test_an_image_smaller_than_a_patch_is_refused_with_what_a_client_can_do(
    size: tuple[int, int], free_service: Served
) -> None:
    """A client chooses the image and nothing else, so no option is named."""
    reply = free_service.predict(("small.png", scene("PNG", size[1], size[0])))
    assert (reply.status, reply.json()["code"]) == (422, "unfit")
    sentence = reply.json()["error"]
    assert "small.png" in sentence and f"{size[0]}x{size[1]}" in sentence and "16x16" in sentence
    assert not any(word in sentence for word in ("--", "'pad'", "'resize'"))


@pytest.mark.slow
def test_a_head_without_a_size_takes_4096_patches_at_most(free_service: Served) -> None:
    reply = free_service.predict(("large.png", scene("PNG", 1040, 1024)))
    assert (reply.status, reply.json()["code"]) == (413, "too_many_pixels")
