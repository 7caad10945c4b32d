"""What a folder of data holds: class folders, images with masks, and parts such as train and val.

The names of folders decide, and a reading that is not certain is refused with both readings: a
folder that is misread gives a head that learns something else, with good scores. Neither pandas nor
torch is imported; images are opened only where names do not tell masks from images.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from dinoneck.data.cells import PathLike
from dinoneck.data.folder_words import (
    IMAGE_FOLDERS,
    OUTPUT_WORDS,
    PART_WORDS,
    PARTS,
    part_of,
    words_of,
)
from dinoneck.data.image_tree import (
    ImageFolder,
    MaskPair,
    image_folder,
    is_called_image,
    is_called_mask,
    mask_pairs,
    masks_beside,
    mirrored_masks,
    name_without_words,
)
from dinoneck.data.walk import Listing, is_run_folder, walk
from dinoneck.errors import DataError, counted, some_of

logger = logging.getLogger(__name__)
Kind = Literal["images", "classes", "masks"]
Subfolders = Literal["classes", "folds", "parts"]
"""How the folders of a data set are read: as classes; as folds, each held out in turn; as train, val and test."""
HELD_OUT = "held_out"
"""The entry of ``table.attrs`` that says which fold of a table is held out; None = each in turn."""

_MOST_JSON = 20  # JSON files of a folder that are looked at: one for each image is no COCO file
_MOST_NAMES = 10  # that a message lists
_HEAD_BYTES = 65_536  # of a JSON file, in which the keys of COCO are looked for


@dataclass(frozen=True)
class Content:
    """The images of a folder, or of one part of it, and their labels.

    Attributes:
        kind: images alone, class folders, or images and masks.
        images: the folder of the images.
        masks: of images and masks: the folder of the masks, which may be that of the images.
        classes: of class folders: their names, sorted.
    """

    kind: Kind
    images: Path
    masks: Path | None = None
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class DataFolder:
    """What a folder holds: images of one kind, or parts that do.

    Attributes:
        root: the folder.
        content: its images; None = it has parts.
        parts: name -> content of the parts that are read, in their order; all are of one kind.
        held_out: of the parts: the one that heads are scored on; None = each in turn.
        left: of the parts: the one that training leaves, for ``evaluate``.
    """

    root: Path
    content: Content | None
    parts: Mapping[str, Content] = field(default_factory=dict)
    held_out: str | None = None
    left: Content | None = None

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
    _check_links(listing)
    top = image_folder(listing)
    if subfolders == "classes":
        return DataFolder(root, _classes_of(top, certain=True))
    pairs = mask_pairs(top)
    if pairs:
        return _paired(top, pairs, subfolders)
    if subfolders is not None:
        return _parts_of(top, subfolders)
    if _are_parts([folder.name for folder in top.with_images()]):
        return _parts_of(top, "parts")
    return DataFolder(root, _content_without_mask_folder(top))


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
    if subfolders is not None:
        top = image_folder(walk(image_root))
        return _parts_of_images_and_masks(
            image_root, top, image_folder(walk(mask_root)), subfolders
        )
    part_names = _part_names(image_folder(walk(image_root)).with_images())
    if len(part_names) > 1:
        line = (
            "%s: the images of %s are read as one set; --subfolders parts holds out val, --subfolders "
            "folds each in turn"
        )
        logger.warning(line, image_root, _listed(part_names))
    return DataFolder(image_root, Content("masks", image_root, mask_root))


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
    for pair in mask_pairs(image_folder(walk(folder))):
        if pair.masks.path == masks:
            return pair.images.path
    return None


def data_files(root: Path) -> list[str]:
    """Return the tables and COCO files in a folder and the folders in it, with the option that reads each."""
    texts = []
    children = sorted(child for child in root.iterdir() if child.is_dir())
    for folder in [root, *(child for child in children if not is_run_folder(child))]:
        files = sorted(file for file in folder.iterdir() if not file.name.startswith("."))
        tables = [file for file in files if file.suffix.lower() in (".csv", ".tsv")]
        documents = [file for file in files if file.suffix.lower() == ".json"]
        texts += [f"the table {file} (--csv)" for file in tables]
        for file in documents[:_MOST_JSON]:
            if _is_coco(file):
                texts.append(f"the COCO file {file} (--boxes, or --instances for masks)")
    return texts


def _is_coco(file: Path) -> bool:
    try:
        with file.open("rb") as opened:
            head = opened.read(_HEAD_BYTES)
    except OSError:
        return False
    return any(key in head for key in (b'"annotations"', b'"categories"', b'"images"'))


def _check_links(listing: Listing) -> None:
    """Refuse links that take images away: to nothing, or to a folder that is read under another name."""
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
    images, masks = first.images, first.masks
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
        raise DataError(
            f"{root} holds several folders with masks of {images.name}/: "
            f"{', '.join(pair.masks.name for pair in pairs)}. Name one: {_named_pair(first)}"
        )
    _check_one_image_once(root, pairs)
    parts = {}
    for pair in pairs:
        short = name_without_words(pair.images)  # train of train_images
        name = short if part_of(short) else pair.images.name
        parts[name] = Content("masks", pair.images.path, pair.masks.path)
    return _whole_of_parts(root, parts, subfolders)


def _images_and_masks(
    root: Path, images: ImageFolder, masks: ImageFolder, subfolders: Subfolders | None
) -> DataFolder:
    """A folder of images and one of masks, which may both have the same parts.

    Raises:
        DataError: if their folders may be parts, and are not called train and val.
    """
    names = [folder.name for folder in images.with_images()]
    if subfolders is not None or (not images.images and _are_parts(names)):
        return _parts_of_images_and_masks(root, images, masks, subfolders)
    if len(_part_names(images.with_images())) > 1:
        raise DataError(
            f"the folders of {images.path} are {_listed(names)}, with masks in {masks.path}: parts of "
            "a data set, or one set? If they are folds, each held out in turn: --subfolders folds; if "
            f"they are one set: --images {images.path} --labels {masks.path}; parts that are called "
            "train and val (and test) are read as such"
        )
    return DataFolder(root, Content("masks", images.path, masks.path))


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
                    f"one: {_named_pair(other)}"
                )


def _named_pair(pair: MaskPair) -> str:
    """What to write for a folder of images and that of their masks."""
    images = pair.images.path
    masks = pair.masks.path
    return f"--images {images} --labels {masks} (of evaluate: {images} --truth {masks})"


def _parts_of_images_and_masks(
    root: Path, images: ImageFolder, masks: ImageFolder, subfolders: Subfolders | None
) -> DataFolder:
    """The parts that a folder of images and a folder of masks both have."""
    folders = images.with_images()
    if images.images:
        raise DataError(
            f"{images.path} holds images next to its folders {_listed([folder.name for folder in folders])}, "
            f"such as {images.images[0].name}; move each into one"
        )
    masks_of = {folder.name: folder for folder in masks.with_images()}
    if not any(folder.name in masks_of for folder in folders):
        raise DataError(
            f"{images.path} holds the folders {_listed([folder.name for folder in folders])}, and "
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
    if top.images:
        raise DataError(
            f"{top.path} holds images next to the folders "
            f"{', '.join(folder.name for folder in folders)}, such as {top.images[0].name}; move "
            "each into one"
        )
    parts = {}
    for folder in folders:
        is_left = subfolders == "parts" and part_of(folder.name) == "test"
        parts[folder.name] = _left_content(folder) if is_left else _part_content(folder)
    return _whole_of_parts(top.path, parts, subfolders)


def _part_content(folder: ImageFolder) -> Content:
    pairs = mask_pairs(folder)
    if not pairs:
        return _content_without_mask_folder(folder)
    paired = _paired(folder, pairs, None)
    if paired.content is None:
        raise DataError(f"{folder.path} holds parts in its turn; name the folder of one")
    return paired.content


def _left_content(folder: ImageFolder) -> Content:
    """The content of a part that is not read: it may have no labels, in any form."""
    try:
        return _part_content(folder)
    except DataError:
        return Content("images", folder.path)


def _content_without_mask_folder(folder: ImageFolder) -> Content:
    """Class folders, images with their masks beside them, or images alone."""
    if folder.with_images():
        return _classes_of(folder, certain=False)
    if masks_beside(folder.images).masks:
        return Content("masks", folder.path, folder.path)
    return Content("images", folder.path)


def _whole_of_parts(
    root: Path, parts: Mapping[str, Content], subfolders: Subfolders | None
) -> DataFolder:
    """The folder with its parts: train and val, and test is left; or folds by their names.

    Raises:
        DataError: if they are not called so, there is one fold alone, or they are not alike.
    """
    if subfolders == "folds":
        _check_folds(root, list(parts))
        folds = dict(sorted(parts.items()))
        _check_alike(root, folds)
        _warn_of_equal_names(root, folds)
        return DataFolder(root, None, folds)
    _check_parts(root, list(parts))
    name_of = {part_of(name): name for name in parts}
    train = name_of["train"]
    val = name_of["val"]
    read_parts = {train: parts[train], val: parts[val]}
    _check_alike(root, read_parts)
    left = parts[name_of["test"]] if "test" in name_of else None
    return DataFolder(root, None, read_parts, held_out=val, left=left)


def _check_folds(root: Path, names: Sequence[str]) -> None:
    """Raise a DataError unless there are two folds or more."""
    if len(names) < 2:
        raise DataError(
            f"the folders with images in {root} are {', '.join(names) or 'none'}; expected two "
            "folds or more"
        )


def _warn_of_equal_names(root: Path, folds: Mapping[str, Content]) -> None:
    """Name two folds with images of the same names, as rgb/ and nir/ of one scene have them."""
    fold_of: dict[str, str] = {}
    repeated = []
    for name, content in folds.items():
        for stem in sorted(image_folder(walk(content.images)).stems()):
            if fold_of.setdefault(stem, name) != name:
                repeated.append((stem, fold_of[stem], name))
    if repeated:
        stem, first, second = repeated[0]
        line = (
            "%s: %s in two folds, such as %s in %s and %s: if they show one scene, heads are scored "
            "on what they were trained on; name one of the folders"
        )
        number = counted(len(repeated), "name")
        logger.warning(line, root, number, stem, first, second)


def _check_parts(root: Path, names: Sequence[str]) -> None:
    """Raise a DataError unless folders are train and val, and perhaps test."""
    if not _are_parts(names):
        raise DataError(
            f"the folders of {root} are {', '.join(names) or 'none'}; parts are called train and val "
            "(or valid), and perhaps test. Rename them; if they are folds, each held out in turn: "
            "--subfolders folds"
        )


def _check_alike(root: Path, parts: Mapping[str, Content]) -> None:
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
            f"{_named_content(labelled[0])}"
        )


def _named_content(content: Content) -> str:
    """What to write for the images of one part."""
    if content.masks is None or content.masks == content.images:
        return f"--images {content.images}"
    return f"--images {content.images} --labels {content.masks}"


def _called(content: Content) -> str:
    if content.kind == "classes":
        return f"class folders {some_of(content.classes, 3)}"
    if content.kind == "masks":
        return "images and masks"
    return "images without class folders and masks"


# Classes
# ----------------------------------------------------------------------------------------------------


def _classes_of(top: ImageFolder, *, certain: bool) -> Content:
    """The class folders of a folder.

    Args:
        top: the folder.
        certain: whether it was said that its folders are classes.
    """
    root = top.path
    names = sorted({folder.name for folder in top.folders.values()})
    if top.images:
        raise DataError(
            f"{root} holds images next to the class folders: "
            f"{some_of([file.name for file in top.images], 5)}; move each into one"
            f"{also_there(root)}"
        )
    if not certain:
        _check_classes(top, names)
    if len(names) < 2:
        inner = f"; or name {top.path / names[0]}" if top.with_images() else ""
        raise DataError(
            f"{root} has {counted(len(names), 'folder')} ({some_of(names, 3)}); expected two or "
            f"more, one per class{inner}{also_there(root)}"
        )
    return Content("classes", root, classes=tuple(names))


def _check_classes(top: ImageFolder, names: Sequence[str]) -> None:
    """Refuse folders that may be something else than classes.

    Raises:
        DataError: with both readings, and what to write for each.
    """
    root = top.path
    folders = top.with_images()
    listed = _listed(names)
    as_classes = "If they are classes: --subfolders classes"
    as_folds = "if they are folds, each held out in turn: --subfolders folds"
    as_parts = "parts that are called train and val (and test) are read as such"
    for folder in top.folders.values():
        if folder.name.lower() in IMAGE_FOLDERS and len(names) > 1:
            raise _no_class(root, folder, list(top.folders.values()), listed, as_classes)
    if len(folders) < 2:
        return
    mirrored = next(mirrored_masks(folders), None)
    if mirrored is not None:
        raise DataError(
            f"the folders of {root} are {listed}: {mirrored.masks.name} has an image like a mask for "
            f"each of {mirrored.images.name}: {_named_pair(mirrored)}. {as_classes}"
        )
    if all(PART_WORDS & words_of(folder.name) for folder in folders):
        raise DataError(
            f"the folders of {root} are {listed}: parts of a data set, or classes? {as_classes}; "
            f"{as_folds}; {as_parts}; or name one of them{also_there(root)}"
        )
    if all(_is_sample_of_folders(folder) for folder in folders):
        raise DataError(
            f"the folders of {root} are {listed}, and each holds a folder with one image and a folder "
            f"of its masks: one folder for each sample, or classes? {as_classes}; if they are samples, "
            "merge the masks of each into one file, and name the image and that file in the rows of "
            "a table (--csv)"
        )
    if all(_holds_images_and_masks(folder) for folder in folders):
        raise DataError(
            f"the folders of {root} are {listed}, and all hold images and masks: parts with masks, or "
            f"classes? {as_classes}; {as_folds}; {as_parts}; or name one of them"
        )
    if _are_samples(folders):
        held = some_of([file.name for file in folders[0].images], 4)
        raise DataError(
            f"the folders of {root} are {listed}, and each holds one image ({folders[0].name}: {held}): "
            f"one folder for each sample, or classes? {as_classes}; if they are samples, name the "
            f"image and its label in the rows of a table (--csv){also_there(root)}"
        )
    shared = _shared_subfolders(folders)
    if shared:
        raise DataError(
            f"the folders of {root} are {listed}, and several hold {some_of(shared, 3)}: parts with "
            f"the classes {some_of(shared, 3)}, or classes? {as_classes}; {as_folds}; {as_parts}; "
            "or name one of them"
        )
    for folder in folders:
        inside = sorted(subfolder.name for subfolder in folder.with_images())
        repeated = sorted(set(inside).intersection(names))
        if repeated and not folder.images:
            raise DataError(
                f"the folders of {root} are {listed}, and {folder.name} holds {some_of(repeated, 3)} "
                f"too: move it away, if these are the classes. {as_classes}"
            )
        if part_of(folder.name) and len(inside) > 1:
            raise DataError(
                f"the folders of {root} are {listed}, and {folder.name} holds {some_of(inside, 3)}: "
                f"a part with classes, or a class? {as_classes}; name the part: --images "
                f"{folder.path}"
            )
    _warn_of_one_subfolder(top, listed)
    _warn_of_doubtful_classes(folders)


def _are_samples(folders: Sequence[ImageFolder]) -> bool:
    """Whether each folder is that of one sample: ``s0/image.png`` alone, or one image with its masks.

    ``wheat/1.jpg`` and ``oats/1.jpg`` are classes: a number says nothing.
    """
    stems = set()
    all_have_masks = True
    for folder in folders:
        masks = set(masks_beside(folder.images).masks)
        masks |= {file for file in folder.images if is_called_mask(file)}
        images = [file for file in folder.images if file not in masks]
        if len(images) != 1 or len(folder.all_images()) != len(folder.images):
            return False
        stems.add(images[0].stem if is_called_image(images[0]) else None)
        all_have_masks = all_have_masks and bool(masks)
    have_one_name = len(stems) == 1 and None not in stems
    return have_one_name or all_have_masks


def _warn_of_doubtful_classes(folders: Sequence[ImageFolder]) -> None:
    """Name the classes that are called like a part of a data set, or like what programs write."""
    doubtful = []
    for folder in folders:
        words = words_of(folder.name)
        if words and words <= PART_WORDS | OUTPUT_WORDS:
            doubtful.append(folder.name)
    if not doubtful:
        return
    names = ", ".join(f"'{name}'" for name in doubtful[:_MOST_NAMES])
    if len(doubtful) == 1:
        read = "is read as a class; move it away if it is none"
    else:
        read = "are read as classes; move them away if they are none"
    logger.warning("%s: %s %s", folders[0].path.parent, names, read)


def _listed(names: Sequence[str]) -> str:
    """Names for a message: all of a few, the first of many."""
    if len(names) > _MOST_NAMES:
        return some_of(names, _MOST_NAMES)
    if len(names) == 1:
        return names[0]
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _holds_images_and_masks(folder: ImageFolder) -> bool:
    """Whether a folder holds images/ and masks/, and no images of its own."""
    return not folder.images and bool(mask_pairs(folder))


def _is_sample_of_folders(folder: ImageFolder) -> bool:
    """Whether a folder is that of one sample: ``s0/images/x.png`` with ``s0/masks/0.png``, ``1.png`` ..."""
    if not _holds_images_and_masks(folder):
        return False
    pairs = mask_pairs(folder)
    return all(len(pair.images.all_images()) == 1 for pair in pairs) and any(
        pair.masks.stems() != pair.images.stems() for pair in pairs
    )


def _warn_of_one_subfolder(top: ImageFolder, listed: str) -> None:
    """Say that folders are classes whose images are all in a folder of one name: day1/wheat, day2/wheat."""
    names = set()
    for folder in top.with_images():
        names |= {inside.name for inside in folder.with_images()}
        if folder.images:
            return
    if len(names) == 1:
        line = "%s: the folders %s are read as classes, and all their images are in %s/"
        logger.warning(line, top.path, listed, names.pop())


def _no_class(
    root: Path, images: ImageFolder, folders: Sequence[ImageFolder], listed: str, as_classes: str
) -> DataError:
    """The error for a folder called images next to others, with what the others hold."""
    beside = [folder for folder in folders if folder is not images]
    text = f"the folders of {root} are {listed}: {images.name} is no class. "
    boxes = [folder for folder in beside if folder.holds(".txt")]
    if boxes:
        return DataError(
            f"{text}{boxes[0].name} holds .txt files, such as YOLO's boxes: convert them to COCO "
            "JSON, for --boxes (docs/how-to/boxes.md)"
        )
    with_images = [folder for folder in beside if folder.all_images()]
    if with_images:
        return DataError(
            f"{text}Name the folder of the images, --images {images.path}, and that of masks or of "
            f"numbers per pixel, --labels {with_images[0].path}. {as_classes}"
        )
    suffixes = set()
    for folder in beside:
        suffixes |= {file.suffix.lower() for file in folder.others if file.suffix}
    no_images = ""
    if suffixes:
        no_images = f"; {beside[0].name} holds {some_of(sorted(suffixes), 3)}, no images"
    return DataError(
        f"{text}Name the folder of the images: --images {images.path}{no_images}{also_there(root)}"
    )


def _shared_subfolders(folders: Sequence[ImageFolder]) -> list[str]:
    """The folders in folders of which all images are in such, if several have one in common; masks count for nothing.

    One name alone tells nothing: ``wheat/images`` and ``oats/images`` are classes.
    """
    inside = []
    for folder in folders:
        of_masks = {pair.masks.name for pair in mask_pairs(folder)}
        if not folder.images:
            inside.append({subfolder.name for subfolder in folder.with_images()} - of_masks)
    everything = set().union(*inside)
    is_shared = any(sum(name in names for names in inside) > 1 for name in everything)
    return sorted(everything) if is_shared and len(everything) > 1 else []


def also_there(root: Path) -> str:
    """Return what else a folder holds that can be read, for the end of a message."""
    files = data_files(root)
    return f". It holds {some_of(files, 3)}" if files else ""
