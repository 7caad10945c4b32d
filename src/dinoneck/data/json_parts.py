"""Check that the annotations of one part of a data set (train, val, test) get images of that part.

Frames of videos have the same names in every part, so ``instances_val.json`` finds its files in
``train/`` too. No file is decoded. Neither pandas nor torch is imported.
"""

from __future__ import annotations

import filecmp
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dinoneck.data.folder_words import parts_in, words_without_parts
from dinoneck.data.names import parts_of
from dinoneck.errors import DataError


@dataclass(frozen=True)
class _PartFolder:
    """A folder that is named after a part.

    Attributes:
        path: the folder.
        part: train, val or test.
    """

    path: Path
    part: str


def part_in(name: str) -> str | None:
    """Return the part of a data set that a name states: val for ``instances_val2017``.

    None if it states no part, or several.
    """
    parts = parts_in([name])
    return parts.pop() if len(parts) == 1 else None


def part_of_json(file: Path) -> str | None:
    """Return the part that a JSON file is named after, or else the one that its folder is named after.

    The latter is val for ``valid/_annotations.coco.json``.
    """
    return part_in(file.stem) or part_in(file.absolute().parent.name)


def check_stated_part(file: Path, names: Sequence[str], paths: Sequence[Path], option: str) -> None:
    """Check that the part in the name of a JSON file is that of the folder with its images.

    A mismatch alone is no error: the user may have drawn a val set from the folder ``train``. It is
    an error if the folder of the stated part also has a file for each name, and one of them has other
    content. Folders that the names in the JSON file state themselves are not questioned.

    Args:
        file: the JSON file.
        names: file names of the images, as in the JSON file.
        paths: the image files that are read, in the same order.
        option: how to pass another folder of images, for the message.

    Raises:
        DataError: if the folder of the stated part has the files too, with other content.
    """
    part = part_of_json(file)
    if part is None:
        return
    json_folder = file.absolute().parent
    # folder with images -> the folders of the stated part next to it
    stated_folders: dict[Path, list[Path]] = {}
    pairs = []  # (the file that is read, the file of that name in the stated part)
    for name, path in zip(names, paths, strict=True):
        folder = _folder_of_part(name, path, json_folder)
        if folder is None or folder.part == part:
            return
        if folder.path not in stated_folders:
            stated_folders[folder.path] = _folders_beside(folder.path, part)
        inner_path = path.absolute().relative_to(folder.path)
        other_path = _file_in(stated_folders[folder.path], inner_path)
        if other_path is None:
            return
        pairs.append((path, other_path))
    for path, other_path in pairs:
        if not filecmp.cmp(path, other_path, shallow=False):
            raise DataError(
                f"{file} is called after the part {part}, or its folder is, and its files are read "
                f"from another one, such as {path}; {other_path} is another file of that name. Pass "
                f"the folder of those meant: {option}; if it is the first one, call the JSON "
                "otherwise"
            )


def _folder_of_part(name: str, path: Path, json_folder: Path) -> _PartFolder | None:
    """Return the innermost folder above an image that is named after a part.

    Folders that are in the image's name in the JSON file do not count, nor do those that contain the
    JSON file.
    """
    folder_names = list(path.absolute().parent.parts)
    stated_names = list(parts_of(name.replace("\\", "/"))[:-1])
    while stated_names and folder_names and stated_names[-1] == folder_names[-1]:
        stated_names.pop()
        folder_names.pop()
    while folder_names:
        folder = Path(*folder_names)
        if json_folder.is_relative_to(folder):
            return None
        part = part_in(folder.name)
        if part is not None:
            return _PartFolder(folder, part)
        folder_names.pop()
    return None


def _folders_beside(folder: Path, part: str) -> list[Path]:
    """Return the folders next to one whose names differ in the part alone.

    For ``train_images`` and the part val this is ``val_images``.
    """
    beside: list[Path] = []
    try:
        others = sorted(folder.parent.iterdir())
    except PermissionError:
        return beside  # a folder that cannot be listed may have readable files
    for other in others:
        has_part = part_in(other.name) == part and other.is_dir()
        if has_part and words_without_parts(other.name) == words_without_parts(folder.name):
            beside.append(other)
    return beside


def _file_in(folders: Iterable[Path], inner_path: Path) -> Path | None:
    """Return the file at this path in the first of the folders that has it; None if none has."""
    for folder in folders:
        file = folder / inner_path
        if file.is_file():
            return file
    return None
