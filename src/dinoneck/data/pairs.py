"""Pairs of images and masks, by their paths in two folders.

Neither pandas nor torch is imported.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dinoneck.data.cells import composed
from dinoneck.data.listing import (
    MASK_SUFFIXES,
    SUFFIXES,
    check_any_pictures,
    check_folder,
    identity_of,
    list_files,
)
from dinoneck.errors import DataError
from dinoneck.text import counted, some_of

_NUM_SHOWN = 5  # names in a message
Cut = Callable[[str], str]
"""Takes an ending or a beginning off a name."""


@dataclass(frozen=True)
class Pairing:
    """How masks are chosen.

    Attributes:
        mask_suffix: the ending, such as ``_mask``, by which the name of a mask is longer than that of
            its image; ``.png`` does not belong to it. None = the ending that all masks share.
        skip_unpaired: leave out what has no partner, instead of raising an error.
    """

    mask_suffix: str | None = None
    skip_unpaired: bool = False


DEFAULT_PAIRING = Pairing()


@dataclass(frozen=True)
class Pairs:
    """Images and their masks.

    Attributes:
        mask_of: image -> mask, in the order of the images.
        left_out: what was left out, in words -> how many.
    """

    mask_of: Mapping[Path, Path]
    left_out: Mapping[str, int]


def pair_files(images: Path, masks: Path, pairing: Pairing) -> Pairs:
    """Pair the images of a folder with the masks of another one, or of the same.

    They have the same paths without suffix, or do once an ending or a beginning that all images, or
    all masks, share is taken off: ``0_sat.jpg`` and ``0_mask.png``.

    Args:
        images: the folder of the images; one in it, of the masks, is left out.
        masks: the folder of the masks; with a ``mask_suffix`` it may be that of the images.
        pairing: how masks are chosen.

    Raises:
        DataError: naming images without a mask, masks without an image, two files that differ in
            their suffix alone, or the folder that holds nothing.
    """
    check_folder(images)
    check_folder(masks)
    is_one_folder = identity_of(images) == identity_of(masks)
    if is_one_folder and pairing.mask_suffix is None:
        raise DataError(
            f"images and masks are both in {images}; state what the names of masks have more "
            "(--mask-suffix _mask), or put the masks into a folder of their own"
        )
    if is_one_folder:
        image_of, mask_of, left_out = _list_one_folder(images, str(pairing.mask_suffix))
    else:
        image_of, mask_of, left_out = _list_two_folders(images, masks, pairing.mask_suffix)
    check_any_pictures(images, list(image_of.values()))
    if not mask_of:
        raise DataError(f"the folder {masks} holds no masks ({', '.join(MASK_SUFFIXES)})")
    cut_image, cut_mask = _cuts(image_of, mask_of, has_suffix=pairing.mask_suffix is not None)
    cut_masks = {cut_mask(name): file for name, file in mask_of.items()}
    paired = {}
    unpaired_images = []
    for name, file in image_of.items():
        mask = cut_masks.pop(cut_image(name), None)
        if mask is None:
            unpaired_images.append(file)
        else:
            paired[file] = mask
    unpaired_masks = list(cut_masks.values())
    if not paired or not pairing.skip_unpaired:
        _check_none_unpaired(images, masks, unpaired_images, unpaired_masks)
    left_out["images without a mask"] = len(unpaired_images)
    left_out["masks without an image"] = len(unpaired_masks)
    return Pairs(paired, {words: count for words, count in left_out.items() if count})


def _list_one_folder(
    folder: Path, mask_suffix: str
) -> tuple[dict[str, Path], dict[str, Path], Counter[str]]:
    """The images and the masks of one folder by their names, and what is left out."""
    listing = list_files(folder, MASK_SUFFIXES)
    image_files = []
    mask_files = []
    for file in listing.files:
        if file.stem.endswith(mask_suffix):
            mask_files.append(file)
        elif file.suffix.lower() in SUFFIXES:
            image_files.append(file)
        else:
            listing.left_out[f"files of other formats ({file.suffix.lower()})"] += 1
    mask_of = _with_ending(_by_name(mask_files, folder), mask_suffix, listing.files)
    return _by_name(image_files, folder), mask_of, listing.left_out


def _list_two_folders(
    images: Path, masks: Path, mask_suffix: str | None
) -> tuple[dict[str, Path], dict[str, Path], Counter[str]]:
    """The images and the masks of two folders by their names, and what is left out."""
    image_listing = list_files(images, SUFFIXES, without=masks)
    mask_listing = list_files(masks, MASK_SUFFIXES, without=images)
    left_out = image_listing.left_out + mask_listing.left_out
    mask_files = mask_listing.files
    if mask_suffix is not None:
        mask_files = [file for file in mask_files if file.stem.endswith(mask_suffix)]
        left_out[f"masks without {mask_suffix}"] = len(mask_listing.files) - len(mask_files)
    mask_of = _by_name(mask_files, masks)
    if mask_suffix is not None:
        mask_of = _with_ending(mask_of, mask_suffix, mask_listing.files)
    return _by_name(image_listing.files, images), mask_of, left_out


def _by_name(files: Sequence[Path], root: Path) -> dict[str, Path]:
    """Files by their path without suffix."""
    file_of: dict[str, Path] = {}
    for file in files:
        name = composed(file.relative_to(root).with_suffix("").as_posix())
        other = file_of.setdefault(name, file)
        if other != file:
            raise DataError(
                f"{other} and {file} have one name without suffix, and images and masks pair by it; "
                "keep one of them"
            )
    return file_of


def _with_ending(
    mask_of: Mapping[str, Path], ending: str, files: Sequence[Path]
) -> dict[str, Path]:
    """The masks by their names without the ending; there must be some if there are files."""
    if files and not mask_of:
        raise DataError(
            f"--mask-suffix is {ending!r}, and no file in {files[0].parent} is called so before its "
            f"suffix; there are {some_of((file.name for file in files), _NUM_SHOWN)}"
        )
    return {name.removesuffix(ending): file for name, file in mask_of.items()}


def _check_none_unpaired(
    images: Path, masks: Path, unpaired_images: Sequence[Path], unpaired_masks: Sequence[Path]
) -> None:
    """Reject files without a partner."""
    problems = []
    if unpaired_images:
        names = some_of((str(file.relative_to(images)) for file in unpaired_images), _NUM_SHOWN)
        problems.append(
            f"{masks} has no mask for {counted(len(unpaired_images), 'image')} of {images}: {names}"
        )
    if unpaired_masks:
        names = some_of((str(file.relative_to(masks)) for file in unpaired_masks), _NUM_SHOWN)
        problems.append(
            f"{images} has no image for {counted(len(unpaired_masks), 'mask')} of {masks}: {names}"
        )
    if problems:
        raise DataError(
            f"{'; '.join(problems)}. Masks are called like their images but for the suffix; if each "
            "image has several files, state the ending of the masks (--mask-suffix), and leave out "
            "what has no partner by --skip-unpaired"
        )


# What all names share
# ----------------------------------------------------------------------------------------------------


def _cuts(
    image_names: Collection[str], mask_names: Collection[str], *, has_suffix: bool
) -> tuple[Cut, Cut]:
    """What is taken off the images and off the masks: of all choices the first that pairs most.

    ``0_sat`` and ``0_mask`` pair by their endings, ``img_0`` and ``mask_0`` by their beginnings, which
    may be a folder; an ending and a beginning are not both taken off.
    """
    best = None
    most = 0
    for cut_image, cut_mask in _choices(image_names, mask_names, has_suffix=has_suffix):
        images = set(map(cut_image, image_names))
        masks = set(map(cut_mask, mask_names))
        num_pairs = len(images & masks)
        if best is None or num_pairs > most:
            best = cut_image, cut_mask
            most = num_pairs
        if images == masks:
            break
    if best is None:
        raise RuntimeError("names without a cut are a choice")
    return best


def _choices(
    image_names: Collection[str], mask_names: Collection[str], *, has_suffix: bool
) -> Iterator[tuple[Cut, Cut]]:
    """Nothing, endings, and beginnings.

    With a ``mask_suffix`` the ending of masks is off already, and images may have one too:
    ``_leftImg8bit`` beside ``_gtFine_labelIds``.
    """
    mask_endings = [""] if has_suffix else _endings(mask_names)
    for image_ending in _endings(image_names):
        for mask_ending in mask_endings:
            yield _without_ending(image_ending), _without_ending(mask_ending)
    if has_suffix:
        return
    for image_beginning in _beginnings(image_names):
        for mask_beginning in _beginnings(mask_names):
            yield _without_beginning(image_beginning), _without_beginning(mask_beginning)


def _without_ending(ending: str) -> Cut:
    return lambda name: name.removesuffix(ending)


def _without_beginning(beginning: str) -> Cut:
    return lambda name: name.removeprefix(beginning)


def _endings(names: Collection[str]) -> list[str]:
    """Nothing, and what all names end with, the shortest first: from the beginning of a word on."""
    backwards = [name[::-1] for name in names]
    shared = os.path.commonprefix(backwards)[::-1]  # noqa: RUF071 - of letters
    endings = [""]
    for start in reversed(range(len(shared))):
        ending = shared[start:]
        is_word = all(_is_between_words(name, len(name) - len(ending)) for name in names)
        if is_word and any(map(str.isalpha, ending)) and "/" not in ending:
            endings.append(ending)
    return endings


def _beginnings(names: Collection[str]) -> list[str]:
    """Nothing, and what all names begin with, up to the end of a word; no numbers, which tell names apart."""
    shared = os.path.commonprefix(list(names))  # noqa: RUF071 - of letters
    beginnings = [""]
    for end in range(1, len(shared) + 1):
        beginning = shared[:end]
        is_word = all(_is_between_words(name, end) for name in names)
        if is_word and any(map(str.isalpha, beginning)) and not any(map(str.isdigit, beginning)):
            beginnings.append(beginning)
    return beginnings


def _is_between_words(name: str, place: int) -> bool:
    """Whether a word ends before a place in a name, or begins there: in ``0_mask``, ``0mask``, ``aMask``."""
    if not 0 < place < len(name):
        return False
    left, right = name[place - 1], name[place]
    if not left.isalnum() or not right.isalnum():
        return True
    return left.isalpha() != right.isalpha() or (left.islower() and right.isupper())
