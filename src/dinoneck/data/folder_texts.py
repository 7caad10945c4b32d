"""What messages say of folders: their names, the options that read them, and what else lies there.

Neither pandas nor torch is imported.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dinoneck.data.folder_words import SPLIT_FOLDERS, part_of, says_train
from dinoneck.data.walk import is_run_folder
from dinoneck.text import some_of

_MOST_JSON = 20  # JSON files of a folder that are looked at: one for each image is no COCO file
_MOST_NAMES = 10  # that a message lists
_HEAD_BYTES = 65_536  # of a JSON file, in which the keys of COCO are looked for


def listed(names: Sequence[str]) -> str:
    """Return names for a message: all of a few, the first of many."""
    if len(names) > _MOST_NAMES:
        return some_of(names, _MOST_NAMES)
    if len(names) == 1:
        return names[0]
    return f"{', '.join(names[:-1])} and {names[-1]}"


def as_options(images: Path, masks: Path | None = None) -> str:
    """Return what to write for a folder of images, and for that of their masks."""
    if masks is None or masks == images:
        return f"--images {images}"
    return f"--images {images} --labels {masks} (of evaluate: {images} --truth {masks})"


@dataclass(frozen=True)
class PartFolders:
    """The folders of a part of a data set.

    Attributes:
        images: the folder of its images.
        masks: the folder of their masks; None of class folders.
    """

    images: Path
    masks: Path | None


def as_two_commands(parts: Mapping[str, PartFolders]) -> str:
    """Return how to train on one part and to score another one after it; "" if no part is called train, or several.

    Args:
        parts: name of a part -> its folders.
    """
    trained_on = [name for name in parts if says_train(name)]
    scored = [name for name in parts if not says_train(name)]
    if len(trained_on) != 1 or not scored:
        return ""
    train = parts[trained_on[0]]
    labels = "" if train.masks is None else f" --labels {train.masks}"
    test = parts[scored[0]]
    truth = test.images if test.masks is None else test.masks
    return (
        f"to train on {trained_on[0]} and score {scored[0]} after it: --images {train.images}{labels}, "
        f"then dinoneck evaluate {test.images} --heads RUN --truth {truth}"
    )


def also_there(root: Path) -> str:
    """Return what else a folder holds that can be read, for the end of a message."""
    files = data_files(root)
    return f". It holds {some_of(files, 3)}; evaluate takes such files as --truth" if files else ""


def data_files(root: Path) -> list[str]:
    """Return the tables, COCO files and lists of parts in a folder and the folders in it, with the option for each."""
    texts = []
    for folder in _folders_with_data_files(root):
        files = sorted(file for file in folder.iterdir() if not file.name.startswith("."))
        documents = []
        for file in files:
            suffix = file.suffix.lower()
            if suffix in (".csv", ".tsv"):
                texts.append(f"the table {file} (--csv)")
            elif suffix == ".json":
                documents.append(file)
            elif suffix == ".txt" and part_of(file.stem):
                texts.append(f"the list {file} (as a column of a table: --csv, --fold-column)")
        for file in documents[:_MOST_JSON]:
            if _is_coco(file):
                texts.append(f"the COCO file {file} (--boxes, or --instances for masks)")
    return texts


def _folders_with_data_files(root: Path) -> Iterator[Path]:
    """The folder, those in it, and those in ``ImageSets`` and the like."""
    yield root
    for folder in _folders_in(root):
        if is_run_folder(folder):
            continue
        yield folder
        if folder.name.lower() in SPLIT_FOLDERS:
            yield from _folders_in(folder)


def _folders_in(folder: Path) -> list[Path]:
    return sorted(child for child in folder.iterdir() if child.is_dir())


def _is_coco(file: Path) -> bool:
    try:
        with file.open("rb") as opened:
            head = opened.read(_HEAD_BYTES)
    except OSError:
        return False
    return any(key in head for key in (b'"annotations"', b'"categories"', b'"images"'))
