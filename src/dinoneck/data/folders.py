"""Tables of images as pandas DataFrames, from class folders, or folders of images and masks.

The columns are those of :mod:`dinoneck.data.tables`.
"""

from __future__ import annotations

from pathlib import Path

from dinoneck.data import cells
from dinoneck.data.cells import IMAGES, LABELS, PathLike, cell_text
from dinoneck.data.sources import images_below
from dinoneck.errors import DataError, counted, missing_extra, some_of

try:
    import pandas as pd
except ImportError as error:
    raise missing_extra("pandas", "train") from error

_PARTS = {"train", "training", "val", "valid", "validation", "test"}


def read_folders(images: PathLike) -> pd.DataFrame:
    """Read images that lie in one folder per class, such as ``images/wheat/1.jpg``.

    Returns:
        A table with the target ``class``; its class names are those of the folders, stripped,
        composed (NFC) and sorted. The ids are the paths relative to ``images``, with ``/``.

    Raises:
        DataError: if images lie next to the class folders, there are fewer than two, or one holds
            no images.
    """
    root = _folder(images)
    names = {
        cell_text(path.name)
        for path in root.iterdir()
        if path.is_dir() and not path.name.startswith(".")
    }
    files = {path.relative_to(root).as_posix(): path for path in images_below(root)}
    if loose := [name for name in files if "/" not in name]:
        raise DataError(
            f"{root} holds images next to the class folders: {some_of(loose, 5)}; move each into "
            "one"
        )
    if len(names) < 2 or _PARTS.issuperset(map(str.lower, names)):
        raise DataError(
            f"the folders of {root} are {sorted(names)}; expected two or more, one per class, and "
            "no parts"
        )
    kept = {
        name: (path, cell_text(name.partition("/")[0]))
        for name, path in files.items()
        if name[0] != "."
    }
    table = pd.DataFrame.from_dict(kept, "index", columns=[IMAGES, "class"])
    if empty := names.difference(table["class"]):
        raise DataError(
            f"{root}: no images of the class {some_of(empty, 5)}; add some or remove the folder"
        )
    return table.astype({"class": pd.CategoricalDtype(sorted(names))})


def read_masks(images: PathLike, labels: PathLike) -> pd.DataFrame:
    """Read a folder of images and a folder of masks; ``a/1.jpg`` belongs to ``a/1.png``.

    Returns:
        A table without targets, the masks as ``labels``. The ids are the images' paths relative to
        ``images``.

    Raises:
        DataError: if an image has no mask, a mask has no image, or two files differ in their suffix
            alone.
    """
    image_root, label_root = _folder(images), _folder(labels)
    image_of, mask_of = _by_stem(image_root, label_root), _by_stem(label_root, image_root)
    if unpaired := image_of.keys() ^ mask_of.keys():
        names = (
            f"{some_of(unpaired, 5)}; an image and its mask have one relative path without suffix"
        )
        raise DataError(
            f"{image_root} or {label_root} lacks {counted(len(unpaired), 'file')} of the other: "
            f"{names}"
        )
    pairs = {
        path.relative_to(image_root).as_posix(): (path, mask_of[stem])
        for stem, path in image_of.items()
    }
    return pd.DataFrame.from_dict(pairs, "index", columns=[IMAGES, LABELS])


def _by_stem(root: Path, other: Path) -> dict[str, Path]:
    """The images of a folder by their relative path without suffix; those below the other folder are not counted."""
    files = [
        path for path in images_below(root) if other not in path.parents or other in root.parents
    ]
    if not files:
        raise DataError(
            f"{root} holds no images outside of {other}; put images and masks into a folder each"
        )
    stems = [path.relative_to(root).with_suffix("").as_posix() for path in files]
    cells.check_unique(stems, f"{root}: the name without its suffix", "keep one of the files")
    return dict(zip(stems, files, strict=True))


def _folder(path: PathLike) -> Path:
    if not Path(path).is_dir():
        raise DataError(f"the folder {path} does not exist")
    return Path(path)
