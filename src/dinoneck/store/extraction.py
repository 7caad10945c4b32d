"""Extraction: images -> views -> backbone -> shards, resumable and shared among any number of processes.

A **unit** is what goes through the backbone together: as many images as fill a pass. It depends on the list of images
alone, never on what is done already or on how work is shared, so a store that was interrupted, resumed or split among
processes holds the same bits as one made in a single run. Threads decode the images of the next unit while the backbone
works on this one, and a thread writes the unit before.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from dinoneck.backbones.backbone import Backbone
from dinoneck.data.loading import in_threads
from dinoneck.devices import fetch, send, to_local_device
from dinoneck.errors import ConfigError, DataError, DinoneckError
from dinoneck.grid import GridSize, TokenGrid
from dinoneck.progress import announce, note, progress
from dinoneck.store.description import Description, write_scale
from dinoneck.store.encoding import channel_rms, encode
from dinoneck.store.images import Item, check_unchanged, image_file, plan, root_of, views_of
from dinoneck.store.index import Index
from dinoneck.store.reading import Reader
from dinoneck.store.shards import ImageFile, Writer, remove_leftovers
from dinoneck.tokens import Tokens

LARGEST_BATCH = 32
UNIT_TOKENS = 8192
LEAST_UNITS = 8
CPU_PASS_TOKENS = 2048  # its caches hold the activations of no more
SCALE_IMAGES = 16
UNITS_BEFORE_ESTIMATE = 3
LOOKED_UP = 10_000  # images at once

logger = logging.getLogger(__name__)
Place = tuple[int, int]
"""An image of a unit and one of its views."""


class Unit(NamedTuple):
    """Images that go through the backbone together, and the ids of those that the store holds already."""

    items: list[Item]
    stored: frozenset[str]


class Settings(NamedTuple):
    """Options of an extraction, see :meth:`dinoneck.FeatureStore.extract`."""

    batch_size: int | None
    skip_unusable: bool
    workers: int | None
    shard_bytes: int


class Prepared(NamedTuple):
    """An image ready for the backbone: its id, its file, and its views (3, H, W), or why it cannot be used."""

    image_id: str
    file: ImageFile | None
    views: list[Tensor]
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
        return len(description.views)
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
    size = max(1, (batch_size or views_per_pass(description)) // len(description.views))
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


def missing_units(items: Sequence[Item], share: Sequence[list[Item]], index: Index) -> tuple[list[Unit], int]:
    """Return the units of a share of which the store lacks an image, and how many of all images it lacks.

    Raises:
        StoreError: if the file of a stored image of the share has changed.
    """
    own, stored = {image_id for unit in share for image_id, _ in unit}, set[str]()
    for begin in range(0, len(items), LOOKED_UP):
        some = items[begin : begin + LOOKED_UP]
        known = index.known(image_id for image_id, _ in some)
        check_unchanged(((image_id, path) for image_id, path in some if image_id in own), known)
        stored |= known.keys()
    units = [Unit(unit, frozenset(image_id for image_id, _ in unit if image_id in stored)) for unit in share]
    return [unit for unit in units if len(unit.stored) < len(unit.items)], len(items) - len(stored)


def extract(
    items: Sequence[Item],
    share: Sequence[list[Item]],
    reader: Reader,
    backbone: Backbone,
    settings: Settings,
    run: Callable[..., Extracted],
) -> Extracted:
    """Store the images of a share that the store lacks.

    Args:
        items: all images.
        share: the units to work on.
        reader: of the store.
        backbone: that the store was made with.
        settings: see there.
        run: :func:`run_units`, here or on a cluster.

    Raises:
        StoreError: if the file of a stored image has changed, or the images do not fit on the disk; else as ``run``.
    """
    description, folder = reader.description, Path(str(reader.files))
    remove_leftovers(folder)
    reader.refresh()
    missing, lacking = missing_units(items, share, reader.entries)
    if lacking:
        announce(plan(items, lacking, description, folder))
    if description.dtype == "int8" and reader.scale is None:
        write_scale(folder, measure_scale(items, description, backbone, settings.skip_unusable))
        reader.refresh()
    writer = Writer(folder, reader.made, root_of(*items[0]), settings.shard_bytes)
    try:
        done = run(missing, description, writer, backbone, reader.scale, settings)
    finally:
        reader.refresh(write=True)
    done.present = sum(map(len, share)) - sum(len(unit.items) - len(unit.stored) for unit in missing)
    return done


def run_units(
    units: Sequence[Unit],
    description: Description,
    writer: Writer,
    backbone: Backbone,
    channel_scale: Tensor | None,
    settings: Settings,
) -> Extracted:
    """Extract what is missing of these units.

    Raises:
        ConfigError: if workers is below 1.
        DataError: for an image that cannot be used; everything finished before is kept.
        StoreError: if values do not fit the dtype, or the disk is full.
    """
    workers = settings.workers
    if workers is not None and (type(workers) is not int or workers < 1):
        raise ConfigError(f"workers is {workers!r}; expected 1 or more threads that decode images, or None")
    done = Extracted()
    size = settings.batch_size or views_per_pass(description, _tokens_of(backbone))
    encoded = functools.partial(encode, dtype=description.dtype, channel_scale=channel_scale)
    items = [item for unit in units for item in unit.items]
    ahead = max((len(unit.items) for unit in units), default=1)
    prepared = in_threads(lambda item: prepare(item, description), items, workers, ahead)
    total = sum(len(unit.items) - len(unit.stored) for unit in units)
    begun = time.monotonic()
    try:
        with (
            contextlib.closing(prepared),
            ThreadPoolExecutor(1, "dinoneck-writes") as writing,
            progress(total=total, desc="images", unit="image") as bar,
        ):
            before: Future[list[str]] | None = None
            for number, unit in enumerate(units, 1):
                usable = _usable([*itertools.islice(prepared, len(unit.items))], unit, done, settings.skip_unusable)
                passes = run_views(backbone, usable, size)
                if before is not None:
                    done.written += before.result()
                before = writing.submit(_write, writer, unit, usable, passes, encoded, description.views.turns(0))
                bar.update(len(unit.items) - len(unit.stored))
                minutes = (time.monotonic() - begun) / number * (len(units) - number) / 60
                if number == UNITS_BEFORE_ESTIMATE and minutes > 1:
                    note(f"after {number} of {len(units)} batches of images: about {minutes:.0f} minutes remain")
            if before is not None:
                done.written += before.result()
    except (DinoneckError, KeyboardInterrupt):
        writer.flush()
        raise
    writer.flush()
    return done


def _write(
    writer: Writer,
    unit: Unit,
    images: Sequence[Prepared],
    passes: Sequence[tuple[list[Place], Tokens]],
    encoded: Callable[[Tokens], dict[str, Tensor]],
    turns: int,
) -> list[str]:
    """Hand the images of a unit that are not stored yet to a writer; return their ids."""
    stored: dict[Place, tuple[GridSize, dict[str, Tensor]]] = {}  # image and view -> grid, part -> (layers, ...)
    for places, tokens in passes:
        parts = encoded(tokens)
        stored |= {place: (tokens.grid, {name: x[i] for name, x in parts.items()}) for i, place in enumerate(places)}
    written = []
    for row, image in enumerate(images):
        if image.image_id not in unit.stored and image.file is not None:
            own = [stored[row, view] for view in range(len(image.views))]
            grid, first = own[0]
            views = {name: torch.stack([parts[name] for _, parts in own]) for name in first}  # (views, layers, ...)
            writer.add(image.image_id, views, GridSize(*grid[::-1]) if turns % 2 else grid, image.file)
            written.append(image.image_id)
    return written


def _tokens_of(backbone: Backbone) -> int:
    """How many patch tokens go through a backbone at once."""
    return CPU_PASS_TOKENS if next(backbone.parameters()).device.type == "cpu" else UNIT_TOKENS


def run_views(backbone: Backbone, images: Sequence[Prepared], batch_size: int) -> list[tuple[list[Place], Tokens]]:
    """Return the passes of a unit: which views of which images, and their Tokens on the CPU.

    Views of one size go through the backbone together, at most ``batch_size`` at a time.
    """
    to_local_device(backbone)
    device = next(backbone.parameters()).device
    by_size: dict[torch.Size, list[Place]] = {}
    for row, image in enumerate(images):
        for view, x in enumerate(image.views):
            by_size.setdefault(x.shape, []).append((row, view))
    passes = []
    for alike in by_size.values():
        for begin in range(0, len(alike), batch_size):
            places = alike[begin : begin + batch_size]
            chunk = torch.stack([images[row].views[view] for row, view in places])  # (B, 3, H, W)
            with torch.inference_mode():
                passes.append((places, _fetched(backbone(*send([chunk], device)))))
    return passes


def _fetched(tokens: Tokens) -> Tokens:
    return replace(tokens, sequence=tuple(fetch(tokens.sequence)))


def measure_scale(items: Sequence[Item], description: Description, backbone: Backbone, skip: bool) -> Tensor:
    """Return the channel scale (layers, channels): the RMS over all views of the first usable images.

    Raises:
        DataError: if an image cannot be used and ``skip`` is not set, or none can.
    """
    tokens: list[Tokens] = []
    used = 0
    for item in items:
        image = prepare(item, description)
        if image.problem and not skip:
            raise DataError(image.problem)
        used += not image.problem
        tokens += [each for _, each in run_views(backbone, [image], LARGEST_BATCH)]
        if used == SCALE_IMAGES:
            break
    if not tokens:
        raise DataError(f"none of {len(items)} images can be used")
    return channel_rms(tokens)


def prepare(item: Item, description: Description) -> Prepared:
    """Decode one image and make its views; the problem of an unusable one is returned, not raised."""
    image_id, path = item
    try:
        # hashed before it is decoded: a file that changes in between differs from its hash in the next extraction
        file = image_file(path) if path.is_file() else None
        return Prepared(image_id, file, views_of(path, description.preprocess, description.views, image_id))
    except (DinoneckError, OSError) as error:
        problem = str(error) if str(path) in str(error) else f"{path}: {error}"
        return Prepared(image_id, None, [], problem)


def _usable(images: list[Prepared], unit: Unit, done: Extracted, skip: bool) -> list[Prepared]:
    for image in images:
        if image.problem and image.image_id not in unit.stored:
            if not skip:
                raise DataError(
                    f"{image.problem}. Everything finished before is kept; fix or remove it and run again, or pass "
                    "skip_unusable=True (--skip-unusable)"
                )
            logger.warning("left out: %s", image.problem)
            done.unusable[image.image_id] = image.problem
    return [image for image in images if not image.problem]
