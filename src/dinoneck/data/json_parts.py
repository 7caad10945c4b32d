"""Whether the annotations of one part of a data set are read with the images of another one.

Frames of videos are called alike in every part, so ``instances_val.json`` finds files in ``train/``
too. No file is decoded. Neither pandas nor torch is imported.
"""

from __future__ import annotations

import filecmp
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dinoneck.data.folder_words import part_of, words_of
from dinoneck.data.names import parts_of
from dinoneck.errors import DataError


@dataclass(frozen=True)
class _PartFolder:
    """A folder that is called after a part.

    Attributes:
        path: the folder.
        part: train, val or test.
    """

    path: Path
    part: str


def part_in(name: str) -> str | None:
    """Return the part of a data set that the words of a name state, as ``instances_val2017`` does.

    None: it states none, or several.
    """
    parts = {part_of(word) for word in words_of(name)} - {None}
    return parts.pop() if len(parts) == 1 else None


def part_of_json(file: Path) -> str | None:
    """Return the part that a JSON is called after, or else its folder: ``valid/_annotations.coco.json``."""
    return part_in(file.stem) or part_in(file.absolute().parent.name)


def check_stated_part(file: Path, names: Sequence[str], paths: Sequence[Path], option: str) -> None:
    """Compare the part that a JSON states with that of the folder in which its files are.

    A JSON may be called after a part that its user drew from one folder: it is refused where the
    folder of that part has files of all its names too, and they are others. A folder that the names
    state themselves is theirs.

    Args:
        file: the JSON.
        names: of the files, as the JSON has them.
        paths: the files that are read, in the same order.
        option: what passes another folder.

    Raises:
        DataError: if the JSON states another part, and the folder of that part has its files too.
    """
    part = part_of_json(file)
    if part is None:
        return
    json_folder = file.absolute().parent
    beside: dict[Path, list[Path]] = {}  # a folder -> those of the stated part beside it
    pairs = []
    for name, path in zip(names, paths, strict=True):
        folder = _folder_of_part(name, path, json_folder)
        if folder is None or folder.part == part:
            return
        if folder.path not in beside:
            beside[folder.path] = _folders_beside(folder.path, part)
        in_part = _file_in(beside[folder.path], path.absolute().relative_to(folder.path))
        if in_part is None:
            return
        pairs.append((path, in_part))
    for path, in_part in pairs:
        if not filecmp.cmp(path, in_part, shallow=False):
            raise DataError(
                f"{file} is called after the part {part}, or its folder is, and its files are read "
                f"from another one, such as {path}; {in_part} is another file of that name. Pass "
                f"the folder of those meant: {option}; if it is the first one, call the JSON "
                "otherwise"
            )


def _folder_of_part(name: str, path: Path, json_folder: Path) -> _PartFolder | None:
    """The innermost folder of a file that is called after a part, neither stated in its name nor around the JSON."""
    folders = list(path.absolute().parent.parts)
    named = list(parts_of(name.replace("\\", "/"))[:-1])
    while named and folders and named[-1] == folders[-1]:
        named.pop()
        folders.pop()
    while folders:
        folder = Path(*folders)
        if json_folder.is_relative_to(folder):
            return None
        part = part_in(folder.name)
        if part is not None:
            return _PartFolder(folder, part)
        folders.pop()
    return None


def _folders_beside(folder: Path, part: str) -> list[Path]:
    """The folders beside one that are called after a part, and else like it: val_images of train_images."""
    beside: list[Path] = []
    try:
        others = sorted(folder.parent.iterdir())
    except PermissionError:  # files below a folder can be read where it cannot be listed
        return beside
    for other in others:
        has_part = part_in(other.name) == part and other.is_dir()
        if has_part and _other_words(other) == _other_words(folder):
            beside.append(other)
    return beside


def _other_words(folder: Path) -> set[str]:
    """What the name of a folder says besides the part."""
    return {word for word in words_of(folder.name) if part_of(word) is None}


def _file_in(folders: Iterable[Path], inner_path: Path) -> Path | None:
    """The file at this path in one of the folders; None = there is none."""
    for folder in folders:
        file = folder / inner_path
        if file.is_file():
            return file
    return None
