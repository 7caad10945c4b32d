"""Sources of training tokens: anything with ``ids`` and ``batch(ids, views)``."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from dinoneck.backbones.backbone import Backbone, checked_backbone
from dinoneck.data.decoding import ImageInput, read_image_size, read_pixels
from dinoneck.data.preprocessing import Preprocessing
from dinoneck.data.resizing import to_uint8
from dinoneck.errors import ConfigError, DataError
from dinoneck.progress import progress
from dinoneck.tokens import Tokens
from dinoneck.training.processes import own_random_numbers

LARGEST_HALF = 65504.0
Transform = Callable[..., Any]
_Item = TypeVar("_Item")


def in_batches(items: Sequence[_Item], size: int) -> Iterator[Sequence[_Item]]:
    """Yield consecutive pieces of at most ``size`` items."""
    for begin in range(0, len(items), size):
        yield items[begin : begin + size]


def looked_up(table: Mapping[str, _Item], ids: Sequence[str]) -> list[_Item]:
    """Return the value of every id.

    Raises:
        DataError: naming the first that is not there.
    """
    if unknown := [image_id for image_id in ids if image_id not in table]:
        raise DataError(f"{len(unknown)} ids are not in this source, the first is {unknown[0]!r}")
    return [table[image_id] for image_id in ids]


class Flips(Protocol):
    """The augmented views of a source, and their flips."""

    def __len__(self) -> int:
        """Return how many there are; 0 is the image as it is."""
        ...

    def flips(self, i: int) -> tuple[bool, bool]:
        """Return whether view i is flipped left and right, top and bottom."""
        ...


class Views:
    """The augmented views of a source; the first is the image as it is.

    Args:
        count: how many there are.
        flips: what ``flips`` returns for each; None = a transform makes the views, and their flips are not known.
    """

    def __init__(self, count: int, flips: Callable[[int], tuple[bool, bool]] | None = None) -> None:
        self._count, self._flips = count, flips

    def __len__(self) -> int:
        return self._count

    def flips(self, i: int) -> tuple[bool, bool]:
        """Return whether view i is flipped left and right, top and bottom.

        Raises:
            ConfigError: for a view that a transform makes.
        """
        if self._flips is not None:
            return self._flips(i)
        if i:
            raise ConfigError(
                "tasks with maps cannot be trained on views made by transforms, which may move pixels while the maps "
                "stay; leave the transforms out, or use a feature store, whose augmentations state their flips"
            )
        return False, False


def apply_transform(transform: Transform, image: ImageInput, seed: int) -> Any:
    """Return a transformed image: a tensor (3, height, width) or an array (height, width, 3).

    The transform gets a uint8 tensor (3, height, width); one of albumentations an array (height, width, 3) as
    ``image=``. It draws from generators that are seeded here: the caller's are not changed.

    Args:
        transform: see above.
        image: as for the backbone's preprocessing.
        seed: of the random numbers, 0 ... 2^32 - 1.

    Raises:
        DataError: if the image cannot be read, or the result is not an image.
    """
    pixels = to_uint8(read_pixels(image))
    with own_random_numbers(cuda=False):
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torch.default_generator.manual_seed(seed)
        if type(transform).__module__.startswith("albumentations"):
            if hasattr(transform, "set_random_seed"):
                transform.set_random_seed(seed)
            result = transform(image=np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()))["image"]
        else:
            result = transform(pixels)
    if not isinstance(result, Tensor | np.ndarray):
        raise DataError(f"a transform returned {type(result).__name__}; expected an image tensor or array")
    return result


def view_seed(image_id: str, view: int) -> int:
    """Return the seed of a view of an image: extracted again, it is the same."""
    return int.from_bytes(hashlib.sha256(f"{view}\0{image_id}".encode()).digest()[:4], "little")


class TokenSource(Protocol):
    """Tokens by image id and view.

    A class may have ``stored(ids, views)`` next to ``batch``: it returns a list of tensors as they are kept, and a
    function that makes the float32 Tokens of them on the device where they have arrived. Training then moves the
    narrower dtype, and a thread reads ahead of the step: ``stored`` must not draw random numbers, and later calls must
    not change the tensors of an earlier one.
    """

    @property
    def ids(self) -> Sequence[str]:
        """All image ids."""
        ...

    def batch(self, ids: Sequence[str], views: Sequence[int] | None = None) -> Tokens:
        """Return the Tokens of these images, in this order; ``views`` picks an augmented view for each."""
        ...


class SomeTokens:
    """Some samples of a source, in an order and under ids of their own.

    Args:
        source: has these samples, and perhaps more.
        ids: of the samples.
        own_ids: the ids by which the source knows them, one each; None = the same.

    Attributes:
        own_ids: id -> the source's own.
        views: the source's augmented views; None where it has none.

    Raises:
        DataError: if the source lacks one, or one stands twice.
    """

    def __init__(self, source: TokenSource, ids: Sequence[str], own_ids: Sequence[str] | None = None) -> None:
        self.source, self.ids = source, tuple(ids)
        self.own_ids = dict(zip(self.ids, self.ids if own_ids is None else own_ids, strict=True))
        self.views: Flips | None = getattr(source, "views", None)
        known = set(source.ids)
        missing = [image_id for image_id, own in self.own_ids.items() if own not in known]
        if missing or len(self.own_ids) != len(self.ids):
            raise DataError(
                f"the source lacks {len(missing)} of {len(self.ids)} ids ({len(self.own_ids)} different), the first "
                f"is {missing[0] if missing else None!r}; the tokens belong to other images"
            )

    def batch(self, ids: Sequence[str], views: Sequence[int] | None = None) -> Tokens:
        """Return the Tokens of these images, in this order."""
        own = looked_up(self.own_ids, ids)
        return self.source.batch(own) if views is None else self.source.batch(own, views)


Stored = tuple[Sequence[Tensor], Callable[[Sequence[Tensor]], Tokens]]


def is_stored(source: TokenSource) -> bool:
    """Whether what defines ``batch`` also has ``stored``, so that both give the same tokens."""
    if isinstance(source, SomeTokens):
        return is_stored(source.source)
    if "batch" in vars(source):
        return False
    owner = next((kind for kind in type(source).__mro__ if "batch" in vars(kind)), object)
    return "stored" in vars(owner)


def stored_tokens(source: TokenSource, ids: Sequence[str], views: Sequence[int] | None) -> Stored:
    """Return the tensors of a batch and the function that makes Tokens of them."""
    if isinstance(source, SomeTokens):
        return stored_tokens(source.source, looked_up(source.own_ids, ids), views)
    if is_stored(source):
        stored: Stored = source.stored(ids, views)  # type: ignore[attr-defined]
        return stored
    tokens = source.batch(ids) if views is None else source.batch(ids, views)
    return tokens.sequence, lambda moved: replace(tokens, sequence=tuple(moved))


def _check(images: Sequence[ImageInput], ids: Sequence[str], prepare: Preprocessing) -> None:
    """Refuse, before any is decoded, images that cannot be stacked: tokens in memory have one grid."""
    if len(images) == 0 or len(images) != len(ids):
        raise DataError(f"there are {len(images)} images to extract tokens from and {len(ids)} ids; expected one each")
    if prepare.size is not None:
        return
    first = read_image_size(images[0])
    prepare.placement(first)
    for image, image_id in zip(images, ids, strict=True):
        if (size := read_image_size(image)) != first:
            raise DataError(
                f"image {image_id!r} is {size[0]}x{size[1]} px (height x width), the ones before {first[0]}x{first[1]};"
                " give one size to all (size=, or --size)"
            )


class MemoryTokens:
    """Tokens of all images in memory, extracted once: the shortest way to train on a few hundred images.

    Args:
        ids: one per sample.
        tokens: Tokens of all samples.
        colours: mean RGB of every prepared image (n, 3), in normalised units; the simplest baseline's features.
        views: more Tokens of all samples: of augmented views, which training draws from.

    Raises:
        DataError: if lengths differ or an id stands twice.
    """

    def __init__(
        self, ids: Sequence[str], tokens: Tokens, colours: Tensor | None = None, views: Sequence[Tokens] = ()
    ) -> None:
        self.ids = tuple(ids)
        self._rows = {image_id: row for row, image_id in enumerate(self.ids)}
        lengths = {len(each) for each in (tokens, *views)}
        if len(self._rows) != len(self.ids) or lengths != {len(self.ids)}:
            raise DataError(
                f"{len(self.ids)} ids ({len(self._rows)} different) for {', '.join(map(str, lengths))} samples"
            )
        self.tokens, self.colours, self._others = tokens, colours, tuple(views)

    @property
    def views(self) -> Views | None:
        """The augmented views, the image as it is first; None where there are none."""
        return Views(1 + len(self._others)) if self._others else None

    @classmethod
    def extract(
        cls,
        backbone: Backbone,
        images: Sequence[ImageInput],
        ids: Sequence[str],
        *,
        preprocess: Preprocessing | None = None,
        batch_size: int = 8,
        dtype: torch.dtype = torch.float16,
        transforms: Sequence[Transform] = (),
    ) -> MemoryTokens:
        """Run the backbone once over all images, and once for every transform.

        Args:
            backbone: gives the tokens.
            images: images, one per id; all must come to one size, which is looked at before the first pass.
            ids: one per image.
            preprocess: how images are prepared; None = the backbone's own.
            batch_size: images per pass.
            dtype: kept in this; float16 halves the memory and keeps three digits.
            transforms: one more view of every image each: torchvision v2 transforms, albumentations' or functions of
                a uint8 tensor (3, height, width). They come before the resize. What they draw depends on the image's
                id and the view alone. Training draws a view per sample and epoch. Tasks with maps are refused, as
                transforms may move pixels; a feature store's views state their flips.

        Raises:
            DataError: if there are none or not one per id, if an image cannot be used or has another size, or values
                do not fit float16.
            GridError: if the patch leaves a remainder of their own size that ``resize="keep"`` refuses.
            ConfigError: if ``backbone`` is not a Backbone.
        """
        prepare, images, ids = preprocess or checked_backbone(backbone).preprocess, list(images), list(ids)
        _check(images, ids, prepare)
        views: list[list[Tokens]] = [[] for _ in range(1 + len(transforms))]
        colours: list[Tensor] = []
        device = next(backbone.parameters()).device
        for batch in progress(list(in_batches(range(len(images)), batch_size)), desc="tokens", unit="batch"):
            for view, parts in enumerate(views):
                shown = [
                    apply_transform(transforms[view - 1], images[i], view_seed(ids[i], view)) if view else images[i]
                    for i in batch
                ]
                prepared = prepare(shown)
                if not view:
                    colours.append(prepared.mean(dim=(2, 3)))
                with torch.no_grad():
                    tokens = backbone(prepared.to(device)).to("cpu")
                if not all(bool(x.isfinite().all()) for x in tokens.sequence):
                    raise DataError(f"tokens of images {batch[0]} ... are not finite; is the backbone sound?")
                if dtype == torch.float16 and any(x.abs().amax() > LARGEST_HALF for x in tokens.sequence):
                    raise DataError("token values exceed float16; extract with dtype=torch.bfloat16 or norm=True")
                parts.append(tokens.to(dtype=dtype))
        plain, *others = [Tokens.cat(parts) for parts in views]
        return cls(ids, plain, torch.cat(colours), others)

    def batch(self, ids: Sequence[str], views: Sequence[int] | None = None) -> Tokens:
        """Return float32 Tokens of these ids; view 0 is the image as it is."""
        tensors, tokens = self.stored(ids, views)
        return tokens(tensors)

    def stored(self, ids: Sequence[str], views: Sequence[int] | None = None) -> Stored:
        """Return what :meth:`batch` is made of, see :class:`TokenSource`."""
        rows, every = self.rows(ids), (self.tokens, *self._others)
        if views is None or not any(views):
            kept = self.tokens[rows]
        elif all(0 <= view < len(every) for view in views):
            kept = Tokens.cat([every[view][rows[i : i + 1]] for i, view in enumerate(views)])
        else:
            known = f"0 ... {len(every) - 1}" if self._others else "0 only"
            raise DataError(f"these tokens have view {known}; asked for {sorted(set(views))}")
        return kept.sequence, lambda moved: replace(kept, sequence=tuple(x.float() for x in moved))

    def rows(self, ids: Sequence[str]) -> Tensor:
        """Return the row numbers of these ids."""
        return torch.tensor(looked_up(self._rows, ids))
