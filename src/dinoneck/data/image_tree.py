"""The images below a folder as a tree, and which of them are masks of others.

The names of folders and files tell masks from images: ``masks/`` next to ``images/``, ``0_mask.png``
next to ``0.png``. Files are opened only where names do not tell. Neither pandas nor torch is
imported.
"""

from __future__ import annotations

import itertools
import logging
import re
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dinoneck.data.band_files import bands_beside
from dinoneck.data.cells import cell_text
from dinoneck.data.folder_words import (
    CAMERA_WORDS,
    DRAWN_WORDS,
    IMAGE_WORDS,
    MADE_WORDS,
    MASK_WORDS,
    MAYBE_MASK_WORDS,
    OUTPUT_WORDS,
    SENSOR_WORDS,
    STAIN_WORDS,
    VAGUE_WORDS,
    first_word,
    plain_word,
    words_of,
)
from dinoneck.data.mask_pixels import (
    LABEL_SUFFIXES,
    MAX_OPENED,
    are_flat,
    are_of_one_size,
    has_grey_levels,
    has_one_band,
    is_lossless,
)
from dinoneck.data.masks_beside import Companion, masks_beside
from dinoneck.data.name_pairs import LAST_WORD, shared_affixes, without_mask_word
from dinoneck.data.names import composed
from dinoneck.data.walk import SUFFIXES, Listing, path_order
from dinoneck.text import counted

logger = logging.getLogger(__name__)

_PICTURE_WORDS = IMAGE_WORDS | VAGUE_WORDS
_LAST_TOKEN = re.compile(r"[_\-. ]((?:ms[_\-. ])?[^\W_]+)$", re.IGNORECASE)
# multispectral cameras of drones (0_MS_NIR) and microscopes (0_ch1)
_CHANNEL = re.compile(r"ms[_\-. ](?:g|r|re|b|nir)|ch\d+")
_DJI = "dji_"  # cameras of its drones end their names in one letter
_DJI_THERMAL = "_t"
_DJI_CAMERAS = {"d", "t", "v", "w", "z"}  # RGB, thermal, visible, wide and zoom
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
        """Return the folder and all below it, level by level."""
        folders = []
        waiting = deque([self])
        while waiting:
            folder = waiting.popleft()
            folders.append(folder)
            waiting += folder.folders.values()
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


@dataclass
class Pictures:
    """What is below a folder, each sorted.

    Attributes:
        images: the images, without masks; what may be none is among them.
        masks: the masks beside them.
        maybe_mask_folders: folders of what looks like the masks of others and is not called so.
        named_like_masks: files that are named like the mask of an image but do not look like one.
        looking_like_masks: files that look like the mask of an image but are not named like one.
        output_files: files that are called like what programs make of an image.
        output_folders: folders that are called like what programs write -> the images in them.
        sensor_files: files that are called like what another sensor took of the scene of an image.
    """

    images: list[Path] = field(default_factory=list)
    masks: list[Path] = field(default_factory=list)
    maybe_mask_folders: list[Companion] = field(default_factory=list)
    named_like_masks: list[Companion] = field(default_factory=list)
    looking_like_masks: list[Companion] = field(default_factory=list)
    output_files: list[Companion] = field(default_factory=list)
    output_folders: dict[Path, list[Path]] = field(default_factory=dict)
    sensor_files: list[Companion] = field(default_factory=list)

    def add(self, other: Pictures) -> None:
        """Add what is below another folder."""
        self.images += other.images
        self.masks += other.masks
        self.maybe_mask_folders += other.maybe_mask_folders
        self.named_like_masks += other.named_like_masks
        self.looking_like_masks += other.looking_like_masks
        self.output_files += other.output_files
        self.output_folders |= other.output_folders
        self.sensor_files += other.sensor_files


def pictures_of(top: ImageFolder) -> Pictures:
    """Tell the images below a folder from the masks beside them."""
    pictures = Pictures()
    folders = []
    waiting = deque([top])
    while waiting:
        folder = waiting.popleft()
        folders.append(folder)
        mask_folders = {pair.masks for pair in mask_pairs(folder)}
        for pair in mirrored_masks(folder.with_images()):
            if pair.is_certain and words_of(pair.images.name) & _PICTURE_WORDS:
                mask_folders.add(pair.masks)
            elif pair.masks not in mask_folders:
                pictures.maybe_mask_folders.append(Companion(pair.masks.path, pair.images.path))
        for pair in _masks_inside(folder):
            if not pair.is_certain:
                pictures.maybe_mask_folders.append(Companion(pair.masks.path, pair.images.path))
        for mask_folder in mask_folders:
            pictures.masks += mask_folder.all_images()
        if folder is not top and folder.images and is_called_output(folder):
            pictures.output_folders[folder.path] = folder.images
        beside = masks_beside(folder.images)
        pictures.masks += beside.masks
        pictures.named_like_masks += beside.named_like_masks
        pictures.looking_like_masks += beside.looking_like_masks
        pictures.output_files += outputs_beside(folder.images, set(beside.masks))
        pictures.sensor_files += _sensor_files_beside(folder.images, set(beside.masks))
        waiting += [inside for inside in folder.folders.values() if inside not in mask_folders]
    named = {companion.path for companion in pictures.maybe_mask_folders}
    unnamed_folders = [folder for folder in folders if folder.path not in named]
    pictures.maybe_mask_folders += _masks_elsewhere(unnamed_folders)
    is_mask = set(pictures.masks)
    pictures.images = [file for file in top.all_images() if file not in is_mask]
    pictures.images.sort(key=path_order)
    pictures.masks.sort(key=path_order)
    return pictures


def _masks_elsewhere(folders: Sequence[ImageFolder]) -> list[Companion]:
    """The folders whose files look like the masks of those in a folder that is not beside them.

    Both have the same names: ``images/rgb`` and ``boundaries``, ``images`` and ``v1.2/labels``.
    """
    by_stems: dict[frozenset[str], list[ImageFolder]] = {}
    for folder in folders:
        if folder.images:
            stems = frozenset(composed(file.stem) for file in folder.images)
            by_stems.setdefault(stems, []).append(folder)
    masks = {}
    for alike in by_stems.values():
        if len(alike) > _MOST_ALIKE:
            continue
        for possible_masks, other in itertools.permutations(alike, 2):
            if possible_masks.path.parent == other.path.parent:
                continue  # they were compared as folders beside each other
            is_flat = are_flat(possible_masks.images, other.images)
            if is_flat and are_of_one_size(possible_masks.images, other.images):
                masks[possible_masks.path] = Companion(possible_masks.path, other.path)
    return list(masks.values())


def is_called_output(folder: ImageFolder) -> bool:
    """Whether a folder has the name of what programs write: overlays, thumbs, ClassVisualization."""
    words = words_of(folder.name)
    return bool(words & DRAWN_WORDS) or (bool(words) and words <= OUTPUT_WORDS)


def outputs_beside(images: Sequence[Path], masks: Collection[Path]) -> list[Companion]:
    """The files that are called like what programs make of an image: ``0_overlay.png`` of ``0.png``, ``0_rgb.png``."""
    by_stem = {}
    for file in images:
        by_stem[_without_word(file.stem, CAMERA_WORDS)] = file
    by_stem |= {file.stem: file for file in images}
    outputs = []
    for file in images:
        stem = _without_word(file.stem, MADE_WORDS)
        image = None if stem == file.stem else by_stem.get(stem)
        if image is not None and file not in masks:
            outputs.append(Companion(file, image))
    return outputs


def _sensor_files_beside(images: Sequence[Path], masks: Collection[Path]) -> list[Companion]:
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
            beside.append(Companion(file, photo))
    for more_beside in (_channels_beside, bands_beside):
        named = {pair.path for pair in beside} | set(masks)
        beside += more_beside([file for file in images if file not in named])
    return beside


def _channels_beside(images: Sequence[Path]) -> list[Companion]:
    """All channels of a scene but one: ``0_ch2.tif`` of ``0_ch1.tif``, ``0_thermal.jpg`` of ``0_RGB.jpg``."""
    channels_of: dict[str, list[Path]] = {}
    for file in images:
        match = _LAST_TOKEN.search(file.stem)
        if match is not None and _is_channel(plain_word(match.group(1)), file.stem):
            channels_of.setdefault(file.stem[: match.start()], []).append(file)
    beside = []
    for channels in channels_of.values():
        photos = [file for file in channels if _without_word(file.stem, CAMERA_WORDS) != file.stem]
        others = [file for file in channels if file not in photos]
        if not others:
            continue
        others.sort(key=_ends_as_thermal)
        # the image of a scene is its first photo, or without one the first channel, a thermal one last
        scene = [*photos[:1], *others, *photos[1:]]
        beside += [Companion(file, scene[0]) for file in scene[1:]]
    return beside


def _ends_as_thermal(file: Path) -> bool:
    return file.stem.lower().endswith(_DJI_THERMAL)


def _is_channel(word: str, stem: str) -> bool:
    """Whether the last word of a name says one of the sensors or channels that took a scene."""
    if stem.lower().startswith(_DJI) and word in _DJI_CAMERAS:
        return True
    is_known = word in SENSOR_WORDS | CAMERA_WORDS | STAIN_WORDS
    return is_known or _CHANNEL.fullmatch(word) is not None


def _without_word(stem: str, words: Collection[str]) -> str:
    """The name of a file without one of some words at its end, or else at its beginning; "" of a word alone."""
    if plain_word(stem) in words:
        return ""
    match = LAST_WORD.search(stem)
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
        everything.named_like_masks,
        "called like the mask of another one",
        "if they are masks, move them into a folder of their own",
    )
    _warn_of_files(
        everything.looking_like_masks,
        "that look like the mask of another one",
        "if they are masks, move them into a folder of their own",
    )
    _warn_of_files(
        everything.output_files,
        "called like what programs make of another one",
        "if they are, move them into a folder elsewhere",
    )
    _warn_of_files(
        everything.sensor_files,
        "called like what another sensor took of the scene of another one, or another band of it",
        "if they are, move them into a folder elsewhere",
    )
    if everything.output_folders:
        number = counted(sum(map(len, everything.output_folders.values())), "file")
        line = (
            "taken as images: %s in folders called like what programs write, such as %s; move such "
            "folders away"
        )
        logger.warning(line, number, next(iter(everything.output_folders)))


def _warn_of_files(files: Sequence[Companion], cause: str, remedy: str) -> None:
    """Name files that are taken as images and may be something else.

    Args:
        files: each with the image that it is called after.
        cause: why they may be none.
        remedy: what to do.
    """
    if files:
        line = "taken as images: %s %s, such as %s beside %s; %s"
        number = counted(len(files), "file")
        logger.warning(line, number, cause, files[0].path, files[0].image, remedy)


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
    if not masks:
        return [pair for pair in _masks_inside(top) if pair.is_certain]
    images_around = top.without(masks)
    pairs = []
    for mask in masks:
        beside = [other for other in others if _is_pair(other, mask, others)]
        pairs += [MaskPair(other, mask, is_around=False) for other in beside]
        if not beside and images_around.all_images() and _is_pair_with_rest(images_around, mask):
            pairs.append(MaskPair(images_around, mask, is_around=True))
    return pairs


def take_label_formats(top: ImageFolder) -> None:
    """Count GIF, PGM and PFM files as images of folders without others, where they are the masks of images."""
    for folder in top.all_folders():
        with_label_files = []
        for inside in folder.folders.values():
            if not inside.all_images():
                with_label_files += [
                    deeper for deeper in inside.all_folders() if _label_files(deeper)
                ]
        if not with_label_files or mask_pairs(folder):
            continue
        # mask_pairs() looks at images alone: the files are such for a try, and stay so if they are masks
        for inside in with_label_files:
            inside.images = _label_files(inside)
        if not any(map(_has_names_of_images, mask_pairs(folder))):
            for inside in with_label_files:
                inside.images = []


def _has_names_of_images(pair: MaskPair) -> bool:
    """Whether each mask of a pair of folders is called after an image, and each image has one."""
    return shared_affixes(pair.images.stems(), pair.masks.stems()) is not None


def _label_files(folder: ImageFolder) -> list[Path]:
    """The files in a folder of formats of masks that are none of images."""
    return [file for file in folder.others if file.suffix.lower() in LABEL_SUFFIXES]


def _masks_inside(top: ImageFolder) -> Iterator[MaskPair]:
    """Yield the folders in a folder that hold what looks like the masks of the images around them.

    They are certain if their name, or what the names of their files have more, says masks, perhaps.
    """
    if not top.images:
        return
    around = ImageFolder(top.path, top.images, top.others)
    for masks in top.with_images():
        if masks.with_images() or len(masks.images) != len(around.images):
            continue
        affixes = shared_affixes(around.stems(), masks.stems())
        if affixes is None or not are_flat(masks.images, around.images):
            continue
        if are_of_one_size(masks.images, around.images):
            is_certain = _says_masks(masks.name) or _says_masks(affixes.mask_affix)
            yield MaskPair(around, masks, is_around=True, is_certain=is_certain)


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
    stems = {without_mask_word(stem) for stem in masks.stems()}
    return stems <= rest.stems() or look_like_masks(masks, rest)


def mirrored_masks(
    folders: Sequence[ImageFolder],
) -> Iterator[MaskPair]:
    """Yield images and masks of folders whose files look so, and have the same names but for suffixes or affixes.

    Masks of equal names in a format without losses are certain. Others are, if a word says that
    they are masks: classes of black and white pictures have such names too.
    """
    of_equal_names = list(_mirrored_names(folders))
    yield from of_equal_names
    named_masks = {pair.masks for pair in of_equal_names}
    by_count: dict[int, list[ImageFolder]] = {}
    for folder in folders:
        by_count.setdefault(len(folder.all_images()), []).append(folder)
    for alike in by_count.values():
        if len(alike) > _MOST_ALIKE:
            continue
        for masks, other in itertools.permutations(alike, 2):
            if masks in named_masks or other in named_masks:
                continue
            affixes = shared_affixes(other.stems(), masks.stems())
            if affixes is None or not (affixes.image_affix or affixes.mask_affix):
                continue
            if are_flat(masks.all_images(), other.all_images()):
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
                    is_certain = _says_masks(masks.name) or _are_certain(masks, other)
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
    some_masks = masks.all_images()[:MAX_OPENED]
    some_images = images.all_images()[:MAX_OPENED]
    if all(map(has_one_band, some_masks)) and not any(map(has_one_band, some_images)):
        return True
    return are_flat(some_masks, some_images)


def _are_certain(masks: ImageFolder, images: ImageFolder) -> bool:
    """Whether files that look like masks are no photos: of the images' sizes, in few colours or above 8 bits."""
    some_masks = masks.all_images()[:MAX_OPENED]
    are_photos = any(map(has_grey_levels, some_masks))
    has_no_loss = all(map(is_lossless, some_masks))
    return has_no_loss and not are_photos and are_of_one_size(some_masks, images.all_images())
