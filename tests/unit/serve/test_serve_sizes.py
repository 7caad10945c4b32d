"""A service whose head takes images in their own size: turned ones are upright, and too small ones are refused."""

from __future__ import annotations

import io
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks.service.server import Service, running
from PIL import Image
from tests.unit.test_orientation import FORMS, folder_of, head_file, upright_of

from dinoneck import Predictor

pytestmark = pytest.mark.skipif(
    None in map(find_spec, ("fastapi", "uvicorn", "python_multipart")), reason="the extra serve is not installed"
)


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return head_file(tmp_path_factory.mktemp("service"), resize="crop")


@pytest.fixture(scope="module")
def service(head: Path) -> Iterator[Service]:
    with running(head, "--threads", "1") as found:
        yield found


@pytest.mark.parametrize("form", FORMS)
def test_the_service_predicts_from_the_upright_image(form: str, service: Service, head: Path, tmp_path: Path) -> None:
    predictor = Predictor(head)
    for file in folder_of(tmp_path, form):
        reply = service.predict((file.name, file.read_bytes()), query="?maps=lists")
        assert reply.status == 200, (file.name, reply.json())
        [expected], [found] = predictor(upright_of(file), maps=True), reply.json()["images"]
        assert found["values"]["mass"] == pytest.approx(expected["mass"], rel=1e-5), file.name
        assert np.allclose(found["maps"]["mass"], expected["maps"]["mass"], rtol=1e-4), file.name


@pytest.mark.parametrize("size", [(10, 40), (40, 10), (1, 1)])
def test_an_image_smaller_than_a_patch_is_refused_with_what_a_client_can_do(
    size: tuple[int, int], service: Service
) -> None:
    """A client chooses the image and nothing else, so no option is named."""
    buffer = io.BytesIO()
    Image.fromarray(torch.randint(0, 256, (*size, 3), dtype=torch.uint8).numpy()).save(buffer, "PNG")
    reply = service.predict(("small.png", buffer.getvalue()))
    assert (reply.status, reply.json()["code"]) == (422, "unfit")
    sentence = reply.json()["error"]
    assert "small.png" in sentence and f"{size[0]}x{size[1]}" in sentence and "16x16" in sentence
    assert not any(word in sentence for word in ("on_remainder", "--", "'pad'", "resize"))
