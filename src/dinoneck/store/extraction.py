"""Extraction: images -> views -> backbone -> shards, resumable and shared among any number of processes.

A **unit** is what goes through the backbone together: as many images as fill a pass. It depends on
the list of images alone, never on what is done already or on how work is shared. So a store that
was interrupted, resumed or split among processes holds the same bits as one made in a single run.
Threads decode the images of the next unit while the backbone works on this one, and a thread writes
the unit before.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
import json
import logging
import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dinoneck.backbones.backbone import Backbone
from dinoneck.devices import fetch, send
from dinoneck.errors import ConfigError, DataError, DinoneckError, StoreError
from dinoneck.extras import missing_extra
from dinoneck.grid import GridSize, TokenGrid
from dinoneck.images.pixels import in_threads
from dinoneck.progress import announce, progress
from dinoneck.store.description import DATA, Description, write_scale
from dinoneck.store.encoding import channel_rms, encode, units_between
from dinoneck.store.images import (
    Item,
    check_no_other_ids,
    check_unchanged,
    image_file,
    plan,
    root_of,
    views_of,
)
from dinoneck.store.reading import Reader
from dinoneck.store.shards import ImageFile, Writer, remove_leftovers
from dinoneck.text import counted, reason_of
from dinoneck.tokens import Tokens

LARGEST_BATCH = 32  # views
UNIT_TOKENS = 8192  # patch tokens of a unit at most, unless one image has more
CPU_PASS_TOKENS = 2048  # patch tokens; a CPU's caches hold the activations of no more
# a short list of images has as many units, so that several processes can share it
LEAST_UNITS = 8
# usable images that the channel scale of int8 is measured on
SCALE_IMAGES = 16
# stored images that are computed again where another runtime continues a store
COMPARED_IMAGES = 10
# a unit of the store's rounding, and what the last bits of a scale of int8 add to it
MOST_UNITS = 1.01
_CPUS_PER_ACTOR = 2  # of a Ray cluster without GPUs
_UNITS_PER_CALL = 8  # of an actor

logger = logging.getLogger(__name__)
Unit = Sequence[Item]


class PreparedImage(NamedTuple):
    """What identifies an image's file, and its views (3, H, W)."""

    file: ImageFile
    views: list[Tensor]


class ViewOfImage(NamedTuple):
    """A view of an image, by the image's id and the number of the view."""

    image_id: str
    number: int


class TokenBatch(NamedTuple):
    """What went through the backbone together: the views, and their Tokens (B, ...) on the CPU."""

    views: list[ViewOfImage]
    tokens: Tokens


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
    """Return how many views have at most so many patch tokens together, up to 32.

    Where images keep their own sizes, it is the number of views of one image.
    """
    size = description.preprocess.size
    if size is None:
        return len(description.views)
    grid = TokenGrid(description.preprocess.patch_size, "pad").size(size)
    return max(1, min(LARGEST_BATCH, tokens // grid.count))


def units_of(items: Sequence[Item], description: Description, batch_size: int | None) -> list[Unit]:
    """Split sorted images into units.

    Args:
        items: all images of the extraction, all processes' shares together.
        description: of the store.
        batch_size: views per backbone pass; None: see :func:`views_per_pass`, and at least eight
            units, so that processes can share a short list.
    """
    views = batch_size or views_per_pass(description)
    images = max(1, views // len(description.views))
    if batch_size is None:
        images = max(1, min(images, len(items) // LEAST_UNITS))
    return [items[begin : begin + images] for begin in range(0, len(items), images)]


def check_shard(shard: object) -> None:
    """Check that this is a part of the work: (i, n) with 0 <= i < n.

    Raises:
        ConfigError: naming it.
    """
    if isinstance(shard, Sequence) and len(shard) == 2:
        part, count = shard
        are_integers = type(part) is int and type(count) is int  # neither is True or False
        if are_integers and 0 <= part < count:
            return
    raise ConfigError(f"shard is {shard!r}; expected (i, n) with 0 <= i < n, such as (0, 4)")


def check_writable(folder: Path) -> None:
    """Check before any work that shards can be written.

    Raises:
        StoreError: naming the folder.
    """
    data = folder / DATA
    if not data.is_dir():
        raise StoreError(
            f"{data} is missing, so the store was moved or removed; create it again, or open it "
            "where it is now"
        )
    if not os.access(data, os.W_OK | os.X_OK):
        raise StoreError(f"{data} cannot be written; copy the store, or ask for the right to write")


@dataclass(frozen=True)
class Extractor:
    """Runs a backbone over images and writes what the store lacks; with its backbone on the CPU it can be pickled.

    Args:
        reader: of the store.
        backbone: that the store was made with.
        batch_size: see :meth:`dinoneck.FeatureStore.extract`.
        skip_unusable: see there.
        workers: see there.
        shard_bytes: see there.
        known: the ids that the store holds.
    """

    reader: Reader
    backbone: Backbone
    batch_size: int | None
    skip_unusable: bool
    workers: int | None
    shard_bytes: int
    known: Collection[str]

    def extract(
        self, items: Sequence[Item], shard: tuple[int, int] | None, engine: str
    ) -> Extracted:
        """Store the images of a share that the store lacks.

        Args:
            items: all images.
            shard: see :meth:`dinoneck.FeatureStore.extract`.
            engine: see there.

        Raises:
            ConfigError: if torchrun's RANK is not below its WORLD_SIZE.
            StoreError: if the file of a stored image has changed, a new image is stored under
                another id, or another runtime gives other tokens for stored images. Also if the
                folder cannot be written, or the images do not fit on the disk; else as :meth:`run`.
        """
        reader = self.reader
        folder = Path(str(reader.files))
        units = units_of(items, reader.description, self.batch_size)
        part, count = shard or _share_of_torchrun()
        share = units if engine == "ray" else units[part::count]

        # checks before any work
        remove_leftovers(folder)
        check_unchanged(self._stored_items(share), reader.entries)
        num_missing = self._count_new(items)
        if num_missing:
            new_items = [item for item in items if item[0] not in self.known]
            check_no_other_ids(new_items, self.known, reader.entries)
            check_writable(folder)
            self.check_runtime(items)
            announce(plan(items, num_missing, reader.description, folder))

        if reader.description.dtype == "int8" and reader.scale is None:
            write_scale(reader.files, self.measure_scale(items))
            reader.refresh()
        units_to_run = [unit for unit in share if self._count_new(unit)]
        extracted = Extracted()
        try:
            if units_to_run and engine == "ray":
                extracted = self.run_on_ray(units_to_run)
            elif units_to_run:
                extracted = self.run(units_to_run)
        finally:
            reader.refresh(write=True)
        extracted.present = sum(len(unit) - self._count_new(unit) for unit in share)
        return extracted

    def run(self, units: Sequence[Unit]) -> Extracted:
        """Extract the images of these units that are not stored.

        Args:
            units: one or more; all images of a unit go through the backbone.

        Raises:
            DataError: for an image that cannot be used; everything finished before is kept.
            StoreError: if values do not fit the dtype, or the disk is full.
        """
        extracted = Extracted()
        items = list(itertools.chain.from_iterable(units))
        writer = Writer(self.reader.shards, root_of(*items[0]), self.shard_bytes)
        batch_size = self.batch_size
        if batch_size is None:
            on_cpu = next(self.backbone.parameters()).device.type == "cpu"
            pass_tokens = CPU_PASS_TOKENS if on_cpu else UNIT_TOKENS
            batch_size = views_per_pass(self.reader.description, pass_tokens)
        self.expect_images(len(items))
        prepare = functools.partial(self.prepare, unusable=extracted.unusable)
        images_per_unit = max(len(unit) for unit in units)
        prepared = in_threads(prepare, items, self.workers, ahead=images_per_unit)
        try:
            with (
                contextlib.closing(prepared),
                ThreadPoolExecutor(1, "dinoneck-writes") as writing,
                progress(total=self._count_new(items), desc="images", unit="image") as bar,
            ):
                # the ids that the thread has written; none before the first unit
                unit_before: Future[list[str]] = writing.submit(list)
                for unit in units:
                    images: dict[str, PreparedImage] = {}
                    # takes the unit's images from the generator, which goes on with the next unit
                    for (image_id, _), image in zip(unit, prepared, strict=False):
                        if image is not None:
                            images[image_id] = image
                    batches = self.run_backbone(images, batch_size)
                    extracted.written += unit_before.result()
                    unit_before = writing.submit(self._write, writer, images, batches)
                    bar.update(self._count_new(unit))
                extracted.written += unit_before.result()
        finally:
            writer.flush()
        return extracted

    def expect_images(self, count: int) -> None:
        """State how many views of each size the backbone gets of so many images, where they have one size."""
        size = self.reader.description.preprocess.prepared_size()
        if size is None:
            return
        height, width = size
        counts: Counter[tuple[int, int]] = Counter()
        for view in self.reader.description.views.views:
            is_turned = view.turns % 2 == 1
            if is_turned:
                counts[width, height] += count
            else:
                counts[height, width] += count
        self.backbone.expect_images(counts)

    def check_runtime(self, items: Sequence[Item]) -> None:
        """Compare the first stored images with what another runtime than the store's gives for them.

        Args:
            items: all images.

        Raises:
            StoreError: if their tokens differ by more than a unit of the store's rounding, naming
                the image and the number of units.
        """
        description = self.reader.description
        runtime_of_store = description.backbone.get("runtime", "torch")
        if self.backbone.runtime == runtime_of_store:
            return
        # so that 'auto' compares the program that it is going to use
        self.expect_images(len(items))
        stored_items = [item for item in items if item[0] in self.known]
        for item in stored_items[:COMPARED_IMAGES]:
            image_id, _ = item
            image = self.prepare(item, {})
            if image is None:  # it is stored, and cannot be read any more
                continue
            for batch in self.run_backbone({image_id: image}, LARGEST_BATCH):
                numbers = [view.number for view in batch.views]
                stored_columns, _ = self.reader.columns([image_id] * len(numbers), numbers)
                encoded = encode(batch.tokens, description.dtype, self.reader.scale)
                units = units_between(encoded, stored_columns, description.dtype)
                if not units <= MOST_UNITS:
                    raise StoreError(
                        f"{self.reader.files} was begun with the runtime {runtime_of_store!r}, "
                        f"and {self.backbone.runtime!r} gives other tokens for {image_id!r}: they "
                        f"differ by {units:.3g} units of {description.dtype}'s rounding, and at most "
                        "1 is taken; extract with the store's runtime (runtime=, --runtime), or into "
                        "another store"
                    )

    def _count_new(self, items: Sequence[Item]) -> int:
        """How many of these images the store lacks."""
        return sum(image_id not in self.known for image_id, _ in items)

    def _stored_items(self, units: Sequence[Unit]) -> Iterator[Item]:
        """The images of these units that the store holds."""
        for unit in units:
            for image_id, path in unit:
                if image_id in self.known:
                    yield image_id, path

    def _write(
        self, writer: Writer, images: Mapping[str, PreparedImage], batches: Sequence[TokenBatch]
    ) -> list[str]:
        """Hand the images of a unit that are not stored yet to the writer; return their ids."""
        views = self.reader.description.views
        grids: dict[str, GridSize] = {}
        # view -> part -> (layers, ...)
        encoded_views: dict[ViewOfImage, dict[str, Tensor]] = {}
        for batch in batches:
            encoded = encode(batch.tokens, self.reader.description.dtype, self.reader.scale)
            for row, view in enumerate(batch.views):
                encoded_views[view] = {name: x[row] for name, x in encoded.items()}
                grid = batch.tokens.grid
                if views.views[view.number].turns % 2:
                    grid = GridSize(grid.cols, grid.rows)
                grids[view.image_id] = grid

        new_ids = [image_id for image_id in images if image_id not in self.known]
        for image_id in new_ids:
            views_of_image = []
            for number in range(len(views)):
                views_of_image.append(encoded_views[ViewOfImage(image_id, number)])
            parts: dict[str, Tensor] = {}  # (views, layers, ...)
            for name in views_of_image[0]:
                parts[name] = torch.stack([encoded[name] for encoded in views_of_image])
            writer.add(image_id, parts, grids[image_id], images[image_id].file)
        return new_ids

    def run_backbone(
        self, images: Mapping[str, PreparedImage], batch_size: int
    ) -> list[TokenBatch]:
        """Return the tokens of images: views of one size are a batch together, at most ``batch_size``."""
        device = next(self.backbone.parameters()).device
        views_by_size: dict[torch.Size, list[ViewOfImage]] = {}
        for image_id, image in images.items():
            for number, x in enumerate(image.views):
                views_by_size.setdefault(x.shape, []).append(ViewOfImage(image_id, number))
        batches = []
        for same_size in views_by_size.values():
            for begin in range(0, len(same_size), batch_size):
                views = same_size[begin : begin + batch_size]
                inputs = [images[view.image_id].views[view.number] for view in views]
                batch = torch.stack(inputs)  # (B, 3, H, W)
                with torch.inference_mode():
                    tokens = self.backbone(*send([batch], device))
                    on_cpu = replace(tokens, sequence=tuple(fetch(tokens.sequence)))
                batches.append(TokenBatch(views, on_cpu))
        return batches

    def measure_scale(self, items: Sequence[Item]) -> Tensor:
        """Return the channel scale (layers, channels): the RMS over all views of the first usable images.

        Raises:
            DataError: if an image cannot be used and is not to be skipped, or none can.
        """
        unusable: dict[str, str] = {}
        batches: list[Tokens] = []
        num_usable = 0
        for item in items:
            image = self.prepare(item, unusable)
            if image is None:
                continue
            image_id, _ = item
            for batch in self.run_backbone({image_id: image}, LARGEST_BATCH):
                batches.append(batch.tokens)
            num_usable += 1
            if num_usable == SCALE_IMAGES:
                break
        if not batches:
            reasons = list(unusable.values())
            raise DataError(
                f"none of {counted(len(items), 'image')} can be used, so an int8 store has no "
                f"channel scale; the first: {reasons[0]}"
            )
        return channel_rms(batches)

    def prepare(self, item: Item, unusable: dict[str, str]) -> PreparedImage | None:
        """Decode one image and make its views.

        Args:
            item: its id and file.
            unusable: id -> why it is left out; an image that is skipped is added.

        Returns:
            None for an image that cannot be used and is not needed: it is stored already, or
            ``skip_unusable`` is set.

        Raises:
            DataError: for another image that cannot be used.
        """
        image_id, path = item
        description = self.reader.description
        try:
            # hashed before it is decoded: a file that changes in between differs from its hash in
            # the next extraction
            file = image_file(path)
            views = views_of(path, description.preprocess, description.views, image_id)
            return PreparedImage(file, views)
        except DinoneckError as error:
            problem = str(error)
            if str(path) not in problem:
                problem = f"{path}: {problem}"
        except FileNotFoundError:
            problem = f"there is no image {path}; check the folder and the file name"
        except OSError as error:
            problem = f"{path} cannot be read: {reason_of(error)}"
        if image_id not in self.known:
            if not self.skip_unusable:
                raise DataError(
                    f"{problem}. What was finished is kept: fix or remove it and run again, or "
                    "pass skip_unusable=True (--skip-unusable)"
                )
            logger.warning("left out: %s", problem)
            unusable[image_id] = problem
        return None

    def run_on_ray(self, units: Sequence[Unit]) -> Extracted:
        """Do what :meth:`run` does with actors of Ray Data on machines that share a file system.

        There is an actor per GPU of the cluster, or per two CPUs where there is none. Each gets the
        backbone once.

        Raises:
            ImportError: naming the extra, if Ray is not installed.
            StoreError: if an actor fails, also at an image that cannot be used; what was finished
                is kept.
        """
        try:
            import ray
            import ray.data
        except ImportError:
            raise missing_extra("ray", "ray") from None
        if not ray.is_initialized():
            ray.init(logging_level=logging.ERROR, log_to_driver=False)
        ray.data.DataContext.get_current().enable_progress_bars = False
        resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
        num_gpus = int(resources.get("GPU", 0))
        num_cpus = int(resources.get("CPU", 1))
        num_actors = num_gpus or max(1, num_cpus // _CPUS_PER_ACTOR)

        # what travels to the actors: the ids of their images, and a backbone on the CPU
        known = {image_id for image_id, _ in self._stored_items(units)}
        extractor = replace(self, backbone=copy.deepcopy(self.backbone).cpu(), known=known)
        rows = []
        for unit in units:
            items = [(image_id, str(path)) for image_id, path in unit]
            rows.append({"unit": json.dumps(items)})
        stream = ray.data.from_items(rows).map_batches(
            _Actor,
            fn_constructor_args=(extractor,),
            batch_size=_UNITS_PER_CALL,
            compute=ray.data.ActorPoolStrategy(size=num_actors),
            num_gpus=1 if num_gpus else None,
        )

        extracted = Extracted()
        num_new = sum(self._count_new(unit) for unit in units)
        try:
            with progress(total=num_new, desc="images", unit="image") as bar:
                for row in stream.iter_rows():
                    part = json.loads(row["done"])
                    extracted.written += part["written"]
                    extracted.unusable |= part["unusable"]
                    bar.update(len(part["written"]) + len(part["unusable"]))
        except ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[-1]
            raise StoreError(
                f"an actor failed ({reason}); what was finished is kept, run again"
            ) from error
        return extracted


def _share_of_torchrun() -> tuple[int, int]:
    """Return (i, n) of this process as torchrun sets them; (0, 1) without torchrun.

    Raises:
        ConfigError: if they do not fit.
    """
    rank = int(os.environ.get("RANK", "0"))
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if not 0 <= rank < world_size:
        raise ConfigError(
            f"RANK is {rank} and WORLD_SIZE {world_size}; expected 0 <= RANK < WORLD_SIZE, as "
            "torchrun sets them: unset both, or pass shard=(i, n)"
        )
    return rank, world_size


class _Actor:
    """Holds the backbone in one process of a Ray cluster."""

    def __init__(self, extractor: Extractor) -> None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.extractor = replace(extractor, backbone=extractor.backbone.to(device))

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        units = []
        for text in batch["unit"]:
            items = json.loads(str(text))
            units.append([(image_id, Path(path)) for image_id, path in items])
        extracted = self.extractor.run(units)
        part = {"written": extracted.written, "unusable": extracted.unusable}
        return {"done": [json.dumps(part)]}
