"""Where training gets its tokens from: anything with ``ids`` and ``batch(ids, patterns)``."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from dinoneck.backbones.backbone import Backbone, checked_backbone
from dinoneck.data.photos import Photo, Preprocessing, photo_size
from dinoneck.errors import ConfigError, DataError
from dinoneck.grid import TokenGrid
from dinoneck.tensor_bytes import bytes_of
from dinoneck.tokens import Tokens
from dinoneck.training.targets import SourceIds

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


class Flips(Protocol):
    """What a source says of its augmentation patterns."""

    def __len__(self) -> int:
        """How many there are; 0 is the photo as it is."""
        ...

    def flips(self, i: int) -> tuple[bool, bool]:
        """Whether pattern i flips left and right, top and bottom."""
        ...


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


class LiveTokens:
    """A token source that runs the backbone for every batch; LoRA weights and unfrozen blocks get gradients.

    :func:`dinoneck.training.fit` trains what is trainable in the backbone along with the head. For a frozen backbone
    take :class:`dinoneck.training.MemoryTokens` or a feature store: the same tokens, computed once.

    Args:
        backbone: with ``add_lora`` or ``unfreeze_last`` called before.
        photos: one per id; all must come to one size.
        ids: one per photo; None = their numbers.
        preprocess: how photos are prepared; None = the backbone's own.

    Raises:
        DataError: if ids and photos differ in number, or an id stands twice.
        ConfigError: if ``backbone`` is no Backbone.

    Examples:
        >>> import torch
        >>> from dinoneck import load_backbone
        >>> backbone = load_backbone("dinoneck_tiny").unfreeze_last(1)
        >>> source = LiveTokens(backbone, torch.rand(3, 3, 32, 48), ["a", "b", "c"])
        >>> source.batch(["b", "a"]).sequence[0].requires_grad
        True
    """

    def __init__(
        self,
        backbone: Backbone,
        photos: Sequence[Photo],
        ids: Sequence[str] | None = None,
        preprocess: Preprocessing | None = None,
    ) -> None:
        self.backbone, self.photos = checked_backbone(backbone), photos
        self.ids = tuple(str(i) for i in range(len(photos))) if ids is None else tuple(ids)
        self.preprocess = preprocess or backbone.preprocess
        self._rows = {image_id: row for row, image_id in enumerate(self.ids)}
        if len(self._rows) != len(self.ids) or len(photos) != len(self.ids) or not self.ids:
            raise DataError(
                f"{len(self.ids)} ids ({len(self._rows)} different) for {len(photos)} photos; expected one id each"
            )

    def images(self, ids: Sequence[str]) -> Tensor:
        """Return the prepared photos (B, 3, H, W), float32, on the backbone's device.

        Raises:
            DataError: if an id is unknown or a photo cannot be used.
        """
        images = self.preprocess([self.photos[row] for row in rows_in(self._rows, ids)])
        return images.to(next(self.backbone.parameters()).device)

    def batch(self, ids: Sequence[str], patterns: Sequence[int] | None = None) -> Tokens:
        """Return the Tokens of these photos, with a graph where the backbone is trainable and gradients are on.

        Raises:
            DataError: as :meth:`images` does; for a pattern other than 0, the photo as it is.
        """
        if patterns is not None and any(patterns):
            raise DataError(f"live tokens have pattern 0 only; asked for {sorted(set(patterns))}")
        tokens: Tokens = self.backbone(self.images(ids))
        return tokens

    def record(self, ids: Sequence[str] | None = None) -> dict[str, Any]:
        """Return what tells this source from others: preparation, and the frozen part of the backbone."""
        frozen = hashlib.sha256()
        for name, parameter in sorted(self.backbone.named_parameters()):
            frozen.update(f"{name}|{parameter.dtype}|{tuple(parameter.shape)}|{parameter.requires_grad}|".encode())
            if not parameter.requires_grad:
                frozen.update(bytes_of(parameter))
        return {
            "kind": "live",
            "backbone": self.backbone.name,
            "layers": list(self.backbone.layers),
            "norm": self.backbone.norm,
            "inputs": self.preprocess.record(),
            "frozen_sha256": frozen.hexdigest(),
        }


def trained_backbone(source: object) -> Backbone | None:
    """Return the backbone that learns along with a head on this source; None if there is none."""
    if isinstance(source, LiveTokens) and not source.backbone.frozen:
        return source.backbone
    return None


class TableSource:
    """A source whose ids are a table's, in the table's order; tokens come from a source that holds at least these.

    An image's id in a feature store is its path without the suffix, relative to the folder that was extracted. A table
    may name its images with suffixes, and from further up (``train/a.jpg`` for ``a``): the same number of leading
    folders is left out of all names, as few as it takes.

    Args:
        source: tokens by its own ids, with ``patterns`` where it has several per photo.
        names: the table's ids: paths of photos.
        patterns: only the source's first patterns are used, this many; None = all.

    Attributes:
        own_ids: id of the table -> the source's own.
        dropped: the leading folders that are left out, as the first name has them; empty for none.

    Raises:
        DataError: if the source lacks a photo, or two names come to one of its ids.
        ConfigError: if the source has fewer patterns.
    """

    def __init__(self, source: TokenSource, names: Sequence[str], patterns: int | None = None) -> None:
        own = getattr(source, "patterns", None)
        count = 1 if own is None else len(own)
        if patterns is not None and patterns > count:
            raise ConfigError(
                f"{patterns} augmentation patterns are asked for (dataset.num_aug_patterns) and the store has "
                f"{count}; extract the photos with more, or ask for fewer"
            )
        self.source = source
        self.ids = tuple(names)
        self.patterns = None if own is None else FirstPatterns(own, patterns or count)
        found, folders = _matched(names, source.ids)
        self.own_ids = dict(zip(self.ids, found, strict=True))
        self.dropped = "/".join(PurePosixPath(self.ids[0]).parts[:folders]) if self.ids else ""

    def batch(self, ids: Sequence[str], patterns: Sequence[int] | None = None) -> Tokens:
        """Return the Tokens of these of the table's ids; without ``patterns`` pattern 0, the photo as it is."""
        unknown = [name for name in ids if name not in self.own_ids]
        if unknown:
            raise DataError(f"{len(unknown)} ids are not in this table, the first is {unknown[0]!r}")
        return self.source.batch([self.own_ids[name] for name in ids], [0] * len(ids) if patterns is None else patterns)

    def record(self, ids: Sequence[str] | None = None) -> dict[str, Any]:
        """Return what tells the tokens of these ids from others; None = of all."""
        return record_of(self.source, [self.own_ids[name] for name in (self.ids if ids is None else ids)])


class FirstPatterns:
    """The first few of a source's augmentation patterns.

    Args:
        patterns: all of them.
        count: how many are used.
    """

    def __init__(self, patterns: Flips, count: int) -> None:
        self._patterns, self._count = patterns, count

    def __len__(self) -> int:
        return self._count

    def flips(self, i: int) -> tuple[bool, bool]:
        """Return whether pattern i flips left and right, top and bottom."""
        return self._patterns.flips(i)


def _matched(names: Sequence[str], known: Sequence[str]) -> tuple[list[str], int]:
    """The source's id of each name, and how many leading folders of the names were left out."""
    spelling = SourceIds(known)
    paths = [PurePosixPath(name).parts for name in names]
    fewest = min((len(parts) for parts in paths), default=1)
    best: list[str] = []
    for dropped in range(max(fewest, 1)):
        pairs = [(name, spelling.find("/".join(parts[dropped:]))) for name, parts in zip(names, paths, strict=True)]
        missing = [name for name, found in pairs if found is None]
        if not missing:
            _refuse_doubles(pairs)
            return [found for _, found in pairs if found is not None], dropped
        best = missing if not best or len(missing) < len(best) else best
    shown = ", ".join(repr(own) for own in sorted(known)[:3])
    raise DataError(
        f"{len(best)} of {len(names)} photos of the table are not in the store, the first is {best[0]!r}. The store's "
        f"{len(known)} ids are paths without suffix, such as {shown or 'none'}. Extract the photos that are missing "
        "(dinoneck extract PHOTOS --out STORE, with the options that made it, adds them), or remove the rows"
    )


def _refuse_doubles(pairs: Sequence[tuple[str, str | None]]) -> None:
    first: dict[str | None, str] = {}
    for name, own in pairs:
        if (other := first.setdefault(own, name)) != name:
            raise DataError(f"the table's photos {other!r} and {name!r} are both {own!r} in the store; keep one row")
