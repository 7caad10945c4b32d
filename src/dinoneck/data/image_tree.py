"""The images below a folder as a tree, and which of them are masks of others.

The names of folders and files tell masks from images: ``masks/`` next to ``images/``, ``0_mask.png``
next to ``0.png``. Files are opened only where names do not tell. Neither pandas nor torch is
imported.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dinoneck.data.cells import cell_text
from dinoneck.data.folder_words import (
    IMAGE_WORDS,
    MASK_KINDS,
    MASK_WORDS,
    OUTPUT_WORDS,
    VAGUE_WORDS,
    words_of,
)
from dinoneck.data.walk import SUFFIXES, Listing, path_order
from dinoneck.errors import counted

logger = logging.getLogger(__name__)

_LAST_WORD = re.compile(r"[_\-. ]([A-Za-z]+)(?:[_\-. ]?\d+)?$")  # of 0_mask, 0_mask_1, 0-sat
_FIRST_WORD = re.compile(r"([A-Za-z]+)(?:[_\-. ]|(?=\d))")  # of mask_0, mask0
_LOSSLESS_SUFFIXES = (".png", ".tif", ".tiff", ".bmp")
_ONE_BAND = ("1", "L", "P", "I", "I;16", "I;16B")  # Pillow's names of one band, and of palettes
_ONE_BYTE = ("1", "L", "P")  # of these, without the 16 bits of thermal cameras
_MOST_COLOURS = 64  # of a mask in colours; a photo has thousands
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
        doubtful_files: files that are called like the mask of an image and do not look so, or like
            what programs make of it, and that image; all of them are in ``images``.
        doubtful_folders: folders that are called like what programs write, with their images; all of
            these are in ``images``.
    """

    images: list[Path]
    masks: list[Path]
    doubtful: list[tuple[Path, Path]]
    doubtful_files: list[tuple[Path, Path]]
    doubtful_folders: dict[Path, list[Path]]


def pictures_of(top: ImageFolder) -> Pictures:
    """Tell the images below a folder from the masks beside them."""
    masks: list[Path] = []
    doubtful = []
    doubtful_files = []
    doubtful_folders = {}
    folders = [top]
    for folder in folders:  # it grows meanwhile
        mask_folders = {pair.masks for pair in mask_pairs(folder)}
        for pair in mirrored_masks(folder.with_images()):
            if words_of(pair.images.name) & (IMAGE_WORDS | VAGUE_WORDS):
                mask_folders.add(pair.masks)
            elif pair.masks not in mask_folders:
                doubtful.append((pair.images.path, pair.masks.path))
        for mask_folder in mask_folders:
            masks += mask_folder.all_images()
        if folder is not top and _is_called_output(folder):
            doubtful_folders[folder.path] = folder.images
        beside = masks_beside(folder.images)
        masks += beside.masks
        doubtful_files += beside.doubtful
        folders += [inside for inside in folder.folders.values() if inside not in mask_folders]
    pictures = top.all_images()
    if masks:
        is_mask = set(masks)
        pictures = [file for file in pictures if file not in is_mask]
    pictures.sort(key=path_order)
    masks.sort(key=path_order)
    return Pictures(pictures, masks, doubtful, doubtful_files, doubtful_folders)


def _is_called_output(folder: ImageFolder) -> bool:
    words = words_of(folder.name)
    return bool(folder.images) and bool(words) and words <= OUTPUT_WORDS


def warn_of_masks(pictures: Sequence[Pictures]) -> None:
    """Name, in one line each, masks that are left out, and folders that may be masks."""
    masks: list[Path] = []
    doubtful: list[tuple[Path, Path]] = []
    doubtful_files: list[tuple[Path, Path]] = []
    doubtful_folders: dict[Path, list[Path]] = {}
    for in_folder in pictures:
        masks += in_folder.masks
        doubtful += in_folder.doubtful
        doubtful_files += in_folder.doubtful_files
        doubtful_folders |= in_folder.doubtful_folders
    if masks:
        number = counted(len(masks), "mask")
        line = "left out: %s beside images, the first %s; name the folder or the files to take them"
        logger.warning(line, number, masks[0])
    if doubtful:
        line = (
            "%s has an image like a mask for each of %s, and is taken too; name the folder to take"
        )
        logger.warning(line, doubtful[0][1], doubtful[0][0])
    if doubtful_files:
        number = counted(len(doubtful_files), "file")
        line = (
            "taken as images: %s called like the mask of another one, or like what programs make of "
            "it, such as %s beside %s; move such files into a folder elsewhere"
        )
        logger.warning(line, number, *doubtful_files[0])
    if doubtful_folders:
        number = counted(sum(map(len, doubtful_folders.values())), "file")
        line = (
            "taken as images: %s in folders called like what programs write, such as %s; move such "
            "folders away"
        )
        logger.warning(line, number, next(iter(doubtful_folders)))


# Folders of masks
# ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MaskPair:
    """A folder of images and the folder of their masks.

    Attributes:
        images: the folder of the images, without folders of masks in it.
        masks: the folder of the masks.
        is_around: whether the folder of the masks is in that of the images.
    """

    images: ImageFolder
    masks: ImageFolder
    is_around: bool


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
    return is_mirror and look_like_masks(masks, images)


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
    """The name of a file without words for masks at its ends: 0 of 0_mask_1, of mask_0, of 0_gtFine_color."""
    rest = stem
    shortest = stem
    match = _LAST_WORD.search(rest)
    while match is not None:
        word = match.group(1).lower()
        if word not in MASK_WORDS | MASK_KINDS:
            break
        rest = rest[: match.start()]
        if word in MASK_WORDS:
            shortest = rest
        match = _LAST_WORD.search(rest)
    return _without_first_word(shortest, MASK_WORDS) if shortest == stem else shortest


def _without_first_word(stem: str, words: Collection[str]) -> str:
    """The name of a file without one of some words at its beginning: 0 of mask_0 and of mask0."""
    match = _FIRST_WORD.match(stem)
    if match is None or match.group(1).lower() not in words:
        return stem
    return stem[match.end() :]


def mirrored_masks(
    folders: Sequence[ImageFolder],
) -> Iterator[MaskPair]:
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
                    yield MaskPair(other, masks, is_around=False)


# Files of masks
# ----------------------------------------------------------------------------------------------------


def look_like_masks(masks: ImageFolder, images: ImageFolder) -> bool:
    """Whether the first files of one folder are like masks, and those of the other are not.

    Masks have one band or a palette where images have three, or few colours where images have many.
    """
    some_masks = masks.all_images()[:_OPENED]
    some_images = images.all_images()[:_OPENED]
    if not all(file.suffix.lower() in _LOSSLESS_SUFFIXES for file in some_masks):
        return False
    if all(map(_has_one_band, some_masks)) and not any(map(_has_one_band, some_images)):
        return True
    return all(map(_has_few_colours, some_masks)) and all(map(_has_many_colours, some_images))


@dataclass
class Beside:
    """What the names and pixels of files in one folder say about masks among them.

    Attributes:
        masks: the files that are masks of others.
        doubtful: files that are called like the mask of another one and do not look so: (file,
            that other one).
    """

    masks: list[Path]
    doubtful: list[tuple[Path, Path]]


def masks_beside(images: Sequence[Path]) -> Beside:
    """Return the masks among the images of one folder: ``0.png`` beside ``0.jpg``, ``0_mask.png`` beside ``0.png``."""
    of_equal_stem = dict.fromkeys(_masks_of_equal_stem(images))
    rest = [file for file in images if file not in of_equal_stem]
    by_word = _masks_with_mask_word(rest)
    masks = dict.fromkeys([*of_equal_stem, *by_word.masks, *_masks_called_so(images)])
    doubtful = by_word.doubtful + _outputs_beside(rest)
    return Beside(list(masks), [pair for pair in doubtful if pair[0] not in masks])


def _outputs_beside(images: Sequence[Path]) -> list[tuple[Path, Path]]:
    """The files that are called like what programs make of an image: ``0_overlay.png`` of ``0.png``."""
    by_stem = {file.stem: file for file in images}
    outputs = []
    for file in images:
        match = _LAST_WORD.search(file.stem)
        if match is None or match.group(1).lower() not in OUTPUT_WORDS:
            continue
        image = by_stem.get(file.stem[: match.start()])
        if image is not None:
            outputs.append((file, image))
    return outputs


def is_called_mask(file: Path) -> bool:
    """Whether the name of a file begins with a word for masks: mask.png, mask_0.png, label_viz.png."""
    first_word = re.split(r"[_\-. \d]", file.stem.lower(), maxsplit=1)[0]
    return first_word in MASK_WORDS


def is_called_image(file: Path) -> bool:
    """Whether the whole name of a file is a word for images: image.png, img.jpg, rgb.png."""
    return file.stem.lower() in IMAGE_WORDS | VAGUE_WORDS


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


def _masks_with_mask_word(images: Sequence[Path]) -> Beside:
    """The files with a word for masks, ``0_mask.png`` of ``0.png``: all if each image has one, else those that look so.

    An image may have a word of its own: ``0_mask.png`` is that of ``0_sat.jpg``, and ``mask_0.png``
    that of ``img_0.png``.
    """
    names = {file.name for file in images}
    shared_name: dict[Path, str] = {}  # a file with a word for masks -> its name without it
    image_named: dict[str, Path] = {}  # the name of an image, also without a word -> the image
    pictures = []
    stems = Counter(file.stem for file in images)
    for file in images:
        without_word = _without_mask_word(file.stem)
        if file.stem in names:  # 0.jpg.png beside 0.jpg
            shared_name[file] = Path(file.stem).stem
        elif without_word != file.stem and stems[file.stem] == 1:
            shared_name[file] = without_word
        else:
            pictures.append(file)
    for file in pictures:
        image_named[_LAST_WORD.sub("", file.stem)] = file
        image_named[_without_first_word(file.stem, IMAGE_WORDS | VAGUE_WORDS)] = file
    for file in pictures:
        image_named[file.stem] = file
    image_of = {}
    for file, name in shared_name.items():
        if name in image_named:
            image_of[file] = image_named[name]
    stems_with_mask = {image.stem for image in image_of.values()}
    if stems_with_mask == {file.stem for file in pictures}:
        return Beside(list(image_of), [])
    masks = [file for file in image_of if _has_one_band(file)]
    others = [(file, image) for file, image in image_of.items() if not _has_one_band(file)]
    if all(_is_in_fewer_colours(file, image) for file, image in others[:_OPENED]):
        return Beside(masks + [file for file, _ in others], [])
    return Beside(masks, others)


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
