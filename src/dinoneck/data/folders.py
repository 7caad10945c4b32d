"""Tables without a file: a folder of images per class, and a folder of masks next to one of images."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from dinoneck.data.loading import images_below
from dinoneck.data.tables import Table
from dinoneck.errors import DataError, counted, some_of

_SHOWN = 5
_PARTS = {"train", "training", "val", "valid", "validation", "test"}


def read_folders(images: str | os.PathLike[str]) -> Table:
    """Read images that lie in one folder per class, such as ``images/wheat/1.jpg``.

    Returns:
        A table with the target ``class``; its class names are those of the folders, sorted. The ids are the paths
        relative to ``images``, with ``/``.

    Raises:
        DataError: if images lie next to the class folders, there are fewer than two, or one holds no images.
    """
    root = _folder(images)
    names = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    ids = [path.relative_to(root).as_posix() for path in images_below(root)]
    if loose := [name for name in ids if "/" not in name]:
        raise DataError(
            f"{root} holds {counted(len(loose), 'image')} next to the class folders: {some_of(loose, _SHOWN)}. Move "
            "each into the folder of its class"
        )
    if len(names) < 2:
        raise DataError(f"{root} has {counted(len(names), 'folder')}; expected one per class, two or more")
    if _PARTS.issuperset(name.lower() for name in names):
        raise DataError(f"the folders of {root}, {', '.join(names)}, are parts, not classes; give the path of one")
    class_of = {name: i for i, name in enumerate(names)}
    ids = [name for name in ids if name.split("/")[0] in class_of]
    indices = [class_of[name.split("/")[0]] for name in ids]
    used = set(indices)
    if empty := [name for name, i in class_of.items() if i not in used]:
        raise DataError(f"{root}: no images of the class {some_of(empty, _SHOWN)}; add some or remove the folder")
    values = {"class": np.array(indices, dtype=np.int64)}
    return Table(tuple(ids), tuple(root / name for name in ids), values, classes={"class": tuple(names)})


def read_masks(images: str | os.PathLike[str], labels: str | os.PathLike[str]) -> Table:
    """Read a folder of images and a folder of masks; ``a/1.jpg`` belongs to ``a/1.png``.

    Returns:
        A table without targets, the masks as ``labels``. The ids are the images' paths relative to ``images``.

    Raises:
        DataError: if an image has no mask, a mask has no image, or two files differ in their suffix alone.
    """
    image_root, label_root = _folder(images), _folder(labels)
    if image_root == label_root:
        raise DataError(f"images and masks are both in {image_root}; put the masks into a folder of their own")
    image_of, mask_of = _by_stem(image_root, label_root), _by_stem(label_root, image_root)
    for folder, has, lacks, missing in (
        (label_root, "mask", "image", image_of.keys() - mask_of.keys()),
        (image_root, "image", "mask", mask_of.keys() - image_of.keys()),
    ):
        if missing:
            raise DataError(
                f"{folder} has no {has} for {counted(len(missing), lacks)}: {some_of(missing, _SHOWN)}. An image and "
                "its mask have the same relative path, without the suffix"
            )
    ids = tuple(path.relative_to(image_root).as_posix() for path in image_of.values())
    return Table(ids, tuple(image_of.values()), {}, labels=tuple(mask_of[stem] for stem in image_of))


def _folder(path: str | os.PathLike[str]) -> Path:
    if not Path(path).is_dir():
        raise DataError(f"there is no folder {path}")
    return Path(path)


def _by_stem(root: Path, other: Path) -> dict[str, Path]:
    """The images of a folder by their relative path without suffix; those below the other folder are not counted."""
    found: dict[str, Path] = {}
    for path in [path for path in images_below(root) if other not in path.parents or other in root.parents]:
        if found.setdefault(path.relative_to(root).with_suffix("").as_posix(), path) != path:
            raise DataError(f"{path} and another file differ in their suffix alone; keep one of them")
    if not found:
        raise DataError(f"the folder {root} holds no images")
    return found
