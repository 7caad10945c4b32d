"""What a folder of data holds: class folders, images with masks, and parts such as train and val.

The names of folders decide, and a reading that is not certain is refused with both readings: a
folder that is misread gives a head that learns something else, with good scores. Neither pandas nor
torch is imported; images are opened only where names do not tell masks from images.
"""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from dinoneck.data.cells import PathLike
from dinoneck.data.class_folders import one_part_alone, read_class_names
from dinoneck.data.folder_texts import (
    PartFolders,
    also_there,
    as_options,
    as_two_commands,
    listed,
)
from dinoneck.data.folder_words import COPY_WORDS, PART_WORDS, PARTS, part_of, words_of
from dinoneck.data.image_tree import (
    ImageFolder,
    MaskPair,
    image_folder,
    mask_pairs,
    name_without_words,
    take_label_formats,
)
from dinoneck.data.masks_beside import masks_beside
from dinoneck.data.name_pairs import shared_affixes
from dinoneck.data.sources import check_any_pictures
from dinoneck.data.walk import Listing, walk
from dinoneck.errors import DataError
from dinoneck.text import counted, some_of

logger = logging.getLogger(__name__)
Kind = Literal["images", "classes", "masks"]
Subfolders = Literal["classes", "folds", "parts"]
"""How the folders of a data set are read: as classes; as folds, each held out in turn; as train, val and test."""
HELD_OUT = "held_out"
"""The entry of ``table.attrs`` that says which fold of a table is held out; None = each in turn."""

# images of folds that have an image of the same name in another fold, as a share: rgb/ and nir/ of
# one scene share nearly all
_NEARLY_ALL = 0.9


@dataclass(frozen=True)
class Content:
    """The images of a folder, or of one part of it, and their labels.

    Attributes:
        kind: images alone, class folders, or images and masks.
        images: the folder of the images.
        masks: of images and masks: the folder of the masks, which may be that of the images.
        classes: of class folders: their names, sorted.
        problem: of images alone: why their labels cannot be read; empty = there are none.
    """

    kind: Kind
    images: Path
    masks: Path | None = None
    classes: tuple[str, ...] = ()
    problem: str = ""


@dataclass(frozen=True)
class UnreadPart:
    """The part of a folder that training leaves, for ``evaluate``.

    Attributes:
        name: of the folder, such as ``test``.
        content: its images, also where it has no labels.
    """

    name: str
    content: Content


@dataclass(frozen=True)
class DataFolder:
    """What a folder holds: images of one kind, or parts that do.

    Attributes:
        root: the folder.
        content: its images; None = it has parts.
        parts: name -> content of the parts that are read, in their order; all are of one kind.
        held_out: of the parts: the one that heads are scored on; None = each in turn.
        unread_part: of the parts: the one that training leaves.
    """

    root: Path
    content: Content | None
    parts: Mapping[str, Content] = field(default_factory=dict)
    held_out: str | None = None
    unread_part: UnreadPart | None = None

    @property
    def kind(self) -> Kind:
        """The kind of its images, which all parts share."""
        return self._contents()[0].kind

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the class folders, of all parts, sorted."""
        names = set()
        for content in self._contents():
            names |= set(content.classes)
        return tuple(sorted(names))

    def _contents(self) -> list[Content]:
        return list(self.parts.values()) if self.content is None else [self.content]


def read_data_folder(path: PathLike, subfolders: Subfolders | None = None) -> DataFolder:
    """Tell what a folder of data holds.

    * ``images/`` and ``masks/`` (or ``labels/`` and other words): images and their masks.
    * ``train/`` and ``val/`` (or ``valid/``, and ``test/``), each with class folders or with images
      and masks: parts.
    * two or more folders of images: classes.
    * images alone.

    Args:
        path: the folder.
        subfolders: how the folders in it are read; None = by their names.

    Raises:
        DataError: if the folder does not exist, or can be read in several ways.
    """
    root = Path(path)
    check_folder(root)
    listing = walk(root)
    check_links(listing)
    top = image_folder(listing)
    if subfolders == "classes":
        names = read_class_names(top, certain=True, is_named=True)
        return DataFolder(root, Content("classes", root, classes=names))
    take_label_formats(top)
    pairs = mask_pairs(top)
    if pairs:
        return _paired(top, pairs, subfolders)
    if subfolders is not None:
        return _parts_of(top, subfolders)
    if _are_parts([folder.name for folder in top.with_images()]):
        return _parts_of(top, "parts")
    return DataFolder(root, _content_without_mask_folder(top, is_named=True))


def read_images_and_masks(
    images: PathLike, masks: PathLike, subfolders: Subfolders | None
) -> DataFolder:
    """Tell what a folder of images and a folder of their masks hold; ids are relative to ``images``.

    Args:
        images: the folder of the images.
        masks: the folder of the masks, another one.
        subfolders: how the folders in both are read: folds or parts; None = they say nothing, and a
            warning names those that are called as parts of a data set.

    Raises:
        DataError: if a folder does not exist, or has no such parts.
    """
    image_root = Path(images)
    mask_root = Path(masks)
    check_folder(image_root)
    check_folder(mask_root)
    if subfolders == "classes":
        raise DataError(
            f"--subfolders is classes, and {mask_root} holds masks; expected folds or parts, or leave "
            "it or --labels out"
        )
    image_top = image_folder(walk(image_root))
    if subfolders is not None:
        mask_top = image_folder(walk(mask_root))
        return _parts_of_images_and_masks(image_root, image_top, mask_top, subfolders)
    part_names = _part_names(image_top.with_images())
    if len(part_names) > 1:
        line = (
            "%s: the images of %s are read as one set; --subfolders parts holds out val, --subfolders "
            "folds each in turn"
        )
        logger.warning(line, image_root, listed(part_names))
    return DataFolder(image_root, Content("masks", image_root, mask_root))


def check_has_labels(content: Content) -> None:
    """Reject a folder of images alone, or without images.

    Raises:
        DataError: naming it.
    """
    if content.kind != "images":
        return
    check_any_pictures(content.images, walk(content.images).images)
    raise DataError(
        f"{content.images} holds images, without class folders and masks{also_there(content.images)}"
    )


def check_folder(path: Path) -> None:
    """Refuse what is no folder.

    Raises:
        DataError: naming it.
    """
    if not path.exists():
        raise DataError(f"the folder {path} does not exist")
    if not path.is_dir():
        raise DataError(f"{path} is a file; expected a folder")


def masks_in(folder: Path, masks: Path) -> Path | None:
    """Return the folder in ``folder`` that ``masks`` holds the masks of; None if it is not beside one."""
    if masks.parent != folder:
        return None
    top = image_folder(walk(folder))
    take_label_formats(top)
    for pair in mask_pairs(top):
        if pair.masks.path == masks:
            return pair.images.path
    return None


def check_links(listing: Listing) -> None:
    """Refuse links that take images away: to nothing, or to a folder that is read under another name.

    Raises:
        DataError: naming the link.
    """
    for link in listing.lost:
        # a name without a suffix is that of a folder: of a class, or of a class of a part
        is_like_folder = link.suffix == ""
        if is_like_folder and listing.top in (link.parent, link.parent.parent):
            raise DataError(
                f"the link {link} leads to nothing; restore what it names, or remove it"
            )
    for link, folder in listing.repeated.items():
        if folder not in link.parents:  # else it is a loop
            raise DataError(
                f"{link} and {folder} are one folder; keep one of them, or images would count twice"
            )


# Images and masks
# ----------------------------------------------------------------------------------------------------


def _paired(
    top: ImageFolder,
    pairs: Sequence[MaskPair],
    subfolders: Subfolders | None,
) -> DataFolder:
    """Images and masks, or parts of which each has both."""
    root = top.path
    first = pairs[0]
    images = first.images
    masks = first.masks
    paired = {pair.images for pair in pairs} | {pair.masks for pair in pairs}
    others = [folder.name for folder in top.with_images() if folder not in paired]
    if not first.is_around and (top.images or others):
        what = f"the folders {', '.join(others)}" if others else f"images such as {top.images[0]}"
        raise DataError(
            f"{root} holds {images.name}/ with masks in {masks.name}/, and {what}. Name the folders "
            "to read, --images and --labels; if they are classes: --subfolders classes"
        )
    if len(pairs) == 1:
        return _images_and_masks(root, images, masks, subfolders)
    has_several_masks = len({pair.images for pair in pairs}) < len(pairs)
    if first.is_around or has_several_masks:
        names = ", ".join(pair.masks.name for pair in pairs)
        raise DataError(
            f"{root} holds several folders with masks of {images.name}/: {names}. Name one: "
            f"{as_options(images.path, masks.path)}"
        )
    _check_one_image_once(root, pairs)
    parts = {}
    for pair in pairs:
        short = name_without_words(pair.images)  # train of train_images
        name = short if part_of(short) else pair.images.name
        parts[name] = Content("masks", pair.images.path, pair.masks.path)
    if subfolders is None and not _are_parts(list(parts)):
        raise DataError(
            f"{root} holds {listed(list(parts))}, each with a folder of its masks. If they are folds, "
            "each held out in turn: --subfolders folds; if all folders are classes, also those called "
            f"like masks: --subfolders classes; or name one: {as_options(images.path, masks.path)}. "
            "Parts that are called train and val (and test) are read as such"
        )
    return _whole_of_parts(root, parts, subfolders)


def _images_and_masks(
    root: Path, images: ImageFolder, masks: ImageFolder, subfolders: Subfolders | None
) -> DataFolder:
    """A folder of images and one of masks, which may both have the same parts.

    Raises:
        DataError: if their folders may be parts, and are not called train and val.
    """
    images = _only_folder(images, masks)
    masks = _only_folder(masks, images)
    names = [folder.name for folder in images.with_images()]
    if subfolders is not None or (not images.images and _are_parts(names)):
        return _parts_of_images_and_masks(root, images, masks, subfolders)
    if len(_part_names(images.with_images())) > 1:
        raise DataError(
            f"the folders of {images.path} are {listed(names)}, with masks in {masks.path}: parts of "
            f"a data set, or one set? {_readings_of_parts(images, masks)}"
        )
    _warn_of_copies(images)
    return DataFolder(root, Content("masks", images.path, masks.path))


def _readings_of_parts(images: ImageFolder, masks: ImageFolder) -> str:
    """How images and masks with folders that may be parts can be read, for the end of a message."""
    readings = []
    names = {folder.name for folder in images.with_images()}
    mask_names = {folder.name for folder in masks.with_images()}
    if not images.images and names <= mask_names:
        readings.append("If they are folds, each held out in turn: --subfolders folds")
    stems = images.stems()
    mask_stems = masks.stems()
    if stems == mask_stems or shared_affixes(stems, mask_stems) is not None:
        readings.append(f"if they are one set: --images {images.path} --labels {masks.path}")
    if not readings:
        number = counted(len(mask_stems), "mask")
        return (
            f"There {'is' if len(mask_stems) == 1 else 'are'} {number} for "
            f"{counted(len(stems), 'image')}: name the pairs in a table (--csv, --labels COLUMN)"
        )
    in_both = {}
    masks_of = {folder.name: folder.path for folder in masks.with_images()}
    for folder in images.with_images():
        if folder.name in masks_of:
            in_both[folder.name] = PartFolders(folder.path, masks_of[folder.name])
    two_commands = as_two_commands(in_both)
    if two_commands:
        readings.append(two_commands)
    if not images.images:
        readings.append("parts that are called train and val (and test) are read as such")
    text = "; ".join(readings)
    return text[0].upper() + text[1:]


def _warn_of_copies(images: ImageFolder) -> None:
    """Count the images in folders that are called like copies of others: ``images/augmented``."""
    copies = []
    for folder in images.all_folders()[1:]:
        if folder.images and words_of(folder.name) & COPY_WORDS:
            copies.append(folder)
    if copies:
        number = sum(len(folder.images) for folder in copies)
        logger.warning(
            "%s: also read: %s in folders called like copies of others, such as %s: where folds are "
            "drawn, a head is scored on copies of what it was trained on; move them away",
            images.path,
            counted(number, "image"),
            copies[0].path,
        )


def _only_folder(folder: ImageFolder, other: ImageFolder) -> ImageFolder:
    """The folder in a folder that holds all of its images: ``trimaps`` of ``annotations/trimaps``.

    A folder that ``other`` has too is a part or a class of both: ``images/train`` and ``masks/train``.

    Args:
        folder: of images or of masks.
        other: that of the masks or of the images.
    """
    names_in_other = {inside.name for inside in other.with_images()}
    while not folder.images:
        inside = folder.with_images()
        if len(inside) != 1 or inside[0].name in names_in_other:
            break
        folder = inside[0]
    return folder


def _check_one_image_once(root: Path, pairs: Sequence[MaskPair]) -> None:
    """Refuse folders that show the same images, such as rgb and nir: as folds they would share images.

    Raises:
        DataError: naming both folders.
    """
    for i, pair in enumerate(pairs):
        for other in pairs[:i]:
            shared = pair.images.stems() & other.images.stems()
            if pair.masks is other.masks and shared:
                raise DataError(
                    f"{root} holds {other.images.name}/ and {pair.images.name}/ with the same "
                    f"masks in {pair.masks.name}/, such as {min(shared)}: one image in two kinds. Name "
                    f"one: {as_options(other.images.path, other.masks.path)}"
                )


def _parts_of_images_and_masks(
    root: Path, images: ImageFolder, masks: ImageFolder, subfolders: Subfolders | None
) -> DataFolder:
    """The parts that a folder of images and a folder of masks both have."""
    folders = images.with_images()
    names = [folder.name for folder in folders]
    if images.images:
        raise DataError(
            f"{images.path} holds images next to its folders {listed(names)}, "
            f"such as {images.images[0].name}; move each into one"
        )
    masks_of = {folder.name: folder for folder in masks.with_images()}
    if masks_of.keys().isdisjoint(names):
        raise DataError(
            f"{images.path} holds the folders {listed(names)}, and "
            f"{masks.path} has no folder of these names; sort the masks into such folders"
        )
    parts = {}
    for folder in folders:
        if folder.name in masks_of:
            content = Content("masks", folder.path, masks_of[folder.name].path)
        else:
            content = Content("images", folder.path)
        parts[folder.name] = content
    return _whole_of_parts(root, parts, subfolders)


# Parts
# ----------------------------------------------------------------------------------------------------


def _are_parts(names: Sequence[str]) -> bool:
    """Whether folders are train and val, and perhaps test, and nothing else."""
    parts = [part_of(name) for name in names]
    return {"train", "val"} <= set(parts) <= PARTS and len(set(parts)) == len(parts)


def _part_names(folders: Sequence[ImageFolder]) -> list[str]:
    """The names of folders with a word for parts of a data set: train2017, fold1, dev."""
    return [folder.name for folder in folders if PART_WORDS & words_of(folder.name)]


def _parts_of(top: ImageFolder, subfolders: Subfolders) -> DataFolder:
    """The parts of a folder, each with class folders or with images and masks."""
    folders = top.with_images()
    names = [folder.name for folder in folders]
    if top.images:
        raise DataError(
            f"{top.path} holds images next to the folders {', '.join(names)}, such as "
            f"{top.images[0].name}; move each into one"
        )
    if subfolders == "parts":
        _check_no_parts_in_classes(top.path, folders)
        _check_parts(top.path, names, one_part_alone(folders))
    else:
        _check_folds(top.path, names)
        _check_no_parts_in_folds(folders)
    parts = {}
    for folder in folders:
        is_unread = subfolders == "parts" and part_of(folder.name) == "test"
        parts[folder.name] = _unread_content(folder) if is_unread else _part_content(folder)
    return _whole_of_parts(top.path, parts, subfolders)


def _check_no_parts_in_classes(root: Path, folders: Sequence[ImageFolder]) -> None:
    """Raise a DataError for folders that are no parts and hold train and val, as wheat/train and oats/train."""
    if _are_parts([folder.name for folder in folders]):
        return
    for folder in folders:
        inside = [subfolder.name for subfolder in folder.with_images()]
        if _are_parts(inside):
            raise DataError(
                f"{folder.path} holds the parts {listed(inside)}. Parts are outside of classes: move "
                f"the folders, such as {folder.name}/{inside[0]} to {inside[0]}/{folder.name} in "
                f"{root}; or name one: {as_options(folder.path)}"
            )


def _check_no_parts_in_folds(folders: Sequence[ImageFolder]) -> None:
    """Raise a DataError for a fold that holds train and val in its turn."""
    for folder in folders:
        inside = [subfolder.name for subfolder in folder.with_images()]
        if len(inside) > 1 and all(part_of(name) is not None for name in inside):
            raise DataError(
                f"{folder.path} is to be a fold, and holds the parts {listed(inside)} in its turn; "
                f"name it alone, {as_options(folder.path)}, or leave --subfolders folds out"
            )


def _part_content(folder: ImageFolder) -> Content:
    pairs = mask_pairs(folder)
    if not pairs:
        return _content_without_mask_folder(folder, is_named=False)
    paired = _paired(folder, pairs, None)
    if paired.content is None:
        raise DataError(f"{folder.path} holds parts in its turn; name the folder of one")
    return paired.content


def _unread_content(folder: ImageFolder) -> Content:
    """The content of a part that is not read: it may have no labels, in any form."""
    try:
        return _part_content(folder)
    except DataError as error:
        return Content("images", folder.path, problem=str(error))


def _content_without_mask_folder(folder: ImageFolder, *, is_named: bool) -> Content:
    """Class folders, images with their masks beside them, or images alone.

    Args:
        folder: the folder.
        is_named: whether it is the folder that was named, and no part of it.
    """
    if folder.with_images():
        names = read_class_names(folder, certain=False, is_named=is_named)
        return Content("classes", folder.path, classes=names)
    if masks_beside(folder.images).cover(folder.images):
        return Content("masks", folder.path, folder.path)
    return Content("images", folder.path)


def _whole_of_parts(
    root: Path, parts: Mapping[str, Content], subfolders: Subfolders | None
) -> DataFolder:
    """The folder with its parts: train and val are read, and test is not; or folds, in the order of their names.

    Raises:
        DataError: if they are not called so, there is one fold alone, or they are not alike.
    """
    if subfolders == "folds":
        _check_folds(root, list(parts))
        folds = dict(sorted(parts.items()))
        _check_same_contents(root, folds)
        _warn_of_equal_names(root, folds)
        return DataFolder(root, content=None, parts=folds)
    folders_of = {}
    for name, content in parts.items():
        folders_of[name] = PartFolders(content.images, content.masks)
    _check_parts(root, list(parts), as_two_commands(folders_of) or "or name one of them")
    name_of = {part_of(name): name for name in parts}
    train = name_of["train"]
    val = name_of["val"]
    read_parts = {train: parts[train], val: parts[val]}
    _check_same_contents(root, read_parts)
    unread_part = None
    if "test" in name_of:
        test = name_of["test"]
        unread_part = UnreadPart(test, parts[test])
    return DataFolder(root, content=None, parts=read_parts, held_out=val, unread_part=unread_part)


def _check_folds(root: Path, names: Sequence[str]) -> None:
    """Raise a DataError unless there are two folds or more."""
    if len(names) < 2:
        raise DataError(
            f"the folders with images in {root} are {', '.join(names) or 'none'}; expected two "
            "folds or more"
        )


def _warn_of_equal_names(root: Path, folds: Mapping[str, Content]) -> None:
    """Name two folds with images of the same names, as rgb/ and nir/ of one scene have them.

    Cameras number their images from 0 in each folder, so equal names alone are a note. They are a
    warning if nearly all images of two folds share them, unless the folds are numbered or dated
    themselves: day1 and day2.
    """
    stems_of = {}
    for name, content in folds.items():
        stems_of[name] = image_folder(walk(content.images)).stems()
    for first, second in itertools.combinations(folds, 2):
        shared = stems_of[first] & stems_of[second]
        if not shared:
            continue
        fewest = min(len(stems_of[first]), len(stems_of[second]))
        are_numbered = _without_digits(first) == _without_digits(second)
        is_one_scene = len(shared) >= _NEARLY_ALL * fewest and not are_numbered
        line = (
            "%s: %s in two folds, such as %s in %s and %s: if they show one scene, heads are scored "
            "on what they were trained on; name one of the folders"
        )
        level = logging.WARNING if is_one_scene else logging.INFO
        number = counted(len(shared), "name")
        logger.log(level, line, root, number, min(shared), first, second)
        return


def _without_digits(name: str) -> str:
    return re.sub(r"\d", "", name)


def _check_parts(root: Path, names: Sequence[str], one_alone: str) -> None:
    """Raise a DataError unless folders are train and val, and perhaps test.

    Args:
        root: the folder that they are in.
        names: of the folders.
        one_alone: how to read one of them, for the end of the message.
    """
    if not _are_parts(names):
        raise DataError(
            f"the folders of {root} are {', '.join(names) or 'none'}; parts are called train and val "
            "(or valid), and perhaps test. Rename them; if they are folds, each held out in turn: "
            f"--subfolders folds; {one_alone}"
        )


def _check_same_contents(root: Path, parts: Mapping[str, Content]) -> None:
    """Raise a DataError unless all parts have class folders, or all have masks."""
    kinds = {content.kind for content in parts.values()}
    if kinds == {"images"}:
        raise DataError(
            f"{root} holds images in {', '.join(parts)}, without class folders and masks"
            f"{also_there(root)}"
        )
    if len(kinds) > 1:
        contents = [f"{name} holds {_called(content)}" for name, content in parts.items()]
        labelled = [content for content in parts.values() if content.kind != "images"]
        raise DataError(
            f"the folders of {root} are not alike: {'; '.join(contents)}. Name the folder of one: "
            f"{as_options(labelled[0].images, labelled[0].masks)}"
        )


def _called(content: Content) -> str:
    if content.kind == "classes":
        return f"class folders {some_of(content.classes, 3)}"
    if content.kind == "masks":
        return "images and masks"
    return "images without class folders and masks"
