"""Sources of training tokens: anything with ``ids`` and ``batch(ids, views)``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeGuard, TypeVar, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from xxhash import xxh3_128

from dinoneck.backbones import weight_hashes
from dinoneck.backbones.backbone import Backbone, checked_backbone, plain_backbone
from dinoneck.checks import check_minimum
from dinoneck.devices import bytes_of
from dinoneck.dtypes import float_dtype
from dinoneck.errors import DataError
from dinoneck.images.bands import read_channels
from dinoneck.images.content import cached_hash_of
from dinoneck.images.decoding import ImageInput, read_image_size, to_uint8
from dinoneck.images.pixels import in_threads
from dinoneck.images.preprocessing import Preprocessing
from dinoneck.layers.inputs import Origin
from dinoneck.progress import progress
from dinoneck.text import counted, some_of
from dinoneck.tokens import Tokens

# of tokens in memory; half of float32, and three digits
MEMORY_DTYPE = torch.float16
Stored = tuple[Sequence[Tensor], Callable[[Sequence[Tensor]], Tokens]]
_Item = TypeVar("_Item")


def in_batches(items: Sequence[_Item], size: int) -> Iterator[Sequence[_Item]]:
    """Yield consecutive pieces of at most ``size`` items."""
    for begin in range(0, len(items), size):
        yield items[begin : begin + size]


class TokenSource(Protocol):
    """Tokens by image id and view.

    A class may have ``stored(ids, views)`` next to ``batch``. It returns a list of tensors as they
    are kept, and a function that makes the float32 Tokens of them on the device where they have
    arrived. Training then moves the narrower dtype, and a thread reads ahead of the step. So
    ``stored`` must not draw random numbers, and later calls must not change the tensors of an
    earlier one.

    A class may also have ``digest(ids)``: a text that is another one when the tokens of one of
    these images are others. A run that was interrupted then does not go on with other tokens than
    it began with.

    A class may have ``preprocess``, a :class:`dinoneck.data.Preprocessing` that tells how the images
    of its tokens were prepared. A head that is fitted on them is saved with it.
    """

    @property
    def ids(self) -> Sequence[str]:
        """All image ids."""
        ...

    def batch(self, ids: Sequence[str], views: Sequence[int] | None = None) -> Tokens:
        """Return the Tokens of these images, in this order; ``views`` picks an augmented view for each."""
        ...


class StoredSource(TokenSource, Protocol):
    """A source with tensors as they are kept, see :class:`TokenSource`."""

    def stored(self, ids: Sequence[str], views: Sequence[int] | None = None) -> Stored:
        """Return tensors, and what makes the Tokens of :meth:`batch` of them."""
        ...


def has_stored(source: TokenSource) -> TypeGuard[StoredSource]:
    """Return whether the class that defines ``batch`` also defines ``stored``.

    A subclass that overrides ``batch`` alone, to add noise for instance, inherits a ``stored`` that
    would bypass it.
    """
    for base in type(source).__mro__:
        if "batch" in vars(base):
            return "stored" in vars(base)
    return False


def digest_of(source: TokenSource, ids: Sequence[str]) -> str | None:
    """Return what identifies the tokens of these images; None for a source that cannot tell."""
    digest = getattr(source, "digest", None)
    if digest is None:
        return None
    return str(digest(ids))


def origin_of(source: TokenSource, inputs: Tokens | Tensor) -> Origin:
    """Return what a head is trained on by tokens of a source, as far as it is known.

    Args:
        source: of the tokens; the backbone of live tokens is described as it is now.
        inputs: of a sample: tokens, or images of live tokens.
    """
    images = _images_of(source)
    if isinstance(source, LiveTokens):
        backbone = cast("Backbone", plain_backbone(source.backbone))
        return Origin(
            name=backbone.name,
            source=weight_hashes.current_hashes(backbone.adapter).fingerprint,
            layers=backbone.layers,
            normed=backbone.norm,
            patch_size=backbone.patch_size,
            images=images,
            refuses_tokens=False,
        )
    if not isinstance(inputs, Tokens):
        return Origin(images=images, refuses_tokens=False)
    return Origin(
        name=getattr(source, "backbone_record", {}).get("name"),
        source=inputs.source or _fingerprint_at_extraction(source),
        layers=inputs.layers,
        normed=inputs.normed,
        patch_size=inputs.patch_size,
        images=images,
        refuses_tokens=False,
    )


def _fingerprint_at_extraction(source: TokenSource) -> str | None:
    """Return the fingerprint of the weights that made tokens in memory; None = unknown."""
    extraction = getattr(source, "_extraction", None)
    return extraction.fingerprint if isinstance(extraction, Extraction) else None


def _images_of(source: TokenSource) -> dict[str, Any] | None:
    """Return the record of how the images of a source were prepared; None = unknown."""
    preprocess = getattr(source, "preprocess", None)
    if not isinstance(preprocess, Preprocessing):
        return None
    record = getattr(source, "backbone_record", None)
    if record is not None and record.get("layers") is None:
        return None  # features of another program: nothing is known of their images
    return preprocess.record()


class _ById:
    """Samples by id, as they are: without augmented views."""

    def __init__(self, ids: Sequence[str], count: int) -> None:
        self.ids = tuple(ids)
        self._rows = _rows_by_id(self.ids, count)

    def rows(self, ids: Sequence[str], views: Sequence[int] | None = None) -> list[int]:
        """Return the row numbers of these ids.

        Raises:
            DataError: for an id or a view that is not there.
        """
        unknown = [image_id for image_id in ids if image_id not in self._rows]
        if unknown:
            raise DataError(
                f"{counted(len(unknown), 'id')} of {len(ids)} not in this source: "
                f"{some_of(map(repr, unknown), 3)}; the ids there are such as "
                f"{some_of(map(repr, self.ids), 3)}"
            )
        if views is not None and any(views):
            raise DataError(
                f"these tokens have view 0 only, the image as it is; asked for view {max(views)}"
            )
        return [self._rows[image_id] for image_id in ids]


def _rows_by_id(ids: Sequence[str], count: int) -> dict[str, int]:
    """Return id -> row; raise unless each of ``count`` images has another id."""
    if count == 0:
        raise DataError("there are no images; give one or more")
    if len(ids) != count:
        raise DataError(
            f"there are {counted(len(ids), 'id')} for {counted(count, 'image')}; expected one for "
            "each"
        )
    rows = {image_id: row for row, image_id in enumerate(ids)}
    repeated = [image_id for row, image_id in enumerate(ids) if rows[image_id] != row]
    if repeated:
        raise DataError(f"the id {repeated[0]!r} is given to several images; ids must differ")
    return rows


def _first_not_finite(tokens: Tokens) -> int | None:
    """Return the row of the first image with a token that is not finite, or None."""
    for layer in tokens.sequence:
        is_finite = layer.isfinite().flatten(1).all(dim=1)
        if not bool(is_finite.all()):
            return int(is_finite.int().argmin())
    return None


@dataclass(frozen=True)
class Extraction:
    """What tokens are made of, which is known before the backbone runs.

    Attributes:
        settings: of the weights, the layers, the images and the dtype, as text.
        images: one per row.
        fingerprint: of the weights, which tokens of a trainable backbone do not carry.
    """

    settings: str
    images: Sequence[ImageInput]
    fingerprint: str | None

    @classmethod
    def of(
        cls,
        backbone: Backbone,
        images: Sequence[ImageInput],
        preprocess: Preprocessing,
        dtype: torch.dtype = MEMORY_DTYPE,
    ) -> Extraction:
        """Return what the tokens of images are made of by a backbone with its present weights."""
        hashes = weight_hashes.current_hashes(backbone.adapter)
        weights = hashes.fingerprint or hashes.weights_sha256
        settings = [weights, backbone.layers, backbone.norm, preprocess.record(), dtype]
        return cls(repr(settings), images, hashes.fingerprint)

    def digest(self, rows: Sequence[int]) -> str:
        """Return one hash of the settings and of the images of these rows, in 32 hex digits."""
        total = xxh3_128()
        total.update(self.settings.encode())
        for row in rows:
            _add_image(total, self.images[row])
        return total.hexdigest()


def _check_one_size(images: Sequence[ImageInput], ids: Sequence[str]) -> None:
    """Raise if images differ in size."""
    id_of_size: dict[tuple[int, int], str] = {}
    for image, image_id in zip(images, ids, strict=True):
        id_of_size[read_image_size(image)] = image_id
    if len(id_of_size) > 1:
        examples = [
            f"{image_id!r} with {height}x{width} px"
            for (height, width), image_id in id_of_size.items()
        ]
        raise DataError(
            f"the images differ in size (height x width): {some_of(examples, 2)}; give one size "
            "(size=, --size)"
        )


class MemoryTokens(_ById):
    """Tokens of all images in memory, extracted once: the shortest way to train on a few hundred images.

    Args:
        ids: one per sample.
        tokens: Tokens of all samples.

    Attributes:
        preprocess: how images were prepared; None = unknown, as of tokens that were given.

    Raises:
        DataError: if lengths differ or an id occurs twice.
    """

    def __init__(self, ids: Sequence[str], tokens: Tokens) -> None:
        super().__init__(ids, len(tokens))
        self.tokens = tokens
        self.preprocess: Preprocessing | None = None
        self._extraction: Extraction | None = None

    @classmethod
    def extract(
        cls,
        backbone: Backbone,
        images: Sequence[ImageInput],
        ids: Sequence[str],
        *,
        preprocess: Preprocessing | None = None,
        batch_size: int = 8,
        dtype: torch.dtype | str = MEMORY_DTYPE,
    ) -> MemoryTokens:
        """Run the backbone once over all images.

        Args:
            backbone: gives the tokens.
            images: images, one per id; all must come to one size, which is looked at before the
                first pass.
            ids: one per image.
            preprocess: how images are prepared; None = the backbone's own.
            batch_size: images per pass.
            dtype: kept in this, of torch or by name; float16 halves the memory and keeps three digits.

        Raises:
            DataError: if there are none or not one per id, if an image cannot be used or has
                another size, or values do not fit float16.
            GridError: if the patch leaves a remainder of their own size that ``resize="keep"``
                refuses.
            ConfigError: if ``backbone`` is not a Backbone.
        """
        dtype = float_dtype(dtype)
        preprocess = preprocess or checked_backbone(backbone).preprocess
        images = list(images)
        ids = list(ids)
        _rows_by_id(ids, len(images))
        check_minimum(1, batch_size=batch_size)
        if preprocess.size:
            prepared_size = preprocess.prepared_size()
        else:
            _check_one_size(images, ids)
            prepared_size = preprocess.placement(read_image_size(images[0])).canvas
        if isinstance(backbone, Backbone) and prepared_size is not None:
            backbone.expect_images({prepared_size: len(images)})

        device = next(backbone.parameters()).device
        tokens_of_batches: list[Tokens] = []
        with progress(total=len(images), desc="tokens of images", unit="image") as bar:
            for rows in in_batches(range(len(images)), batch_size):
                batch_images = [images[row] for row in rows]
                with torch.no_grad():
                    tokens = backbone(preprocess(batch_images).to(device)).to("cpu")
                wrong_row = _first_not_finite(tokens)
                if wrong_row is not None:
                    raise DataError(
                        f"tokens of {ids[rows[wrong_row]]!r} are not finite; the weights of the "
                        "backbone may be damaged, load it again"
                    )
                narrowed = tokens.to(dtype=dtype)
                wrong_row = _first_not_finite(narrowed)
                if wrong_row is not None:
                    raise DataError(
                        f"tokens of {ids[rows[wrong_row]]!r} exceed "
                        f"{str(dtype).removeprefix('torch.')}; extract with dtype=torch.bfloat16, "
                        "or load the backbone with norm=True"
                    )
                tokens_of_batches.append(narrowed)
                bar.update(len(rows))
        extracted = cls(ids, Tokens.cat(tokens_of_batches))
        extracted.preprocess = preprocess
        unwrapped = plain_backbone(backbone)
        if isinstance(unwrapped, Backbone):
            extracted._extraction = Extraction.of(unwrapped, images, preprocess, dtype)
        return extracted

    def batch(self, ids: Sequence[str], views: Sequence[int] | None = None) -> Tokens:
        """Return float32 Tokens of these ids; view 0 is the image as it is."""
        tensors, make_tokens = self.stored(ids, views)
        return make_tokens(tensors)

    def stored(self, ids: Sequence[str], views: Sequence[int] | None = None) -> Stored:
        """Return what :meth:`batch` is made of, see :class:`TokenSource`."""
        tokens = self.tokens[self.rows(ids, views)]

        def make_tokens(moved: Sequence[Tensor]) -> Tokens:
            return replace(tokens, sequence=tuple(x.float() for x in moved))

        return tokens.sequence, make_tokens

    def digest(self, ids: Sequence[str]) -> str:
        """Return one hash of the tokens of these images, in 32 hex digits.

        Of tokens that :meth:`extract` made it is a hash of the images, the weights and the
        settings, since another device gives other last bits.

        Raises:
            DataError: if an id is unknown.
            OSError: if a file of an image cannot be read.
        """
        rows = self.rows(ids)
        if self._extraction is not None:
            return self._extraction.digest(rows)
        total = xxh3_128()
        for layer in self.tokens[rows].sequence:
            total.update(f"{layer.dtype} {tuple(layer.shape)}".encode())
            total.update(bytes_of(layer))
        return total.hexdigest()


class LiveTokens(_ById):
    """A token source that runs the backbone for every batch; LoRA weights and unfrozen blocks get gradients.

    :func:`dinoneck.training.fit` trains what is trainable in the backbone along with the head. For
    a frozen backbone take :class:`dinoneck.training.MemoryTokens` or a feature store: the same
    tokens, computed once.

    Args:
        backbone: with ``add_lora`` or ``unfreeze_last`` called before.
        images: the images, one per id; all must come to one size.
        ids: one per image; None = their numbers.
        preprocess: how images are prepared; None = the backbone's own.
        transform: applied to every training image each time, before the resize: a torchvision v2
            transform, or a function of a uint8 tensor (3, height, width) that returns an image. The
            global generators of Python, NumPy and torch follow the seed and the epoch of the run.
            Tasks with maps are refused, as it may move pixels. Validation and predictions take the
            images as they are.

    Raises:
        DataError: if ids and images differ in number, or an id occurs twice.
        ConfigError: if ``backbone`` is not a Backbone.

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
        images: Sequence[ImageInput],
        ids: Sequence[str] | None = None,
        preprocess: Preprocessing | None = None,
        transform: Callable[[Tensor], Any] | None = None,
    ) -> None:
        self.backbone = checked_backbone(backbone)
        self.transform = transform
        self.preprocess = preprocess or backbone.preprocess
        self._images = images if isinstance(images, Sequence) else list(images)
        if ids is None:
            ids = [str(number) for number in range(len(images))]
        super().__init__(ids, len(images))

    def images(self, ids: Sequence[str], *, transformed: bool = False) -> Tensor:
        """Return the prepared images (B, 3, H, W) float32 on the CPU; ``transformed`` applies the transform.

        Raises:
            DataError: if an id is unknown, or an image cannot be used.
        """
        images = [self._images[row] for row in self.rows(ids)]
        if not transformed or self.transform is None:
            return self.preprocess(images)
        read = partial(read_channels, channels=self.preprocess.channels, bits=self.preprocess.bits)
        transformed_images = []
        # one after another, as transforms draw from the global generators
        for pixels in in_threads(read, images):
            image = self.transform(to_uint8(pixels))
            _check_image(image)
            transformed_images.append(image)
        return self.preprocess(transformed_images)

    def batch(self, ids: Sequence[str], views: Sequence[int] | None = None) -> Tokens:
        """Return the Tokens of these images, with a graph where the backbone is trainable and gradients are on.

        Raises:
            DataError: if an id or a view is unknown, or an image cannot be used.
        """
        self.rows(ids, views)  # raises for unknown ids and views
        images = self.images(ids).to(next(self.backbone.parameters()).device)
        tokens: Tokens = self.backbone(images)
        return tokens

    def digest(self, ids: Sequence[str]) -> str:
        """Return one hash of these images, in 32 hex digits: of the bytes of files, or of pixels.

        Raises:
            DataError: if an id is unknown.
            OSError: if a file cannot be read.
        """
        total = xxh3_128()
        for row in self.rows(ids):
            _add_image(total, self._images[row])
        return total.hexdigest()


def _add_image(total: xxh3_128, image: ImageInput) -> None:
    """Add what identifies an image to a hash."""
    if isinstance(image, str | os.PathLike):
        total.update(cached_hash_of(Path(image)).encode())
    elif isinstance(image, Tensor):
        total.update(f"{image.dtype} {tuple(image.shape)}".encode())
        total.update(bytes_of(image))
    else:  # an array or a PIL image
        pixels = np.ascontiguousarray(image)
        total.update(f"{pixels.dtype} {pixels.shape}".encode())
        total.update(pixels.tobytes())


def _check_image(result: Any) -> None:
    """Raise unless a transform returned an image; a text would be read as a path."""
    if not isinstance(result, Tensor | np.ndarray | Image.Image):
        raise DataError(
            f"transform= returned {type(result).__name__}; expected an image: a tensor "
            "(3, height, width), an array or a PIL image"
        )
