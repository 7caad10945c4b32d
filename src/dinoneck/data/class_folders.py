"""Which folders are the classes of a data set, and which may be something else.

A folder that is misread gives a head that learns something else, with good scores. So folders whose
names or contents also fit parts, samples or masks are refused with both readings, and what is
merely unusual is read and named in a warning. Neither pandas nor torch is imported.
"""

from __future__ import annotations

import itertools
import logging
import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from dinoneck.data.folder_texts import (
    PartFolders,
    also_there,
    as_options,
    as_two_commands,
    listed,
)
from dinoneck.data.folder_words import (
    CAMERA_WORDS,
    COPY_WORDS,
    GENERIC_FOLDERS,
    IMAGE_FOLDERS,
    MONTHS,
    OUTPUT_WORDS,
    PART_VERBS,
    PART_WORDS,
    REJECT_WORDS,
    SENSOR_WORDS,
    SOURCE_WORDS,
    STAIN_WORDS,
    UNNAMED_FOLDERS,
    UNSORTED_WORDS,
    part_of,
    words_of,
)
from dinoneck.data.image_tree import (
    ImageFolder,
    is_called_output,
    mask_pairs,
    mirrored_masks,
    stems_without_sensor,
)
from dinoneck.data.masks_beside import is_called_image, is_called_mask, masks_beside
from dinoneck.data.walk import OTHER_SUFFIXES
from dinoneck.errors import DataError
from dinoneck.text import counted, some_of

logger = logging.getLogger(__name__)

_AS_PARTS = "parts that are called train and val (and test) are read as such"
_NEARLY_ALL = 0.9  # of the pictures of a sensor that have one of another sensor
_READ_BYTES = 1000  # of a .txt file: the first row of YOLO's boxes has some 40
_BOX_NUMBERS = 5  # in a row of YOLO's boxes: the class and four for the box
_DATE = re.compile(r"(?:19|20)\d\d([-_.]?\d\d){0,2}|\d\d?[-_.]\d\d?[-_.](?:19|20)?\d\d")
_FULL_DATE = re.compile(r"(?<!\d)(?:19|20)\d\d([-_.]?)(?:0\d|1[0-2])\1[0-3]\d(?!\d)")
# the folders of cameras, by the rule of their files (DCF): 100CANON, 101_0501
_CAMERA_FOLDER = re.compile(r"[1-9]\d\d[A-Z_][A-Z\d_]{4}")
# of satellites, microscopes and magnetic resonance; T3 and T4 are stages of tumours
_BAND = re.compile(
    r"b\d\d|b8a|band[_\-. ]?\d+|ch[_\-. ]?\d+|channel[_\-. ]?\d+|t[12](?:w|ce|gd|n|f)?|flair",
    re.IGNORECASE,
)
_LONG_NUMBER = re.compile(r"(?<!\d)[1-9]\d{7}")  # a date or more; no counter gets there
# Frames of a video are counted with four digits or more; the pictures of a class, as of a person,
# with fewer.
_FRAME = re.compile(r"\d{4,}")
_NUMBERED_SEQUENCE = re.compile(r"\d{3,}")
_COPY = re.compile(  # of "wheat (1)", "wheat - Copy", "wheat_aug_2", "Copy of wheat"
    rf"(?:copy of |copia de |kopie von )?(.+?)"
    rf"(?:[ _\-]*\(\d+\)|[ _\-—]+(?:{'|'.join(sorted(COPY_WORDS))})(?:[ _\-]*\(?\d+\)?)?)*",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class _Candidates:
    """Folders that may be classes.

    Attributes:
        root: the folder that they are in.
        names: of all folders in it, sorted.
        folders: those that hold images.
        is_named: whether ``root`` is the folder that was named, and no part of it.
    """

    root: Path
    names: list[str]
    folders: list[ImageFolder]
    is_named: bool

    @property
    def text(self) -> str:
        """What messages begin with."""
        return f"the folders of {self.root} are {listed(self.names)}"

    @property
    def classes_option(self) -> str:
        """What to write for classes."""
        return f"{self._with_folder}--subfolders classes"

    @property
    def as_classes(self) -> str:
        """What to write if they are classes."""
        return f"If they are classes: {self.classes_option}"

    @property
    def as_folds(self) -> str:
        """What to write if they are folds."""
        return f"if they are folds, each held out in turn: {self._with_folder}--subfolders folds"

    @property
    def _with_folder(self) -> str:
        return "" if self.is_named else f"--images {self.root} "


def read_class_names(top: ImageFolder, *, certain: bool, is_named: bool) -> tuple[str, ...]:
    """Return the names of the class folders in a folder, sorted.

    Args:
        top: the folder.
        certain: whether it was said that its folders are classes.
        is_named: whether it is the folder that was named, and no part of it.

    Raises:
        DataError: if they may be something else, images lie next to them, or there are fewer than
            two.
    """
    root = top.path
    names = sorted({folder.name for folder in top.folders.values()})
    if top.images:
        raise DataError(
            f"{root} holds images next to the class folders: "
            f"{some_of([file.name for file in top.images], 5)}; move each into one"
            f"{also_there(root)}"
        )
    candidates = _Candidates(root, names, top.with_images(), is_named)
    if not certain:
        _check_folder_of_images(candidates, list(top.folders.values()))
    _check_other_formats(top)
    if not certain and len(candidates.folders) > 1:
        for check in _CHECKS:
            check(candidates)
    if len(names) < 2:
        raise DataError(
            f"{root} has {counted(len(names), 'folder')} ({some_of(names, 3)}); expected two or "
            f"more, one per class{_what_to_name(candidates)}{also_there(root)}"
        )
    _warn_of_folders_in_classes(candidates)
    if not certain:
        _warn_of_doubtful_classes(candidates)
        _warn_of_dates(candidates)
        _warn_of_sensors(candidates)
        _warn_of_one_scene(candidates)
        _warn_of_mask_classes(candidates)
        _warn_of_numbered_folders_with_masks(candidates)
    _warn_of_copied_classes(candidates)
    return tuple(names)


def _what_to_name(candidates: _Candidates) -> str:
    """What to do with the only folder of a folder, for the end of a message; "" if it holds no images."""
    if not candidates.folders:
        return ""
    if not candidates.is_named:
        return "; add images of the others to this part"
    folder = candidates.folders[0]
    while not folder.images and len(folder.with_images()) == 1:
        folder = folder.with_images()[0]
    has_masks_beside = masks_beside(folder.images).cover(folder.images)
    if len(folder.with_images()) > 1 or has_masks_beside:
        return f"; or name {folder.path}"
    return f"; {folder.path} holds images, without class folders: name their classes in a table (--csv)"


# What may be no class
# ----------------------------------------------------------------------------------------------------


def _check_folder_of_images(candidates: _Candidates, folders: Sequence[ImageFolder]) -> None:
    """Raise a DataError for a folder that is called images, next to others; with what the others hold."""
    if len(candidates.names) < 2:
        return
    for folder in folders:
        if folder.name.lower() in IMAGE_FOLDERS:
            beside = [other for other in folders if other is not folder]
            raise _no_class(candidates, folder, beside)


def _no_class(
    candidates: _Candidates, images: ImageFolder, beside: Sequence[ImageFolder]
) -> DataError:
    text = f"{candidates.text}: {images.name} is no class. "
    stems = images.stems()
    boxes = [folder for folder in beside if _holds_boxes(folder, stems)]
    if boxes:
        return DataError(
            f"{text}{boxes[0].name} holds .txt files, such as YOLO's boxes: convert them to COCO "
            "JSON, for --boxes (docs/how-to/boxes.md)"
        )
    with_images = [folder for folder in beside if folder.all_images()]
    if with_images:
        return DataError(
            f"{text}Name the folder of the images and that of masks or of numbers per pixel: "
            f"{as_options(images.path, with_images[0].path)}. {candidates.as_classes}"
        )
    suffixes = set()
    for folder in beside:
        suffixes |= {file.suffix.lower() for file in folder.others if file.suffix}
    no_images = ""
    if suffixes:
        no_images = f"; {beside[0].name} holds {some_of(sorted(suffixes), 3)}, no images"
    return DataError(
        f"{text}Name the folder of the images: {as_options(images.path)}{no_images}"
        f"{also_there(candidates.root)}"
    )


def _holds_boxes(folder: ImageFolder, image_stems: Collection[str]) -> bool:
    """Whether a folder holds .txt files called like images, or with the numbers of YOLO's boxes."""
    for inside in folder.all_folders():
        for file in inside.others:
            if file.suffix.lower() != ".txt":
                continue
            stem = file.relative_to(folder.path).with_suffix("").as_posix()
            if stem in image_stems or _begins_with_box(file):
                return True
    return False


def _begins_with_box(file: Path) -> bool:
    """Whether the first row of a text is five numbers or more."""
    try:
        with file.open("rb") as opened:
            first_row = opened.read(_READ_BYTES).partition(b"\n")[0]
    except OSError:
        return False  # whoever reads it says what is wrong
    words = first_row.split()
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        return False
    return len(numbers) >= _BOX_NUMBERS


def _check_other_formats(top: ImageFolder) -> None:
    """Raise a DataError for a folder whose pictures are all of formats that are not read."""
    for folder in top.folders.values():
        if folder.all_images():
            continue
        suffixes = set()
        for inside in folder.all_folders():
            suffixes |= {file.suffix.lower() for file in inside.others}
        kinds = sorted(suffixes.intersection(OTHER_SUFFIXES))
        if kinds:
            raise DataError(
                f"{folder.path} holds no images that are read; its files are {some_of(kinds, 3)}: "
                "convert them to PNG"
            )


def _check_sensors(candidates: _Candidates) -> None:
    """Raise a DataError for pictures of one scene by several sensors: ``rgb/0.png`` and ``depth/0.png``."""
    if not _are_called_sensors(candidates.folders):
        return
    for sensor, other in itertools.permutations(candidates.folders, 2):
        if not words_of(sensor.name) & SENSOR_WORDS:
            continue
        stems = stems_without_sensor(sensor)
        other_stems = stems_without_sensor(other)
        fewest = min(len(stems), len(other_stems))
        if len(stems & other_stems) >= _NEARLY_ALL * fewest:
            raise DataError(
                f"{candidates.text}, and {sensor.name} has a picture for each of {other.name}: one "
                f"scene by several sensors, or classes? Name one folder: {as_options(other.path)}; "
                f"or learn the numbers of {sensor.name}: --images {other.path} --labels "
                f"{sensor.path} --label-kind numbers. {candidates.as_classes}"
            )


def _are_called_sensors(folders: Sequence[ImageFolder]) -> bool:
    """Whether all folders are called like sensors and cameras, and one or more like a sensor: rgb and depth."""
    every_word = set()
    for folder in folders:
        words = words_of(folder.name)
        if not words or not words <= SENSOR_WORDS | CAMERA_WORDS | GENERIC_FOLDERS:
            return False
        every_word |= words
    return bool(every_word & SENSOR_WORDS)


def _check_masks(candidates: _Candidates) -> None:
    """Raise a DataError for a folder that has an image like a mask for each image of another one."""
    for pair in mirrored_masks(candidates.folders):
        if pair.is_certain:
            options = as_options(pair.images.path, pair.masks.path)
            raise DataError(
                f"{candidates.text}: {pair.masks.name} has an image like a mask for each of "
                f"{pair.images.name}: {options}. {candidates.as_classes}"
            )


def _check_parts(candidates: _Candidates) -> None:
    """Raise a DataError if all folders are called like parts of a data set."""
    words_for_parts = PART_WORDS | PART_VERBS
    if all(words_for_parts & words_of(folder.name) for folder in candidates.folders):
        raise DataError(
            f"{candidates.text}: parts of a data set, or classes? {candidates.as_classes}; "
            f"{candidates.as_folds}; {_AS_PARTS}; {one_part_alone(candidates.folders)}"
            f"{also_there(candidates.root)}"
        )


def one_part_alone(folders: Sequence[ImageFolder]) -> str:
    """Return how to read one of several parts, for the end of a message."""
    parts = {}
    for folder in folders:
        pairs = mask_pairs(folder)
        if len(pairs) == 1:
            parts[folder.name] = PartFolders(pairs[0].images.path, pairs[0].masks.path)
        elif len(folder.with_images()) > 1:
            parts[folder.name] = PartFolders(folder.path, masks=None)
    if not parts:
        return "or name the classes of their images in a table (--csv)"
    return as_two_commands(parts) or "or name one of them"


def _check_samples_of_folders(candidates: _Candidates) -> None:
    """Raise a DataError if each folder holds a folder of one image and one of its masks."""
    if all(_is_sample_of_folders(folder) for folder in candidates.folders):
        raise DataError(
            f"{candidates.text}, and each holds a folder with one image and a folder of its masks: "
            f"one folder for each sample, or classes? {candidates.as_classes}; if they are samples, "
            "merge the masks of each into one file, and name the image and that file in the rows of "
            "a table (--csv)"
        )


def _check_folders_of_samples(candidates: _Candidates) -> None:
    """Raise a DataError if each folder holds folders of one picture that are called after it: ``p0/p0_image/x.bmp``."""
    first = candidates.folders[0]
    if all(map(_holds_folders_called_after_it, candidates.folders)):
        inside = [folder.name for folder in first.with_images()]
        raise DataError(
            f"{candidates.text}, and each holds folders of one picture that are called after it "
            f"({first.name}: {some_of(inside, 3)}): one folder for each sample, or classes? "
            f"{candidates.as_classes}; if they are samples, name the image and the mask of each in "
            "the rows of a table (--csv)"
        )


def _holds_folders_called_after_it(folder: ImageFolder) -> bool:
    """Whether a folder holds no images, and two folders or more of one picture with its own name and more."""
    if folder.images:
        return False
    called_after_it = 0
    for inside in folder.with_images():
        if inside.name.startswith(folder.name) and len(inside.all_images()) == 1:
            called_after_it += 1
    return called_after_it > 1


def _check_images_and_masks(candidates: _Candidates) -> None:
    """Raise a DataError if each folder holds images/ and masks/."""
    if all(_holds_images_and_masks(folder) for folder in candidates.folders):
        raise DataError(
            f"{candidates.text}, and all hold images and masks: parts with masks, or classes? "
            f"{candidates.as_classes}; {candidates.as_folds}; {_AS_PARTS}; or name one of them"
        )


def _holds_images_and_masks(folder: ImageFolder) -> bool:
    """Whether a folder holds images/ and masks/, and no images of its own."""
    return not folder.images and bool(mask_pairs(folder))


def _is_sample_of_folders(folder: ImageFolder) -> bool:
    """Whether a folder is that of one sample: ``s0/images/x.png`` with ``s0/masks/0.png``, ``1.png`` ..."""
    if not _holds_images_and_masks(folder):
        return False
    pairs = mask_pairs(folder)
    if any(len(pair.images.all_images()) != 1 for pair in pairs):
        return False
    return any(pair.masks.stems() != pair.images.stems() for pair in pairs)


def _check_samples(candidates: _Candidates) -> None:
    """Raise a DataError if each folder holds the files of one sample."""
    if _are_samples(candidates.folders):
        first = candidates.folders[0]
        held = some_of([file.name for file in first.images], 4)
        raise DataError(
            f"{candidates.text}, and each seems to hold one sample ({first.name}: {held}): one folder "
            f"for each sample, or classes? {candidates.as_classes}; if they are samples, name the "
            f"image and its label in the rows of a table (--csv){also_there(candidates.root)}"
        )


def _are_samples(folders: Sequence[ImageFolder]) -> bool:
    """Whether each folder is that of one sample.

    These are folders with one image and its masks each, or with the same names, of which one is
    that of an image: ``s0/image.png``, ``s0/rgb.png`` and ``s0/depth.png``. ``wheat/1.jpg`` and
    ``oats/1.jpg`` are classes: a number says nothing.
    """
    names = set()
    have_one_image_with_masks = True
    for folder in folders:
        if len(folder.all_images()) != len(folder.images):
            return False
        masks = set(masks_beside(folder.images).masks)
        # also without an image of that name beside them: scan.png with mask.png
        masks |= {file for file in folder.images if is_called_mask(file)}
        images = [file for file in folder.images if file not in masks]
        if len(images) != 1 or not masks:
            have_one_image_with_masks = False
        names.add(frozenset(file.stem.lower() for file in images))
        if len(names) > 1 and not have_one_image_with_masks:
            return False
    if have_one_image_with_masks:
        return True
    return any(is_called_image(file) for file in folders[0].images)


def _check_shared_subfolders(candidates: _Candidates) -> None:
    """Raise a DataError if several folders hold folders of one name, such as classes or parts."""
    shared = _shared_subfolders(candidates.folders)
    if not shared:
        return
    text = f"{candidates.text}, and several hold {some_of(shared, 3)}"
    for folder in candidates.folders:
        for inside in folder.with_images():
            if mask_pairs(inside):
                raise DataError(
                    f"{text}, with images and masks in each, such as {inside.path}: samples, or "
                    "classes? If they are samples, name the image and one mask of each in the rows "
                    f"of a table (--csv). {candidates.as_classes}"
                )
    parts = [name for name in shared if part_of(name) is not None]
    if len(parts) < 2:
        raise DataError(
            f"{text}: parts with the classes {some_of(shared, 3)}, or classes? "
            f"{candidates.as_classes}; {candidates.as_folds}; {_AS_PARTS}; or name one of them"
        )
    first = candidates.folders[0]
    if any(inside.with_images() for inside in first.folders.values()):
        raise DataError(
            f"{text}: several data sets with parts, or classes? Name one of the data sets: "
            f"{as_options(first.path)}. {candidates.as_classes}"
        )
    moved = [f"{part}/{folder.name}" for part in parts for folder in candidates.folders]
    raise DataError(
        f"{text}: the parts of each class, or one set? For parts move the folders, so that the "
        f"classes are in the parts: {some_of(moved, 4)}. For one set of classes: "
        f"{candidates.classes_option}"
    )


def _shared_subfolders(folders: Sequence[ImageFolder]) -> list[str]:
    """The names of the folders in some folders, sorted, if several of these hold a folder of one name.

    Folders of masks do not count, nor what is in a folder that holds images itself. One name alone
    tells nothing: ``wheat/images`` and ``oats/images`` are classes.
    """
    count_of = Counter[str]()
    for folder in folders:
        if folder.images:
            continue
        names_of_masks = {pair.masks.name for pair in mask_pairs(folder)}
        names = {subfolder.name for subfolder in folder.with_images()}
        count_of.update(names - names_of_masks)
    is_any_shared = max(count_of.values(), default=0) > 1
    return sorted(count_of) if is_any_shared and len(count_of) > 1 else []


def _check_repeated_classes(candidates: _Candidates) -> None:
    """Raise a DataError for a folder that holds the classes once more: ``augmented/wheat`` beside ``wheat``."""
    for folder in candidates.folders:
        inside = {subfolder.name for subfolder in folder.with_images()}
        repeated = sorted(inside.intersection(candidates.names))
        if repeated and not folder.images:
            raise DataError(
                f"{candidates.text}, and {folder.name} holds {some_of(repeated, 3)} too: move it "
                f"away, if these are the classes. {candidates.as_classes}"
            )


def _check_part_with_classes(candidates: _Candidates) -> None:
    """Raise a DataError for one folder that is called like a part and holds folders."""
    for folder in candidates.folders:
        inside = sorted(subfolder.name for subfolder in folder.with_images())
        if part_of(folder.name) and len(inside) > 1:
            raise DataError(
                f"{candidates.text}, and {folder.name} holds {some_of(inside, 3)}: a part with "
                f"classes, or a class? {candidates.as_classes}; name the part: "
                f"{as_options(folder.path)}"
            )


# what is told apart by more comes first
_CHECKS: Sequence[Callable[[_Candidates], None]] = (
    _check_sensors,
    _check_masks,
    _check_parts,
    _check_folders_of_samples,
    _check_samples_of_folders,
    _check_images_and_masks,
    _check_samples,
    _check_shared_subfolders,
    _check_repeated_classes,
    _check_part_with_classes,
)


# What is read, and named
# ----------------------------------------------------------------------------------------------------


def _warn_of_folders_in_classes(candidates: _Candidates) -> None:
    """Name the folders in class folders, whose images count for the class.

    Folders of masks, and those called like what programs write, are named elsewhere.
    """
    inside = []
    for folder in candidates.folders:
        inside += _folders_of_images_in(folder)
    names = {folder.name for folder in inside}
    have_images_beside = any(folder.images for folder in candidates.folders)
    telling = [folder for folder in inside if folder.name.lower() not in GENERIC_FOLDERS]
    suspicious = [folder for folder in telling if _may_be_none_of_the_class(folder)]
    if suspicious or (have_images_beside and telling):
        _warn_of_images_in_folders(candidates.root, telling, suspicious or telling)
    elif len(names) == 1 and not have_images_beside:
        line = "%s: the folders %s are read as classes, and all their images are in %s/"
        logger.warning(line, candidates.root, listed(candidates.names), names.pop())
    elif names and not have_images_beside:
        line = (
            "%s: the folders %s are read as classes, and their images are in the folders %s in "
            "them; if these are the classes, move them up"
        )
        logger.warning(line, candidates.root, listed(candidates.names), listed(sorted(names)))


def _may_be_none_of_the_class(folder: ImageFolder) -> bool:
    """Whether a folder in a class folder is called like a part, rejects, copies or what is unsorted."""
    return bool(words_of(folder.name) & (PART_WORDS | REJECT_WORDS | COPY_WORDS | UNSORTED_WORDS))


def _folders_of_images_in(folder: ImageFolder) -> list[ImageFolder]:
    """The folders in a class folder that hold images, without those of masks and of what programs write."""
    masks = {pair.masks for pair in mask_pairs(folder)}
    inside = []
    for subfolder in folder.with_images():
        if subfolder not in masks and not is_called_output(subfolder):
            inside.append(subfolder)
    return inside


def _warn_of_images_in_folders(
    root: Path, folders: Sequence[ImageFolder], examples: Sequence[ImageFolder]
) -> None:
    """Count the images in folders of class folders that are read as those of the class."""
    number = sum(len(folder.all_images()) for folder in folders)
    paths = [folder.path.relative_to(root).as_posix() for folder in examples]
    logger.warning(
        "%s: also read as images of their class: %s in %s, such as %s; move away what is no example "
        "of it, is a copy, or is to be held out",
        root,
        counted(number, "image"),
        counted(len(folders), "folder"),
        some_of(paths, 5),
    )


def _warn_of_doubtful_classes(candidates: _Candidates) -> None:
    """Name the classes that are called like parts, like what programs write, copies, or what is unsorted."""
    doubtful = []
    for folder in candidates.folders:
        words = words_of(folder.name)
        is_doubtful = words <= PART_WORDS | OUTPUT_WORDS | COPY_WORDS | UNSORTED_WORDS
        if (words and is_doubtful) or words in UNNAMED_FOLDERS:
            doubtful.append(f"'{folder.name}'")
    if len(doubtful) == 1:
        line = "%s: %s is read as a class; move it away if it is none"
    else:
        line = "%s: %s are read as classes; move them away if they are none"
    if doubtful:
        logger.warning(line, candidates.root, some_of(doubtful, 10))


def _warn_of_sensors(candidates: _Candidates) -> None:
    """Name classes that are all called like sensors, and whose pictures have other names."""
    if len(candidates.folders) > 1 and _are_called_sensors(candidates.folders):
        logger.warning(
            "%s: the folders %s are read as classes, and are called like sensors; if they show one "
            "scene, name one folder (--images)",
            candidates.root,
            listed(candidates.names),
        )


def _warn_of_one_scene(candidates: _Candidates) -> None:
    """Name two classes whose pictures have the same names, if no counter makes these or both are called like bands."""
    are_bands = all(map(_is_band, candidates.names))
    stems_of: dict[str, set[str]] = {}
    for folder in candidates.folders:
        stems = folder.stems()
        if not are_bands:
            stems = {stem for stem in stems if _LONG_NUMBER.search(stem)}
        stems_of[folder.name] = stems
    first_with: dict[str, str] = {}  # a name of a picture -> the first folder that has it
    shared = Counter[tuple[str, str]]()
    for name, stems in stems_of.items():
        for stem in stems:
            first = first_with.setdefault(stem, name)
            if first != name:
                shared[first, name] += 1
    for (first, second), number in shared.items():
        fewest = min(len(stems_of[first]), len(stems_of[second]))
        if number > 1 and number >= _NEARLY_ALL * fewest:
            logger.warning(
                "%s: %s and %s are read as classes, and have %s of the same names, such as %s; if "
                "they show one scene, name one folder (--images), or name the classes and the scene "
                "of each image in a table, the scenes as its group (--csv, --group)",
                candidates.root,
                first,
                second,
                counted(number, "picture"),
                min(stems_of[first] & stems_of[second]),
            )
            return


def _is_band(name: str) -> bool:
    words = words_of(name)
    is_stain = bool(words) and words <= STAIN_WORDS
    return is_stain or _BAND.fullmatch(name) is not None


def _warn_of_mask_classes(candidates: _Candidates) -> None:
    """Name classes whose pictures look like the masks of those of another one."""
    if _are_called_sensors(candidates.folders):
        return
    for pair in mirrored_masks(candidates.folders):
        logger.warning(
            "%s: '%s' is read as a class, and its pictures look like masks; if they are those of "
            "'%s': %s",
            candidates.root,
            pair.masks.name,
            pair.images.name,
            as_options(pair.images.path, pair.masks.path),
        )


def _warn_of_numbered_folders_with_masks(candidates: _Candidates) -> None:
    """Name classes that are all called with numbers and hold masks beside their images, as patients do."""
    if len(candidates.folders) < 2:
        return
    for folder in candidates.folders:
        has_masks = bool(mask_pairs(folder) or masks_beside(folder.images).masks)
        if not has_masks or not any(map(str.isdigit, folder.name)):
            return
    logger.warning(
        "%s: the folders %s are read as classes, and hold images and masks; if each is a patient or "
        "a scene, name the images and their masks in a table (--csv, --labels COLUMN, --group)",
        candidates.root,
        listed(candidates.names),
    )


def _warn_of_dates(candidates: _Candidates) -> None:
    """Name classes that are all called like dates, cameras' folders, numbered days, plots, sequences and the like."""
    if _say_when_or_where(candidates.names) or _are_sequences(candidates.folders):
        logger.warning(
            "%s: the folders %s are read as classes; if they say when or where images were taken, "
            "name the classes in a table (--csv)",
            candidates.root,
            listed(candidates.names),
        )


def _say_when_or_where(names: Sequence[str]) -> bool:
    """Whether the names of all folders say when or where images were taken."""
    for says_it in (_DATE.fullmatch, _CAMERA_FOLDER.fullmatch, _is_numbered_source, _is_month):
        if all(map(says_it, names)):
            return True
    return _differ_in_date(names)


def _differ_in_date(names: Sequence[str]) -> bool:
    """Whether names have a day, month and year each, and the same beside them: ``20230501_field``."""
    beside_date = set()
    for name in names:
        if _FULL_DATE.search(name) is None:
            return False
        beside_date.add(_FULL_DATE.sub("", name))
    return len(beside_date) == 1


def _is_month(name: str) -> bool:
    words = words_of(name)
    return bool(words) and words <= MONTHS


def _are_sequences(folders: Sequence[ImageFolder]) -> bool:
    """Whether folders are numbered with zeros and hold frames of the same numbers, as ``001/00001.jpg``."""
    numbers = [folder.name for folder in folders]
    have_zeros = any(number.startswith("0") for number in numbers)
    if not have_zeros or not all(map(_NUMBERED_SEQUENCE.fullmatch, numbers)):
        return False
    first_frames = {file.stem for file in folders[0].images}
    for folder in folders:
        frames = {file.stem for file in folder.images}
        fewest = min(len(frames), len(first_frames))
        are_frames = bool(frames) and all(map(_FRAME.fullmatch, frames))
        if not are_frames or len(frames & first_frames) < _NEARLY_ALL * fewest:
            return False
    return True


def _is_numbered_source(name: str) -> bool:
    words = words_of(name)
    is_source = bool(words) and words <= SOURCE_WORDS | GENERIC_FOLDERS
    return is_source and any(map(str.isdigit, name))


def _warn_of_copied_classes(candidates: _Candidates) -> None:
    """Name a class that is called like a copy of another one: ``wheat (1)``, ``wheat_aug``."""
    name_of = {name.casefold(): name for name in candidates.names}
    for name in candidates.names:
        match = _COPY.fullmatch(name)
        original = None if match is None else name_of.get(match.group(1).casefold())
        if original is not None and original != name:
            logger.warning(
                "%s: the class '%s' is called like a copy of '%s'; if it is one, remove it, or move "
                "its images there",
                candidates.root,
                name,
                original,
            )
