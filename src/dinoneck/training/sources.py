"""Where training gets its tokens from: anything with ``ids`` and ``batch(ids, patterns)``."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from dinoneck.backbones.backbone import Backbone, checked_backbone
from dinoneck.data.photos import Photo, Preprocessing, photo_size
from dinoneck.errors import DataError
from dinoneck.grid import TokenGrid
from dinoneck.tensor_bytes import bytes_of
from dinoneck.tokens import Tokens

LARGEST_HALF = 65504.0
_Item = TypeVar("_Item")


def in_batches(items: Sequence[_Item], size: int) -> Iterator[Sequence[_Item]]:
    """Yield consecutive pieces of at most ``size`` items."""
    for begin in range(0, len(items), size):
        yield items[begin : begin + size]


def rows_in(rows: Mapping[str, int], ids: Sequence[str]) -> list[int]:
    """Return the row of every id.

    Raises:
        DataError: naming the first that is not there.
    """
    unknown = [image_id for image_id in ids if image_id not in rows]
    if unknown:
        raise DataError(f"{len(unknown)} ids are not in this source, the first is {unknown[0]!r}")
    return [rows[image_id] for image_id in ids]


class TokenSource(Protocol):
    """Tokens by image id and augmentation pattern."""

    @property
    def ids(self) -> Sequence[str]:
        """All image ids."""
        ...

    def batch(self, ids: Sequence[str], patterns: Sequence[int] | None = None) -> Tokens:
        """Return the Tokens of these images, in this order; ``patterns`` picks an augmentation for each."""
        ...


class SomeTokens:
    """Some samples of a source, in an order of their own.

    Args:
        source: has them all, and perhaps more.
        ids: the samples wanted.

    Raises:
        DataError: if the source lacks one, or one stands twice.
    """

    def __init__(self, source: TokenSource, ids: Sequence[str]) -> None:
        self.source, self.ids = source, tuple(ids)
        missing = set(self.ids) - set(source.ids)
        if missing or len(set(self.ids)) != len(self.ids):
            first = next((image_id for image_id in self.ids if image_id in missing), None)
            raise DataError(
                f"the source lacks {len(missing)} of {len(self.ids)} ids ({len(set(self.ids))} different), the first "
                f"is {first!r}; the tokens belong to other photos"
            )

    @property
    def patterns(self) -> Any:
        """The source's augmentation patterns; None where it has none."""
        return getattr(self.source, "patterns", None)

    def batch(self, ids: Sequence[str], patterns: Sequence[int] | None = None) -> Tokens:
        """Return the Tokens of these images, in this order."""
        return self.source.batch(ids) if patterns is None else self.source.batch(ids, patterns)

    def record(self, ids: Sequence[str] | None = None) -> dict[str, Any]:
        """Return what tells the tokens of these ids from others; None = of all."""
        return record_of(self.source, self.ids if ids is None else ids)


def record_of(source: TokenSource, ids: Sequence[str]) -> dict[str, Any]:
    """Return, in plain values, what tells the tokens of these ids from others: the source's record, or the first's."""
    record = getattr(source, "record", None)
    if callable(record):
        told: dict[str, Any] = record(ids)
        return told
    return _told(source.batch(list(ids[:1])))


def _told(tokens: Tokens) -> dict[str, Any]:
    """What these Tokens are, by the first and the last token of every sample, which see the whole photo."""
    ends = hashlib.sha256()
    for x in tokens.sequence:
        ends.update(bytes_of(x[:, [0, -1]].contiguous()))
    layers = None if tokens.layers is None else list(tokens.layers)
    return {"grid": list(tokens.grid), "layers": layers, "tokens": ends.hexdigest()}


def _check(photos: Sequence[Photo], ids: Sequence[str], prepare: Preprocessing) -> None:
    """Refuse, before any is decoded, photos that cannot be stacked: tokens in memory have one grid."""
    if len(photos) == 0 or len(photos) != len(ids):
        raise DataError(f"there are {len(photos)} photos to extract tokens from and {len(ids)} ids; expected one each")
    if prepare.size is not None:
        return
    known = photo_size(photos[0])
    TokenGrid(prepare.patch_size, prepare.policy).size(known)
    for photo, image_id in zip(photos, ids, strict=True):
        own = photo_size(photo)
        if own != known:
            raise DataError(
                f"photo {image_id!r} is {own[0]}x{own[1]} px (height x width), the ones before {known[0]}x{known[1]}; "
                "give one size to all (size=, or --size)"
            )


class MemoryTokens:
    """Tokens of all photos in memory, extracted once: the shortest way to train on a few hundred photos.

    Args:
        ids: one per sample.
        tokens: Tokens of all samples.
        colours: mean RGB of every prepared photo (n, 3), in normalised units; the simplest baseline's features.

    Raises:
        DataError: if lengths differ or an id stands twice.
    """

    def __init__(self, ids: Sequence[str], tokens: Tokens, colours: Tensor | None = None) -> None:
        self.ids = tuple(ids)
        self._rows = {image_id: row for row, image_id in enumerate(self.ids)}
        if len(self._rows) != len(self.ids) or len(tokens) != len(self.ids):
            raise DataError(f"{len(self.ids)} ids ({len(self._rows)} different) for {len(tokens)} samples")
        self.tokens = tokens
        self.colours = colours

    @classmethod
    def extract(
        cls,
        backbone: Backbone,
        photos: Sequence[Photo],
        ids: Sequence[str],
        *,
        preprocess: Preprocessing | None = None,
        batch_size: int = 8,
        dtype: torch.dtype = torch.float16,
    ) -> MemoryTokens:
        """Run the backbone once over all photos.

        Args:
            backbone: gives the tokens.
            photos: one per id; all must come to one size, which is looked at before the first pass.
            ids: one per photo.
            preprocess: how photos are prepared; None = the backbone's own.
            batch_size: photos per pass.
            dtype: kept in this; float16 halves the memory and keeps three digits.

        Raises:
            DataError: if there are none or not one per id, if a photo cannot be used or has another size, or values
                do not fit float16.
            GridError: if the patch does not divide their own size and the policy is ``error``.
            ConfigError: if ``backbone`` is no Backbone.
        """
        if batch_size < 1:
            raise DataError(f"batch_size is {batch_size}; expected 1 or more")
        own = checked_backbone(backbone).preprocess
        prepare = preprocess or own
        _check(photos, ids, prepare)
        parts: list[Tokens] = []
        colours: list[Tensor] = []
        device = next(backbone.parameters()).device
        with torch.no_grad():
            batches = list(in_batches(range(len(photos)), batch_size))
            for batch in tqdm(batches, desc="tokens", unit="batch", disable=None):
                begin, images = batch[0], prepare([photos[i] for i in batch])
                colours.append(images.mean(dim=(2, 3)))
                tokens = backbone(images.to(device)).to("cpu")
                if not all(bool(x.isfinite().all()) for x in tokens.sequence):
                    raise DataError(f"tokens of photos {begin} ... are not finite; is the backbone sound?")
                if dtype == torch.float16 and any(x.abs().amax() > LARGEST_HALF for x in tokens.sequence):
                    raise DataError("token values exceed float16; extract with dtype=torch.bfloat16 or norm=True")
                parts.append(tokens.to(dtype=dtype))
        return cls(ids, Tokens.cat(parts), torch.cat(colours))

    def batch(self, ids: Sequence[str], patterns: Sequence[int] | None = None) -> Tokens:
        """Return float32 Tokens of these ids; the only pattern is 0, the photo as it is."""
        if patterns is not None and any(patterns):
            raise DataError(f"tokens in memory have pattern 0 only; asked for {sorted(set(patterns))}")
        return self.tokens[self.rows(ids)].to(dtype=torch.float32)

    def rows(self, ids: Sequence[str]) -> Tensor:
        """Return the row numbers of these ids."""
        return torch.tensor(rows_in(self._rows, ids))

    def record(self, ids: Sequence[str] | None = None) -> dict[str, Any]:
        """Return what tells the tokens of these ids from others; None = of all."""
        return _told(self.tokens if ids is None else self.tokens[self.rows(ids)])
