"""How images are prepared for a backbone: the record of it and the sizes that follow, without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, NamedTuple, Self

from dinoneck.checks import LARGEST_SIDE
from dinoneck.codec import normalize_fields
from dinoneck.errors import ConfigError
from dinoneck.images.bit_depth import check_bits
from dinoneck.patches import PadTo, PatchSize, Remainder, grid_of, patch_pair
from dinoneck.text import did_you_mean

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
RGB = tuple[float, ...]
Resize = Literal["stretch", "keep", "crop", "pad"]
Interpolation = Literal["bilinear", "bicubic", "area", "bilinear_aliased"]
Size = tuple[int, int]  # (height, width) in pixels
_REMAINDER: dict[Resize, Remainder] = {
    "stretch": "resize",
    "keep": "error",
    "crop": "crop",
    "pad": "pad",
}


class Placement(NamedTuple):
    """Where an image lies on its canvas.

    Attributes:
        resized: (height, width) that the image is resampled to.
        canvas: (height, width) of the prepared image, whole patches.
        corner: (top, left) of the resampled image on the canvas; negative where it is cut.
    """

    resized: Size
    canvas: Size
    corner: tuple[int, int]

    def shown_cells(self, cells: Sequence[int]) -> tuple[slice, slice]:
        """Return the rows and columns of a map of the canvas whose cells show any pixel of the image.

        Args:
            cells: (rows, cols) of the map; those of the patches, or any others.
        """
        shown = []
        for side in range(2):
            begin = max(self.corner[side], 0)
            end = min(self.corner[side] + self.resized[side], self.canvas[side])
            first_cell = begin * cells[side] // self.canvas[side]
            end_cell = -(-end * cells[side] // self.canvas[side])  # rounded up
            shown.append(slice(first_cell, end_cell))
        rows, cols = shown
        return rows, cols


def _fit_inside(image: Size, size: Size) -> Size:
    """The largest sides with the image's proportions that fit inside ``size``."""
    return _scaled(image, min(size[0] / image[0], size[1] / image[1]))


def _cover(image: Size, size: Size) -> Size:
    """The smallest sides with the image's proportions that cover ``size``."""
    return _scaled(image, max(size[0] / image[0], size[1] / image[1]))


def _scaled(image: Size, scale: float) -> Size:
    """The image's sides times a factor, 1 px or more."""
    height, width = image
    return max(1, round(height * scale)), max(1, round(width * scale))


@dataclass(frozen=True)
class ImageRecipe:
    """The record of :class:`dinoneck.data.Preprocessing`, which states what its fields mean.

    Raises:
        ConfigError: if a value is out of range.
    """

    patch_size: PatchSize = 16
    mean: RGB = IMAGENET_MEAN
    std: RGB = IMAGENET_STD
    size: Size | None = None
    resize: Resize = None  # type: ignore[assignment]  # set below
    pad_to: PadTo = "corner"
    interpolation: Interpolation = "bilinear"
    blur: int | None = None
    bits: int | None = None

    def __post_init__(self) -> None:
        patch_height, patch_width = patch_pair(self.patch_size)
        if max(patch_height, patch_width) > LARGEST_SIDE:
            raise ConfigError(
                f"patch_size is {self.patch_size!r}; expected {LARGEST_SIDE} px at most"
            )
        patch_size = patch_height if patch_height == patch_width else (patch_height, patch_width)
        size = self.size
        resize = self.resize
        if resize is None:
            resize = "keep" if size is None else "stretch"
        normalize_fields(
            self,
            patch_size=patch_size,
            size=(size, size) if isinstance(size, int) else size,
            resize=resize,
        )
        if not self.mean:
            raise ConfigError(
                f"mean is {self.mean}; expected one number per channel: three for R, G, B"
            )
        if len(self.std) != len(self.mean):
            raise ConfigError(
                f"std is {self.std}; expected one number per channel, as many as the mean "
                f"{self.mean} has"
            )
        if min(self.std) <= 0:
            raise ConfigError(f"std is {self.std}; expected positive numbers")
        if self.size is not None and not 1 <= min(self.size) <= max(self.size) <= LARGEST_SIDE:
            raise ConfigError(
                f"size is {size}; expected (height, width) in pixels, each 1 ... {LARGEST_SIDE}"
            )
        if self.blur is not None and (self.blur < 1 or self.blur % 2 == 0):
            raise ConfigError(
                f"blur is {self.blur}; expected an odd kernel size such as 5, or None"
            )
        check_bits(self.bits)
        if self.pad_to != "corner" and self.resize != "pad":
            raise ConfigError(
                f"pad_to is {self.pad_to!r}, and resize={self.resize!r} pads nothing; leave "
                "pad_to out"
            )

    @property
    def channels(self) -> int:
        """Channels of an image: as many as ``mean`` has numbers."""
        return len(self.mean)

    def placement(self, image_size: Size) -> Placement:
        """Return where an upright image of (height, width) pixels lies on its canvas of whole patches.

        Raises:
            GridError: if the patch leaves a remainder that ``keep`` refuses, or no whole patch is
                left.
        """
        size = self.size
        resize = self.resize
        if resize == "keep" and size is not None:
            size = _fit_inside(image_size, size)
            resize = "stretch"  # to whole patches

        # whole patches
        rows, cols = grid_of(size or image_size, self.patch_size, _REMAINDER[resize])
        patch_height, patch_width = patch_pair(self.patch_size)
        canvas = (rows * patch_height, cols * patch_width)

        # the image on them
        if resize in ("stretch", "keep"):
            resized = canvas
        elif size is None:
            resized = image_size
        elif resize == "pad":
            resized = _fit_inside(image_size, canvas)
        else:
            resized = _cover(image_size, canvas)
        if resize == "pad" and self.pad_to == "corner":
            return Placement(resized, canvas, corner=(0, 0))
        # half of the free pixels, towards 0; those that crop cuts are negative
        top = int((canvas[0] - resized[0]) / 2)
        left = int((canvas[1] - resized[1]) / 2)
        return Placement(resized, canvas, corner=(top, left))

    def prepared_size(self) -> Size | None:
        """Return (height, width) in pixels of every prepared image; None where it depends on the image.

        Raises:
            GridError: if no whole patch is left of the size.
        """
        if self.size is None or self.resize == "keep":
            return None
        return self.placement(self.size).canvas

    def changed(self, **changes: Any) -> Self:
        """Return a copy with these fields changed; None leaves a field as it is.

        A size turns ``keep`` without a size, the default there, into ``stretch``, the default with
        one.

        Raises:
            ConfigError: if there is no such field, or a value is out of range.
        """
        fields = self.__dataclass_fields__
        for name in changes:
            if name not in fields:
                raise ConfigError(
                    f"preprocessing has no field {name!r}.{did_you_mean(name, fields)} It has "
                    f"{', '.join(fields)}"
                )
        new_values = {name: value for name, value in changes.items() if value is not None}
        if "size" in new_values and self.size is None and self.resize == "keep":
            new_values.setdefault("resize", "stretch")
        return replace(self, **new_values)

    def record(self) -> dict[str, Any]:
        """Return the JSON-able record that checkpoints carry; ``bits`` only where they are set."""
        record = {}
        for key, value in asdict(self).items():
            record[key] = list(value) if isinstance(value, tuple) else value
        if self.bits is None:
            del record["bits"]  # files of 0.3 hold none, and are written as they were
        return record

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """Rebuild from :meth:`record`.

        Raises:
            ConfigError: if a field is unknown, missing or out of range.
        """
        fields = cls.__dataclass_fields__.keys()
        # "bits" is there only where they are set, see record()
        if not isinstance(record, Mapping) or record.keys() | {"bits"} != fields:
            raise ConfigError(
                f"a preprocessing record holds {list(cls.__dataclass_fields__)}; this one is "
                f"{record!r}"
            )
        return cls(**record)
