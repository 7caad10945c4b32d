"""Which photos strokes were painted on: files are told by their hashes, whatever their names are by now."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import replace

from dinoneck.errors import DataError
from dinoneck.painting.page import Photo
from dinoneck.painting.strokes import PaintedImage, Strokes
from dinoneck.text import shorten, some_of

_SHOWN = 5  # names in a message


def match_photos(strokes: Strokes, photos: Sequence[Photo]) -> Strokes:
    """Return the strokes under the present names of their photos, without photos that have none.

    Raises:
        DataError: if a photo is missing, another file of its name is there, or it has another size.
    """
    photos_of_hash: dict[str, dict[str, Photo]] = {}
    for photo in photos:
        photos_of_hash.setdefault(photo.sha256, {})[photo.name] = photo
    painted = [image for image in strokes.images if image.strokes]
    of_present_name = []
    renamed = []  # the file was renamed, or moved to another folder
    not_found = []
    for image in painted:
        same_files = photos_of_hash.get(image.sha256, {})
        if image.name in same_files:
            of_present_name.append(image)
        elif same_files:
            renamed.append(image)
        else:
            not_found.append(image)

    matched: dict[str, PaintedImage] = {}
    # a renamed copy takes what the photos of the same name leave
    for image in (*of_present_name, *renamed):
        same_files = photos_of_hash[image.sha256]
        if image.name in same_files:
            photo = same_files[image.name]
        else:
            photo = _first_free(same_files, matched)
        if (photo.height, photo.width) != (image.height, image.width):
            raise DataError(
                f"the strokes say that {shorten(image.name)} has {image.height}x{image.width} px, "
                f"and the file has {photo.height}x{photo.width}; save the strokes again from the page"
            )
        if photo.name in matched:
            raise DataError(
                f"the strokes on {shorten(matched[photo.name].name)} and {shorten(image.name)} are "
                f"of one file, {shorten(photo.name)}; keep both copies of it, or erase one's strokes"
            )
        matched[photo.name] = image
    _check_all_found(not_found, {photo.name for photo in photos})
    images = tuple(replace(image, name=name) for name, image in matched.items())
    return Strokes(strokes.classes, images)


def _first_free(same_files: Mapping[str, Photo], taken: Container[str]) -> Photo:
    """The first of several copies of a file that is not taken; if all are, the first."""
    for name, photo in same_files.items():
        if name not in taken:
            return photo
    return next(iter(same_files.values()))


def _check_all_found(not_found: Sequence[PaintedImage], names: Container[str]) -> None:
    """Raise a DataError for painted photos whose files are not there.

    Args:
        not_found: the photos.
        names: of the photos that are there.
    """
    replaced = [shorten(image.name) for image in not_found if image.name in names]
    missing = [shorten(image.name) for image in not_found if image.name not in names]
    if replaced:
        raise DataError(
            f"the strokes were painted on other files than those of the same name here: "
            f"{some_of(replaced, _SHOWN)}, whose sha256 differs; name the photos that were painted, "
            "or paint on these"
        )
    if missing:
        raise DataError(
            f"photos with strokes are not among the photos that are named: "
            f"{some_of(missing, _SHOWN)}; name all photos that the page was made of"
        )
