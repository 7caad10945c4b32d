"""The images below a folder as a tree, and which of them are masks of others.

The names of folders and files tell masks from images: ``masks/`` next to ``images/``, ``0_mask.png``
next to ``0.png``. Files are opened only where names do not tell. Neither pandas nor torch is
imported.
"""

from __future__ import annotations

import itertools
import logging
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dinoneck.data.cells import cell_text
from dinoneck.data.folder_words import (
    CAMERA_WORDS,
    IMAGE_WORDS,
    MADE_WORDS,
    MASK_KINDS,
    MASK_WORDS,
    MAYBE_MASK_WORDS,
    OUTPUT_WORDS,
    SENSOR_WORDS,
    VAGUE_WORDS,
    first_word,
    plain_word,
    words_of,
)
from dinoneck.data.name_pairs import shared_affixes
from dinoneck.data.names import composed
from dinoneck.data.walk import SUFFIXES, Listing, path_order
from dinoneck.errors import counted

logger = logging.getLogger(__name__)

_LAST_WORD = re.compile(r"[_\-. ]([^\W\d_]+)(?:[_\-. ]?\d+)?$")  # of 0_mask, 0_mask_1, 0-sat
_PICTURE_WORDS = IMAGE_WORDS | VAGUE_WORDS
_LOSSLESS_SUFFIXES = (".png", ".tif", ".tiff", ".bmp")
_ONE_BAND = ("1", "L", "P", "I", "I;16", "I;16B")  # Pillow's names of one band, and of palettes
_ONE_BYTE = ("1", "L", "P")  # of these, without the 16 bits of thermal cameras
_MOST_COLOURS = 64  # of a mask in colours; a photo has thousands
# JPEG changes black and white along edges: of masks of lines 1 to 9 pixels wide, at quality 50,
# 98.7 % of the pixels stay this near to black or white; a screenshot of a report has 80 %
_NEAR_BLACK_OR_WHITE = 40  # of 255
_SHARE_BLACK_AND_WHITE = 0.95
_LEAST_OF_EACH = 0.001  # of the pixels black, and of them white
_MOST_PIXELS = 50_000_000  # of a file whose colours are counted: less than a second
_OPENED = 3  # files of a folder that are opened
_MOST_ALIKE = 5  # folders with the same names: images, masks, depth ...; more are classes or days


@dataclass(eq=False)
class ImageFolder:
    """A folder, its images and other files, and the folders in it; it equals itself alone."""

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

    def without(self, folders: Sequence[ImageFolder]) -> ImageFolder:
        """Return the folder without some of the folders in it."""
        rest = {name: folder for name, folder in self.folders.items() if folder not in folders}
        return ImageFolder(self.path, self.images, self.others, rest)

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
    """A path without its suffix, composed (NFC)."""
    return composed(path.with_suffix("").as_posix())


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


@dataclass(frozen=True)
class Beside:
    """A file or a folder, and the one that it may belong to.

    Attributes:
        path: the file or the folder.
        image: the image, or the folder of images, that it may be a mask of or made from.
    """

    path: Path
    image: Path


@dataclass
class Pictures:
    """What is below a folder, each sorted.

    Attributes:
        images: the images, without masks; what may be none is among them.
        masks: the masks beside them.
        maybe_mask_folders: folders of what looks like the masks of others and is not called so.
        maybe_mask_files: files that are called like the mask of an image and do not look so.
        output_files: files that are called like what programs make of an image.
        output_folders: folders that are called like what programs write -> the images in them.
        sensor_files: files that are called like what another sensor took of the scene of an image.
    """

    images: list[Path] = field(default_factory=list)
    masks: list[Path] = field(default_factory=list)
    maybe_mask_folders: list[Beside] = field(default_factory=list)
    maybe_mask_files: list[Beside] = field(default_factory=list)
    output_files: list[Beside] = field(default_factory=list)
    output_folders: dict[Path, list[Path]] = field(default_factory=dict)
    sensor_files: list[Beside] = field(default_factory=list)

    def add(self, other: Pictures) -> None:
        """Add what is below another folder."""
        self.images += other.images
        self.masks += other.masks
        self.maybe_mask_folders += other.maybe_mask_folders
        self.maybe_mask_files += other.maybe_mask_files
        self.output_files += other.output_files
        self.output_folders |= other.output_folders
        self.sensor_files += other.sensor_files


def pictures_of(top: ImageFolder) -> Pictures:
    """Tell the images below a folder from the masks beside them."""
    pictures = Pictures()
    folders = [top]
    for folder in folders:  # it grows meanwhile
        mask_folders = {pair.masks for pair in mask_pairs(folder)}
        for pair in mirrored_masks(folder.with_images()):
            if pair.is_certain and words_of(pair.images.name) & _PICTURE_WORDS:
                mask_folders.add(pair.masks)
            elif pair.masks not in mask_folders:
                pictures.maybe_mask_folders.append(Beside(pair.masks.path, pair.images.path))
        for mask_folder in mask_folders:
            pictures.masks += mask_folder.all_images()
        if folder is not top and folder.images and is_called_output(folder):
            pictures.output_folders[folder.path] = folder.images
        beside = masks_beside(folder.images)
        pictures.masks += beside.masks
        pictures.maybe_mask_files += beside.maybe_masks
        pictures.output_files += outputs_beside(folder.images, set(beside.masks))
        pictures.sensor_files += _sensor_files_beside(folder.images, set(beside.masks))
        folders += [inside for inside in folder.folders.values() if inside not in mask_folders]
    is_mask = set(pictures.masks)
    pictures.images = [file for file in top.all_images() if file not in is_mask]
    pictures.images.sort(key=path_order)
    pictures.masks.sort(key=path_order)
    return pictures


def is_called_output(folder: ImageFolder) -> bool:
    """Whether the whole name of a folder is that of what programs write: overlays, thumbs."""
    words = words_of(folder.name)
    return bool(words) and words <= OUTPUT_WORDS


def outputs_beside(images: Sequence[Path], masks: Collection[Path]) -> list[Beside]:
    """The files that are called like what programs make of an image: ``0_overlay.png`` of ``0.png``, ``0_rgb.png``."""
    by_stem = {}
    for file in images:
        by_stem[_without_word(file.stem, CAMERA_WORDS)] = file
    by_stem |= {file.stem: file for file in images}
    outputs = []
    for file in images:
        match = _LAST_WORD.search(file.stem)
        if file in masks or match is None or plain_word(match.group(1)) not in MADE_WORDS:
            continue
        image = by_stem.get(file.stem[: match.start()])
        if image is not None:
            outputs.append(Beside(file, image))
    return outputs


def _sensor_files_beside(images: Sequence[Path], masks: Collection[Path]) -> list[Beside]:
    """The files that are called like what another sensor took: ``0_depth.png``, ``ir_0.jpg`` of ``rgb_0.jpg``."""
    photo_of = {}
    sensor_files = []
    for file in images:
        if file in masks:
            continue
        if _without_word(file.stem, SENSOR_WORDS) != file.stem:
            sensor_files.append(file)
        else:
            photo_of[_without_word(file.stem, _PICTURE_WORDS | CAMERA_WORDS)] = file
    beside = []
    for file in sensor_files:
        photo = photo_of.get(_without_word(file.stem, SENSOR_WORDS))
        if photo is not None:
            beside.append(Beside(file, photo))
    return beside


def _without_word(stem: str, words: Collection[str]) -> str:
    """The name of a file without one of some words at its end, or else at its beginning."""
    match = _LAST_WORD.search(stem)
    if match is not None and plain_word(match.group(1)) in words:
        return stem[: match.start()]
    return stem.removeprefix(first_word(stem, words))


def stems_without_sensor(folder: ImageFolder) -> set[str]:
    """Return the paths of all images without suffixes and words for sensors: ``0`` of ``depth_0`` and ``0_rgb``."""
    return {_without_word(stem, SENSOR_WORDS | CAMERA_WORDS) for stem in folder.stems()}


def warn_of_masks(pictures: Sequence[Pictures]) -> None:
    """Name, in one line each, masks that are left out, and what is taken and may be no image of its own."""
    everything = Pictures()
    for in_folder in pictures:
        everything.add(in_folder)
    if everything.masks:
        number = counted(len(everything.masks), "mask")
        line = "left out: %s beside images, the first %s; name the folder or the files to take them"
        logger.warning(line, number, everything.masks[0])
    if everything.maybe_mask_folders:
        first = everything.maybe_mask_folders[0]
        line = (
            "%s has an image like a mask for each of %s, and is taken too; name the folder to take"
        )
        logger.warning(line, first.path, first.image)
    _warn_of_files(
        everything.maybe_mask_files,
        "the mask of another one",
        "if they are masks, move them into a folder of their own",
    )
    _warn_of_files(
        everything.output_files,
        "what programs make of another one",
        "if they are, move them into a folder elsewhere",
    )
    _warn_of_files(
        everything.sensor_files,
        "what another sensor took of the scene of another one",
        "if they are, move them into a folder elsewhere",
    )
    if everything.output_folders:
        number = counted(sum(map(len, everything.output_folders.values())), "file")
        line = (
            "taken as images: %s in folders called like what programs write, such as %s; move such "
            "folders away"
        )
        logger.warning(line, number, next(iter(everything.output_folders)))


def _warn_of_files(files: Sequence[Beside], called: str, remedy: str) -> None:
    """Name files that are taken as images and called like something else.

    Args:
        files: each with the image that it is called after.
        called: what they are called like.
        remedy: what to do.
    """
    if files:
        line = "taken as images: %s called like %s, such as %s beside %s; %s"
        number = counted(len(files), "file")
        logger.warning(line, number, called, files[0].path, files[0].image, remedy)


# Folders of masks
# ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MaskPair:
    """A folder of images and the folder of their masks.

    Attributes:
        images: the folder of the images, without folders of masks in it.
        masks: the folder of the masks.
        is_around: whether the folder of the masks is in that of the images.
        is_certain: whether nothing but masks has such names and pixels.
    """

    images: ImageFolder
    masks: ImageFolder
    is_around: bool
    is_certain: bool = True


def mask_pairs(top: ImageFolder) -> list[MaskPair]:
    """Return the folders in a folder that hold images, each with the one next to it that holds its masks.

    A folder of masks that belongs to none of them belongs to the folder itself, if that has an
    image for each mask, or images that look so.
    """
    masks = []
    others = []
    for folder in top.with_images():
        if _has_mask_word(folder):
            masks.append(folder)
        else:
            others.append(folder)
    images_around = top.without(masks)
    pairs = []
    for mask in masks:
        beside = [other for other in others if _is_pair(other, mask, others)]
        pairs += [MaskPair(other, mask, is_around=False) for other in beside]
        if not beside and images_around.all_images() and _is_pair_with_rest(images_around, mask):
            pairs.append(MaskPair(images_around, mask, is_around=True))
    return pairs


def _has_mask_word(folder: ImageFolder) -> bool:
    name = folder.name.lower()
    return bool(MASK_WORDS & words_of(folder.name)) or name.endswith(("annot", "masks"))


def _is_pair(images: ImageFolder, masks: ImageFolder, others: Sequence[ImageFolder]) -> bool:
    """Whether one folder holds the masks of another one next to it."""
    # train and train_masks
    if _is_named_after(masks, images):
        return True
    # val and train_masks: the masks belong to train
    if any(_is_named_after(masks, other) for other in others):
        return False
    words = words_of(images.name)
    # images and masks, whatever is in them
    if words & IMAGE_WORDS:
        return True
    is_mirror = masks.stems() <= images.stems()
    # photos and masks, or a class photos and a class labels: the names or the pixels of files tell
    if words & VAGUE_WORDS:
        return is_mirror or look_like_masks(masks, images)
    # wheat and masks, or a class wheat and a class target: names and pixels have to agree
    are_alike = is_mirror or shared_affixes(images.stems(), masks.stems()) is not None
    return are_alike and look_like_masks(masks, images)


def name_without_words(folder: ImageFolder) -> str:
    """Return what distinguishes folders of one kind: ``train`` of img_train and of mask-train."""
    words = words_of(folder.name) - MASK_WORDS - IMAGE_WORDS - VAGUE_WORDS
    return " ".join(sorted(words))


def _is_named_after(masks: ImageFolder, images: ImageFolder) -> bool:
    """Whether a folder has the name of another one with a word for masks: train_masks, trainannot, labelsTr."""
    name = masks.name.lower()
    start = images.name.lower()
    if name.startswith(start) and MASK_WORDS & words_of(name[len(start) :]):
        return True
    is_image_folder = bool(words_of(images.name) & IMAGE_WORDS)
    return is_image_folder and name_without_words(masks) == name_without_words(images)


def _is_pair_with_rest(rest: ImageFolder, masks: ImageFolder) -> bool:
    """Whether a folder holds masks of the images around it."""
    stems = {_without_mask_word(stem) for stem in masks.stems()}
    return stems <= rest.stems() or look_like_masks(masks, rest)


def _without_mask_word(stem: str) -> str:
    """The name of a file without words for masks at its end, or else without one at its beginning.

    It is ``0`` of ``0_mask_1`` and of ``mask_0``. The beginning is cut only where the end was not:
    ``mask_0_mask`` becomes ``mask_0``.
    """
    without_last = _without_last_mask_words(stem)
    if without_last != stem:
        return without_last
    return stem.removeprefix(first_word(stem, MASK_WORDS))


def _without_last_mask_words(stem: str) -> str:
    """The name of a file without the words for masks, and for kinds of them, that it ends with.

    A kind alone says nothing: it is cut only together with a word for masks before it. So
    ``0_gtFine_color`` becomes ``0``, and ``0_color`` stays.
    """
    shortest = stem
    rest = stem
    match = _LAST_WORD.search(rest)
    while match is not None:
        word = plain_word(match.group(1))
        if word not in MASK_WORDS | MASK_KINDS:
            break
        rest = rest[: match.start()]
        if word in MASK_WORDS:
            shortest = rest
        match = _LAST_WORD.search(rest)
    return shortest


def mirrored_masks(
    folders: Sequence[ImageFolder],
) -> Iterator[MaskPair]:
    """Yield images and masks of folders whose files look so, and have the same names but for suffixes or affixes.

    Masks of equal names in a format without losses are certain. Others are, if a word says that
    they are masks: classes of black and white pictures have such names too.
    """
    of_equal_names = list(_mirrored_names(folders))
    yield from of_equal_names
    found = {pair.masks for pair in of_equal_names}
    by_count: dict[int, list[ImageFolder]] = {}
    for folder in folders:
        by_count.setdefault(len(folder.all_images()), []).append(folder)
    for alike in by_count.values():
        if len(alike) > _MOST_ALIKE:
            continue
        for masks, other in itertools.permutations(alike, 2):
            if masks in found or other in found:
                continue
            affixes = shared_affixes(other.stems(), masks.stems())
            is_alike = affixes is not None and (affixes.image_affix or affixes.mask_affix)
            if affixes is not None and is_alike and _are_flat(masks, other):
                is_certain = _says_masks(masks.name) or _says_masks(affixes.mask_affix)
                yield MaskPair(other, masks, is_around=False, is_certain=is_certain)


def _mirrored_names(folders: Sequence[ImageFolder]) -> Iterator[MaskPair]:
    """Images and masks of folders whose files have the same names, up to suffixes, and look so."""
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
                    is_certain = _are_lossless(masks) or _says_masks(masks.name)
                    yield MaskPair(other, masks, is_around=False, is_certain=is_certain)


def _says_masks(name: str) -> bool:
    """Whether a word in a name says that it is that of masks, perhaps."""
    return bool(words_of(name) & (MASK_WORDS | MAYBE_MASK_WORDS))


# Files of masks
# ----------------------------------------------------------------------------------------------------


def look_like_masks(masks: ImageFolder, images: ImageFolder) -> bool:
    """Whether the first files of one folder are like masks, and those of the other are not.

    Masks have one band or a palette where images have three, or few colours where images have many.
    JPEG files are masks if they are black and white.
    """
    some_masks = masks.all_images()[:_OPENED]
    some_images = images.all_images()[:_OPENED]
    if _are_lossless(masks):
        if all(map(_has_one_band, some_masks)) and not any(map(_has_one_band, some_images)):
            return True
    return _are_flat(masks, images)


def _are_lossless(masks: ImageFolder) -> bool:
    """Whether the first files of a folder have a format without losses."""
    some_masks = masks.all_images()[:_OPENED]
    return all(file.suffix.lower() in _LOSSLESS_SUFFIXES for file in some_masks)


def _are_flat(masks: ImageFolder, images: ImageFolder) -> bool:
    """Whether the first files of one folder have few colours, or JPEG's black and white, and those of the other not."""
    some_masks = masks.all_images()[:_OPENED]
    some_images = images.all_images()[:_OPENED]
    if not all(map(_has_many_colours, some_images)):
        return False
    if _are_lossless(masks):
        return all(map(_has_few_colours, some_masks))
    return all(map(_is_black_and_white, some_masks)) and not any(
        map(_is_black_and_white, some_images)
    )


@dataclass
class FoundMasks:
    """What the names and pixels of files in one folder say about masks among them.

    Attributes:
        masks: the files that are masks of others.
        maybe_masks: files that are called like the mask of another one and do not look so.
    """

    masks: list[Path]
    maybe_masks: list[Beside]


def masks_beside(images: Sequence[Path]) -> FoundMasks:
    """Return the masks among the images of one folder: ``0.png`` beside ``0.jpg``, ``0_mask.png`` beside ``0.png``."""
    of_equal_stem = dict.fromkeys(_masks_of_equal_stem(images))
    rest = [file for file in images if file not in of_equal_stem]
    by_word = _masks_with_mask_word(rest)
    masks = dict.fromkeys([*of_equal_stem, *by_word.masks, *_masks_called_so(images)])
    maybe_masks = [beside for beside in by_word.maybe_masks if beside.path not in masks]
    return FoundMasks(list(masks), maybe_masks)


def is_called_mask(file: Path) -> bool:
    """Whether the name of a file begins with a word for masks: mask.png, mask_0.png, label_viz.png."""
    first_word = re.split(r"[_\-. \d]", file.stem.lower(), maxsplit=1)[0]
    return first_word in MASK_WORDS


def is_called_image(file: Path) -> bool:
    """Whether the whole name of a file is a word for images: image.png, img.jpg, rgb.png."""
    return file.stem.lower() in _PICTURE_WORDS


def _masks_called_so(images: Sequence[Path]) -> list[Path]:
    """The files that are called masks, in the folder of one sample: ``mask.png`` beside ``image.png``."""
    if not any(is_called_image(file) for file in images):
        return []
    return [file for file in images if is_called_mask(file)]


def _masks_of_equal_stem(images: Sequence[Path]) -> list[Path]:
    """The files that are masks of one that differs in its suffix alone: of one byte a pixel, or in few colours."""
    by_stem: dict[str, list[Path]] = {}
    for file in images:
        by_stem.setdefault(file.stem, []).append(file)
    masks: list[Path] = []
    pairs = []  # of files without losses, and others
    for files in by_stem.values():
        if len(files) < 2:
            continue
        one_byte = [file for file in files if _has_mode(file, _ONE_BYTE)]
        if one_byte and len(one_byte) < len(files):
            masks += one_byte
        elif not one_byte:
            lossless = [file for file in files if file.suffix.lower() in _LOSSLESS_SUFFIXES]
            lossy = [file for file in files if file not in lossless]
            pairs += [(file, lossy[0]) for file in lossless if lossy]
    if pairs and all(_is_in_fewer_colours(file, other) for file, other in pairs[:_OPENED]):
        masks += [file for file, _ in pairs]
    return masks


def _masks_with_mask_word(images: Sequence[Path]) -> FoundMasks:
    """The files with a word for masks, ``0_mask.png`` of ``0.png``: all if each image has one, else those that look so.

    An image may have a word of its own: ``0_mask.png`` is that of ``0_sat.jpg``, and ``mask_0.png``
    that of ``img_0.png``.
    """
    name_of = _names_without_mask_word(images)
    pictures = [file for file in images if file not in name_of]
    image_of = _image_of_masks(name_of, pictures)
    stems_with_mask = {image.stem for image in image_of.values()}
    if stems_with_mask == {file.stem for file in pictures}:
        return FoundMasks(list(image_of), [])
    masks = []
    in_colours = []
    for file, image in image_of.items():
        if _has_one_band(file):
            masks.append(file)
        else:
            in_colours.append(Beside(file, image))
    # a few files tell for all: counting colours reads the pixels
    if all(_is_in_fewer_colours(beside.path, beside.image) for beside in in_colours[:_OPENED]):
        masks += [beside.path for beside in in_colours]
        in_colours = []
    return FoundMasks(masks, in_colours)


def _names_without_mask_word(images: Sequence[Path]) -> dict[Path, str]:
    """Files that are called like masks -> their names without what says so.

    ``0_mask.png`` is called like one, unless ``0_mask.jpg`` is there too: the word is then a part of
    the name of an image and its mask. So is ``0.jpg.png``, if ``0.jpg`` is there.
    """
    file_names = {file.name for file in images}
    stems = Counter(file.stem for file in images)
    name_of = {}
    for file in images:
        without_word = _without_mask_word(file.stem)
        if file.stem in file_names:
            name_of[file] = Path(file.stem).stem
        elif without_word != file.stem and stems[file.stem] == 1:
            name_of[file] = without_word
    return name_of


def _image_of_masks(name_of: Mapping[Path, str], pictures: Sequence[Path]) -> dict[Path, Path]:
    """Masks -> the picture of their name: one that is called so, or else one that is but for a word.

    Args:
        name_of: masks -> their names without words for masks.
        pictures: that they may be masks of.
    """
    by_stem = {file.stem: file for file in pictures}
    by_short_stem = {}
    for file in pictures:
        by_short_stem[_LAST_WORD.sub("", file.stem)] = file
        by_short_stem[file.stem.removeprefix(first_word(file.stem, _PICTURE_WORDS))] = file
    image_of = {}
    for mask, name in name_of.items():
        if name in by_stem:
            image_of[mask] = by_stem[name]
        elif name in by_short_stem:
            image_of[mask] = by_short_stem[name]
    return image_of


def _is_in_fewer_colours(file: Path, image: Path) -> bool:
    """Whether a file has few colours and an image many."""
    is_lossless = file.suffix.lower() in _LOSSLESS_SUFFIXES
    return is_lossless and _has_few_colours(file) and _has_many_colours(image)


def _has_one_band(file: Path) -> bool:
    return _has_mode(file, _ONE_BAND)


def _has_mode(file: Path, modes: Sequence[str]) -> bool:
    """Whether a file without losses has one of the modes of Pillow."""
    from PIL import Image

    if file.suffix.lower() not in _LOSSLESS_SUFFIXES:
        return False
    try:
        with Image.open(file) as image:
            return image.mode in modes
    except (OSError, ValueError, Image.DecompressionBombError):
        return False  # whoever reads it says what is wrong


def _has_few_colours(file: Path) -> bool:
    colours = _colours(file)
    return colours is not None and colours <= _MOST_COLOURS


def _is_black_and_white(file: Path) -> bool:
    """Whether nearly all pixels of a file are black or white, up to what JPEG makes of them, and some are each."""
    from PIL import Image

    try:
        with Image.open(file) as image:
            if image.width * image.height > _MOST_PIXELS:
                return False
            histograms = image.convert("RGB").histogram()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False
    for band in range(3):
        counts = histograms[256 * band : 256 * (band + 1)]
        total = sum(counts)
        black = sum(counts[:_NEAR_BLACK_OR_WHITE])
        white = sum(counts[-_NEAR_BLACK_OR_WHITE:])
        if black + white < _SHARE_BLACK_AND_WHITE * total:
            return False
        if min(black, white) < _LEAST_OF_EACH * total:
            return False
    return True


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
