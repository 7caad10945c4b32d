"""Names of images and of their masks, which agree once something is left out of all of them.

Neither pandas nor torch is imported.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass

from dinoneck.data.folder_words import (
    IMAGE_WORDS,
    MASK_KINDS,
    MASK_WORDS,
    MAYBE_MASK_WORDS,
    VAGUE_WORDS,
    first_word,
    plain_word,
    words_of,
)

SEPARATOR = r"[_\-. ]"
"""Between the words in the name of a file."""
LAST_WORD = re.compile(r"[_\-. ]([^\W\d_]+)(?:[_\-. ]?\d+)?$")
"""The last word of a name and a number after it: of ``0_mask``, ``0_mask_1``, ``0-sat``."""


_LINKING_WORDS = {"of", "for", "von", "de", "di", "van"}  # of "Mask of 0"


@dataclass(frozen=True)
class Affixes:
    """What the names of all images, and those of all masks, have more than their pairs.

    Attributes:
        image_affix: an ending or a beginning of all images; "" = nothing.
        mask_affix: one of all masks.
        cut: returns a name without an affix.
    """

    image_affix: str
    mask_affix: str
    cut: Callable[[str, str], str]

    def of_image(self, name: str) -> str:
        """Return the name of an image that it shares with its mask."""
        return self.cut(name, self.image_affix)

    def of_mask(self, name: str) -> str:
        """Return the name of a mask that it shares with its image."""
        return self.cut(name, self.mask_affix)


def shared_affixes(image_names: Collection[str], mask_names: Collection[str]) -> Affixes | None:
    """Return what to leave out of all names for pairs of images and masks; None = nothing does.

    It is tried in this order: an ending of all images, an ending of all masks, or both (``0_sat``
    and ``0_mask``); then a word that all images begin with, or all masks, or both (``img_0`` and
    ``mask_0``).
    """
    if len(image_names) != len(mask_names):
        return None
    for affixes in _affixes(image_names, mask_names):
        short_images = {affixes.of_image(name) for name in image_names}
        short_masks = {affixes.of_mask(name) for name in mask_names}
        if short_images == short_masks and len(short_images) == len(image_names):
            return affixes
    return None


def _affixes(image_names: Collection[str], mask_names: Collection[str]) -> Iterator[Affixes]:
    """What may be cut: endings first, of each the longest first."""
    for image_ending in endings(image_names):
        for mask_ending in endings(mask_names):
            yield Affixes(image_ending, mask_ending, without_ending)
    for image_beginning in _beginnings(image_names, IMAGE_WORDS | VAGUE_WORDS):
        for mask_beginning in _beginnings(mask_names, MASK_WORDS | MAYBE_MASK_WORDS):
            yield Affixes(image_beginning, mask_beginning, _without_beginning)


def endings(names: Collection[str]) -> list[str]:
    """Return what all names end with, from a separator or a word on, the longest first; and "" at last.

    A word without a separator before it is that of ``0GT`` and ``aMask``.
    """
    backwards = [name[::-1] for name in names]
    shared = os.path.commonprefix(backwards)[::-1]  # noqa: RUF071 - of letters
    found = []
    for start in range(len(shared)):
        ending = shared[start:]
        is_word = shared[start].isalpha() and all(
            _begins_word(name, len(name) - len(ending)) for name in names
        )
        if is_word or re.match(SEPARATOR, ending):
            found.append(ending)
    return [*found, ""]


def _begins_word(name: str, place: int) -> bool:
    """Whether a word begins at a place in a name, or ends before it."""
    return 0 < place < len(name) and is_word_boundary(name[place - 1], name[place])


def without_ending(name: str, ending: str) -> str:
    """Return a name without an ending, if it has it."""
    return name.removesuffix(ending)


def _beginnings(names: Iterable[str], words: Collection[str]) -> list[str]:
    """Return "", and what all file names begin with that is made of some words, the longest first: ``Mask of ``.

    Other words tell images apart: ``day1_0`` is never the mask of ``day2_0``.
    """
    last_parts = [name.rpartition("/")[2] for name in names]
    shared = os.path.commonprefix(last_parts)  # noqa: RUF071 - of letters
    found = []
    for end in range(len(shared), 0, -1):
        beginning = shared[:end]
        its_words = words_of(beginning) - _LINKING_WORDS
        is_word = all(name == beginning or _begins_word(name, end) for name in last_parts)
        has_number = any(map(str.isdigit, beginning))
        if is_word and its_words and its_words <= set(words) and not has_number:
            found.append(beginning)
    return ["", *found]


def _without_beginning(name: str, beginning: str) -> str:
    folder, slash, last_part = name.rpartition("/")
    return folder + slash + last_part.removeprefix(beginning)


def without_mask_word(stem: str, words: Collection[str] = MASK_WORDS) -> str:
    """Return the name of a file without words for masks at its end, or else without one at its beginning.

    It is ``0`` of ``0_mask_1`` and of ``mask_0``. The beginning is cut only where the end was not:
    ``mask_0_mask`` becomes ``mask_0``.
    """
    without_last = _without_last_mask_words(stem, words)
    if without_last != stem:
        return without_last
    return stem.removeprefix(first_word(stem, words))


def _without_last_mask_words(stem: str, words: Collection[str]) -> str:
    """The name of a file without the words for masks, and for kinds of them, that it ends with.

    A kind alone says nothing: it is cut only together with a word for masks before it. So
    ``0_gtFine_color`` becomes ``0``, and ``0_color`` stays.
    """
    shortest = stem
    rest = stem
    match = LAST_WORD.search(rest)
    while match is not None:
        word = plain_word(match.group(1))
        if word not in words and word not in MASK_KINDS:
            break
        rest = rest[: match.start()]
        if word in words:
            shortest = rest
        match = LAST_WORD.search(rest)
    return shortest


def is_word_boundary(left: str, right: str) -> bool:
    """Whether a word of a name ends between two letters, digits or signs: of ``0_mask``, ``0mask`` and ``aMask``."""
    if not left.isalnum() or not right.isalnum():
        return True
    if left.isalpha() != right.isalpha():
        return True
    return left.islower() and right.isupper()
