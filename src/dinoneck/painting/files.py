"""What a run writes: the page; of strokes also the head, the masks, and a table of photos and masks."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from dinoneck.atomic import write_text
from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint
from dinoneck.data.cells import csv_text
from dinoneck.heads.linear import LinearHead
from dinoneck.images.decoding import read_stated_orientation
from dinoneck.images.orientation import UPRIGHT
from dinoneck.painting.head import TASK_NAME, fit_masks
from dinoneck.painting.matching import match_photos
from dinoneck.painting.page import painting_page
from dinoneck.painting.photos import PhotoTokens
from dinoneck.painting.strokes import UNPAINTED, Strokes
from dinoneck.runtime.maps import UNSEEN
from dinoneck.text import counted, some_of
from dinoneck.training.trained_images import image_hashes, images_of_hashes
from dinoneck.viz.overlay import write_maps

PAGE = "paint.html"
HEAD = "head.safetensors"
MASKS = "masks"
TABLE = "masks.csv"
TABLE_COLUMNS = ("image", "mask")
_SHOWN = 3  # files in a message

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PaintedFiles:
    """What a run wrote.

    Attributes:
        page: to paint in.
        head: that the strokes train; None without strokes.
        table: of the painted photos and their masks; None without strokes.
        masks: one for each painted photo.
    """

    page: Path
    head: Path | None = None
    table: Path | None = None
    masks: tuple[Path, ...] = ()


def write_page(
    folder: Path, tokens: PhotoTokens, classes: Sequence[str], strokes: Strokes | None = None
) -> Path:
    """Write the page and return its file.

    Args:
        folder: made if missing.
        tokens: the photos.
        classes: names of the classes.
        strokes: that the page begins with.

    Raises:
        DataError: if the page would be larger than 200 MB.
    """
    document = None if strokes is None else strokes.to_document()
    page = painting_page(tokens.photos, classes, strokes=document)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / PAGE
    write_text(file, page)
    return file


def write_labels(
    folder: Path, tokens: PhotoTokens, strokes: Strokes, files: Mapping[str, Path]
) -> PaintedFiles:
    """Train the head on strokes, and write it, the masks of the painted photos, their table and the page.

    Args:
        folder: made if missing.
        tokens: the photos.
        strokes: on them; their classes are those of the head and the masks.
        files: name of a photo -> its file.

    Raises:
        DataError: as :func:`dinoneck.painting.fit_strokes`, or if the page would be too large.
        CheckpointError: if the backbone's weights cannot be named.
    """
    strokes = match_photos(strokes, tokens.photos)
    painted = {image.name: image.mask(strokes.classes) for image in strokes.images}
    head = fit_masks(tokens.photos, painted, strokes.classes, num_layers=tokens.num_layers)
    page = write_page(folder, tokens, strokes.classes, strokes)
    head_file = folder / HEAD
    painted_files = [files[name] for name in painted]
    _save_head(head_file, head, tokens, painted_files)
    masks: dict[str, Path] = {}
    for photo_name, mask in painted.items():
        classes = np.where(mask == UNPAINTED, UNSEEN, mask.astype(np.int64))
        name = PurePosixPath(photo_name).with_suffix("").as_posix()
        [masks[photo_name]] = write_maps(
            folder / MASKS,
            name,
            {TASK_NAME: classes},
            head.tasks,
            image=_placed_photo(files[photo_name]),
        )
    _warn_of_other_masks(folder / MASKS, masks.values())
    table = folder / TABLE
    write_text(table, _table_of(folder, masks))
    return PaintedFiles(page=page, head=head_file, table=table, masks=tuple(masks.values()))


def _placed_photo(file: Path) -> Path | None:
    """The photo whose position its mask gets; None where the mask is to have none.

    A position is of the stored pixels, and masks are read as they are stored. So the mask of a photo
    that its orientation tag turns is a PNG of the upright pixels, without a position.
    """
    if read_stated_orientation(file) == UPRIGHT:
        return file
    return None


def _save_head(
    file: Path, head: LinearHead, tokens: PhotoTokens, painted_files: Sequence[Path]
) -> None:
    """Write a head of strokes; it notes how masks are read, and the photos that were painted."""
    checkpoint = HeadCheckpoint.from_module(
        head,
        backbone=tokens.backbone,
        preprocess=tokens.preprocess,
        training={"masks": {"nodata": [UNPAINTED]}},
        training_images=images_of_hashes(image_hashes(painted_files)),
    )
    checkpoint.save(file)


def _warn_of_other_masks(folder: Path, masks: Iterable[Path]) -> None:
    """Name masks of an earlier run, of photos that are not painted any more."""
    written = {mask.resolve() for mask in masks}
    others = []
    for file in folder.rglob("*"):
        if file.is_file() and file.resolve() not in written:
            others.append(file.relative_to(folder).as_posix())
    if others:
        logger.warning(
            "%s holds %s of photos that are not painted now, such as %s; remove them",
            folder,
            counted(len(others), "other file"),
            some_of(others, _SHOWN),
        )


def _table_of(folder: Path, masks: Mapping[str, Path]) -> str:
    """The table of photos and their masks, as CSV; masks are named relative to its folder."""
    rows = []
    for name, mask in masks.items():
        rows.append((name, mask.relative_to(folder).as_posix()))
    return csv_text(TABLE_COLUMNS, rows)
