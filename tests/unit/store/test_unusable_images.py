"""Images that cannot be used: refused by name, or left out where that is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.unit.store.store_samples import make, same, write_images

from dinoneck import Backbone, DataError, FeatureStore


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    """Four files: a and d are images, b is text, and there is no c."""
    paths = write_images(tmp_path / "images", ["a.png", "b.png", "c.png", "d.png"])
    paths[1].write_text("no picture")
    paths[2].unlink()
    return paths


def extract(
    images: list[Path], tiny: Backbone, name: str = "s", **options: Any
) -> tuple[FeatureStore, Any]:
    """A new store beside the images, and what its extraction gave."""
    root = images[0].parent
    store = make(root.with_name(name), tiny, dtype=options.pop("dtype", "fp16"))
    return store, store.extract(images, root=root, **options)


def test_a_file_that_is_no_image_is_refused(images: list[Path], tiny: Backbone) -> None:
    with pytest.raises(DataError, match=r"b\.png.*skip_unusable=True"):
        extract(images[:2], tiny)


def test_a_file_that_is_missing_is_refused(images: list[Path], tiny: Backbone) -> None:
    with pytest.raises(DataError, match=r"there is no image .*c\.png; check the folder"):
        extract([images[2]], tiny)


def test_unusable_images_are_left_out_and_named_where_that_is_asked_for(
    images: list[Path], tiny: Backbone, caplog: pytest.LogCaptureFixture
) -> None:
    store, extracted = extract(images, tiny, skip_unusable=True)

    assert store.ids == ("a", "d")
    assert extracted.written == ["a", "d"]
    assert sorted(extracted.unusable) == ["b", "c"]
    assert "there is no image" in extracted.unusable["c"]
    assert caplog.text.count("left out: ") == 2


@pytest.mark.parametrize("dtype", ["fp16", "int8"])
def test_unusable_images_change_nothing_of_the_others(
    images: list[Path], tiny: Backbone, dtype: str
) -> None:
    with_unusable, _ = extract(images, tiny, skip_unusable=True, dtype=dtype)

    without, _ = extract([images[0], images[3]], tiny, name="usable", dtype=dtype)

    assert same(with_unusable, without)


def test_where_every_image_is_unusable_nothing_is_stored(
    images: list[Path], tiny: Backbone
) -> None:
    """Images keep their own sizes, so the room that they need is that of images that can be read: none."""
    root = images[0].parent
    store = make(root.with_name("s"), tiny, image_size=(64, 64), resize="keep")

    extracted = store.extract(images[1:3], root=root, skip_unusable=True)

    assert sorted(extracted.unusable) == ["b", "c"]
    assert store.ids == ()


def test_a_stored_image_may_be_missing_later(images: list[Path], tiny: Backbone) -> None:
    store, _ = extract([images[0], images[3]], tiny)
    images[0].unlink()

    extracted = store.extract([images[0], images[3]], root=images[0].parent)

    assert extracted.written == []
    assert extracted.unusable == {}
    assert store.ids == ("a", "d")


def test_an_image_that_was_left_out_is_stored_once_it_can_be_used(
    images: list[Path], tiny: Backbone
) -> None:
    store, _ = extract(images[:2], tiny, skip_unusable=True)
    write_images(images[1].parent, ["b.png"])

    extracted = store.extract(images[:2], root=images[0].parent)

    assert extracted.written == ["b"]
    assert extracted.present == 1
