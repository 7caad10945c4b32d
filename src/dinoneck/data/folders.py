"""Tables of images as pandas DataFrames, from class folders, or folders of images and masks.

The columns are those of :mod:`dinoneck.data.tables`.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dinoneck.data.cells import FOLD, IMAGES, LABELS, PathLike
from dinoneck.data.class_counts import warn_of_missing_classes
from dinoneck.data.copies import find_copies, warn_of_changed_copies, warn_of_copies
from dinoneck.data.folder_words import IMAGE_WORDS, MASK_WORDS, VAGUE_WORDS, first_word
from dinoneck.data.image_tree import ImageFolder, image_folder, pictures_of, warn_of_masks
from dinoneck.data.layout import (
    HELD_OUT,
    Content,
    DataFolder,
    Subfolders,
    also_there,
    check_folder,
    data_files,
    masks_in,
    read_data_folder,
)
from dinoneck.data.walk import SUFFIXES, Listing, path_order, walk, warn_of_left_out
from dinoneck.errors import DataError, counted, missing_extra, some_of

try:
    import pandas as pd
except ImportError as error:
    raise missing_extra("pandas", "train") from error

logger = logging.getLogger(__name__)


def read_folders(images: PathLike, *, subfolders: Subfolders | None = None) -> pd.DataFrame:
    """Read images that lie in one folder per class, such as ``images/wheat/1.jpg``.

    Folders ``train`` and ``val`` (or ``valid``, and ``test``) with class folders in them are parts:
    the column ``fold`` has the name of each image's part, and ``test`` is left out. Links to
    folders are followed.

    Args:
        images: the folder.
        subfolders: ``"classes"``: the folders in it are classes, whatever they are called;
            ``"folds"``: they are folds of class folders, each held out in turn; ``"parts"``: train,
            val and test; None = by their names.

    Returns:
        A table with the target ``class``; its class names are those of the folders, stripped,
        composed (NFC) and sorted. The ids are the paths relative to ``images``, with ``/``.

    Raises:
        DataError: if images lie next to the class folders, there are fewer than two, one holds no
            images, or the folders may be something else than classes.
    """
    data = read_data_folder(images, subfolders)
    if data.kind == "masks":
        raise DataError(f"{data.root} holds images and masks, no class folders; use read_masks()")
    return table_of_folder(data)


def read_masks(images: PathLike, labels: PathLike) -> pd.DataFrame:
    """Read a folder of images and a folder of masks; ``a/1.jpg`` belongs to ``a/1.png``.

    Masks, and images, may all have one ending more, as in ``1_mask.png``.

    Returns:
        A table without targets, the masks as ``labels``. The ids are the images' paths relative to
        ``images``.

    Raises:
        DataError: if a folder does not exist or holds no images, an image has no mask, a mask has
            no image, or two files differ in their suffix alone.
    """
    image_root = _folder(images)
    label_root = _folder(labels)
    if image_root.samefile(label_root):
        raise DataError(
            f"images and masks are both in {image_root}; put the masks into a folder of their own"
        )
    beside = masks_in(image_root, label_root)
    table = _mask_table(image_root, image_root if beside is None else beside, label_root)
    _check_copies(table)
    warn_of_changed_copies(table[IMAGES])
    return table


def table_of_folder(data: DataFolder) -> pd.DataFrame:
    """Return the table of what a folder holds; of parts with their names as folds.

    ``table.attrs["held_out"]`` is then the fold that is held out; None = each in turn.

    Raises:
        DataError: as :func:`read_folders` and :func:`read_masks`.
    """
    if data.kind == "classes":
        _warn_of_unread(data.root)
    if data.content is not None:
        table = _content_table(data.root, data.content)
        _check_copies(table)
        warn_of_changed_copies(table[IMAGES])
        return table
    tables = []
    for name, content in data.parts.items():
        table_of_part = _content_table(data.root, content)
        table_of_part[FOLD] = name
        tables.append(table_of_part)
    table = pd.concat(tables)
    _check_copies(table, data.left)
    if data.kind == "classes":
        table = _with_classes(table, data.classes)
        _warn_of_missing_classes(data)
    table.attrs[HELD_OUT] = data.held_out
    return table


def describe(data: DataFolder, table: pd.DataFrame) -> str:
    """Return what was taken of a folder of parts, in one line."""
    counts = table[FOLD].value_counts(sort=False)
    listed = ", ".join(f"{name} ({counted(count, 'image')})" for name, count in counts.items())
    if data.held_out is None:
        return f"{data.root}: the folders {listed} are folds; each is held out in turn"
    train = next(name for name in data.parts if name != data.held_out)
    text = (
        f"{data.root}: {train} ({counted(counts[train], 'image')}) is trained on, {data.held_out} "
        f"({counted(counts[data.held_out], 'image')}) is held out"
    )
    left = data.left
    if left is not None and left.kind == "images":
        text += f"; {left.images} has no labels and is not read"
    elif left is not None:
        truth = left.images if left.masks is None else left.masks
        text += f"; left for: dinoneck evaluate {left.images} --heads RUN --truth {truth}"
    return text


def _content_table(root: Path, content: Content) -> pd.DataFrame:
    """The table of class folders, or of images and masks; ids are relative to ``root``."""
    if content.masks is not None:
        return _mask_table(root, content.images, content.masks)
    if content.kind == "classes":
        return _class_table(root, content)
    raise DataError(
        f"{content.images} holds images, without class folders and masks{also_there(content.images)}"
    )


def _class_table(root: Path, content: Content) -> pd.DataFrame:
    """The images of class folders; masks beside images in one are left out."""
    listing = walk(content.images)
    warn_of_left_out([listing])
    class_of: dict[Path, str] = {}
    pictures = []
    class_folders = list(image_folder(listing).folders.values())
    _warn_of_blanks(class_folders)
    for folder in class_folders:
        in_folder = pictures_of(folder)
        pictures.append(in_folder)
        class_of |= dict.fromkeys(in_folder.images, folder.name)
    warn_of_masks(pictures)
    _warn_of_case(class_of)
    rows = {}
    for file in sorted(class_of, key=path_order):
        rows[file.relative_to(root).as_posix()] = (file, class_of[file])
    table = pd.DataFrame.from_dict(rows, "index", columns=[IMAGES, "class"])
    empty = set(content.classes).difference(table["class"])
    if empty:
        raise DataError(
            f"{content.images}: no images of the class {some_of(empty, 5)}; add some or remove the "
            "folder"
        )
    return _with_classes(table, content.classes)


def _warn_of_unread(root: Path) -> None:
    """Name the tables and COCO files that lie beside class folders or in them."""
    files = data_files(root)
    if files:
        logger.warning("%s: class folders; not read: %s", root, some_of(files, 3))


def _with_classes(table: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """The table with these classes, as numbers in this order."""
    texts = table["class"].astype(object)
    return table.assign(**{"class": texts.astype(pd.CategoricalDtype(names))})


def _warn_of_blanks(folders: Sequence[ImageFolder]) -> None:
    """Name folders that are one class, since their names differ in blanks or Unicode forms alone."""
    first: dict[str, ImageFolder] = {}
    for folder in folders:
        other = first.setdefault(folder.name, folder)
        if other is not folder:
            line = (
                "the folders '%s' and '%s' are one class, '%s': their names differ in blanks alone"
            )
            logger.warning(line, other.path, folder.path, folder.name)


def _check_copies(table: pd.DataFrame, unread: Content | None = None) -> None:
    """Refuse one file under two names in two parts or two classes; name other pictures that are there twice.

    Args:
        table: of all parts that are read.
        unread: the part that is not read.

    Raises:
        DataError: naming both files.
    """
    class_of: dict[Path, object] = {}
    if "class" in table:
        class_of = dict(zip(table[IMAGES], table["class"], strict=True))
    part_of: dict[Path, str] = {}
    if FOLD in table:
        part_of = dict(zip(table[IMAGES], table[FOLD], strict=True))
    unread_images = _unread_images(unread)
    unread_files = set(unread_images)
    # the images that are read come first; two that are not read do no harm
    copies = []
    for copy in find_copies([*table[IMAGES], *unread_images]):
        if copy.first not in unread_files:
            copies.append(copy)
    for copy in copies:
        if not copy.is_one_file:
            continue
        if copy.differs_in(part_of):
            raise DataError(
                f"{copy.first} and {copy.second} are one file in two parts, so that a head is scored "
                "on what it was trained on; keep one of them"
            )
        if copy.differs_in(class_of):
            raise DataError(
                f"{copy.first} and {copy.second} are one file in two classes; keep one of them"
            )
    # a copy in the unread part is named only: it is not scored in this run
    if unread is not None:
        part_of |= dict.fromkeys(unread_images, unread.images.name)
    warn_of_copies(copies, part_of, {"the class": class_of})


def _unread_images(unread: Content | None) -> list[Path]:
    """The images of the part that is not read."""
    if unread is None:
        return []
    return pictures_of(image_folder(walk(unread.images))).images


def _warn_of_case(class_of: Mapping[Path, str]) -> None:
    """Name classes whose names differ in case alone."""
    spelled: dict[str, str] = {}
    for class_name in dict.fromkeys(class_of.values()):
        other_name = spelled.setdefault(class_name.casefold(), class_name)
        if other_name != class_name:
            line = "the classes '%s' and '%s' differ in upper and lower case alone; are they one class?"
            logger.warning(line, other_name, class_name)


def _warn_of_missing_classes(data: DataFolder) -> None:
    """Name the classes that a part lacks."""
    for name, content in data.parts.items():
        missing = [class_name for class_name in data.classes if class_name not in content.classes]
        if data.held_out is None:
            remedy = "That fold scores nothing of it"
        elif name == data.held_out:
            remedy = "It gets no score"
        else:
            remedy = "No head can learn it: move some images there"
        warn_of_missing_classes(missing, "image", str(data.root / name), remedy)


# Images and masks
# ----------------------------------------------------------------------------------------------------


def _mask_table(root: Path, images: Path, masks: Path) -> pd.DataFrame:
    if images == masks:
        image_of, mask_of = _side_by_side(images)
    else:
        image_of = _by_stem(images, masks)
        mask_of = _by_stem(masks, images)
    if image_of.keys() != mask_of.keys():
        image_of, mask_of = _without_affixes(image_of, mask_of, images, masks)
    rows = {}
    for stem, file in image_of.items():
        rows[file.relative_to(root).as_posix()] = (file, mask_of[stem])
    return pd.DataFrame.from_dict(rows, "index", columns=[IMAGES, LABELS])


def _side_by_side(folder: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """The images and the masks of one folder by their names without suffix."""
    listing = walk(folder)
    warn_of_left_out([listing])
    pictures = pictures_of(image_folder(listing))
    return _stems_of(folder, pictures.images), _stems_of(folder, pictures.masks)


def _stems_of(root: Path, files: Sequence[Path]) -> dict[str, Path]:
    """Files by their relative path without suffix."""
    file_of: dict[str, Path] = {}
    for file in files:
        stem = file.relative_to(root).with_suffix("").as_posix()
        other = file_of.setdefault(stem, file)
        if other is not file:
            raise DataError(
                f"{other} and {file} differ in their suffix alone; keep one of them, since images and "
                "masks are paired by their names without it"
            )
    return file_of


def _by_stem(root: Path, other: Path) -> dict[str, Path]:
    """The images of a folder by their relative path without suffix.

    Masks may lie in a folder in that of the images, and images in one in that of the masks: what is
    below the other folder is left out.
    """
    listing = walk(root)
    is_inside = other in root.parents  # then all files are below the other folder
    if not is_inside:
        listing.files = [file for file in listing.files if other not in file.parents]
    warn_of_left_out([listing])
    files = listing.images
    if not files:
        raise DataError(
            f"the folder {root} holds no images ({', '.join(SUFFIXES)}){_kinds_held(listing)}"
        )
    return _stems_of(root, files)


def _kinds_held(listing: Listing) -> str:
    """The kinds of files that a folder without images holds, for the end of a message."""
    kinds = sorted({file.suffix.lower() for file in listing.files if file.suffix})
    return f"; it holds {some_of(kinds, 5)}" if kinds else ""


def _without_affixes(
    image_of: dict[str, Path], mask_of: dict[str, Path], images: Path, masks: Path
) -> tuple[dict[str, Path], dict[str, Path]]:
    """Images and masks by names that agree once an ending of all images, or of all masks, is left out; or a beginning.

    Raises:
        DataError: if there are no such endings and beginnings.
    """
    ends = _Affixes(_endings(image_of), _endings(mask_of), _without_ending)
    beginnings = _Affixes(
        _beginnings(image_of, IMAGE_WORDS | VAGUE_WORDS),
        _beginnings(mask_of, MASK_WORDS),
        _without_beginning,
    )
    for affixes in (ends, beginnings):
        for image_affix in affixes.of_images:
            for mask_affix in affixes.of_masks:
                short_images = {affixes.cut(name, image_affix): x for name, x in image_of.items()}
                short_masks = {affixes.cut(name, mask_affix): x for name, x in mask_of.items()}
                if short_images.keys() == short_masks.keys():
                    named = [f"images without '{image_affix}'"] if image_affix else []
                    named += [f"masks without '{mask_affix}'"] if mask_affix else []
                    number = counted(len(short_images), "pair")
                    logger.warning("%s and %s: %s: %s", images, masks, ", ".join(named), number)
                    return short_images, short_masks
    without_mask = image_of.keys() - mask_of.keys()
    without_image = mask_of.keys() - image_of.keys()
    texts = []
    if without_mask:
        number = counted(len(without_mask), "image")
        texts.append(f"{masks} has no mask for {number} of {images}: {some_of(without_mask, 5)}")
    if without_image:
        number = counted(len(without_image), "mask")
        texts.append(f"{images} has no image for {number} of {masks}: {some_of(without_image, 5)}")
    raise DataError(
        f"{'; '.join(texts)}. An image and its mask have the same path without suffix; a table "
        "pairs other names, and images without a mask (--csv, --labels COLUMN)"
    )


@dataclass
class _Affixes:
    """What names of images, and of masks, may be cut by, the longest first; and how."""

    of_images: Sequence[str]
    of_masks: Sequence[str]
    cut: Callable[[str, str], str]


def _endings(names: Iterable[str]) -> list[str]:
    """What all names end with, from a separator on, the longest first; and nothing."""
    backwards = [name[::-1] for name in names]
    shared = os.path.commonprefix(backwards)[::-1]  # noqa: RUF071 - of letters
    starts = [match.start() for match in re.finditer(r"[_\-. ]", shared)]
    return [shared[start:] for start in starts] + [""]


def _without_ending(name: str, ending: str) -> str:
    return name.removesuffix(ending)


def _beginnings(names: Iterable[str], words: Collection[str]) -> list[str]:
    """Return the first word that all file names share, with its separator, if it is one of ``words``; and "".

    Other words tell images apart: ``day1_0`` is never the mask of ``day2_0``.
    """
    last_parts = [name.rpartition("/")[2] for name in names]
    shared = os.path.commonprefix(last_parts)  # noqa: RUF071 - of letters
    beginning = first_word(shared, words)
    if not beginning and shared.lower() in words:
        beginning = shared  # of img1 and img2
    return [beginning, ""] if beginning else [""]


def _without_beginning(name: str, beginning: str) -> str:
    folder, slash, last_part = name.rpartition("/")
    return folder + slash + last_part.removeprefix(beginning)


def _folder(path: PathLike) -> Path:
    check_folder(Path(path))
    return Path(path)
