"""Whether the paths of a folder of images and of a folder of masks contradict each other.

Equal numbering pairs the images of ``val`` with the masks of ``train`` without an error. Neither
pandas nor torch is imported.
"""

from __future__ import annotations

import itertools
import logging
import os
import re
from collections.abc import Iterable
from pathlib import Path

from dinoneck.data.folder_words import part_of, words_of
from dinoneck.errors import DataError

logger = logging.getLogger(__name__)

_NUMBER_OR_LETTER = re.compile(r"\d+|(?<![^\W\d_])[^\W\d_](?![^\W\d_])")  # of day2, of field_A


def check_paths(images: Path, masks: Path) -> None:
    """Compare what the paths of images and of their masks say: val and train, field_A and field_B.

    Folders that both paths begin with say nothing. A warning names paths that may be wrong.

    Args:
        images: the folder of the images.
        masks: the folder of their masks.

    Raises:
        DataError: if they are called like different parts of a data set, and the right folder is
            beside one of them.
    """
    image_path = Path(os.path.abspath(images))  # noqa: PTH100 - links stay
    mask_path = Path(os.path.abspath(masks))  # noqa: PTH100
    shared = len(Path(os.path.commonpath([image_path, mask_path])).parts)
    image_depths = range(shared, len(image_path.parts))
    mask_depths = range(shared, len(mask_path.parts))
    if _parts_in(image_path.parts[shared:]) & _parts_in(mask_path.parts[shared:]):
        return
    for image_depth, mask_depth in itertools.product(image_depths, mask_depths):
        in_images = image_path.parts[image_depth]
        in_masks = mask_path.parts[mask_depth]
        are_parts = are_other_parts(in_images, in_masks)
        if not are_parts and not _differ_in_number(in_images, in_masks):
            continue
        right_masks = _called_like(in_images, mask_path, mask_depth)
        right_images = _called_like(in_masks, image_path, image_depth)
        remedy = ""
        if right_masks is not None and right_masks != image_path:
            remedy = f"the masks of {in_images} are in {right_masks}"
        elif right_images is not None and right_images != mask_path:
            remedy = f"the images of {in_masks} are in {right_images}"
        text = f"{images} is called {in_images}, and {masks} {in_masks}"
        if are_parts and remedy:
            raise DataError(
                f"{text}: {remedy}. Name the folders of one part; a table pairs other files (--csv, "
                "--labels COLUMN)"
            )
        if are_parts or remedy:
            line = "%s, and files of one name are read as pairs; check that they are%s"
            logger.warning(line, text, f": {remedy}" if remedy else "")
            return


def are_other_parts(name: str, other: str) -> bool:
    """Whether the names of two folders state different parts of a data set: val_images and train."""
    parts = _parts_in([name])
    other_parts = _parts_in([other])
    return bool(parts and other_parts) and not parts & other_parts


def _parts_in(names: Iterable[str]) -> set[str]:
    """The parts of a data set that words in some names state."""
    parts = set()
    for name in names:
        for word in words_of(name):
            part = part_of(word)
            if part is not None:
                parts.add(part)
    return parts


def _differ_in_number(name: str, other: str) -> bool:
    """Whether two names are alike but for numbers or single letters: day1 and day2, field_A and field_B."""
    are_alike = _NUMBER_OR_LETTER.sub("", name) == _NUMBER_OR_LETTER.sub("", other)
    return name != other and are_alike


def _called_like(name: str, path: Path, depth: int) -> Path | None:
    """The folder with a path like another one, in which one name agrees with that of the other files.

    Args:
        name: a name in the path of the other files: ``val_images``.
        path: such as ``set/train_masks``.
        depth: of the name in the path that disagrees.

    Returns:
        ``set/val_masks``; None if there is no such folder.
    """
    parent = Path(*path.parts[:depth])
    below = path.parts[depth + 1 :]
    parts = _parts_in([name])
    try:
        folders = sorted(parent.iterdir())
    except OSError:
        return None  # a folder that may be passed and not listed
    for folder in folders:
        is_alike = folder.name == name
        if parts:
            is_alike = _parts_in([folder.name]) == parts
            is_alike = is_alike and _other_words(folder.name) == _other_words(path.parts[depth])
        if is_alike and folder.joinpath(*below).is_dir():
            return folder.joinpath(*below)
    return None


def _other_words(name: str) -> set[str]:
    """The words of a name that state no part of a data set."""
    return {word for word in words_of(name) if part_of(word) is None}
