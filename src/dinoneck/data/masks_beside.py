"""Which files of one folder are masks of others in it: ``0_mask.png`` beside ``0.png``.

A mask is called like its image with something before or after that, and its pixels look so. Neither
pandas nor torch is imported.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dinoneck.data.folder_words import (
    IMAGE_WORDS,
    MADE_WORDS,
    MASK_WORDS,
    MAYBE_MASK_WORDS,
    SENSOR_WORDS,
    VAGUE_WORDS,
    first_word,
    plain_word,
    words_of,
)
from dinoneck.data.mask_pixels import (
    OPENED,
    are_flat,
    are_of_one_size,
    has_few_colours,
    has_one_band,
    is_lossless,
    looks_like_photo,
)
from dinoneck.data.name_pairs import LAST_WORD, is_word_boundary, without_mask_word

_PICTURE_WORDS = IMAGE_WORDS | VAGUE_WORDS
# files with these words are named as what they are, whatever their pixels
_OTHER_WORDS = MADE_WORDS | SENSOR_WORDS
_LEAST_ALIKE = 2  # files with one ending that no word says to be that of masks


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
class FoundMasks:
    """What the names and pixels of files in one folder say about masks among them.

    Attributes:
        masks: the files that are masks of others.
        called_masks: files that are called like the mask of another one and do not look so.
        like_masks: files that look like the masks of others and are not called so.
    """

    masks: list[Path] = field(default_factory=list)
    called_masks: list[Beside] = field(default_factory=list)
    like_masks: list[Beside] = field(default_factory=list)

    def cover(self, images: Sequence[Path]) -> bool:
        """Whether there are masks, or each image of some files has one that may be one."""
        if self.masks:
            return True
        possible = [*self.called_masks, *self.like_masks]
        rest = set(images) - {beside.path for beside in possible}
        return bool(rest) and rest == {beside.image for beside in possible}


def masks_beside(images: Sequence[Path]) -> FoundMasks:
    """Return the masks among the images of one folder: ``0.png`` beside ``0.jpg``, ``0_mask.png`` beside ``0.png``."""
    found = _masks_of_equal_stem(images)
    of_equal_stem = {*found.masks, *(beside.path for beside in found.called_masks)}
    rest = [file for file in images if file not in of_equal_stem]
    called = _called_after_others(rest)
    _add_named(found, [one for one in called if one.is_named], rest)
    _add_unnamed(found, [one for one in called if not one.is_named])
    masks = dict.fromkeys([*found.masks, *_masks_called_so(images)])
    called_masks = [beside for beside in found.called_masks if beside.path not in masks]
    like_masks = [beside for beside in found.like_masks if beside.path not in masks]
    return FoundMasks(list(masks), called_masks, like_masks)


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


# Names that differ in their suffix alone
# ----------------------------------------------------------------------------------------------------


def _masks_of_equal_stem(images: Sequence[Path]) -> FoundMasks:
    """The files that are masks of one that differs in its suffix alone: in few colours or grey levels.

    Grey files of many levels may be photos, or masks of numbers.
    """
    by_stem: dict[str, list[Path]] = {}
    for file in images:
        by_stem.setdefault(file.stem, []).append(file)
    of_one_band: list[Beside] = []
    in_colours: list[Beside] = []
    for files in by_stem.values():
        if len(files) < 2:
            continue
        one_band = [file for file in files if has_one_band(file)]
        others = [file for file in files if file not in one_band]
        lossy = [file for file in files if not is_lossless(file)]
        if one_band and others:
            of_one_band += [Beside(file, others[0]) for file in one_band]
        elif not one_band and lossy:
            in_colours += [Beside(file, lossy[0]) for file in files if is_lossless(file)]
    found = FoundMasks()
    if all(has_few_colours(beside.path) for beside in of_one_band[:OPENED]):
        found.masks += [beside.path for beside in of_one_band]
    else:
        found.called_masks += of_one_band
    if _are_flat(in_colours):
        found.masks += [beside.path for beside in in_colours]
    return found


# Names with something more
# ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Called:
    """A file that is called like another one of its folder with something more.

    Attributes:
        file: the file.
        image: the other one.
        more: what its name has more: ``_mask`` of ``0_mask.png``.
        is_named: whether that says that it is a mask.
        is_likely: whether it is one if its pixels look so.
    """

    file: Path
    image: Path
    more: str
    is_named: bool
    is_likely: bool

    @property
    def kind(self) -> str:
        """What the names of files of one kind have more, without numbers."""
        return re.sub(r"\d", "", self.more)


def _called_after_others(files: Sequence[Path]) -> list[_Called]:
    """The files that are called like another one with something more: ``0_mask``, ``Mask of 0``, ``0.jpg_mask``.

    ``0_mask.png`` is not, if ``0_mask.jpg`` is there too: the word is then a part of the name of an
    image and its mask.
    """
    by_stem = {file.stem: file for file in files}
    by_file_name = {file.name: file for file in files}
    shortest = min(map(len, by_stem), default=0)
    short_name_of = {}
    for file in files:
        short_name_of[file] = without_mask_word(file.stem, MASK_WORDS | MAYBE_MASK_WORDS)
    by_short_name = _by_short_name(short_name_of)
    stems = Counter(file.stem for file in files)
    called = []
    for file in files:
        if stems[file.stem] > 1:
            continue
        candidates = []
        for name, more in _names_with_more(file.stem, shortest):
            if name in by_file_name:
                candidates.append(_judge(file, by_file_name[name], more, has_suffix=True))
            elif more and name in by_stem:
                candidates.append(_judge(file, by_stem[name], more, has_suffix=False))
        short_name = short_name_of[file]
        if not candidates and short_name != file.stem and short_name in by_short_name:
            more = file.stem.replace(short_name, "", 1)
            candidates.append(_judge(file, by_short_name[short_name], more, has_suffix=False))
        named = [one for one in candidates if one.is_named]
        called += (named or candidates)[:1]
    return called


def _names_with_more(name: str, shortest: int) -> Iterator[tuple[str, str]]:
    """The names that a name may be made of, the longest first, and what it has more: what follows, or comes before.

    What it has more begins or ends a word, and has a letter: ``10`` is not made of ``1``.

    Args:
        name: the name.
        shortest: length of the shortest name that there is.
    """
    yield name, ""
    for end in range(len(name) - 1, shortest - 1, -1):
        more = name[end:]
        if is_word_boundary(name[end - 1], name[end]) and _has_letter(more):
            yield name[:end], more
    for start in range(1, len(name) - shortest + 1):
        more = name[:start]
        if is_word_boundary(name[start - 1], name[start]) and _has_letter(more):
            yield name[start:], more


def _has_letter(text: str) -> bool:
    return any(map(str.isalpha, text))


def _judge(file: Path, image: Path, more: str, *, has_suffix: bool) -> _Called:
    """What the name of a file says that has something more than that of an image.

    Args:
        file: the file.
        image: the image.
        more: what its name has more.
        has_suffix: whether its name has that of the image with its suffix: ``0.jpg___fuse.png``.
    """
    words = words_of(more)
    last_word = LAST_WORD.search(more)
    is_other = last_word is not None and plain_word(last_word.group(1)) in MADE_WORDS
    is_named = bool(words & MASK_WORDS) and not is_other
    if has_suffix and not more:
        is_named = True  # 0.jpg.png
    is_likely = has_suffix or bool(words & MAYBE_MASK_WORDS)
    return _Called(file, image, more, is_named=is_named, is_likely=is_likely)


def _by_short_name(short_name_of: Mapping[Path, str]) -> dict[str, Path]:
    """The files that are not called like masks, by their names without a word: ``0`` of ``0_sat`` and ``img_0``.

    Args:
        short_name_of: file -> its name without words for masks.
    """
    images = [file for file, short_name in short_name_of.items() if short_name == file.stem]
    if len(images) == len(short_name_of):
        return {}  # nothing is called like a mask
    by_short_name = {}
    for file in images:
        by_short_name[LAST_WORD.sub("", file.stem)] = file
        by_short_name[file.stem.removeprefix(first_word(file.stem, _PICTURE_WORDS))] = file
    return by_short_name


def _add_named(found: FoundMasks, called: Sequence[_Called], files: Sequence[Path]) -> None:
    """Add the files that are called masks: all but photos if each image has one, else those that look so.

    Args:
        found: what is added to.
        called: files with a word for masks.
        files: all files.
    """
    image_of = {one.file: one.image for one in called}
    first_of = {file: _first_image(file, image_of) for file in image_of}
    # two files without an image may each be called after the other: 0_mask and 0_maskGT
    called = [one for one in called if first_of[one.file] not in image_of]
    named = {one.file for one in called}
    with_mask = {first_of[file].stem for file in named}
    have_all = with_mask == {file.stem for file in files if file not in named}
    for kind in _by_kind(called):
        besides = [Beside(one.file, one.image) for one in kind]
        if have_all:
            if all(looks_like_photo(beside.path, beside.image) for beside in besides[:OPENED]):
                found.called_masks += besides
            else:
                found.masks += [beside.path for beside in besides]
            continue
        in_colours = []
        for beside in besides:
            if has_one_band(beside.path):
                found.masks.append(beside.path)
            else:
                in_colours.append(beside)
        if _are_flat(in_colours):
            found.masks += [beside.path for beside in in_colours]
        else:
            found.called_masks += in_colours


def _first_image(file: Path, image_of: Mapping[Path, Path]) -> Path:
    """The image that a mask is called after in the end: ``0`` of ``0_mask_color``, which is called after ``0_mask``."""
    passed = set()
    while file in image_of and file not in passed:
        passed.add(file)
        file = image_of[file]
    return file


def _add_unnamed(found: FoundMasks, called: Sequence[_Called]) -> None:
    """Add the files that look like masks: all that may be called so, and several that have the same more.

    A mask has the size of its image.
    """
    for kind in _by_kind(called):
        if words_of(kind[0].more) & _OTHER_WORDS:
            continue
        besides = [Beside(one.file, one.image) for one in kind]
        is_likely = all(one.is_likely for one in kind)
        if not is_likely and len(kind) < _LEAST_ALIKE:
            continue
        masks = [beside.path for beside in besides]
        images = [beside.image for beside in besides]
        if not are_flat(masks, images) or not are_of_one_size(masks, images):
            continue
        if is_likely:
            found.masks += masks
        else:
            found.like_masks += besides


def _by_kind(called: Sequence[_Called]) -> list[list[_Called]]:
    """The files whose names have the same more than those of their images."""
    by_kind: dict[str, list[_Called]] = {}
    for one in called:
        by_kind.setdefault(one.kind, []).append(one)
    return list(by_kind.values())


def _are_flat(besides: Sequence[Beside]) -> bool:
    """Whether the first of some files have few colours, and their images many."""
    return are_flat([beside.path for beside in besides], [beside.image for beside in besides])
