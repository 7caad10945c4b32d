"""Find the files of one folder that are masks of others in it: ``0_mask.png`` beside ``0.png``.

A mask is named after its image, with an affix (a prefix or a suffix of the stem), and its pixels look
like a mask's. Neither pandas nor torch is imported.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
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
    MAX_OPENED,
    are_flat,
    are_of_one_size,
    has_few_colours,
    has_one_band,
    is_lossless,
    looks_like_photo,
)
from dinoneck.data.name_pairs import LAST_WORD, is_word_boundary, without_mask_word

_PICTURE_WORDS = IMAGE_WORDS | VAGUE_WORDS
# affixes with these words say what a file is (an output, another sensor), whatever its pixels
_OTHER_WORDS = MADE_WORDS | SENSOR_WORDS
# an affix that is no word for masks counts only if at least this many files have it
_MIN_FILES_OF_UNKNOWN_AFFIX = 2


@dataclass(frozen=True)
class Companion:
    """A file or a folder, and the image or folder of images next to it to which it may belong.

    Attributes:
        path: the file or the folder.
        image: the image, or the folder of images, that ``path`` may be a mask of or made from.
    """

    path: Path
    image: Path


@dataclass
class FoundMasks:
    """The masks, and possible masks, among the files of one folder.

    Attributes:
        masks: the files that are masks of others.
        named_like_masks: files that are named like the mask of another file but do not look like one.
        looking_like_masks: files that look like the mask of another file but are not named like one.
    """

    masks: list[Path] = field(default_factory=list)
    named_like_masks: list[Companion] = field(default_factory=list)
    looking_like_masks: list[Companion] = field(default_factory=list)

    def cover(self, images: Sequence[Path]) -> bool:
        """Return whether there are masks, or each of the other files has a possible mask."""
        if self.masks:
            return True
        possible = [*self.named_like_masks, *self.looking_like_masks]
        rest = set(images) - {companion.path for companion in possible}
        return bool(rest) and rest == {companion.image for companion in possible}


def masks_beside(images: Sequence[Path]) -> FoundMasks:
    """Return the masks among the images of one folder: ``0.png`` beside ``0.jpg``, ``0_mask.png`` beside ``0.png``."""
    found = _masks_of_equal_stem(images)
    of_equal_stem = set(found.masks)
    of_equal_stem.update(companion.path for companion in found.named_like_masks)
    rest = [file for file in images if file not in of_equal_stem]
    affixed = _affixed_files(rest)
    _add_by_name(found, [file for file in affixed if file.says_mask], rest)
    _add_by_pixels(found, [file for file in affixed if not file.says_mask])
    # a dict keeps the order
    masks = dict.fromkeys([*found.masks, *_masks_of_one_sample(images)])
    return FoundMasks(
        masks=list(masks),
        named_like_masks=_without(found.named_like_masks, masks),
        looking_like_masks=_without(found.looking_like_masks, masks),
    )


def _without(candidates: Sequence[Companion], masks: Collection[Path]) -> list[Companion]:
    return [candidate for candidate in candidates if candidate.path not in masks]


def is_called_mask(file: Path) -> bool:
    """Return whether the name of a file begins with a word for masks: mask.png, mask_0.png, label_viz.png."""
    beginning = re.split(r"[_\-. \d]", file.stem.lower(), maxsplit=1)[0]
    return beginning in MASK_WORDS


def is_called_image(file: Path) -> bool:
    """Return whether the whole name of a file is a word for images: image.png, img.jpg, rgb.png."""
    return file.stem.lower() in _PICTURE_WORDS


def _masks_of_one_sample(images: Sequence[Path]) -> list[Path]:
    """Return the files named as masks in the folder of one sample: ``mask.png`` beside ``image.png``."""
    if not any(is_called_image(file) for file in images):
        return []
    return [file for file in images if is_called_mask(file)]


# Names that differ in their suffix alone
# ----------------------------------------------------------------------------------------------------


def _masks_of_equal_stem(images: Sequence[Path]) -> FoundMasks:
    """Return the masks whose image differs in its file suffix alone: ``0.png`` beside ``0.jpg``.

    They have few colours or grey levels. Grey files with many levels may be photos, or masks of
    numbers: they are among the ``named_like_masks``.
    """
    by_stem: dict[str, list[Path]] = {}
    for file in images:
        by_stem.setdefault(file.stem, []).append(file)
    of_one_band: list[Companion] = []
    in_colours: list[Companion] = []
    for files in by_stem.values():
        if len(files) < 2:
            continue
        one_band = [file for file in files if has_one_band(file)]
        others = [file for file in files if file not in one_band]
        lossy = [file for file in files if not is_lossless(file)]
        if one_band and others:
            of_one_band += [Companion(file, others[0]) for file in one_band]
        elif not one_band and lossy:
            in_colours += [Companion(file, lossy[0]) for file in files if is_lossless(file)]
    found = FoundMasks()
    if all(has_few_colours(companion.path) for companion in of_one_band[:MAX_OPENED]):
        found.masks += [companion.path for companion in of_one_band]
    else:
        found.named_like_masks += of_one_band
    if _pairs_are_flat(in_colours):
        found.masks += [companion.path for companion in in_colours]
    return found


# Names with an affix
# ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _AffixedFile:
    """A file whose name is that of another file in its folder with an affix.

    Attributes:
        path: the file.
        image: the other file.
        affix: what ``path`` has in addition to the name of ``image``: ``_mask`` of ``0_mask.png``.
        says_mask: whether the affix says that the file is a mask.
        may_say_mask: whether the affix is that of a mask if the pixels look like one.
    """

    path: Path
    image: Path
    affix: str
    says_mask: bool
    may_say_mask: bool

    @property
    def affix_without_digits(self) -> str:
        """The affix without numbers: files that have it in common are of one kind."""
        return re.sub(r"\d", "", self.affix)


def _affixed_files(files: Sequence[Path]) -> list[_AffixedFile]:
    """Return the files named after another one with an affix: ``0_mask``, ``Mask of 0``, ``0.jpg_mask``.

    ``0_mask.png`` is not one of them if ``0_mask.jpg`` is there too: the word is then a part of the
    name that an image and its mask share.
    """
    by_stem = {file.stem: file for file in files}
    by_file_name = {file.name: file for file in files}
    shortest = min(map(len, by_stem), default=0)
    short_name_of = {}
    for file in files:
        short_name_of[file] = without_mask_word(file.stem, MASK_WORDS | MAYBE_MASK_WORDS)
    by_short_name = _by_short_name(short_name_of)
    stems = Counter(file.stem for file in files)
    affixed = []
    for file in files:
        if stems[file.stem] > 1:
            continue
        candidates = []
        for name, affix in _split_affix(file.stem, shortest):
            if name in by_file_name:
                image = by_file_name[name]
                candidates.append(_judge_affix(file, image, affix, has_file_suffix=True))
            elif affix and name in by_stem:
                image = by_stem[name]
                candidates.append(_judge_affix(file, image, affix, has_file_suffix=False))
        short_name = short_name_of[file]
        if not candidates and short_name != file.stem and short_name in by_short_name:
            affix = file.stem.replace(short_name, "", 1)
            image = by_short_name[short_name]
            candidates.append(_judge_affix(file, image, affix, has_file_suffix=False))
        masks = [candidate for candidate in candidates if candidate.says_mask]
        if masks:
            affixed.append(masks[0])
        elif candidates:
            affixed.append(candidates[0])
    return affixed


def _split_affix(name: str, shortest: int) -> Iterator[tuple[str, str]]:
    """Yield the ways to split a name into another name and an affix.

    The first is the whole name with no affix. Suffixes follow, and then prefixes, each with the
    longest rest first. An affix begins or ends at a word boundary, and has a letter: ``10`` is not
    ``1`` with an affix.

    Args:
        name: the name to split.
        shortest: number of characters of the shortest name that there is.
    """
    yield name, ""
    for end in range(len(name) - 1, shortest - 1, -1):
        suffix = name[end:]
        if is_word_boundary(name[end - 1], name[end]) and _has_letter(suffix):
            yield name[:end], suffix
    for start in range(1, len(name) - shortest + 1):
        prefix = name[:start]
        if is_word_boundary(name[start - 1], name[start]) and _has_letter(prefix):
            yield name[start:], prefix


def _has_letter(text: str) -> bool:
    return any(map(str.isalpha, text))


def _judge_affix(file: Path, image: Path, affix: str, *, has_file_suffix: bool) -> _AffixedFile:
    """Tell from an affix whether a file is a mask of an image.

    Args:
        file: the file.
        image: the image that it is named after.
        affix: what the name of the file has in addition.
        has_file_suffix: whether the name includes the file suffix of the image:
            ``0.jpg___fuse.png``.
    """
    words = words_of(affix)
    last_word = LAST_WORD.search(affix)
    is_output = last_word is not None and plain_word(last_word.group(1)) in MADE_WORDS
    says_mask = bool(words & MASK_WORDS) and not is_output
    if has_file_suffix and not affix:
        says_mask = True  # 0.jpg.png
    may_say_mask = has_file_suffix or bool(words & MAYBE_MASK_WORDS)
    return _AffixedFile(file, image, affix, says_mask=says_mask, may_say_mask=may_say_mask)


def _by_short_name(short_name_of: Mapping[Path, str]) -> dict[str, Path]:
    """Return the images by their names without the last word, and without a first word for images.

    ``0`` is the short name of ``0_sat`` and of ``img_0``. Without any file named like a mask there is
    nothing to look up, and the dict is empty.

    Args:
        short_name_of: file -> its name without words for masks.
    """
    images = [file for file, short_name in short_name_of.items() if short_name == file.stem]
    if len(images) == len(short_name_of):
        return {}
    by_short_name = {}
    for file in images:
        by_short_name[LAST_WORD.sub("", file.stem)] = file
        by_short_name[file.stem.removeprefix(first_word(file.stem, _PICTURE_WORDS))] = file
    return by_short_name


def _add_by_name(found: FoundMasks, affixed: Sequence[_AffixedFile], files: Sequence[Path]) -> None:
    """Add the files that an affix says to be masks.

    If each image has such a file, all of them are masks, unless they look like photos. Otherwise
    only those that look like masks are.

    Args:
        found: the result to add to.
        affixed: files with a word for masks.
        files: all files.
    """
    image_of = {file.path: file.image for file in affixed}
    root_image_of = {path: _root_image(path, image_of) for path in image_of}
    # two files without an image may each be named after the other: 0_mask and 0_maskGT
    affixed = [file for file in affixed if root_image_of[file.path] not in image_of]
    mask_paths = {file.path for file in affixed}
    stems_with_mask = {root_image_of[path].stem for path in mask_paths}
    image_stems = {path.stem for path in files if path not in mask_paths}
    have_all_a_mask = stems_with_mask == image_stems
    for kind in _by_kind(affixed):
        pairs = [Companion(file.path, file.image) for file in kind]
        if have_all_a_mask:
            if all(looks_like_photo(pair.path, pair.image) for pair in pairs[:MAX_OPENED]):
                found.named_like_masks += pairs
            else:
                found.masks += [pair.path for pair in pairs]
            continue
        in_colours = []
        for pair in pairs:
            if has_one_band(pair.path):
                found.masks.append(pair.path)
            else:
                in_colours.append(pair)
        if _pairs_are_flat(in_colours):
            found.masks += [pair.path for pair in in_colours]
        else:
            found.named_like_masks += in_colours


def _root_image(path: Path, image_of: Mapping[Path, Path]) -> Path:
    """Follow the images that files are named after: ``0_mask_color`` -> ``0_mask`` -> ``0``."""
    visited = set()
    while path in image_of and path not in visited:
        visited.add(path)
        path = image_of[path]
    return path


def _add_by_pixels(found: FoundMasks, affixed: Sequence[_AffixedFile]) -> None:
    """Add the files that look like masks and have the sizes of their images.

    If the affix may say so, they are masks. Otherwise they are possible masks if several files have
    that affix.
    """
    for kind in _by_kind(affixed):
        if words_of(kind[0].affix) & _OTHER_WORDS:
            continue
        may_say_mask = all(file.may_say_mask for file in kind)
        if not may_say_mask and len(kind) < _MIN_FILES_OF_UNKNOWN_AFFIX:
            continue
        masks = [file.path for file in kind]
        images = [file.image for file in kind]
        if not are_flat(masks, images) or not are_of_one_size(masks, images):
            continue
        if may_say_mask:
            found.masks += masks
        else:
            found.looking_like_masks += [Companion(file.path, file.image) for file in kind]


def _by_kind(affixed: Sequence[_AffixedFile]) -> list[list[_AffixedFile]]:
    """Group files by their affixes without digits."""
    by_affix: dict[str, list[_AffixedFile]] = {}
    for file in affixed:
        by_affix.setdefault(file.affix_without_digits, []).append(file)
    return list(by_affix.values())


def _pairs_are_flat(pairs: Sequence[Companion]) -> bool:
    """Return :func:`dinoneck.data.mask_pixels.are_flat` of files and their images."""
    return are_flat([pair.path for pair in pairs], [pair.image for pair in pairs])
