"""Extraction: images -> views -> backbone -> records, resumable and shared among any number of processes.

A **unit** is what goes through the backbone together: as many images as fill a pass. It depends on the list of images
alone, never on what is done already or on how work is shared, so a store that was interrupted, resumed or split among
processes holds the same bits as one made in a single run. Threads decode the images of the next unit while the backbone
works on this one, and a thread writes the unit before.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from dinoneck.backbones.backbone import Backbone
from dinoneck.data.loading import in_threads
from dinoneck.devices import fetch, send, to_local_device
from dinoneck.errors import ConfigError, DataError, DinoneckError
from dinoneck.grid import TokenGrid
from dinoneck.progress import progress
from dinoneck.store.description import Description
from dinoneck.store.encoding import channel_rms, encode
from dinoneck.store.images import ImageFile, check_unchanged, image_file, views_of
from dinoneck.store.index import Entry
from dinoneck.store.reading import Reader
from dinoneck.store.writer import Writer
from dinoneck.tokens import Tokens

LARGEST_BATCH = 32
UNIT_TOKENS = 8192
LEAST_UNITS = 8
CPU_PASS_TOKENS = 2048  # its caches hold the activations of no more
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


def views_per_pass(description: Description, tokens: int = UNIT_TOKENS) -> int:
    """Return how many views have at most so many patch tokens, up to 32; those of one image without a common size."""
    if description.preprocess.size is None:
        return len(description.patterns)
    rows, cols = TokenGrid(description.preprocess.patch_size, "pad").size(description.preprocess.size)
    return max(1, min(LARGEST_BATCH, tokens // (rows * cols)))


def units_of(items: Sequence[Item], description: Description, batch_size: int | None) -> list[list[Item]]:
    """Split sorted images into units.

    Args:
        items: all images of the extraction, all processes' shares together.
        description: of the store.
        batch_size: views per backbone pass; None = see :func:`views_per_pass`, and eight units at least, so that
            processes can share a short list.

    Raises:
        ConfigError: if batch_size is below 1.
    """
    if batch_size is not None and (type(batch_size) is not int or batch_size < 1):
        raise ConfigError(f"batch_size is {batch_size!r}; expected 1 or more views, or None")
    size = max(1, (batch_size or views_per_pass(description)) // len(description.patterns))
    if batch_size is None:
        size = max(1, min(size, len(items) // LEAST_UNITS))
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
    workers: int | None,
) -> Extracted:
    """Extract what is missing of these units.

    Raises:
        ConfigError: if workers is below 1.
        DataError: for an image that cannot be used; everything finished before is kept.
        StoreError: if the file of a stored image has changed, values do not fit the dtype, or the disk is full.
    """
    if workers is not None and (type(workers) is not int or workers < 1):
        raise ConfigError(f"workers is {workers!r}; expected 1 or more threads that decode images, or None")
    entries, description = reader.entries, reader.description
    has_shard = functools.cache(lambda file: (writer.root / file).is_file())
    stored = (entries[image_id] for unit in units for image_id, _ in unit if image_id in entries)
    known = {entry.id: entry for entry in stored if has_shard(entry.file)}
    check_unchanged((item for unit in units for item in unit), known)
    missing = [unit for unit in units if any(image_id not in known for image_id, _ in unit)]
    done = Extracted(present=sum(image_id in known for unit in units for image_id, _ in unit))
    total = sum(map(len, units)) - done.present
    channel_scale = reader.scale() if description.dtype == "int8" else None

    def write(images: Sequence[Prepared], tokens: Sequence[Tokens]) -> None:
        for image, own in zip(images, tokens, strict=True):
            if image.image_id not in known:
                layout = description.layout(own.grid)
                writer.add(image.image_id, encode(own, layout, channel_scale), layout, image.file)
                done.written.append(image.image_id)

    items, ahead = [item for unit in missing for item in unit], max(map(len, missing), default=1)
    prepared = in_threads(lambda item: prepare(item, description), items, workers, ahead)
    try:
        with (
            contextlib.closing(prepared),
            ThreadPoolExecutor(1, "dinoneck-writes") as writing,
            progress(total=total, desc="images", unit="image") as bar,
        ):
            before: Future[None] | None = None
            for unit in missing:
                usable = _usable([*islice(prepared, len(unit))], known, done, skip_unusable)
                tokens = run_views(backbone, usable, batch_size or views_per_pass(description, _tokens_of(backbone)))
                if before is not None:
                    before.result()
                before = writing.submit(write, usable, tokens)
                bar.update(sum(image_id not in known for image_id, _ in unit))
            if before is not None:
                before.result()
    except (DinoneckError, KeyboardInterrupt):
        writer.flush()
        raise
    writer.flush()
    return done


def _tokens_of(backbone: Backbone) -> int:
    """How many patch tokens go through a backbone at once."""
    return CPU_PASS_TOKENS if next(backbone.parameters()).device.type == "cpu" else UNIT_TOKENS


def run_views(backbone: Backbone, images: Sequence[Prepared], batch_size: int) -> list[Tokens]:
    """Return one Tokens on the CPU per image of a unit, its samples the patterns.

    Images of one size go through the backbone together, at most ``batch_size`` views at a time.
    """
    to_local_device(backbone)
    device = next(backbone.parameters()).device
    results: dict[str, Tokens] = {}
    for size in dict.fromkeys(image.views.shape[-2:] for image in images):
        alike = [image for image in images if image.views.shape[-2:] == size]
        views = torch.cat([image.views for image in alike])
        with torch.inference_mode():
            parts = [_fetched(backbone(*send([chunk], device))) for chunk in torch.split(views, batch_size)]
        tokens, at = Tokens.cat(parts), 0
        for image in alike:
            results[image.image_id] = tokens[at : at + len(image.views)]
            at += len(image.views)
    return [results[image.image_id] for image in images]


def _fetched(tokens: Tokens) -> Tokens:
    return replace(tokens, sequence=tuple(fetch(tokens.sequence)))


def measure_scale(items: Sequence[Item], description: Description, backbone: Backbone, skip: bool) -> Tensor:
    """Return the channel scale (layers, channels): the RMS over all views of the first usable images.

    Raises:
        DataError: if an image cannot be used and ``skip`` is not set, or none can.
    """
    tokens: list[Tokens] = []
    for item in items:
        image = prepare(item, description)
        if not image.problem:
            tokens += run_views(backbone, [image], LARGEST_BATCH)
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
