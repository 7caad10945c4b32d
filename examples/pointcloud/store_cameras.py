"""From cameras of photos to cameras of the images that the ViT saw, when its features come from a store.

A store keeps how photos were prepared: ``store.preprocess.size`` and ``.fit``. That is all the geometry there is, and
here is what it means for intrinsics. The verb ``extract`` resizes photos whole, so depth of any size still shows what
the cameras show; a store with ``fit="pad"`` or ``"crop"`` wants its depth padded or cropped as the photos were.
"""

from __future__ import annotations

from dinoneck import FeatureStore
from dinoneck.data.decoding import fitted_size
from dinoneck.data.preprocessing import Preprocessing
from dinoneck.errors import DataError
from dinoneck.grid import patch_pair
from dinoneck.points import Cameras

Size = tuple[int, int]


def store_cameras(store: FeatureStore, cameras: Cameras) -> Cameras:
    """Return cameras of the images that the ViT saw, from cameras of the photos.

    The store keeps how photos were prepared (size, fit), so this needs nothing else; maps of the store go with the
    cameras returned: ``lift(store.batch(ids).maps()[0], links_of_these_cameras)``.

    Args:
        store: made by ``extract`` or any other way that kept its preparation.
        cameras: of the size of the photos.

    Raises:
        DataError: if the store was made from files that do not say the size, such as a ``clip_feat`` tree, and each
            grid does not tell it, or a remainder was cut, filled or resized by a policy.
    """
    prepare = store.preprocess
    if store.backbone_record.get("name") == "unknown":
        return _of_grid(store, cameras)
    if prepare.size is not None:
        cameras = _fitted(prepare, prepare.size, cameras)
    patch = patch_pair(prepare.patch_size)
    if cameras.size[0] % patch[0] or cameras.size[1] % patch[1]:
        raise DataError(f"{store.path} brought images of {pixels(cameras.size)} to the patch by {prepare.policy!r}; "
                        "such a store has no cameras here: extract with a size that the patch divides")  # fmt: skip
    return cameras


def _fitted(prepare: Preprocessing, size: Size, cameras: Cameras) -> Cameras:
    (height, width), (top, left) = fitted_size(cameras.size, size, prepare.fit)
    cameras = cameras.resize((height, width))
    if prepare.fit == "crop":
        return cameras.crop(top, left, *size)
    if prepare.fit == "pad":
        return cameras.pad(0, 0, size[1] - width, size[0] - height)
    return cameras


def _of_grid(store: FeatureStore, cameras: Cameras) -> Cameras:
    """Take the size from the grids of a store that does not say it; only one of the photos' aspect is sure."""
    patch = patch_pair(store.preprocess.patch_size)
    sizes = {
        (rows * patch[0], cols * patch[1]) for rows, cols in (entry.grid for entry in store.reader.entries.values())
    }
    if len(sizes) != 1 or not same_aspect(size := sizes.pop(), cameras.size):
        raise DataError(f"{store.path} does not say how its photos were prepared, and its grids do not have the aspect "
                        f"of photos of {pixels(cameras.size)}; resize or pad the cameras by hand")  # fmt: skip
    return cameras.resize(size)


def same_aspect(first: Size, second: Size) -> bool:
    """Whether two (height, width) have the same ratio of sides, exactly."""
    return first[0] * second[1] == first[1] * second[0]


def pixels(size: Size) -> str:
    """Return a size as text, ``480x640``."""
    return f"{size[0]}x{size[1]}"
