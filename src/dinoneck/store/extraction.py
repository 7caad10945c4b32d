"""Extraction: images -> views -> backbone -> records, resumable and shared among any number of processes.

A **unit** is what goes through the backbone together. It depends on the list of images alone, never on what is done
already or on how work is shared, so a store that was interrupted, resumed or split among processes holds the same
bits as one made in a single run.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from dinoneck.backbones.backbone import Backbone
from dinoneck.data.loading import in_threads
from dinoneck.devices import to_local_device
from dinoneck.errors import ConfigError, DataError, DinoneckError
from dinoneck.progress import progress
from dinoneck.store.description import Description
from dinoneck.store.encoding import channel_rms, encode
from dinoneck.store.images import ImageFile, check_unchanged, image_file, views_of
from dinoneck.store.index import Entry
from dinoneck.store.reading import Reader
from dinoneck.store.writer import Writer
from dinoneck.tokens import Tokens

LARGEST_BATCH = 32
SCALE_IMAGES = 16

logger = logging.getLogger(__name__)
Item = tuple[str, Path]


class Prepared(NamedTuple):
    """An image ready for the backbone: its id, its file, and its views, or why it cannot be used."""

    image_id: str
    file: ImageFile
    views: Tensor
    problem: str = ""


@dataclass
class Extracted:
    """What an extraction did.

    Attributes:
        written: ids that were stored by this call.
        present: how many images of this share the store held already.
        unusable: id -> why it was left out (``skip_unusable=True``).
    """

    written: list[str] = field(default_factory=list)
    present: int = 0
    unusable: dict[str, str] = field(default_factory=dict)


def units_of(items: Sequence[Item], patterns: int, batch_size: int | None) -> list[list[Item]]:
    """Split sorted images into units.

    Args:
        items: all images of the extraction, all processes' shares together.
        patterns: how many views each image has.
        batch_size: views per backbone pass; None = one image per unit, so that what is stored of an image depends on
            nothing but the image.

    Raises:
        ConfigError: if batch_size is below 1.
    """
    if batch_size is not None and (type(batch_size) is not int or batch_size < 1):
        raise ConfigError(f"batch_size is {batch_size!r}; expected 1 or more views, or None")
    size = 1 if batch_size is None else max(1, batch_size // patterns)
    return [list(items[begin : begin + size]) for begin in range(0, len(items), size)]


def share_of(units: Sequence[list[Item]], shard: tuple[int, int] | None) -> list[list[Item]]:
    """Return every n-th unit, beginning with the i-th; None = torchrun's RANK and WORLD_SIZE, or everything.

    Raises:
        ConfigError: if i is not in 0 ... n - 1.
    """
    if shard is None:
        shard = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    pair = tuple(shard) if isinstance(shard, tuple | list) else ()
    if [type(x) for x in pair] != [int, int] or not 0 <= pair[0] < pair[1]:
        raise ConfigError(f"shard is {shard!r}; expected (i, n) with 0 <= i < n, such as (0, 4)")
    return list(units[pair[0] :: pair[1]])


def run_units(
    units: Sequence[list[Item]],
    reader: Reader,
    writer: Writer,
    backbone: Backbone,
    *,
    batch_size: int | None,
    skip_unusable: bool,
    workers: int,
) -> Extracted:
    """Extract what is missing of these units.

    Raises:
        ConfigError: if workers is below 1.
        DataError: for an image that cannot be used; everything finished before is kept.
        StoreError: if the file of a stored image has changed, values do not fit the dtype, or the disk is full.
    """
    if type(workers) is not int or workers < 1:
        raise ConfigError(f"workers is {workers!r}; expected 1 or more threads that decode images")
    entries, description = reader.entries, reader.description
    has_shard = functools.cache(lambda file: (writer.root / file).is_file())
    stored = (entries[image_id] for unit in units for image_id, _ in unit if image_id in entries)
    known = {entry.id: entry for entry in stored if has_shard(entry.file)}
    check_unchanged((item for unit in units for item in unit), known)
    missing = [unit for unit in units if any(image_id not in known for image_id, _ in unit)]
    done = Extracted(present=sum(image_id in known for unit in units for image_id, _ in unit))
    total = sum(map(len, units)) - done.present
    channel_scale = reader.scale() if description.dtype == "int8" else None
    prepared = in_threads(lambda unit: [prepare(item, description) for item in unit], missing, workers)
    with contextlib.closing(prepared), progress(total=total, desc="images", unit="image") as bar:
        try:
            for images in prepared:
                usable = _usable(images, known, done, skip_unusable)
                for image, tokens in zip(usable, run_views(backbone, usable, batch_size), strict=True):
                    if image.image_id not in known:
                        layout = description.layout(tokens.grid)
                        writer.add(image.image_id, encode(tokens, layout, channel_scale), layout, image.file)
                        done.written.append(image.image_id)
                bar.update(sum(image.image_id not in known for image in images))
        except (DinoneckError, KeyboardInterrupt):
            writer.flush()
            raise
    writer.flush()
    return done


def run_views(backbone: Backbone, images: Sequence[Prepared], batch_size: int | None) -> list[Tokens]:
    """Return one Tokens on the CPU per image of a unit, its samples the patterns.

    Images of one size go through the backbone together, at most ``batch_size`` views at a time.
    """
    to_local_device(backbone)
    device = next(backbone.parameters()).device
    results: dict[str, Tokens] = {}
    for size in dict.fromkeys(image.views.shape[-2:] for image in images):
        alike = [image for image in images if image.views.shape[-2:] == size]
        views = torch.cat([image.views for image in alike])
        with torch.no_grad():
            parts = [backbone(chunk.to(device)).to("cpu") for chunk in torch.split(views, batch_size or LARGEST_BATCH)]
        tokens, at = Tokens.cat(parts), 0
        for image in alike:
            results[image.image_id] = tokens[at : at + len(image.views)]
            at += len(image.views)
    return [results[image.image_id] for image in images]


def measure_scale(items: Sequence[Item], description: Description, backbone: Backbone, skip: bool) -> Tensor:
    """Return the channel scale (layers, channels): the RMS over all views of the first usable images.

    Raises:
        DataError: if an image cannot be used and ``skip`` is not set, or none can.
    """
    tokens: list[Tokens] = []
    for item in items:
        image = prepare(item, description)
        if not image.problem:
            tokens += run_views(backbone, [image], None)
        elif not skip:
            raise DataError(image.problem)
        if len(tokens) == SCALE_IMAGES:
            break
    if not tokens:
        raise DataError(f"none of {len(items)} images can be used")
    return channel_rms(tokens)


def prepare(item: Item, description: Description) -> Prepared:
    """Decode one image and make its views; the problem of an unusable one is returned, not raised."""
    image_id, path = item
    try:
        # hashed before it is decoded: a file that changes in between differs from its hash in the next extraction
        file = image_file(image_id, path) if path.is_file() else ImageFile(0)
        return Prepared(image_id, file, views_of(path, description.preprocess, description.patterns, image_id))
    except (DinoneckError, OSError) as error:
        problem = str(error) if str(path) in str(error) else f"{path}: {error}"
        return Prepared(image_id, ImageFile(0), torch.empty(0), problem)


def _usable(images: list[Prepared], known: Mapping[str, Entry], done: Extracted, skip: bool) -> list[Prepared]:
    for image in images:
        if image.problem and image.image_id not in known:
            if not skip:
                raise DataError(
                    f"{image.problem}. Everything finished before is kept; fix or remove it and run again, or pass "
                    "skip_unusable=True (--skip-unusable)"
                )
            logger.warning("left out: %s", image.problem)
            done.unusable[image.image_id] = image.problem
    return [image for image in images if not image.problem]
