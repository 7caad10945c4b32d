"""Check that a folder of images and a folder of masks belong together, by their paths.

Files that are numbered alike in all folders pair the images of ``val`` with the masks of ``train``
without an error. Neither pandas nor torch is imported.
"""

from __future__ import annotations

import itertools
import logging
import os
import re
from pathlib import Path

from dinoneck.data.folder_words import parts_in, words_without_parts
from dinoneck.errors import DataError

logger = logging.getLogger(__name__)

# [^\W\d_] is a letter. A number, as in day2, or a letter between characters that are none: field_A
_NUMBER_OR_LETTER = re.compile(r"\d+|(?<![^\W\d_])[^\W\d_](?![^\W\d_])")


def check_paths(images: Path, masks: Path) -> None:
    """Check that the paths of images and of masks do not contradict each other.

    ``val`` and ``train`` do, ``field_A`` and ``field_B`` may. Only the folders below the last common
    one are compared. Paths that may be wrong are named in a warning.

    Args:
        images: the folder of the images.
        masks: the folder of their masks.

    Raises:
        DataError: if the paths state different parts of a data set, and the right folder is next to
            one of them.
    """
    image_path = Path(os.path.abspath(images))  # noqa: PTH100 - resolve() follows symbolic links
    mask_path = Path(os.path.abspath(masks))  # noqa: PTH100
    num_common = len(Path(os.path.commonpath([image_path, mask_path])).parts)
    image_depths = range(num_common, len(image_path.parts))
    mask_depths = range(num_common, len(mask_path.parts))
    image_parts = parts_in(image_path.parts[num_common:])
    mask_parts = parts_in(mask_path.parts[num_common:])
    if image_parts & mask_parts:
        return
    for image_depth, mask_depth in itertools.product(image_depths, mask_depths):
        image_folder = image_path.parts[image_depth]
        mask_folder = mask_path.parts[mask_depth]
        state_other_parts = are_other_parts(image_folder, mask_folder)
        if not state_other_parts and not _differ_in_number(image_folder, mask_folder):
            continue
        right_masks = _folder_for(image_folder, mask_path, mask_depth)
        right_images = _folder_for(mask_folder, image_path, image_depth)
        remedy = ""
        if right_masks is not None and right_masks != image_path:
            remedy = f"the masks of {image_folder} are in {right_masks}"
        elif right_images is not None and right_images != mask_path:
            remedy = f"the images of {mask_folder} are in {right_images}"
        problem = f"{images} is called {image_folder}, and {masks} {mask_folder}"
        if state_other_parts and remedy:
            raise DataError(
                f"{problem}: {remedy}. Name the folders of one part; a table pairs other files (--csv, "
                "--labels COLUMN)"
            )
        if state_other_parts or remedy:
            logger.warning(
                "%s, and files of one name are read as pairs; check that they are%s",
                problem,
                f": {remedy}" if remedy else "",
            )
            return


def are_other_parts(name: str, other: str) -> bool:
    """Return whether two names of folders state different parts of a data set: val_images and train."""
    parts = parts_in([name])
    other_parts = parts_in([other])
    return bool(parts and other_parts) and not parts & other_parts


def _differ_in_number(name: str, other: str) -> bool:
    """Return whether two names differ in numbers or single letters alone: day1 and day2, field_A and field_B."""
    are_alike = _NUMBER_OR_LETTER.sub("", name) == _NUMBER_OR_LETTER.sub("", other)
    return name != other and are_alike


def _folder_for(name: str, path: Path, depth: int) -> Path | None:
    """Return the folder whose path is ``path`` with one name replaced so that it agrees with ``name``.

    For ``val_images``, ``set/train_masks`` and the depth 1 this is ``set/val_masks``.

    Args:
        name: the name of a folder in the path of the other files.
        path: the path in which one name disagrees with it.
        depth: index of that name in ``path.parts``.

    Returns:
        The folder; None if there is none.
    """
    parent = Path(*path.parts[:depth])
    below = path.parts[depth + 1 :]
    parts = parts_in([name])
    try:
        folders = sorted(parent.iterdir())
    except OSError:
        return None  # a folder whose content may be readable, but not listed
    for folder in folders:
        if parts:
            has_same_parts = parts_in([folder.name]) == parts
            has_same_words = words_without_parts(folder.name) == words_without_parts(
                path.parts[depth]
            )
            agrees = has_same_parts and has_same_words
        else:
            agrees = folder.name == name
        if agrees and folder.joinpath(*below).is_dir():
            return folder.joinpath(*below)
    return None
