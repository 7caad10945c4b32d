"""The images below a folder as a tree, and which of them are masks of others.

The names of folders and files tell masks from images: ``masks/`` next to ``images/``, ``0_mask.png``
next to ``0.png``. Files are opened only where names do not tell. Neither pandas nor torch is
imported.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dinoneck.data.cells import cell_text
from dinoneck.data.walk import SUFFIXES, Listing, path_order
from dinoneck.errors import counted

logger = logging.getLogger(__name__)

# words in the names of folders of images
_IMAGE_WORDS = {"image", "images", "img", "imgs", "jpegimages", "leftimg"}
# words of folders that hold images, or are a class of them
_VAGUE_WORDS = {"photo", "photos", "picture", "pictures", "pics", "rgb", "input", "inputs", "raw"}
_VAGUE_WORDS |= {"data", "original", "originals", "orig", "frame", "frames"}
# words in the names of folders, and at the end of the names of files, of masks
_MASK_WORDS = {"mask", "masks", "label", "labels", "annotation", "annotations", "annot", "annots"}
_MASK_WORDS |= {"anno", "gt", "gtfine", "gtcoarse", "groundtruth", "truth", "seg", "segs", "segm"}
_MASK_WORDS |= {"segmentation", "segmentations", "semantic", "trimap", "trimaps", "target"}
_MASK_WORDS |= {"targets", "labelids", "labeltrainids"}
_LAST_WORD = re.compile(r"[_\-. ]([A-Za-z]+)(?:[_\-. ]?\d+)?$")  # of 0_mask, 0_mask_1, 0-sat
_LOSSLESS = (".png", ".tif", ".tiff", ".bmp")
_ONE_BAND = ("1", "L", "P", "I", "I;16", "I;16B")  # Pillow's names of one band, and of palettes
_ONE_BYTE = ("1", "L", "P")  # of these, without the 16 bits of thermal cameras
_MOST_COLOURS = 64  # of a mask in colours; a photo has thousands
_MOST_PIXELS = 50_000_000  # of a file whose colours are counted: less than a second
_OPENED = 3  # files of a folder that are opened
_MOST_ALIKE = 5  # folders with the same names: images, masks, depth ...; more are classes or days


@dataclass
class ImageFolder:
    """A folder, its images and other files, and the folders in it."""

    path: Path
    images: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)
    folders: dict[str, ImageFolder] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Its name, stripped and composed (NFC)."""
        return cell_text(self.path.name)

    def all_folders(self) -> list[ImageFolder]:
        """Return the folder and all below it."""
        folders = [self]
        for folder in folders:  # it grows meanwhile
            folders += folder.folders.values()
        return folders

    def all_images(self) -> list[Path]:
        """Return the images in it and below it."""
        return [file for folder in self.all_folders() for file in folder.images]

    def with_images(self) -> list[ImageFolder]:
        """Return the folders in it that hold images."""
        return [folder for folder in self.folders.values() if folder.all_images()]

    def stems(self) -> set[str]:
        """Return the paths of all images, relative to the folder and without their suffixes."""
        return {_stem(file.relative_to(self.path)) for file in self.all_images()}

    def holds(self, suffix: str) -> bool:
        """Whether it holds a file with this suffix that is no image, at any depth."""
        for folder in self.all_folders():
            if any(file.suffix.lower() == suffix for file in folder.others):
                return True
        return False


def _stem(path: Path) -> str:
    return path.with_suffix("").as_posix()


def image_folder(listing: Listing) -> ImageFolder:
    """Return the folders of a listing with their images."""
    top = ImageFolder(listing.top)
    by_path = {listing.top: top}
    for path in listing.folders:  # sorted: a folder comes before those in it
        by_path[path] = ImageFolder(path)
        by_path[path.parent].folders[path.name] = by_path[path]
    for file in listing.files:
        folder = by_path[file.parent]
        if file.suffix.lower() in SUFFIXES:
            folder.images.append(file)
        else:
            folder.others.append(file)
    return top


@dataclass
class Pictures:
    """What is below a folder, each sorted.

    Attributes:
        images: the images, without masks.
        masks: the masks beside them.
        doubtful: folders of images, and of what looks like their masks and is not called so; all of
            them are in ``images``.
    """

    images: list[Path]
    masks: list[Path]
    doubtful: list[tuple[Path, Path]]


def pictures_of(top: ImageFolder) -> Pictures:
    """Tell the images below a folder from the masks beside them."""
    masks: list[Path] = []
    doubtful = []
    folders = [top]
    for folder in folders:  # it grows meanwhile
        of_masks = {id(mask): mask for _, mask in mask_pairs(folder)}
        for images, mask in mirrored_masks(folder.with_images()):
            if words_of(images.name) & (_IMAGE_WORDS | _VAGUE_WORDS):
                of_masks[id(mask)] = mask
            elif id(mask) not in of_masks:
                doubtful.append((images.path, mask.path))
        for mask in of_masks.values():
            masks += mask.all_images()
        masks += masks_beside(folder.images)
        folders += [inside for inside in folder.folders.values() if id(inside) not in of_masks]
    pictures = top.all_images()
    if masks:
        is_mask = set(masks)
        pictures = [file for file in pictures if file not in is_mask]
    pictures.sort(key=path_order)
    masks.sort(key=path_order)
    return Pictures(pictures, masks, doubtful)


def warn_of_masks(pictures: Sequence[Pictures]) -> None:
    """Name, in one line each, masks that are left out, and folders that may be masks."""
    masks: list[Path] = []
    doubtful: list[tuple[Path, Path]] = []
    for in_folder in pictures:
        masks += in_folder.masks
        doubtful += in_folder.doubtful
    if masks:
        number = counted(len(masks), "mask")
        line = "left out: %s beside images, the first %s; name the folder or the files to take them"
        logger.warning(line, number, masks[0])
    if doubtful:
        line = (
            "%s has an image like a mask for each of %s, and is taken too; name the folder to take"
        )
        logger.warning(line, doubtful[0][1], doubtful[0][0])


def words_of(name: str) -> set[str]:
    """Return the words of a name: ``SegmentationClass_png`` -> segmentation, class, png."""
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)}


# Folders of masks
# ----------------------------------------------------------------------------------------------------


def mask_pairs(top: ImageFolder) -> list[tuple[ImageFolder, ImageFolder]]:
    """Return the folders in a folder that hold images, and next to them those of their masks.

    Where masks of the folder itself are in a folder in it, the first of the pair is the folder,
    without the masks.
    """
    folders = top.with_images()
    masks = [folder for folder in folders if _has_mask_word(folder)]
    others = [folder for folder in folders if not _has_mask_word(folder)]
    rest = ImageFolder(top.path, top.images, top.others)
    rest.folders = {folder.path.name: folder for folder in others}
    pairs = []
    for mask in masks:
        beside = [other for other in others if _is_pair(other, mask, others)]
        pairs += [(other, mask) for other in beside]
        if not beside and rest.all_images() and _is_pair_with_rest(rest, mask):
            pairs.append((rest, mask))
    return pairs


def _has_mask_word(folder: ImageFolder) -> bool:
    name = folder.name.lower()
    return bool(_MASK_WORDS & words_of(folder.name)) or name.endswith(("annot", "masks"))


def _is_pair(images: ImageFolder, masks: ImageFolder, others: Sequence[ImageFolder]) -> bool:
    """Whether one folder holds the masks of another one next to it."""
    if _is_named_after(masks, images):
        return True
    if any(_is_named_after(masks, other) for other in others):
        return False
    is_mirror = masks.stems() <= images.stems()
    words = words_of(images.name)
    if words & _IMAGE_WORDS:
        return True
    if words & _VAGUE_WORDS:
        return is_mirror or look_like_masks(masks, images)
    return is_mirror and look_like_masks(masks, images)


def name_without_words(folder: ImageFolder) -> str:
    """Return what distinguishes folders of one kind: ``train`` of img_train and of mask-train."""
    words = words_of(folder.name) - _MASK_WORDS - _IMAGE_WORDS - _VAGUE_WORDS
    return " ".join(sorted(words))


def _is_named_after(masks: ImageFolder, images: ImageFolder) -> bool:
    """Whether a folder has the name of another one with a word for masks: train_masks, trainannot, labelsTr."""
    name = masks.name.lower()
    start = images.name.lower()
    if name.startswith(start) and _MASK_WORDS & words_of(name[len(start) :]):
        return True
    is_image_folder = bool(words_of(images.name) & _IMAGE_WORDS)
    return is_image_folder and name_without_words(masks) == name_without_words(images)


def _is_pair_with_rest(rest: ImageFolder, masks: ImageFolder) -> bool:
    """Whether a folder holds masks of the images around it."""
    stems = {_without_mask_word(stem) for stem in masks.stems()}
    return stems <= rest.stems() or look_like_masks(masks, rest)


def _without_mask_word(stem: str) -> str:
    """The name of a file without words for masks at its end: 0 of 0_mask_1, a of a_gtFine_labelIds."""
    match = _LAST_WORD.search(stem)
    while match is not None and match.group(1).lower() in _MASK_WORDS:
        stem = stem[: match.start()]
        match = _LAST_WORD.search(stem)
    return stem


def mirrored_masks(
    folders: Sequence[ImageFolder],
) -> Iterator[tuple[ImageFolder, ImageFolder]]:
    """Yield images and masks of folders whose files have the same names, up to suffixes, and look so."""
    groups: dict[tuple[int, str, str], list[ImageFolder]] = {}
    for folder in folders:
        images = folder.all_images()
        first = _stem(images[0].relative_to(folder.path))
        last = _stem(images[-1].relative_to(folder.path))
        groups.setdefault((len(images), first, last), []).append(folder)
    for alike in groups.values():
        if len(alike) > _MOST_ALIKE:
            continue
        for masks in alike:
            for other in alike:
                if masks is other or masks.stems() != other.stems():
                    continue
                if look_like_masks(masks, other):
                    yield other, masks


# Files of masks
# ----------------------------------------------------------------------------------------------------


def look_like_masks(masks: ImageFolder, images: ImageFolder) -> bool:
    """Whether the first files of one folder are like masks, and those of the other are not.

    Masks have one band or a palette where images have three, or few colours where images have many.
    """
    some_masks = masks.all_images()[:_OPENED]
    some_images = images.all_images()[:_OPENED]
    if not all(file.suffix.lower() in _LOSSLESS for file in some_masks):
        return False
    if all(map(_has_one_band, some_masks)) and not any(map(_has_one_band, some_images)):
        return True
    return all(map(_has_few_colours, some_masks)) and all(map(_has_many_colours, some_images))


def masks_beside(images: Sequence[Path]) -> list[Path]:
    """Return the masks among the images of one folder: ``0.png`` beside ``0.jpg``, ``0_mask.png`` beside ``0.png``.

    Of files with one name those of one byte a pixel are masks, if others have colours. Files with a
    word for masks are masks if all images have one, else those of one band. An image may have a
    word of its own, as ``0_sat.jpg``.
    """
    by_stem: dict[str, list[Path]] = {}
    for file in images:
        by_stem.setdefault(file.stem, []).append(file)
    masks: list[Path] = []
    named: dict[Path, str] = {}  # a file with a word for masks -> its name without it
    image_names: dict[str, str] = {}  # the name of an image, also without its last word -> its name
    for stem, files in by_stem.items():
        if len(files) > 1:
            one_byte = [file for file in files if _has_mode(file, _ONE_BYTE)]
            if len(one_byte) < len(files):
                masks += one_byte
        short = _without_mask_word(stem)
        if short != stem and len(files) == 1:
            named[files[0]] = short
        else:
            image_names[_LAST_WORD.sub("", stem)] = stem
    image_names |= {stem: stem for stem in list(image_names.values())}
    named = {file: short for file, short in named.items() if short in image_names}
    with_mask = {image_names[short] for short in named.values()}
    if with_mask == set(image_names.values()):
        return masks + list(named)
    return masks + [file for file in named if _has_one_band(file)]


def _has_one_band(file: Path) -> bool:
    return _has_mode(file, _ONE_BAND)


def _has_mode(file: Path, modes: Sequence[str]) -> bool:
    """Whether a file without losses has one of the modes of Pillow."""
    from PIL import Image

    if file.suffix.lower() not in _LOSSLESS:
        return False
    try:
        with Image.open(file) as image:
            return image.mode in modes
    except (OSError, ValueError, Image.DecompressionBombError):
        return False  # whoever reads it says what is wrong


def _has_few_colours(file: Path) -> bool:
    colours = _colours(file)
    return colours is not None and colours <= _MOST_COLOURS


def _has_many_colours(file: Path) -> bool:
    colours = _colours(file)
    return colours is not None and colours > _MOST_COLOURS


def _colours(file: Path) -> int | None:
    """The number of colours of an image, up to one more than a mask has; None if it is not counted."""
    from PIL import Image

    try:
        with Image.open(file) as image:
            if image.width * image.height > _MOST_PIXELS:
                return None
            counts = image.convert("RGB").getcolors(_MOST_COLOURS)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    return _MOST_COLOURS + 1 if counts is None else len(counts)
