"""Photos to paint on: of how many channels they may be, and which stores and folders hold none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests import kit
from tests.unit.backbones.test_channels import backbone_of

from dinoneck import Backbone, ConfigError, DataError, FeatureStore
from dinoneck.painting import PhotoTokens


def test_a_store_that_was_converted_has_no_photos_to_paint_on(tmp_path: Path) -> None:
    (tmp_path / "npz").mkdir()
    np.savez(tmp_path / "npz" / "a.npz", patches_0=np.zeros((6, 8), np.float32))
    store = FeatureStore.from_npz(tmp_path / "npz", tmp_path / "s", grid=(2, 3), patch_size=16)
    [file] = kit.write_images(tmp_path / "images", ["a.png"])

    with pytest.raises(ConfigError, match=r"converted from files of another program.*--backbone"):
        PhotoTokens.from_store({"a": file}, store, {"a": "a"})


def test_without_photos_there_is_nothing_to_paint_on(tiny: Backbone) -> None:
    with pytest.raises(DataError, match="there are no photos to paint on"):
        PhotoTokens.extract({}, tiny, size=(32, 48))


def test_a_photo_of_one_channel_is_shown_in_grey(tmp_path: Path) -> None:
    backbone = backbone_of(1)
    grey = np.random.default_rng(0).integers(0, 256, (24, 40), np.uint8)
    Image.fromarray(grey).save(tmp_path / "a.png")

    [photo] = PhotoTokens.extract({"a": tmp_path / "a.png"}, backbone, size=(24, 40)).photos

    assert np.array_equal(np.asarray(photo.picture), grey[..., None].repeat(3, axis=2))
