"""Names of version 0.1 with ``photo`` still work and give what the names with ``image`` give."""

from pathlib import Path

import pytest
import torch

from dinoneck import Backbone, data
from dinoneck.data import Pasture
from dinoneck.training import LiveTokens, MemoryTokens


def test_arguments(tiny: Backbone, tmp_path: Path) -> None:
    Pasture(size=(32, 48)).write(tmp_path, photos=2)
    table = data.read_table(tmp_path / "table.csv", tmp_path, ["cover"])
    assert table.photos == table.images
    expected = tiny.preprocess(images=table.images)
    assert torch.equal(tiny.preprocess(photos=table.images), expected)
    stored = MemoryTokens.extract(tiny, photos=table.images, ids=table.ids).batch(table.ids)
    assert torch.equal(stored.sequence[0], tiny(expected).to(dtype=torch.float16).to(dtype=torch.float32).sequence[0])
    assert torch.equal(LiveTokens(tiny, photos=table.images, ids=table.ids).images(table.ids), expected)
    with pytest.raises(TypeError, match="multiple values"):
        tiny.preprocess(table.images, photos=table.images)
    with pytest.raises(TypeError, match="got photos= and images="):
        tiny.preprocess(photos=table.images, images=table.images)


def test_functions_and_classes() -> None:
    assert data.PhotoTable is data.Table and data.BoxPhotos is data.BoxImages
    assert data.photo_size is data.read_image_size and data.to_photo_pixels is data.to_image_pixels
